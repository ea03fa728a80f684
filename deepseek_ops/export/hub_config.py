"""The config.json that leaves the house.

A DeepSeek-V3 config that was made in transformers 5 lacks the two keys that name its router. transformers does not
need them; vLLM then refuses the weights, or with only one of them serves a wrong model without an error (2.8 % of the
best tokens agreed instead of 87.5 %).
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

ROUTER_DEFAULTS: Mapping[str, Mapping[str, JsonValue]] = {
    "deepseek_v3": {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
}
"""Model type -> keys that other engines need; the values are what the transformers class computes."""


def completed_config(config: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the config with the keys that serving engines need; a value that is there is never replaced."""
    missing = ROUTER_DEFAULTS.get(str(config.get("model_type", "")), {})
    return {**config, **{key: value for key, value in missing.items() if config.get(key) is None}}
