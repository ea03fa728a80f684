"""Loads a published model in a fresh process and says what its loss on a batch is.

The process that trained a model cannot vouch for it: it holds classes, buffers and caches that a server will not have.
Called as a module; it imports first and then waits for a request, so that it is ready when the export is.

Request, one JSON line on the standard input: ``{"folder", "batch": path of a safetensors file, "dtype", "device"}``.
Answer, one JSON line: ``{"loss": ..., "problem": ""}``, or a problem.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pydantic import JsonValue

from deepseek_ops.training.errors import PublishedModelError

if TYPE_CHECKING:
    from deepseek_ops.jobs.training_task import Batch

_TIMEOUT_SECONDS = 3600
_TENSORS = ("inputs", "targets", "positions")


class FreshProcess:
    """A process that has seen nothing of the training; it starts with ``with`` and never outlives it."""

    def __enter__(self) -> Self:
        ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
        environment = {name: value for name, value in os.environ.items() if name not in ranks}
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        self._child.kill()
        self._child.communicate()

    def loss(self, folder: Path, batch: Batch, dtype: str) -> float:
        """Return the mean loss of the model below ``folder`` on the batch. Raises PublishedModelError."""
        from safetensors.torch import save_file

        path = folder.with_name(f"{folder.name}.batch.safetensors")
        given = {name: getattr(batch, name) for name in _TENSORS}
        save_file({name: value.contiguous().cpu() for name, value in given.items() if value is not None}, path)
        request = {"folder": str(folder), "batch": str(path), "dtype": dtype, "device": str(batch.inputs.device)}
        try:
            said, errors = self._child.communicate(json.dumps(request) + "\n", timeout=_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise PublishedModelError(str(folder), f"it did not load within {_TIMEOUT_SECONDS} s") from error
        finally:
            path.unlink()
        if self._child.returncode or not said.strip():
            last = (errors.strip().splitlines() or [f"exit status {self._child.returncode}"])[-1]
            raise PublishedModelError(str(folder), f"it does not load in a fresh process: {last[:500]}")
        answer = json.loads(said.splitlines()[-1])
        if answer["problem"]:
            raise PublishedModelError(str(folder), str(answer["problem"]))
        return float(answer["loss"])


def main() -> None:
    """Answer one request."""
    import transformers  # noqa: F401  (the time-consuming part, before there is anything to load)
    from transformers import AutoModelForCausalLM  # noqa: F401

    line = sys.stdin.readline()
    if line.strip():
        sys.stdout.write(json.dumps(_answer(json.loads(line))) + "\n")


def _answer(request: dict[str, str]) -> dict[str, JsonValue]:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from deepseek_ops.jobs.training_model import use_grouped_experts
    from deepseek_ops.jobs.training_task import Batch, mean_loss

    dtype = torch.bfloat16 if request["dtype"] == "bf16" else torch.float32
    model, report = AutoModelForCausalLM.from_pretrained(
        request["folder"], dtype=dtype, output_loading_info=True, local_files_only=True, use_safetensors=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            names = ", ".join(sorted(str(key) for key in report[kind])[:3])
            return {"loss": None, "problem": f"{kind.replace('_', ' ')} on loading: {names}"}
    use_grouped_experts(model)
    given = load_file(request["batch"], device=request["device"])
    batch = Batch(given["inputs"], given["targets"], 1.0, given.get("positions"))
    return {"loss": repr(mean_loss(model.to(request["device"]).eval(), batch)), "problem": ""}


if __name__ == "__main__":
    main()
