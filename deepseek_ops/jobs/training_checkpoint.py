"""Checkpoints in DeepSpeed's format below the job's work folder: complete or not there.

Every rank writes into ``<tag>.partial``; when all have, rank 0 writes ``trainer.json`` with the size of every file,
renames the folder to ``<tag>`` and points ``latest`` at it. A kill at any instant leaves the previous checkpoint.
Batches, learning rates and random states are functions of the step, so the step is all there is to restore beside
weights, optimiser and expert biases.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pydantic import JsonValue

from deepseek_ops.training.curve import Curve

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine

    from deepseek_ops.core.records import TrainingPlan
    from deepseek_ops.jobs.context import JobContext

KEPT = 2
_STATE = "trainer.json"


@dataclass
class Progress:
    """What the loop has done: saved with each checkpoint, restored with it."""

    step: int = 0
    skipped_steps: int = 0
    training: Curve = field(default_factory=Curve)
    validation: Curve = field(default_factory=Curve)
    history: list[dict[str, float]] = field(default_factory=list)
    """The last rows of metrics, oldest first: what alert rules look back on."""
    skipped: list[tuple[int, int]] = field(default_factory=list)
    """Ranges (first, end) of batch positions that the guardian leaves out on purpose."""
    lr_factor: float = 1.0
    """What the guardian multiplies the scheduled learning rate by."""
    rewinds: int = 0
    """How often the run had gone back when it came here: tells states of a way that was given up."""
    guardian: dict[str, JsonValue] = field(default_factory=dict)
    """What alert rules remember, see ``training.guardian.Memory``."""

    def dump(self) -> dict[str, JsonValue]:
        """Return the progress as JSON; floats keep every bit."""
        return {
            "step": self.step,
            "skipped_steps": self.skipped_steps,
            "training": self.training.dump(),
            "validation": self.validation.dump(),
            "history": [{key: repr(value) for key, value in row.items()} for row in self.history],
            "skipped": [[first, end] for first, end in self.skipped],
            "lr_factor": repr(self.lr_factor),
            "rewinds": self.rewinds,
            "guardian": self.guardian,
        }

    @classmethod
    def load(cls, state: dict[str, JsonValue]) -> Progress:
        """Return what ``dump`` wrote."""
        history, skipped, guardian = state["history"], state.get("skipped"), state.get("guardian")
        return cls(
            step=int(str(state["step"])),
            skipped_steps=int(str(state["skipped_steps"])),
            training=Curve.load(state["training"]),
            validation=Curve.load(state["validation"]),
            history=[
                {str(key): float(str(value)) for key, value in row.items()}
                for row in (history if isinstance(history, list) else [])
                if isinstance(row, dict)
            ],
            skipped=[
                (int(str(pair[0])), int(str(pair[1])))
                for pair in (skipped if isinstance(skipped, list) else [])
                if isinstance(pair, list)
            ],
            lr_factor=float(str(state.get("lr_factor", 1.0))),
            rewinds=int(str(state.get("rewinds", 0))),
            guardian=guardian if isinstance(guardian, dict) else {},
        )


class Peers(Protocol):
    """What a checkpoint needs of the ranks: who this process is, and how all agree."""

    rank: int
    world_size: int
    device: str

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the float64 vector summed over all ranks, on the CPU."""

    def from_first(self, value: int) -> int:
        """Return rank 0's value on every rank."""

    def barrier(self) -> None:
        """Wait for all ranks."""


class Say(Protocol):
    """Reports an event."""

    def __call__(self, kind: str, **fields: object) -> None:
        """Report an event; silent on other ranks than 0."""


