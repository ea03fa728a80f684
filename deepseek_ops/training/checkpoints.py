"""Which checkpoint is which, which one to go on from, and which ones to keep: pure rules over names and health.

**Lives.** A training that is never interrupted has one life. Every start of the ranks that resumes, and every rewind,
begins a new one, named by attempt, restart and rewind. A later life began at the best checkpoint there was, so the
lives in order are the history of the weights: a later life's checkpoint comes before any of an earlier life, whatever
their steps. After a rewind the checkpoints beyond it belong to a history that was given up.

**Health.** A checkpoint becomes *healthy* when N clean steps came after it: what makes a loss explode is often in the
weights some steps before it shows. A rewind, which has to get behind the cause, takes healthy ones only. A resume
after a plain interruption may take an *unproven* one, if the N steps before it were clean and none after it was not:
nothing is wrong with the weights as far as anybody knows, and the steps after it are a pure function of them, so if
something was wrong it shows again at the same step and the guardian, which saw nothing yet, rewinds then. Insisting on
health there would throw away good steps at every kill, and the emergency checkpoint that a stop makes would never be
used. One that an unclean step followed within N steps is *suspect*: nobody goes on from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import Field

from deepseek_ops.core.records import FileEntry, Record

HEALTHY_STEPS = 10
"""Clean steps after a checkpoint that make it healthy, and before one that let it be used unproven."""

_NAME = re.compile(r"^step-(\d{8,})\.(\d{3,})-(\d{3,})-(\d{3,})$")
_RANK_FILE = re.compile(r"^(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_\d+_(?:optim|model)_states\.pt$")


@dataclass(frozen=True, slots=True, order=True)
class Life:
    """One stretch of training without a resume or rewind in it."""

    attempt: int
    restart: int
    rewind: int = 0

    def __str__(self) -> str:
        return f"{self.attempt:03d}-{self.restart:03d}-{self.rewind:03d}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the life of that name. Raises ValueError, TypeError for a text that is none."""
        return cls(*(int(part) for part in text.split("-")))


@dataclass(frozen=True, slots=True, order=True)
class CheckpointName:
    """Name of a checkpoint: ordered as history is, a later life's after every earlier one's."""

    life: Life
    step: int

    def __str__(self) -> str:
        return f"step-{self.step:08d}.{self.life}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the name, or None for a text that is none."""
        found = _NAME.match(text)
        if found is None:
            return None
        step, attempt, restart, rewind = (int(part) for part in found.groups())
        return cls(Life(attempt, restart, rewind), step)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A complete checkpoint that somebody holds."""

    name: CheckpointName
    healthy: bool = False
    calm: bool = True
    """The N steps before it were clean."""

    @property
    def resumable(self) -> bool:
        return self.healthy or self.calm


def to_resume(candidates: Iterable[Candidate]) -> Candidate | None:
    """Return the checkpoint to go on from after an interruption: the newest usable one of the latest life."""
    return max((c for c in candidates if c.resumable), key=lambda c: c.name, default=None)


def to_rewind(candidates: Iterable[Candidate], *, before: int) -> Candidate | None:
    """Return the newest healthy checkpoint of at most step ``before``."""
    return max((c for c in candidates if c.healthy and c.name.step <= before), key=lambda c: c.name, default=None)


def kept(candidates: Sequence[Candidate], keep: int, *, held: Iterable[CheckpointName] = ()) -> set[CheckpointName]:
    """Return which checkpoints stay: the newest ``keep``, the newest healthy one, and those that are ``held``.

    The newest healthy one stays however old it is, because it is the only one that a rewind may use.
    """
    names = sorted((c.name for c in candidates), reverse=True)
    healthy = max((c.name for c in candidates if c.healthy), default=None)
    return {*names[:keep], *held, *([healthy] if healthy is not None else [])} & set(names)


class StoredCheckpoint(Record):
    """A checkpoint in the store, whole: written once, when the parts of all nodes are there.

    It names every file by its digest, so a collection of garbage keeps them for as long as this record is there.
    """

    name: str = Field(description="Step and life, such as step-00000050.001-000-000.")
    plan: str = Field(description="Fingerprint of the TrainingPlan.")
    world_size: int = Field(ge=1)
    num_nodes: int = Field(ge=1)
    calm: bool = Field(description="The steps before it were clean.")
    files: tuple[FileEntry, ...]


def files_for(files: Iterable[FileEntry], ranks: Iterable[int] | None) -> tuple[FileEntry, ...]:
    """Return the files that the ranks read; all of them for None, which is what a new world size needs."""
    if ranks is None:
        return tuple(files)
    own = set(ranks)
    return tuple(entry for entry in files if (found := _RANK_FILE.match(entry.path)) is None or int(found[1]) in own)


def rank_files(files: Iterable[str]) -> set[int]:
    """Return the ranks that have a file of their own among ``files``."""
    return {int(found[1]) for name in files if (found := _RANK_FILE.match(name)) is not None}
