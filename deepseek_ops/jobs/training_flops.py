"""What a token costs a model in arithmetic, and what a device could do: together the utilisation (MFU).

Counted as in the PaLM paper (arXiv:2204.02311, appendix B): two operations per active parameter and token forward,
twice that backward, plus the scores and sums of attention. Looking a token up in the embedding costs nothing, and
recomputed activations are no useful work. A mixture of experts is active with its top k.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from deepseek_ops.training.devices import device_named

if TYPE_CHECKING:
    import torch

PEAK_VARIABLE = "DEEPSEEK_OPS_PEAK_TFLOPS"
"""Dense peak of one device in TFLOP/s for the run's precision, where the table has none, or for a CPU."""
_HELD_BY_ROUTER = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")


def flops_per_token(model: torch.nn.Module, *, length: int) -> float:
    """Return the operations of training on one token, forward and backward.

    Args:
        model: A transformers model, wrapped by peft or not, sharded or not: its shape is read from its configuration,
            so that shards of ZeRO-3 and of expert parallelism count in full.
        length: Tokens of a sample: what a token attends to, as the paper counts it.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    active = _active_parameters(base)
    trained, total = _parameters(model)
    # Frozen weights have no gradient of their own: only that of their input, as adapters need it.
    weights = 6 * active if trained >= total else 4 * active + 2 * min(trained, active)
    return weights + _attention(base.config, length)


def peak_flops(device: str, precision: str) -> float | None:
    """Return the dense peak of a device in FLOP/s; None where nobody has said one, as for CPUs."""
    told = os.environ.get(PEAK_VARIABLE)
    if told:
        return float(told) * 1e12
    if not device.startswith("cuda"):
        return None
    import torch

    found = device_named(torch.cuda.get_device_name(device))
    return None if found is None else found.peak_tflops(precision) * 1e12


def _active_parameters(model: torch.nn.Module) -> float:
    """Return the weights that a token is multiplied with."""
    import torch

    with torch.device("meta"):
        shape = type(model)(model.config)
    experts = float(getattr(model.config, "n_routed_experts", None) or getattr(model.config, "num_experts", 0) or 0)
    share = float(getattr(model.config, "num_experts_per_tok", None) or 0) / experts if experts else 1.0
    active = 0.0
    for module in shape.modules():
        routed = hasattr(module, "num_experts") and hasattr(module, "down_proj")
        for name, parameter in module.named_parameters(recurse=False):
            active += parameter.numel() * (share if routed and name in _HELD_BY_ROUTER else 1.0)
    return active - float(shape.get_input_embeddings().weight.numel())  # a tied one was counted as output too


def _parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Return how many weights are trained, and how many there are."""
    sizes = [(int(getattr(p, "ds_numel", p.numel())), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def _attention(config: object, length: int) -> float:
    def value(*names: str) -> float:
        return float(next((found for name in names if (found := getattr(config, name, None))), 0))

    heads = value("num_attention_heads")
    plain = value("head_dim") or value("hidden_size") / max(heads, 1)
    rotated = value("qk_nope_head_dim") + value("qk_rope_head_dim")
    width = (rotated or plain) + (value("v_head_dim") or plain)
    return 6 * value("num_hidden_layers") * heads * width * length
