"""The evaluate job: how well a model predicts each document of a selection, one number per document.

Payload: ``{"model": FileSet, "dataset": DatasetVersion, "selection": {"split", "max_items"}, "stage": name}``.
Result: ``{"metrics", "num_items", "items": FileEntry, "dataset": "<version>:<split>:<max_items>"}``. The verdict is
somebody else's: comparisons are paired over the items, which lie in the store as JSON lines.

A document is scored as it stands in training: after the end token of another one, up to its own end token. Longer ones
than the trained window are cut into windows, each continuing from the token before it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, JsonValue

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.records import DatasetVersion, FileEntry, FileSet, Record
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.training_data import DOCUMENTS, document_files, local_dataset, local_files
from deepseek_ops.jobs.training_engine import device_of
from deepseek_ops.jobs.training_model import use_grouped_experts
from deepseek_ops.jobs.training_publish import WINDOW_KEY

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_TOKENS = 8192
"""Padded tokens of one forward pass."""
ITEMS = "items.jsonl"


class Selection(Record):
    """Which documents: the first ``max_items`` of a split by content hash, so that adding data moves few of them."""

    split: str = "test"
    max_items: int | None = Field(default=None, ge=1)
    window: int | None = Field(default=None, gt=1, description="Tokens a prediction may look back on.")

    def of(self, dataset: DatasetVersion) -> str:
        """Return the selection's identity: unequal ones are never compared."""
        return f"{dataset.version}:{self.split}:{self.max_items if self.max_items is not None else 'all'}"


class Item(Record):
    """The score of one document."""

    id: str
    nll: float = Field(description="Mean negative log-likelihood, nats per token, end token included.")
    tokens: int = Field(gt=0)
    num_bytes: int = Field(gt=0)
    correct: int = Field(ge=0, description="Tokens that were the model's first choice.")

    @property
    def bits_per_byte(self) -> float:
        return self.nll * self.tokens / math.log(2) / self.num_bytes


@dataclass(eq=False)
class EmptySelectionError(PermanentError):
    """A selection holds no document."""

    selection: str

    def __str__(self) -> str:
        return f"selection {self.selection} holds no document; add data, or choose another split."


@dataclass(eq=False)
class UnusableModelError(PermanentError):
    """A model gives no finite score."""

    item: str

    def __str__(self) -> str:
        return f"the model's score of document {self.item} is not finite; its weights are damaged or have diverged."


@dataclass(frozen=True)
class Document:
    """One document and its tokens: the end token that precedes it, its own, its end token."""

    id: str
    num_bytes: int
    ids: Sequence[int]


@dataclass(frozen=True)
class Window:
    """A part of a document: ``ids[start]`` is context, what follows is predicted."""

    document: int
    ids: Sequence[int]


def run(context: JobContext) -> dict[str, JsonValue]:
    """Return metrics over the selection and where the scores of its documents are.

    Raises:
        EmptySelectionError: The selection holds no document.
        UnusableModelError: A score is not finite.
    """
    payload = context.payload
    dataset = DatasetVersion.load(_object(payload["dataset"]))
    selection = Selection.load(_object(payload["selection"]))
    model_folder = local_files(context, FileSet.load(_object(payload["model"])), "model")
    folder = local_dataset(context, dataset, DOCUMENTS)
    texts = select(document_files(folder, selection.split), selection.max_items)
    if not texts:
        raise EmptySelectionError(selection.of(dataset))
    items = score(model_folder, texts, window=selection.window)
    lines = "".join(json.dumps(_line(item), ensure_ascii=False) + "\n" for item in items).encode()
    stored = FileEntry(path=ITEMS, size=len(lines), digest=context.blobs.put(lines))
    metrics = metrics_of(items)
    context.event("evaluated", stage=str(payload.get("stage", "")), **metrics)
    return {
        "metrics": dict(metrics),
        "num_items": len(items),
        "items": stored.dump(),
        "dataset": selection.of(dataset),
    }


