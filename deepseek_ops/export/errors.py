"""What can be wrong with an export."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ops.core.errors import PermanentError


@dataclass(eq=False)
class ParityError(PermanentError):
    """An exported model does not agree with its checkpoint; nothing of it is published."""

    format: str
    runtime: str
    abs_error: float
    share: str
    """Of the tokens that the error is the largest of."""
    allowed_abs_error: float
    top1_agreement: float
    allowed_top1: float
    num_tokens: int

    def __str__(self) -> str:
        return (
            f"the {self.format} export disagrees with its checkpoint in {self.runtime}: over {self.num_tokens} "
            f"tokens the largest logit error of {self.share} is {self.abs_error:.3g}, allowed is "
            f"{self.allowed_abs_error:.3g}, and "
            f"{self.top1_agreement:.2%} of the best tokens agree, needed are {self.allowed_top1:.2%}. Nothing was "
            "published; export with precision fp32, or leave the format out of deployment.formats."
        )


@dataclass(eq=False)
class ExportFailedError(PermanentError):
    """An exporter or a runtime refuses the model."""

    format: str
    step: str
    problem: str

    def __str__(self) -> str:
        return (
            f"the {self.format} export failed while {self.step}: {self.problem}. The architecture may be unsupported: "
            "leave the format out of deployment.formats, or use safetensors."
        )


@dataclass(eq=False)
class UnsupportedNodesError(PermanentError):
    """TensorRT cannot build some operations of the graph."""

    flavor: str
    nodes: tuple[str, ...]
    """One line per node: name, operation, reason."""

    def __str__(self) -> str:
        shown = "; ".join(self.nodes[:5])
        more = f" and {len(self.nodes) - 5} more" if len(self.nodes) > 5 else ""
        return f"TensorRT ({self.flavor}) does not support {len(self.nodes)} operations of this model: {shown}{more}."


@dataclass(eq=False)
class TensorRtMissingError(PermanentError):
    """The enterprise TensorRT is asked for and not installed; the public package index does not carry it."""

    def __str__(self) -> str:
        return (
            "TensorRT not installed: needs NVIDIA's index and a GPU. "
            "Install tensorrt from NVIDIA on a GPU machine, or choose the flavour rtx."
        )


@dataclass(eq=False)
class BrokenCheckpointError(PermanentError):
    """The folder to export is not a whole model."""

    file: str
    problem: str

    def __str__(self) -> str:
        return f"the model to export is not whole: {self.file}: {self.problem}; publish the checkpoint again."


@dataclass(eq=False)
class SampleError(PermanentError):
    """The held-out sample cannot be compared on."""

    problem: str

    def __str__(self) -> str:
        return f"sample: {self.problem}; give texts or token_ids with at least 4 tokens from the held-out split."
