"""The samples of a plan: which splits there are, of documents or of conversations, and which of them are old."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pydantic import JsonValue

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.records import TrainingPlan
from deepseek_ops.jobs.conversations import CONVERSATIONS, ConversationSplit, Window
from deepseek_ops.jobs.prepare_tokenizer import load_tokenizer
from deepseek_ops.jobs.tokens import TokenSplit
from deepseek_ops.jobs.training_data import TOKENIZER, TOKENS, Inputs
from deepseek_ops.training.batches import BatchPlan
from deepseek_ops.training.deepspeed_config import micro_batch_of

if TYPE_CHECKING:
    from numpy import ndarray

TRAIN, VAL, OLD_VAL = "train", "val", "val_old"


class Split(Protocol):
    """Samples of one length, numbered from 0."""

    @property
    def length(self) -> int: ...

    def __len__(self) -> int: ...


class Documents(Split, Protocol):
    """Samples of running text."""

    def samples(self, indices: Iterable[int]) -> ndarray:
        """Return token ids, int64, shape (number of indices, length + 1)."""


class Conversations(Split, Protocol):
    """Samples of packed conversations."""

    def window(self, index: int) -> Window:
        """Return a sample."""

    def answers(self, index: int) -> int:
        """Return how many of its tokens are learned."""


@dataclass(eq=False)
class NoConversationsError(PermanentError):
    """A method that learns answers got a dataset without any."""

    dataset: str
    method: str

    def __str__(self) -> str:
        return (
            f"training.method={self.method}: dataset {self.dataset} holds no conversations; "
            "give its documents `messages`, a list of {role, content}, and prepare it again."
        )


class _Joined:
    """Several splits, one after the other."""

    def __init__(self, parts: Sequence[Split]) -> None:
        self.length = parts[0].length
        self._firsts = [0]
        for part in parts:
            self._firsts.append(self._firsts[-1] + len(part))

    def __len__(self) -> int:
        return self._firsts[-1]

    def _find(self, index: int) -> tuple[int, int]:
        part = bisect_right(self._firsts, index) - 1
        return part, index - self._firsts[part]


class JoinedDocuments(_Joined):
    """Documents of several dataset versions as one split."""

    def __init__(self, parts: Sequence[Documents]) -> None:
        super().__init__(parts)
        self._parts = parts

    def samples(self, indices: Iterable[int]) -> ndarray:
        """Return token ids, int64, shape (number of indices, length + 1)."""
        import numpy as np

        found = [(self._parts[part], number) for part, number in map(self._find, indices)]
        joined: ndarray = np.concatenate([part.samples((number,)) for part, number in found])
        return joined


class JoinedConversations(_Joined):
    """Conversations of several dataset versions as one split."""

    def __init__(self, parts: Sequence[Conversations]) -> None:
        super().__init__(parts)
        self._parts = parts

    def window(self, index: int) -> Window:
        """Return a sample."""
        part, number = self._find(index)
        return self._parts[part].window(number)

    def answers(self, index: int) -> int:
        """Return how many of its tokens are learned."""
        part, number = self._find(index)
        return self._parts[part].answers(number)


@dataclass(frozen=True, slots=True)
class Samples:
    """All samples of a plan."""

    splits: Mapping[str, Split]
    """``train`` (new samples, then the replayed ones), ``val`` where there is one, ``val_old`` with replay."""
    num_new: int
    of_conversations: bool

    def packing(self) -> list[dict[str, JsonValue]]:
        """Return how conversations were packed, split by split; nothing for documents."""
        return [split.facts() for split in self.splits.values() if isinstance(split, ConversationSplit)]

    def batches(self, plan: TrainingPlan, world_size: int) -> BatchPlan:
        """Return which of them each step takes. Raises IndivisibleBatchError."""
        return BatchPlan(
            seed=plan.seed,
            num_samples=self.num_new,
            batch_size=plan.hyperparameters.batch_size,
            world_size=world_size,
            micro_batch_size=micro_batch_of(plan, world_size),
            replay_samples=len(self.splits[TRAIN]) - self.num_new,
            replay_share=plan.replay.share if plan.replay is not None else 0.0,
        )


def open_samples(plan: TrainingPlan, inputs: Inputs) -> Samples:
    """Return the samples of a plan. LoRA learns answers where the dataset has conversations, and documents otherwise.

    Raises:
        NoConversationsError: Method sft, and a dataset version without conversations.
        TooFewSamplesError: The train split holds no sample of this length.
        TokenShardError: A file is not what its index says.
    """
    chats = _has(inputs.dataset / CONVERSATIONS, TRAIN)
    if plan.method == "sft" and not chats:
        raise NoConversationsError(plan.dataset.name, plan.method)
    if chats and plan.method != "pretrain":
        return _conversations(plan, inputs)
    return _documents(plan, inputs)


def _documents(plan: TrainingPlan, inputs: Inputs) -> Samples:
    length = plan.hyperparameters.sequence_length
    new = TokenSplit(inputs.dataset / TOKENS, TRAIN, length=length)
    old = [TokenSplit(folder / TOKENS, TRAIN, length=length) for folder in inputs.old]
    splits: dict[str, Split] = {TRAIN: JoinedDocuments([new, *old]) if old else new}
    if _has(inputs.dataset / TOKENS, VAL):
        splits[VAL] = TokenSplit(inputs.dataset / TOKENS, VAL, length=length)
    held = [folder / TOKENS for folder in inputs.old if _has(folder / TOKENS, VAL)]
    if held:
        splits[OLD_VAL] = JoinedDocuments([TokenSplit(folder, VAL, length=length) for folder in held])
    return Samples(splits, len(new), of_conversations=False)


def _conversations(plan: TrainingPlan, inputs: Inputs) -> Samples:
    length = plan.hyperparameters.sequence_length
    _, pad = load_tokenizer(inputs.dataset / TOKENIZER)  # nothing attends to padding, so any token will do

    def opened(folder: Path, split: str) -> ConversationSplit:
        return ConversationSplit(folder / CONVERSATIONS, split, length=length, pad=pad)

    for folder, version in zip(inputs.old, plan.replay.datasets if plan.replay else (), strict=True):
        if not _has(folder / CONVERSATIONS, TRAIN):
            raise NoConversationsError(f"{version.name} {version.version[:12]} (replayed)", plan.method)
    new = opened(inputs.dataset, TRAIN)
    old = [opened(folder, TRAIN) for folder in inputs.old]
    splits: dict[str, Split] = {TRAIN: JoinedConversations([new, *old]) if old else new}
    if _has(inputs.dataset / CONVERSATIONS, VAL):
        splits[VAL] = opened(inputs.dataset, VAL)
    held = [folder for folder in inputs.old if _has(folder / CONVERSATIONS, VAL)]
    if held:
        splits[OLD_VAL] = JoinedConversations([opened(folder, VAL) for folder in held])
    return Samples(splits, len(new), of_conversations=True)


def _has(folder: Path, split: str) -> bool:
    return any(folder.glob(f"{split}-*.json"))
