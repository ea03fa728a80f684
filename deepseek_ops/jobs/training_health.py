"""Which checkpoints of this process have become healthy or suspect, step by step. The same on every rank."""

from __future__ import annotations

from typing import Literal

from deepseek_ops.training.checkpoints import HEALTHY_STEPS, CheckpointName


class Health:
    """Follows the steps after each checkpoint until its worth is known."""

    def __init__(self, every: int | Literal["auto"]) -> None:
        self._needed = HEALTHY_STEPS if every == "auto" else min(HEALTHY_STEPS, every)
        self._open: list[CheckpointName] = []
        """Saved, and neither healthy nor suspect yet."""
        self._clean = 0
        self._start = True

    @property
    def calm(self) -> bool:
        """Whether the N steps up to now were clean, or all there have been since a checkpoint that was good."""
        return self._start or self._clean >= self._needed

    def begin(self, restored: CheckpointName | None) -> None:
        """Start again from a checkpoint, or from nothing."""
        self._open = [restored] if restored is not None else []
        self._clean, self._start = 0, True

    def saved(self, name: CheckpointName) -> None:
        """Follow one more checkpoint."""
        self._open.append(name)

    def observe(self, step: int, clean: bool) -> tuple[list[CheckpointName], list[CheckpointName]]:
        """Return the checkpoints that this step made healthy, and those that it made suspect."""
        if not clean:
            self._clean, self._start = 0, False
            suspect, self._open = self._open, []
            return [], suspect
        self._clean += 1
        healthy = [name for name in self._open if step - name.step >= self._needed]
        self._open = [name for name in self._open if name not in healthy]
        return healthy, []
