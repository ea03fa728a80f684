"""Low-rank adapters: put on by peft, merged into the base's weights when the model is published.

Only the adapters are trained, so optimiser and gradients are small; the router's bias stays as it is too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_ops.core.records import LoraPlan
from deepseek_ops.training.errors import UnsupportedTrainingError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ATTENTION = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "q_a_proj",
    "q_b_proj",
    "kv_a_proj_with_mqa",
    "kv_b_proj",
)
"""Linear layers of attention: of Llama and Qwen2, then of DeepSeek's latent attention."""
ADAPTER = "adapter"
"""Folder of the published model that holds the adapters alone, in peft's layout."""
_NAME = "default"
_PREFIX = "base_model.model."


def add_adapters(model: PreTrainedModel, lora: LoraPlan) -> PreTrainedModel:
    """Return the model with adapters that start as zero; everything else is frozen.

    Raises UnsupportedTrainingError when a target names no linear layer of the model.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(_targets(model, lora)),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def merged_state(state: Mapping[str, torch.Tensor], lora: LoraPlan) -> dict[str, torch.Tensor]:
    """Return the base's weights with the adapters in them, under the base's names.

    ``W + alpha / rank * B A``, computed in float32 and rounded once, to the type of ``W``.
    """
    import torch

    merged: dict[str, torch.Tensor] = {}
    for name, weight in state.items():
        if ".lora_" in name:
            continue
        layer = name.removesuffix(".base_layer.weight")
        down, up = (state.get(f"{layer}.lora_{side}.{_NAME}.weight") for side in "AB")
        if layer != name and down is not None and up is not None:
            change = torch.matmul(up.float(), down.float()) * (lora.alpha / lora.rank)
            weight = (weight.float() + change.to(weight.device)).to(weight.dtype)  # noqa: PLW2901
        merged[name.removeprefix(_PREFIX).replace(".base_layer.", ".")] = weight
    return merged


def save_adapters(model: PreTrainedModel, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write the adapters alone below ``folder``: what peft loads onto the same base."""
    adapters = {name: weight for name, weight in state.items() if ".lora_" in name}
    # peft would ask a hub whether the base's vocabulary was resized
    model.save_pretrained(folder / ADAPTER, state_dict=adapters, save_embedding_layers=False)
    (folder / ADAPTER / "README.md").unlink(missing_ok=True)  # peft's form of a model card, with nothing filled in


def _targets(model: PreTrainedModel, lora: LoraPlan) -> tuple[str, ...]:
    import torch

    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    wanted = lora.targets or ATTENTION
    found = tuple(name for name in wanted if any(layer == name or layer.endswith(f".{name}") for layer in linear))
    missing = sorted(set(lora.targets) - set(found))
    if missing or not found:
        known = ", ".join(sorted({layer.rpartition(".")[2] for layer in linear}))
        raise UnsupportedTrainingError(
            "training.lora.targets",
            missing or list(wanted),
            "the model has no linear layer of this name",
            f"use some of {known}; fused experts are no linear layers",
        )
    return found
