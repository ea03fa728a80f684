"""The part of a model server that clients may reach."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping

Scope = MutableMapping[str, object]
Receive = Callable[[], Awaitable[MutableMapping[str, object]]]
Send = Callable[[MutableMapping[str, object]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ANSWERING = frozenset({"/v1/completions", "/v1/chat/completions", "/v1/responses"})


class PinnedRoutes:
    """ASGI: lets health checks and requests for an answer through to ``app`` and counts the latter.

    ``/v1/models`` names the one model there is; the engine's own answer lists the machine's hub cache.
    """

    def __init__(self, app: App, model: str) -> None:
        self._app = app
        self._model = model
        self.num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            method, path = scope["method"], scope["path"]
            if method == "GET" and path == "/v1/models":
                listed = {
                    "object": "list",
                    "data": [{"id": self._model, "object": "model", "owned_by": "deepseek-ops"}],
                }
                await _answer(send, 200, listed)
                return
            if method == "POST" and path in ANSWERING:
                self.num_requests += 1
            elif (method, path) != ("GET", "/health"):
                await _answer(send, 404, {"error": {"message": f"there is no {method} {path} here", "code": 404}})
                return
        await self._app(scope, receive, send)


async def _answer(send: Send, status: int, body: object) -> None:
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
