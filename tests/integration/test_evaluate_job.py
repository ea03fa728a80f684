"""The evaluate job: one score per document, the same whatever stands beside it in a batch."""

from __future__ import annotations

import json
import math

import pytest
from fixtures_trainer import dataset, lab  # noqa: F401  (pytest fixtures)

from deepseek_ops.core.jobs import JobPhase
from deepseek_ops.core.records import FileEntry
from deepseek_ops.data import DatasetRepository
from deepseek_ops.jobs import evaluate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(lab, dataset):  # noqa: F811
    """A model of 16 steps."""
    return lab.trained("for-evaluation", lab.plan(dataset, ranks=1)).model


@pytest.fixture(scope="module")
def files(lab, dataset, model, tmp_path_factory):  # noqa: F811
    """The model's and the dataset's folders."""
    root = tmp_path_factory.mktemp("evaluation")
    lab.blobs.fetch_folder(model, root / "model")
    DatasetRepository.open(lab.store).checkout(dataset.version, root / "dataset")
    return root


def evaluated(lab, name, model, dataset, **selection):  # noqa: F811
    payload = {"model": model.dump(), "dataset": dataset.dump(), "selection": selection, "stage": "quick-check"}
    return lab.submit("evaluate", name, payload)


def test_metrics_agree_with_the_items(lab, dataset, model):  # noqa: F811
    result = lab.result(evaluated(lab, "evaluate-all", model, dataset, split="test", max_items=None))
    items = [json.loads(line) for line in lab.blobs.get(FileEntry.load(result["items"]).digest).splitlines()]
    metrics = result["metrics"]
    assert result["num_items"] == len(items) == dataset.splits["test"]
    tokens = sum(item["tokens"] for item in items)
    assert metrics["val_loss"] == pytest.approx(sum(item["nll"] * item["tokens"] for item in items) / tokens)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["val_loss"]))
    assert 2 < metrics["val_loss"] < math.log(512) + 0.2
    assert 0 < metrics["top1_accuracy"] < 1
    assert result["dataset"] == f"{dataset.version}:test:all"


def test_a_selection_is_a_prefix_of_the_whole(lab, dataset, model):  # noqa: F811
    result = lab.result(evaluated(lab, "evaluate-five", model, dataset, split="test", max_items=5))
    whole = lab.result(evaluated(lab, "evaluate-all", model, dataset, split="test", max_items=None))

    def names(one):
        lines = lab.blobs.get(FileEntry.load(one["items"]).digest).splitlines()
        return [json.loads(line)["id"] for line in lines]

    assert names(result) == names(whole)[:5]
    assert result["dataset"] == f"{dataset.version}:test:5"


def test_a_score_does_not_depend_on_the_batch(files):
    texts = evaluate.select([files / "dataset" / "documents" / "test.jsonl"], 12)
    together = evaluate.score(files / "model", texts)
    for one, item in zip(texts, together, strict=True):
        (alone,) = evaluate.score(files / "model", [one])
        assert alone.nll == pytest.approx(item.nll, abs=1e-5)
        assert (alone.id, alone.tokens, alone.num_bytes) == (item.id, item.tokens, item.num_bytes)


def test_a_score_is_the_sum_over_windows_of_the_trained_length(files):
    """Checked against a plain loop over transformers: every token once, the end token included."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name, text = max(
        evaluate.select([files / "dataset" / "documents" / "test.jsonl"], None), key=lambda one: len(one[1])
    )
    model = AutoModelForCausalLM.from_pretrained(files / "model").eval()
    ids = AutoTokenizer.from_pretrained(files / "model")(text)["input_ids"]
    stream = [1, *ids, 1]
    assert len(stream) > 2 * 64, "the document is longer than a window"
    total = 0.0
    for start in range(0, len(stream) - 1, 64):
        window = torch.tensor([stream[start : start + 65]])
        with torch.no_grad():
            scores = model(window[:, :-1]).logits.log_softmax(-1)
        total -= scores.gather(-1, window[:, 1:, None]).sum().item()
    (item,) = evaluate.score(files / "model", [(name, text)])
    assert item.tokens == len(ids) + 1
    assert item.nll * item.tokens == pytest.approx(total, rel=1e-5)
    assert item.bits_per_byte == pytest.approx(total / math.log(2) / len(text.encode()))


def test_a_selection_without_documents_fails(lab, dataset, model):  # noqa: F811
    status = lab.settle(evaluated(lab, "evaluate-nothing", model, dataset, split="holdout", max_items=None))
    assert status.phase is JobPhase.FAILED
    assert "holds no document" in status.reason or "no file" in status.reason
