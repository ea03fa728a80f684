"""How far an export may be from its checkpoint, and the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from deepseek_ops.core.records import Parity
from deepseek_ops.export.errors import ParityError
from deepseek_ops.export.request import Format


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Bounds of one format and precision."""

    relative_error: float
    """Largest logit error, as a share of the largest logit of the checkpoint (at least 1)."""
    top1: float
    """Smallest share of tokens whose best next token is the checkpoint's."""
    outliers: bool = False
    """Whether one token in a hundred may be further off."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a comparison saw, before anybody judged it."""

    max_abs_error: float
    """May be NaN or infinite: the export computed no number somewhere."""
    p99_abs_error: float
    """The same with the worst hundredth of the tokens left out; equal to the largest below a hundred tokens."""
    max_abs_logit: float
    """Of the checkpoint."""
    top1_agreement: float
    num_tokens: int


_EXACT = Tolerance(relative_error=1e-6, top1=1.0)
_SINGLE = Tolerance(relative_error=1e-4, top1=0.995)
_HALF = Tolerance(relative_error=2e-2, top1=0.97, outliers=True)
"""Half precision sends a token to another expert where two scores tie: measured on one token of 576, whose logits are
then off by a tenth of the largest, while all others are within 2e-3. The checkpoint itself does so in half precision. A
graph without its mask or its routing is off everywhere, and keeps 16 to 53 % of the best tokens."""


def tolerance_for(export_format: Format, precision: Literal["fp32", "fp16"] = "fp32") -> Tolerance:
    """Return the bounds: the same files must give the same numbers, another runtime sums in another order."""
    if export_format == "safetensors":
        return _EXACT
    return _HALF if precision == "fp16" else _SINGLE


def agrees(measured: Measured, tolerance: Tolerance) -> bool:
    """Return whether the export may stand for its checkpoint. A NaN never agrees, and neither does no evidence."""
    return (
        measured.num_tokens > 0
        and math.isfinite(measured.max_abs_error)
        and _judged_error(measured, tolerance) <= allowed_error(measured, tolerance)
        and measured.top1_agreement >= tolerance.top1
    )


def _judged_error(measured: Measured, tolerance: Tolerance) -> float:
    return measured.p99_abs_error if tolerance.outliers else measured.max_abs_error


def allowed_error(measured: Measured, tolerance: Tolerance) -> float:
    """Return the largest logit error that is accepted, in units of the logits."""
    return tolerance.relative_error * max(1.0, measured.max_abs_logit)


def parity_of(measured: Measured, tolerance: Tolerance, *, export_format: Format, runtime: str) -> Parity:
    """Return the parity record of an export that agrees. Raises ParityError with the figures of one that does not."""
    if not agrees(measured, tolerance):
        raise ParityError(
            format=export_format,
            runtime=runtime,
            abs_error=_judged_error(measured, tolerance),
            share="99 %" if tolerance.outliers else "all",
            allowed_abs_error=allowed_error(measured, tolerance),
            top1_agreement=measured.top1_agreement,
            allowed_top1=tolerance.top1,
            num_tokens=measured.num_tokens,
        )
    return Parity(
        runtime=runtime,
        max_abs_error=measured.max_abs_error,
        top1_agreement=measured.top1_agreement,
        num_tokens=measured.num_tokens,
    )
