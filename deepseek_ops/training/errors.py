"""What can be wrong with a training before it starts, and what can end it."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ops.core.errors import PermanentError


@dataclass(eq=False)
class IndivisibleBatchError(PermanentError):
    """A global batch cannot be split evenly over the data-parallel ranks."""

    batch_size: int
    micro_batch_size: int
    num_ranks: int

    def __str__(self) -> str:
        share = self.micro_batch_size * self.num_ranks
        return (
            f"batch_size={self.batch_size} is not a multiple of micro batch x ranks = "
            f"{self.micro_batch_size} x {self.num_ranks} = {share}; "
            f"the nearest that is: {max(share, self.batch_size // share * share)}."
        )


@dataclass(eq=False)
class TooFewSamplesError(PermanentError):
    """A split holds less text than one sample needs."""

    num_samples: int
    needed: int
    split: str = "train"

    def __str__(self) -> str:
        return (
            f"the {self.split} split gives {self.num_samples} samples and at least {self.needed} are needed; "
            "add data, or lower sequence_length."
        )


@dataclass(eq=False)
class DeepSpeedConflictError(PermanentError):
    """The user's DeepSpeed keys contradict the plan."""

    key: str
    ours: object
    theirs: object
    source: str

    def __str__(self) -> str:
        return (
            f"training.deepspeed.{self.key}={self.theirs!r} contradicts {self.source}, which gives {self.ours!r}; "
            "remove one of the two."
        )


@dataclass(eq=False)
class UnsupportedTrainingError(PermanentError):
    """A plan asks for something the trainer refuses, for a stated reason."""

    field: str
    value: object
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}={self.value!r}: {self.reason}; {self.remedy}."


@dataclass(eq=False)
class PublishedModelError(PermanentError):
    """The exported model, loaded again, is not the model that was trained."""

    folder: str
    problem: str

    def __str__(self) -> str:
        return f"the exported model in {self.folder} is not published: {self.problem}."
