"""What a training loop has done: saved with each checkpoint, restored with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from deepseek_ops.training.curve import Curve


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
