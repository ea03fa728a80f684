"""What a review is told: the verdict, the evidence beside the champion, and nothing that a run could smuggle in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deepseek_ops.core.records import Checkpoint, DatasetVersion, Evaluation, FileSet, GitRef, Verdict
from deepseek_ops.pipeline.review import RunOutcome, TaskFailure, comment_text

SOURCE = GitRef(repository="https://host/team/model", name="refs/heads/exp/lr", commit="a" * 40)
DATASET = DatasetVersion(name="corpus", version="d" * 64, tree="f" * 64, num_files=1, num_bytes=1)
CHECKPOINT = Checkpoint(
    plan="e" * 64, step=1200, tokens=4_915_200, model=FileSet(files=()), metrics={"val_loss": 0.41234567}
)


def evaluation(verdict: Verdict = Verdict.PASS, **changes: object) -> Evaluation:
    values: dict[str, object] = {
        "stage": "quick-check",
        "model": "1" * 64,
        "dataset": "x",
        "metrics": {"accuracy": 0.9125},
        "num_items": 400,
        "verdict": verdict,
        "reason": "not worse than v1.2.0 by more than 0.01",
    }
    return Evaluation.load({**values, **changes})


def outcome(**changes: object) -> RunOutcome:
    values: dict[str, object] = {"source": SOURCE, "run_id": "manual__1", "url": "http://airflow/dags/retrain/runs/1"}
    return RunOutcome.model_validate({**values, **changes})


def test_a_run_that_passed_shows_the_evidence_beside_the_champion() -> None:
    gate = evaluation(champion="v1.2.0", delta=-0.0123, interval=(-0.021, -0.004))
    run = outcome(
        model="tiny",
        version="1.3.0",
        checkpoint=CHECKPOINT,
        dataset=DATASET,
        evaluations=(gate,),
        usd=1.5,
        device_seconds=7200.0,
        tracker_url="https://mlflow/#/1",
    )
    text = comment_text(run)
    assert run.state == "success"
    assert run.summary == "tiny 1.3.0 registered, 1 of 1 gates passed, val_loss 0.4123"
    assert r"v1\.2\.0: -0.0123 [-0.021, -0.004]" in text
    assert "1.50 USD (2.00 device-hours)" in text
    assert "`dddddddddddd`" in text
    assert "[Airflow run](http://airflow/dags/retrain/runs/1)" in text
    assert "[Tracker](https://mlflow/#/1)" in text
    assert "`deepseek-ops why tiny@1.3.0`" in text


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({"evaluations": (evaluation(Verdict.FAIL),)}, "failure", "gate quick-check: fail - not worse"),
        ({"evaluations": (evaluation(Verdict.INCONCLUSIVE),)}, "failure", "gate quick-check: inconclusive"),
        ({"failures": (TaskFailure(task="train", reason="out\nof memory"),)}, "error", "train failed: out of memory"),
        ({"failures": (TaskFailure(task="evaluate", reason="timeout"),)}, "failure", "evaluate failed: timeout"),
        ({"skipped": "superseded by a newer push"}, "error", "superseded by a newer push"),
        ({}, "success", "finished"),
    ],
)
def test_the_status_is_a_verdict_or_says_why_there_is_none(changes: dict, state: str, words: str) -> None:
    run = outcome(**changes)
    assert run.state == state
    assert run.summary.startswith(words)
    assert "manual__1" in comment_text(run)


HOSTILE = "@team <img src=x> [a](http://evil) | cell\n# head `code` ![i](x) <!-- deepseek-ops:retrain --> **b** #1"


def test_texts_of_a_run_can_neither_format_nor_mention_nor_break_the_table() -> None:
    gate = evaluation(Verdict.FAIL, reason=HOSTILE, metrics={"a|b": 1.0})
    run = outcome(evaluations=(gate,), failures=(TaskFailure(task="train", reason=HOSTILE),))
    text = comment_text(run)
    assert "<" not in text
    assert not re.search(r"@\w", text)
    assert not re.search(r"(?<!\\)\[a|(?<!\\)\*\*b|(?<!\\)#1|(?<!\\)`code", text)
    (row,) = [line for line in text.splitlines() if line.startswith("| quick")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 7


def test_a_branch_name_cannot_end_the_code_it_stands_in() -> None:
    ref = SOURCE.evolve(name="refs/heads/a`@team`|b")
    assert comment_text(outcome(source=ref)).startswith("### deepseek-ops: `a@teamb` at ")


@pytest.mark.parametrize("url", ["javascript:alert(1)", "http://x/ y", "http://x/<b>", ""])
def test_what_is_no_plain_address_is_no_link(url: str) -> None:
    assert "](" not in comment_text(outcome(url=url))


def test_a_long_comment_stays_below_what_hosts_take(tmp_path: Path) -> None:
    many = tuple(TaskFailure(task=f"t{at}", reason="x" * 2000) for at in range(200))
    assert comment_text(outcome(failures=many)).count("failed:") <= 20
