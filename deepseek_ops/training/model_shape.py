"""What a transformers config weighs, by formula: parameters in all, per token, and per layer.

Counts are those of the classes in transformers (without layers for multi-token prediction, which they do not make), to
the last parameter; a test compares them with models made on torch's meta device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from deepseek_ops.training.errors import UnsupportedTrainingError

LATENT = ("deepseek_v2", "deepseek_v3")
GROUPED = ("qwen2", "llama", "mistral")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Numbers of parameters, and the widths that activations have."""

    total: int
    active: int
    """Of them, what one token uses: the embedding and the top k experts among them, as models are advertised."""
    multiplied: int
    """Of those, what one token is multiplied with: looking it up in the embedding costs nothing."""
    experts: int
    """Parameters of routed experts, all layers."""
    largest_layer: int
    """Parameters of the largest block that ZeRO-3 gathers as a whole: a layer of experts, or the embedding."""
    layers: int
    hidden: int
    vocabulary: int
    activation_width: int
    """Numbers kept per token and layer for the backward pass, on average over layers."""
    widest_layer: int
    """The same for the layer that keeps the most."""
    attention_width: int
    """Heads times (query + value dimension): arithmetic per pair of tokens and layer."""


@dataclass(frozen=True, slots=True)
class _Block:
    parameters: int
    active: int
    experts: int
    kept: int


class _Config:
    """Typed reads of a config's numbers."""

    def __init__(self, model: Mapping[str, JsonValue]) -> None:
        self._model = model

    def number(self, key: str, default: int | None = None) -> int:
        value = self._model.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if default is None:
            raise UnsupportedTrainingError(f"model.{key}", value, "the estimate needs this number", "add it")
        return default

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self._model.get(key, default)
        return value if isinstance(value, bool) else default

    def sparse_layers(self) -> list[bool]:
        """Return which layers have experts."""
        layers = self.number("num_hidden_layers")
        kinds = self._model.get("mlp_layer_types")
        if isinstance(kinds, list):
            return [kind == "sparse" for kind in kinds]
        dense = self.number("first_k_dense_replace", 0) if self.number("n_routed_experts", 0) else layers
        return [layer >= dense for layer in range(layers)]


def model_shape(model: Mapping[str, JsonValue]) -> ModelShape:
    """Return the shape of a model. Raises UnsupportedTrainingError for families the formulas do not cover."""
    family = str(model.get("model_type"))
    if family not in (*LATENT, *GROUPED):
        raise UnsupportedTrainingError(
            "model_type", family, "its size is not known by formula", "use one of " + ", ".join((*LATENT, *GROUPED))
        )
    config = _Config(model)
    hidden, vocabulary = config.number("hidden_size"), config.number("vocab_size")
    attention, width = _latent(config) if family in LATENT else _grouped(config, family)
    sparse = config.sparse_layers() if family in LATENT else [False] * config.number("num_hidden_layers")
    blocks = [_experts(config) if kind else _dense(config, family) for kind in sparse]
    around = attention.parameters + 2 * hidden  # and the two norms of a layer
    tied = config.flag("tie_word_embeddings")
    ends = vocabulary * hidden * (1 if tied else 2) + hidden
    per_layer = [attention.kept + block.kept + 4 * hidden for block in blocks]
    active = sum(around + block.active for block in blocks) + ends
    return ModelShape(
        total=sum(around + block.parameters for block in blocks) + ends,
        active=active,
        multiplied=active - (0 if tied else vocabulary * hidden),
        experts=sum(block.experts for block in blocks),
        largest_layer=max(vocabulary * hidden, *(block.parameters for block in blocks)),
        layers=len(blocks),
        hidden=hidden,
        vocabulary=vocabulary,
        activation_width=round(sum(per_layer) / len(per_layer)),
        widest_layer=max(per_layer),
        attention_width=width,
    )


def _latent(config: _Config) -> tuple[_Block, int]:
    """Return multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1) and its attention width."""
    hidden, heads = config.number("hidden_size"), config.number("num_attention_heads")
    rope, nope = config.number("qk_rope_head_dim"), config.number("qk_nope_head_dim")
    value, compressed = config.number("v_head_dim"), config.number("kv_lora_rank")
    query = config.number("q_lora_rank", 0)
    queries = heads * (nope + rope)
    parameters = query * (hidden + 1 + queries) if query else hidden * queries
    parameters += hidden * (compressed + rope) + compressed + compressed * heads * (nope + value)
    parameters += heads * value * hidden
    if config.flag("attention_bias"):
        parameters += query + compressed + rope + hidden
    kept = 2 * query + 2 * compressed + rope + 3 * queries + 2 * heads * (nope + value) + 2 * heads * value
    return _Block(parameters, parameters, 0, kept), heads * (nope + rope + value)


def _grouped(config: _Config, family: str) -> tuple[_Block, int]:
    hidden, heads = config.number("hidden_size"), config.number("num_attention_heads")
    groups = config.number("num_key_value_heads", heads)
    size = config.number("head_dim", hidden // heads)
    parameters = hidden * size * (heads + 2 * groups) + heads * size * hidden
    if family == "qwen2":
        parameters += size * (heads + 2 * groups)
    elif config.flag("attention_bias"):
        parameters += size * (heads + 2 * groups) + hidden
    kept = size * (4 * heads + 3 * groups)
    return _Block(parameters, parameters, 0, kept), 2 * heads * size


def _dense(config: _Config, family: str) -> _Block:
    hidden, inner = config.number("hidden_size"), config.number("intermediate_size")
    parameters = 3 * hidden * inner
    if family == "llama" and config.flag("mlp_bias"):
        parameters += 2 * inner + hidden
    return _Block(parameters, parameters, 0, 4 * inner)


def _experts(config: _Config) -> _Block:
    hidden, inner = config.number("hidden_size"), config.number("moe_intermediate_size")
    count, chosen = config.number("n_routed_experts"), config.number("num_experts_per_tok")
    shared = config.number("n_shared_experts", 0)
    one = 3 * hidden * inner
    always = shared * one + count * hidden
    kept = chosen * (4 * inner + 3 * hidden) + 4 * shared * inner + 2 * count
    return _Block(always + count * one, always + chosen * one, count * one, kept)