def select(paths: Sequence[Path], max_items: int | None) -> list[tuple[str, str]]:
    """Return (id, text) of the first documents by content hash; all of them when ``max_items`` is None."""
    found: list[tuple[str, str, str]] = []
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                document = json.loads(line)
                text = str(document["text"])
                found.append((hashlib.sha256(text.encode()).hexdigest(), str(document["id"]), text))
    return [(name, text) for _, name, text in sorted(found)[:max_items]]


def score(model_folder: Path, texts: Sequence[tuple[str, str]], *, window: int | None = None) -> list[Item]:
    """Return the score of each (id, text) in the order given. Raises UnusableModelError."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = device_of(0)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder).to(device).eval()
    use_grouped_experts(model)
    documents = _documents(tokenizer, texts)
    nll, correct = [0.0] * len(documents), [0] * len(documents)
    with torch.inference_mode():
        for batch in _batches(_windows(documents, window or window_of(model))):
            for at, loss, hits in _scores(model, batch, device):
                nll[at] += loss
                correct[at] += hits
    items = []
    for document, total, hits in zip(documents, nll, correct, strict=True):
        if not math.isfinite(total):
            raise UnusableModelError(document.id)
        tokens = len(document.ids) - 1
        items.append(
            Item(id=document.id, nll=total / tokens, tokens=tokens, num_bytes=document.num_bytes, correct=hits)
        )
    return items


def metrics_of(items: Sequence[Item]) -> dict[str, float]:
    """Return the metrics over all tokens of the items: a long document counts for more than a short one."""
    tokens = sum(item.tokens for item in items)
    nats = math.fsum(item.nll * item.tokens for item in items)
    return {
        "val_loss": nats / tokens,
        "perplexity": math.exp(min(nats / tokens, 700.0)),
        "bits_per_byte": nats / math.log(2) / sum(item.num_bytes for item in items),
        "top1_accuracy": sum(item.correct for item in items) / tokens,
        "num_items": float(len(items)),
    }


def window_of(model: PreTrainedModel) -> int:
    """Return how many tokens a prediction may look back on: as many as in training, where the model says so."""
    trained = getattr(model.config, WINDOW_KEY, None)
    longest = getattr(model.config, "max_position_embeddings", None) or 2048
    return min(int(trained), int(longest)) if trained else min(2048, int(longest))


def _documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]]) -> list[Document]:
    end = tokenizer.eos_token_id
    encoded = tokenizer([text for _, text in texts], add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return [
        Document(name, max(1, len(text.encode())), [end, *ids, end])
        for (name, text), ids in zip(texts, encoded, strict=True)
    ]


def _windows(documents: Iterable[Document], size: int) -> list[Window]:
    return [
        Window(at, document.ids[start : start + size + 1])
        for at, document in enumerate(documents)
        for start in range(0, len(document.ids) - 1, size)
    ]


def _batches(windows: Sequence[Window]) -> Iterator[list[Window]]:
    """Yield windows of similar length together, so that little is padded."""
    batch: list[Window] = []
    for window in sorted(windows, key=lambda window: (-len(window.ids), window.document)):
        if batch and len(batch[0].ids) * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _scores(model: PreTrainedModel, batch: Sequence[Window], device: str) -> Iterator[tuple[int, float, int]]:
    """Yield (document, summed loss in nats, tokens predicted first) of each window.

    Padding stands behind the text, where causal attention cannot see it, so no mask is needed.
    """
    import torch

    width = len(batch[0].ids)
    padded = torch.tensor([[*window.ids, *[window.ids[-1]] * (width - len(window.ids))] for window in batch])
    padded = padded.to(device)
    logits: torch.Tensor = model(input_ids=padded[:, :-1], use_cache=False).logits.float()
    targets = padded[:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").double().cpu()
    hits = (logits.argmax(-1) == targets).cpu()
    for row, window in enumerate(batch):
        count = len(window.ids) - 1
        yield window.document, float(losses[row, :count].sum()), int(hits[row, :count].sum())


def _line(item: Item) -> dict[str, JsonValue]:
    return {**item.model_dump(mode="json"), "bits_per_byte": item.bits_per_byte}


def _object(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}
