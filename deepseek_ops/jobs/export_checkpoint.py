"""The checkpoint as an export job sees it: its files, its model in memory, and the numbers an export must reproduce."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.export import (
    BrokenCheckpointError,
    ExportFailedError,
    ExportSample,
    Format,
    Measured,
    SampleError,
    TokenBatch,
    completed_config,
    plan_batches,
)

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor
    from transformers import PreTrainedModel

Experts = Literal["eager", "grouped_mm", "batched_mm"]
Runner = Callable[[TokenBatch], "ndarray"]
"""Logits of a batch, shape (rows, length, vocabulary), any float type."""

CONFIG_FILE = "config.json"
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""Small files that travel with every format, so that each folder can be used on its own."""


@dataclass(frozen=True, slots=True)
class SourceModel:
    """A model folder in the hub layout."""

    folder: Path
    config: dict[str, JsonValue]

    @classmethod
    def open(cls, folder: Path) -> SourceModel:
        """Return the model below ``folder``. Raises BrokenCheckpointError when it has no readable config.json."""
        try:
            config = json.loads((folder / CONFIG_FILE).read_bytes())
        except (OSError, ValueError) as error:
            raise BrokenCheckpointError(CONFIG_FILE, str(error)) from error
        if not isinstance(config, dict) or "model_type" not in config:
            raise BrokenCheckpointError(CONFIG_FILE, "it names no model_type")
        return cls(folder, config)

    @property
    def max_length(self) -> int:
        """Longest sequence the model knows positions for."""
        return int(str(self.config.get("max_position_embeddings", 2048)))

    def load(self, experts: Experts, *, half: bool = False) -> PreTrainedModel:
        """Return the model in evaluation mode, float32 or float16. Raises BrokenCheckpointError, ExportFailedError."""
        return load_model(self.folder, experts, half=half)

    def write_companions(self, target: Path) -> None:
        """Write the completed config.json and the small files that travel with every format."""
        text = json.dumps(completed_config(self.config), indent=2, sort_keys=True)
        (target / CONFIG_FILE).write_text(text + "\n")
        for name in COMPANIONS:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, target / name)

    def batches(self, sample: ExportSample) -> tuple[TokenBatch, list[TokenBatch]]:
        """Return the batch to trace with and the held-out ones. Raises SampleError, BrokenCheckpointError."""
        rows = sample.token_ids or self._encode(sample.texts)
        pad = self.config.get("pad_token_id")
        return plan_batches(
            rows,
            pad=pad if isinstance(pad, int) else 0,
            vocab_size=int(str(self.config.get("vocab_size", 0))),
            max_length=self.max_length,
        )

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        from tokenizers import Tokenizer

        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise SampleError("the model has no tokenizer.json, so texts cannot be used")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise BrokenCheckpointError(path.name, str(error)) from error
        return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def load_model(folder: Path, experts: Experts, *, half: bool = False) -> PreTrainedModel:
    """Return the model of a hub folder on the CPU, every weight from its files. Raises BrokenCheckpointError."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.float16 if half else torch.float32
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BrokenCheckpointError(CONFIG_FILE, str(error)) from error
    for kind in ("missing_keys", "mismatched_keys"):  # transformers fills these with random numbers and goes on
        if report.get(kind):
            names = ", ".join(sorted(str(key) for key in report[kind])[:3])
            raise BrokenCheckpointError("model.safetensors", f"{kind.replace('_', ' ')}: {names}")
    if any(hasattr(module, "gate_up_proj") and hasattr(module, "num_experts") for module in model.modules()):
        model.set_experts_implementation(experts)
    model.config.use_cache = False
    return model.eval()


def tensors(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Return input_ids and attention_mask, int64, shape (rows, length)."""
    import torch

    return torch.tensor(batch.ids, dtype=torch.int64), torch.tensor(batch.mask, dtype=torch.int64)


def model_runner(model: PreTrainedModel) -> Runner:
    """Return the logits function of a model in memory."""
    import torch

    def run(batch: TokenBatch) -> ndarray:
        ids, mask = tensors(batch)
        with torch.inference_mode():
            logits: ndarray = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().numpy()
        return logits

    return run


class Reference:
    """The checkpoint's own logits on the held-out batches, computed once; what padding computes does not count."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[TokenBatch]) -> None:
        run = model_runner(model)
        self._batches = list(batches)
        self._logits = [self._counted(batch, run(batch)) for batch in self._batches]

    def within(self, max_batch: int, max_length: int) -> Reference:
        """Return the part of the reference that a runtime with these limits can run."""
        part = copy.copy(self)
        fitting = [at for at, batch in enumerate(self._batches) if _fits(batch, max_batch, max_length)]
        part._batches = [self._batches[at] for at in fitting]
        part._logits = [self._logits[at] for at in fitting]
        return part

    def compare(self, run: Runner) -> Measured:
        """Return how far the logits of ``run`` are from the checkpoint's."""
        import numpy as np

        errors, largest, same = [np.zeros(0)], 0.0, 0
        for batch, expected in zip(self._batches, self._logits, strict=True):
            actual = self._counted(batch, run(batch))
            errors.append(np.abs(expected - actual).max(-1))  # numpy's max keeps a NaN, Python's may drop it
            largest = max(largest, float(np.abs(expected).max()))
            same += int((expected.argmax(-1) == actual.argmax(-1)).sum())
        by_token = np.concatenate(errors)
        if not len(by_token):
            return Measured(0.0, 0.0, 0.0, 0.0, 0)
        return Measured(
            max_abs_error=float(by_token.max()),
            p99_abs_error=float(np.quantile(by_token, 0.99, method="higher")),
            max_abs_logit=largest,
            top1_agreement=same / len(by_token),
            num_tokens=len(by_token),
        )

    @staticmethod
    def _counted(batch: TokenBatch, logits: ndarray) -> ndarray:
        import numpy as np

        counted: ndarray = logits[np.array(batch.mask, dtype=bool)].astype(np.float32)
        return counted


def _fits(batch: TokenBatch, max_batch: int, max_length: int) -> bool:
    rows, length = batch.shape
    return rows <= max_batch and length <= max_length


@contextlib.contextmanager
def step(export_format: Format, doing: str) -> Iterator[None]:
    """Turn what an exporter or a runtime raises inside the block into an ExportFailedError that says where."""
    try:
        yield
    except (DeepSeekOpsError, MemoryError):
        raise
    except Exception as error:
        if "DefaultCPUAllocator" in str(error):  # torch's out-of-memory is a bare RuntimeError: another try can help
            raise
        lines = str(error).strip().splitlines() or [""]
        # torch says first what it was doing and last what went wrong, with the code between.
        said = lines[0][:300] if len(lines) == 1 else f"{lines[0][:300]} ... {lines[-1].strip()[:300]}"
        raise ExportFailedError(export_format, doing, f"{type(error).__name__}: {said}") from error


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Hold the garbage collector off: tracing makes millions of short-lived objects that each pass walks again.

    Saves a fifth of the CPU time of an ONNX export; what tracing leaves behind is collected at the end.
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
