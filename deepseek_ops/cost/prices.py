"""The dated price list (``include/configs/prices.yaml``)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

import deepseek_ops
from deepseek_ops.core.config import read_file
from deepseek_ops.core.config.base import Config, Matches, Problem, Problems, Word
from deepseek_ops.core.errors import ConfigError, PermanentError

PRICES_VARIABLE = "DEEPSEEK_OPS_PRICES"
"""Environment variable with the path of a team's own price list."""

IsoDate = Annotated[str, Matches(r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$", "a date such as 2026-11-01")]


@dataclass(eq=False)
class UnknownDeviceError(PermanentError):
    """The price list has no price for a device on a day."""

    device: str
    day: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        when = f" on {self.day}" if self.day else ""
        return (
            f"no price for device {self.device!r}{when}; the price list has {', '.join(self.known)}. "
            f"Add it to include/configs/prices.yaml, or to the file that {PRICES_VARIABLE} names."
        )


class Price(Config):
    """What one device costs from a day on."""

    device: Word = Field(description="Such as cpu or h100.")
    usd_per_hour: float = Field(ge=0, description="US dollars per device-hour.")
    date: IsoDate = Field(description="First day of the price, ISO 8601.")
    source: str = Field(min_length=1, description="Contract, price page or assumption that the figure comes from.")


class PriceList(Config):
    """Prices of devices over time."""

    currency: Literal["usd"] = "usd"
    prices: tuple[Price, ...] = Field(min_length=1, description="Old entries stay: they price old jobs.")

    @model_validator(mode="after")
    def _no_two_prices_a_day(self) -> PriceList:
        seen = [(one.device, one.date) for one in self.prices]
        problems = [
            Problem(("prices", at, "date"), f"{device} has two prices on {day}.", "Keep one of them.")
            for at, (device, day) in enumerate(seen)
            if (device, day) in seen[:at]
        ]
        if problems:
            raise Problems(tuple(problems))
        return self

    def price(self, device: str, *, on: date | None = None) -> Price:
        """Return the device's newest price, or the one that counted ``on`` a day. Raises UnknownDeviceError."""
        day = on.isoformat() if on else ""
        known = [one for one in self.prices if one.device == device and (not day or one.date <= day)]
        if not known:
            raise UnknownDeviceError(device, day, tuple(sorted({one.device for one in self.prices})))
        return max(known, key=lambda one: one.date)


def load_prices(path: Path | None = None) -> PriceList:
    """Return the price list at ``path``, or of ``$DEEPSEEK_OPS_PRICES``, or the one that came with the project.

    Raises InvalidPipelineError naming line, key and remedy; ConfigError when there is no such file.
    """
    path = path or _default_path()
    try:
        text = path.read_bytes()
    except OSError as error:
        remedy = f"Correct the path, or the variable {PRICES_VARIABLE}."
        raise ConfigError(str(path), 0, "", f"cannot be read: {error.strerror}.", remedy) from error
    return read_file(PriceList, text, file=str(path))


def _default_path() -> Path:
    if named := os.environ.get(PRICES_VARIABLE):
        return Path(named)
    package = Path(deepseek_ops.__file__).parent
    name = Path("include", "configs", "prices.yaml")
    installed = package / name  # in a wheel; in a checkout the folder lies beside the package
    return installed if installed.exists() else package.parent / name
