"""Export to TorchScript. torch calls tracing deprecated; it stays exact, and loads without transformers."""

from __future__ import annotations

import importlib.metadata
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.export import TokenBatch
from deepseek_ops.jobs.export_checkpoint import Runner, SourceModel, step, tensors

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn
    from transformers import PreTrainedModel

MODEL_FILE = "model.pt"


def export_torchscript(source: SourceModel, traced: TokenBatch, target: Path) -> tuple[Runner, dict[str, JsonValue]]:
    """Write ``model.pt``: (input_ids, attention_mask) -> logits; return the runner of the file and what was made.

    Traced with ``grouped_mm``: the loop of ``eager`` would be unrolled for the experts that this one batch used, and
    ``batched_mm`` needs a copy of the weights per token.
    """
    import torch

    model = source.load("grouped_mm")
    with step("torchscript", "tracing the model"), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns of every branch on a shape; parity on other shapes judges them
        script = torch.jit.trace(_logits_only(model), tensors(traced), check_trace=False)
        script.save(str(target / MODEL_FILE))
    details: dict[str, JsonValue] = {
        "precision": "fp32",
        "experts": "grouped_mm",
        "inputs": ["input_ids", "attention_mask"],
        "exporter": f"torch {importlib.metadata.version('torch')}",
    }
    return torchscript_runner(target / MODEL_FILE), details


def torchscript_runner(path: Path) -> Runner:
    """Return the logits function of the file."""
    import torch

    with step("torchscript", "loading the file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.load(str(path), map_location="cpu").eval()

    def run(batch: TokenBatch) -> ndarray:
        with step("torchscript", f"running a batch of shape {batch.shape}"), torch.no_grad():
            logits: ndarray = script(*tensors(batch)).float().numpy()
        return logits

    return run


def _logits_only(model: PreTrainedModel) -> nn.Module:
    """Return a module whose output is the plain logits tensor: the model's own output class is no TorchScript type."""
    from torch import nn

    class LogitsOnly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits

    return LogitsOnly().eval()
