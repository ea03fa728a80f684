"""Resuming a Trainer's mixture of experts with its experts.

The Trainer of transformers 5.23 saves experts one by one, as the hub has them, and loads such a file as if it held the
fused tensors that the model has: every expert keeps its random start, and a warning in the log is all there is (seen
with the DeepSeek-V3 class: the loss after a resume differs from the first step on). Here what was left out is loaded
the way ``from_pretrained`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_ops.core.errors import PermanentError

if TYPE_CHECKING:
    from transformers import Trainer

Say = Callable[..., None]


class UnloadedCheckpointError(PermanentError):
    """A checkpoint of a script's Trainer does not hold all weights of its model."""


def restore_whole_checkpoints(trainer: Trainer, say: Say) -> None:
    """Have the Trainer load all weights of a checkpoint, or raise UnloadedCheckpointError.

    Sharded models (DeepSpeed, FSDP) have checkpoints of another kind and are not concerned.
    """
    load, look = trainer._load_from_checkpoint, trainer._issue_warnings_after_load
    folder: list[str] = []

    def load_from(checkpoint: str, *rest: object, **words: object) -> object:
        folder[:] = [checkpoint]
        try:
            return load(checkpoint, *rest, **words)
        finally:
            folder.clear()

    def after_load(result: object) -> None:
        missing = list(getattr(result, "missing_keys", []))
        source = folder[0] if folder else trainer.state.best_model_checkpoint
        if missing and source:
            _load_whole(trainer, Path(source), missing)
            say("checkpoint_completed", folder=Path(source).name, weights=len(missing))
        else:
            look(result)

    trainer._load_from_checkpoint = load_from
    trainer._issue_warnings_after_load = after_load


def _load_whole(trainer: Trainer, folder: Path, missing: list[str]) -> None:
    model = trainer.model
    found, report = type(model).from_pretrained(
        folder, dtype=model.dtype, output_loading_info=True, local_files_only=True, use_safetensors=True
    )
    lost = sorted(set(missing) & set(_names(report, "missing_keys")))
    if lost:
        raise UnloadedCheckpointError(
            f"{folder} does not hold {', '.join(lost[:3])}; remove it to resume from another."
        )
    model.load_state_dict(found.state_dict(), strict=True)


def _names(report: Mapping[str, object], kind: str) -> list[str]:
    names = report.get(kind)
    return [str(name) for name in names] if isinstance(names, list | set | tuple) else []