class Checkpoints:
    """The checkpoints of one plan. Every method is called by every rank, with equal arguments, in the same step."""

    def __init__(self, folder: Path, *, plan: str, rank: int, world_size: int, barrier: Callable[[], None]) -> None:
        self.folder = folder
        self._plan = plan
        self._rank = rank
        self._world_size = world_size
        self._barrier = barrier
        self._every = 50

    @classmethod
    def of(cls, context: JobContext, plan: TrainingPlan, peers: Peers, *, say: Say) -> Checkpoints:
        """Return the checkpoints of the plan, in the job's work folder and in its store; ``say`` reports events."""
        made = cls(
            context.work / "checkpoints",
            plan=plan.fingerprint,
            rank=peers.rank,
            world_size=peers.world_size,
            barrier=peers.barrier,
        )
        made._every = plan.checkpoint_steps if plan.checkpoint_steps != "auto" else 50
        return made

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due after step ``step``."""
        return step % self._every == 0

    def observe(self, step: int, clean: bool, *, position: int | None = None, samples: int | None = None) -> None:
        """Take note that step ``step`` is over: the ``position`` of its batch, its samples, and whether it was clean.

        ``clean``: a finite loss on all ranks, nothing skipped, no rule that fired. Every step is told, after its row
        was added to the progress and before ``due`` and ``save``. N clean steps later a checkpoint is healthy.
        """

    def rewind(self, engine: DeepSpeedEngine, *, before: int) -> Progress | None:
        """Restore the newest healthy checkpoint of at most step ``before``, in place; None when there is none."""
        del before
        return self.load(engine)

    def finish(self, progress: Progress | None = None) -> None:
        """Wait for what is still being written or sent; with the last ``progress``, report the proof of the resumes."""

    def save(self, engine: DeepSpeedEngine, progress: Progress, *, reason: str = "interval") -> Path:
        """Write a checkpoint of the state after ``progress.step`` steps and return its folder."""
        tag = f"step-{progress.step:08d}"
        final, partial = self.folder / tag, self.folder / f"{tag}.partial"
        if self._rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob("*.partial"):
                shutil.rmtree(leftover)
        self._barrier()
        engine.save_checkpoint(str(self.folder), tag=partial.name, save_latest=False)
        self._barrier()
        if self._rank == 0:
            self._seal(partial, final, progress)
        self._barrier()
        return final

    def load(self, engine: DeepSpeedEngine) -> Progress | None:
        """Restore the newest complete checkpoint and return its progress; None when there is none."""
        for folder in self.complete():
            engine.load_checkpoint(str(self.folder), tag=folder.name, load_lr_scheduler_states=False)
            return Progress.load(json.loads((folder / _STATE).read_text())["progress"])
        return None

    def complete(self) -> list[Path]:
        """Return the folders of usable checkpoints of this plan and world size, newest first."""
        return sorted((path for path in self.folder.glob("step-*") if self._usable(path)), reverse=True)

    def clear(self) -> None:
        """Remove all checkpoints: the run's result is stored."""
        if self._rank == 0 and self.folder.is_dir():
            shutil.rmtree(self.folder)

    def _seal(self, partial: Path, final: Path, progress: Progress) -> None:
        files = {path.relative_to(partial).as_posix(): path.stat().st_size for path in _files(partial)}
        state = {
            "plan": self._plan,
            "world_size": self._world_size,
            "files": files,
            "progress": progress.dump(),
        }
        (partial / _STATE).write_text(json.dumps(state, sort_keys=True))
        if final.exists():  # the same step again after a resume: equal bytes, so either will do
            shutil.rmtree(final)
        partial.rename(final)
        pointer = self.folder / "latest.partial-file"
        pointer.write_text(final.name)
        pointer.replace(self.folder / "latest")
        for old in self.complete()[KEPT:]:
            shutil.rmtree(old)
        _sync_folder(self.folder)

    def _usable(self, path: Path) -> bool:
        if path.name.endswith(".partial") or not (path / _STATE).is_file():
            return False
        state = json.loads((path / _STATE).read_text())
        if state["plan"] != self._plan or state["world_size"] != self._world_size:
            return False
        return all((path / name).is_file() and (path / name).stat().st_size == n for name, n in state["files"].items())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
