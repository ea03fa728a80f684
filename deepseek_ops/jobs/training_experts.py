"""Expert parallelism: each rank holds some experts of every layer, and publishing needs all of them in one place.

DeepSpeed's AutoEP puts layers of its own in place of the model's: experts as ``w1``, ``w3`` (gate, up) and ``w2``
(down) of this rank's experts only, the router one level deeper. Here they become the model's own tensors again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_LAYER_MARK = "_is_autoep_layer"


def is_expert_parallel(model: torch.nn.Module) -> bool:
    """Return whether the model's experts are spread over ranks."""
    return any(getattr(module, _LAYER_MARK, False) for module in model.modules())


def gathered_experts(model: torch.nn.Module, *, keep: bool) -> dict[str, torch.Tensor]:
    """Return the weights under the names and shapes of transformers, on the CPU; empty unless ``keep``.

    Every rank calls it: experts are gathered layer by layer, so no rank needs room for more than one layer's.
    """
    layers = {name: module for name, module in model.named_modules() if getattr(module, _LAYER_MARK, False)}
    inside = tuple(f"{name}.{part}." for name in layers for part in ("experts", "router", "gate"))
    state: dict[str, torch.Tensor] = {}
    if keep:
        state = {
            name: value.detach().cpu() for name, value in model.state_dict().items() if not name.startswith(inside)
        }
    for name, layer in layers.items():
        gate, down, up = (_all_experts(getattr(layer.experts, part), layer) for part in ("w1", "w2", "w3"))
        if keep:
            state |= _as_transformers(name, layer, gate, up, down)
    return state


def _as_transformers(
    name: str, layer: torch.nn.Module, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> dict[str, torch.Tensor]:
    import torch

    router = layer.router
    state = {
        f"{name}.experts.gate_up_proj": torch.cat([gate, up], dim=1),
        f"{name}.experts.down_proj": down,
        f"{name}.gate.weight": router.gate.weight.detach().cpu(),
    }
    if router.e_score_correction_bias is not None:
        state[f"{name}.gate.e_score_correction_bias"] = router.e_score_correction_bias.detach().cpu()
    return state


def _all_experts(own: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    import torch
    import torch.distributed as dist

    parts = [torch.empty_like(own) for _ in range(layer.ep_size)]
    if layer.ep_size > 1:
        dist.all_gather(parts, own.detach().contiguous(), group=layer.ep_group)
    else:
        parts = [own.detach()]
    return torch.cat([part.cpu() for part in parts])
