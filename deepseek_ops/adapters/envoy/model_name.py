"""The filter that gives a backend the model name it expects, whatever name the client asked for.

Clients ask an endpoint for one name; two versions behind it are two names to their engines. The filter sits in the
version's cluster and not in the listener, so that a mirrored request is renamed for its own backend too.
"""

from __future__ import annotations

import json

from pydantic import JsonValue

_TYPE = "type.googleapis.com/envoy.extensions.filters.http."

_REWRITE = """
local NAME = %s

-- Bounds of the value of the top-level key "model"; a "model" inside a message or a tool is not it.
local function bounds(text)
  local depth, at = 0, 1
  while true do
    at = text:find('["{}%%[%%]]', at)
    if not at then return nil end
    local sign = text:sub(at, at)
    if sign == '"' then
      local stop = at + 1
      while true do
        stop = text:find('["\\\\]', stop)
        if not stop then return nil end
        if text:sub(stop, stop) == '"' then break end
        stop = stop + 2
      end
      if depth == 1 and text:sub(at, stop) == '"model"' then
        local first, last = text:match('^%%s*:%%s*()"[^"]*"()', stop + 1)
        if first then return first, last end
      end
      at = stop + 1
    else
      depth = depth + ((sign == '{' or sign == '[') and 1 or -1)
      at = at + 1
    end
  end
end

function envoy_on_request(handle)
  local kind = handle:headers():get('content-type')
  if not kind or not kind:find('json', 1, true) then return end
  local body = handle:body()
  if not body then return end
  local text = body:getBytes(0, body:length())
  local first, last = bounds(text)
  if not first then return end
  local size = body:setBytes(text:sub(1, first - 1) .. NAME .. text:sub(last))
  handle:headers():replace('content-length', size)
end
"""


def model_filters(model: str) -> list[JsonValue]:
    """Return a cluster's HTTP filters that write ``model`` into JSON requests; other requests pass as they are."""
    return [
        {
            "name": "envoy.filters.http.lua",
            "typed_config": {
                "@type": _TYPE + "lua.v3.Lua",
                "default_source_code": {"inline_string": _REWRITE % _lua_text(json.dumps(model))},
            },
        },
        {
            "name": "envoy.filters.http.upstream_codec",
            "typed_config": {"@type": _TYPE + "upstream_codec.v3.UpstreamCodec"},
        },
    ]


def _lua_text(text: str) -> str:
    """Return ASCII ``text`` as a Lua string literal; every character by its number, so none can end it."""
    return '"' + "".join(f"\\{ord(sign):03d}" for sign in text) + '"'
