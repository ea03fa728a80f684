"""What the watch of a foreign loop has seen of it, and what it makes of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from deepseek_ops.training.curve import Curve

_KEPT_RATES = 128
"""Of the newest steps, in a checkpoint."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What every rank does after a step."""

    asked: bool = False
    """Somebody asked the job to stop."""
    stopped: bool = False
    """A rule stops it."""
    save: bool = False
    factor: float = 1.0
    """What the learning rate is multiplied by from here on."""

    @property
    def ends(self) -> bool:
        return self.asked or self.stopped


@dataclass
class Seen:
    """What a training has come to."""

    step: int = 0
    tokens: int = 0
    skipped: int = 0
    training: Curve = field(default_factory=Curve)
    validation: Curve = field(default_factory=Curve)
    last: dict[str, float] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)

    def dump(self) -> dict[str, JsonValue]:
        """Return it as JSON; floats keep every bit."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "skipped": self.skipped,
            "training": self.training.dump(),
            "validation": self.validation.dump(),
            "last": {name: repr(value) for name, value in self.last.items()},
            "rates": [repr(rate) for rate in self.rates[-_KEPT_RATES:]],
        }

    @classmethod
    def load(cls, body: Mapping[str, JsonValue]) -> Seen:
        """Return what ``dump`` wrote."""
        last, rates = body["last"], body["rates"]
        return cls(
            step=int(str(body["step"])),
            tokens=int(str(body["tokens"])),
            skipped=int(str(body["skipped"])),
            training=Curve.load(body["training"]),
            validation=Curve.load(body["validation"]),
            last={name: float(str(value)) for name, value in last.items()} if isinstance(last, dict) else {},
            rates=[float(str(rate)) for rate in rates] if isinstance(rates, list) else [],
        )
