"""What can be wrong with a weight file."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ops.core.errors import PermanentError


@dataclass(eq=False)
class WeightFormatError(PermanentError):
    """A file that is no weight file of a known format, or lies about what is in it."""

    file: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}. Do not load it; save the model again as safetensors."
