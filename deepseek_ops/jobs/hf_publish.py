"""From what a script's Trainer holds to the folder that we publish: whole weights, tokenizer, checked by loading."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_ops.jobs.training_model import ROUTER_KEYS
from deepseek_ops.jobs.training_publish import TOLERANCE, WINDOW_KEY
from deepseek_ops.jobs.training_task import Batch, mean_loss
from deepseek_ops.jobs.training_verify import FreshProcess
from deepseek_ops.training.errors import PublishedModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, Trainer

ADAPTER = "adapter"
_UNSAFE = ("training_args.bin",)
"""Pickles that the Trainer writes beside a model."""


def publish(trainer: Trainer, sample: torch.Tensor, folder: Path, *, rank: int, tokenizer: Path | None) -> None:
    """Write the model below ``folder`` on rank 0, adapters merged. Every rank calls it.

    Args:
        trainer: What trained.
        sample: Token ids, shape (samples, length): the model that is loaded again must have the same loss on them.
        folder: Replaced if it is there.
        rank: Of this process.
        tokenizer: Folder of the dataset's tokenizer, for scripts whose Trainer has none.

    Raises:
        PublishedModelError: The folder does not load, or is another model.
    """
    model = trainer.model
    model.eval()
    batch = Batch(sample[:, :-1], sample[:, 1:], 1.0)
    expected = mean_loss(model, batch)  # by every rank: sharded weights are gathered for it
    if rank == 0 and folder.exists():
        shutil.rmtree(folder)
    _write(trainer, folder, rank=rank)
    if rank != 0:
        return
    _complete(trainer, folder, tokenizer, length=sample.shape[1])
    precision = "bf16" if "bfloat16" in str(json.loads((folder / "config.json").read_text()).get("dtype")) else "fp32"
    with FreshProcess() as fresh:
        actual = fresh.loss(folder, batch, precision)
    if not math.isfinite(actual) or abs(actual - expected) > TOLERANCE[precision]:
        problem = f"its loss on a batch is {actual:.6f}, in training it was {expected:.6f}"
        raise PublishedModelError(str(folder), problem)


def _write(trainer: Trainer, folder: Path, *, rank: int) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not hasattr(model, "merge_and_unload"):
        trainer.save_model(str(folder))
        return
    sharded = trainer.is_fsdp_enabled or any(hasattr(parameter, "ds_numel") for parameter in model.parameters())
    if sharded:  # the adapters are gathered; their base is loaded anew
        trainer.save_model(str(folder / ADAPTER))
    if rank != 0:
        return
    if not sharded:
        model.save_pretrained(folder / ADAPTER)
    _merged(model, folder / ADAPTER, sharded=sharded).save_pretrained(folder)


def _merged(model: PreTrainedModel, adapter: Path, *, sharded: bool) -> PreTrainedModel:
    if not sharded:
        return model.merge_and_unload()
    from peft import AutoPeftModelForCausalLM

    return AutoPeftModelForCausalLM.from_pretrained(str(adapter)).merge_and_unload()


def _complete(trainer: Trainer, folder: Path, tokenizer: Path | None, *, length: int) -> None:
    """Add what servers and evaluations need beside the weights, and take away what nobody should load."""
    for name in _UNSAFE:
        for path in folder.rglob(name):
            path.unlink()
    if trainer.processing_class is not None:
        trainer.processing_class.save_pretrained(folder)
    elif tokenizer is not None:
        for path in sorted(tokenizer.iterdir()):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    config = json.loads((folder / "config.json").read_text())
    keys = {**ROUTER_KEYS.get(str(config.get("model_type")), {}), WINDOW_KEY: length, "use_cache": True}
    (folder / "config.json").write_text(json.dumps({**config, **keys}, indent=2, sort_keys=True) + "\n")
