"""What a review is told of a run: one line for the status, and one comment that a reviewer can decide from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from pydantic import Field

from deepseek_ops.core.errors import ObjectExistsError
from deepseek_ops.core.masking import masked
from deepseek_ops.core.ports import Facts
from deepseek_ops.core.records import Checkpoint, DatasetVersion, Evaluation, GitRef, Record, Verdict
from deepseek_ops.core.reporting import ReviewState
from deepseek_ops.cost import entries_of, summarise

FAILURE = "task-failure"
"""Kind of the facts that hold why tasks of a run failed, keyed ``<run id>/<task>``."""
MAX_REASON = 2000
MAX_FAILURES = 10
"""Failed tasks that a comment names, so that it stays below what hosts take."""
COMMENT_KEY = "retrain"
_MARKS: dict[Verdict, str] = {Verdict.PASS: "pass", Verdict.FAIL: "**fail**", Verdict.INCONCLUSIVE: "**inconclusive**"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+.!|<>~@$&-])")
_VERDICT_TASKS = ("evaluate", "require_pass", "prepare_dataset")
"""Tasks whose failure is a verdict about the change; other failures are of the run itself."""


class TaskFailure(Record):
    """Why a task failed for good."""

    task: str
    reason: str


class RunOutcome(Record):
    """What is known of a run when it is reported."""

    source: GitRef
    run_id: str
    url: str = Field(default="", description="Of the run in Airflow.")
    model: str = ""
    version: str = ""
    tracker_url: str = ""
    checkpoint: Checkpoint | None = None
    dataset: DatasetVersion | None = None
    evaluations: tuple[Evaluation, ...] = ()
    failures: tuple[TaskFailure, ...] = ()
    skipped: str = Field(default="", description="Why the run ended without a result; empty when it has one.")
    usd: float = 0.0
    device_seconds: float = 0.0

    @property
    def state(self) -> ReviewState:
        """``failure`` where a gate or the data speaks against the change, ``error`` where there is no verdict."""
        if any(item.verdict is not Verdict.PASS for item in self.evaluations):
            return "failure"
        if self.failures:
            return "failure" if any(item.task in _VERDICT_TASKS for item in self.failures) else "error"
        return "error" if self.skipped else "success"

    @property
    def summary(self) -> str:
        """One line: what a reviewer sees without opening anything."""
        short = [item for item in self.evaluations if item.verdict is not Verdict.PASS]
        if short:
            return f"gate {short[0].stage}: {short[0].verdict} - {_line(short[0].reason)}"
        if self.failures:
            return f"{self.failures[0].task} failed: {_line(self.failures[0].reason)}"
        if self.skipped:
            return _line(self.skipped)
        metrics = self.checkpoint.metrics if self.checkpoint else {}
        shown = [f"{name} {_number(metrics[name])}" for name in ("val_loss", "training_loss") if name in metrics]
        version = f"{self.model} {self.version} registered" if self.version else "finished"
        gates = f"{len(self.evaluations)} of {len(self.evaluations)} gates passed" if self.evaluations else ""
        return ", ".join(part for part in (version, gates, *shown[:1]) if part)


def note_failure(facts: Facts, run_id: str, task: str, reason: str) -> None:
    """Keep why a task failed until the run is reported; the latest reason stands, without the credentials of URLs."""
    key = f"{run_id}/{task}"
    body = TaskFailure(task=task, reason=masked(reason)[:MAX_REASON]).dump()
    try:
        facts.insert(FAILURE, key, body, run=run_id)
    except ObjectExistsError:
        fact = facts.get(FAILURE, key)
        if fact is not None and fact.body != body:
            facts.update(fact, body)


def failures_of(facts: Facts, run_id: str, failed: Iterable[str]) -> tuple[TaskFailure, ...]:
    """Return why the tasks that stand as failed now did so; one that left no reason (it was killed) says that."""
    noted = [TaskFailure.load(fact.body) for fact in facts.find(FAILURE, run=run_id, limit=1000)]
    known = {item.task: masked(item.reason) for item in noted}  # older versions kept them as they were
    lost = "it left no reason: it was killed, or its worker was lost"
    return tuple(TaskFailure(task=task, reason=known.get(task, lost)) for task in sorted(set(failed)))


def cost_of(facts: Facts, run_id: str) -> tuple[float, float]:
    """Return (US dollars, device-seconds) of a run so far."""
    total = summarise(entries_of(facts, run_id))
    return total.usd, total.device_seconds


def comment_text(outcome: RunOutcome) -> str:
    """Return the comment as Markdown. Whatever comes from the run is escaped: it can neither format nor mention."""
    words = {"success": "passed", "failure": "did not pass", "error": "broke", "pending": "is running"}
    head = f"### deepseek-ops: {_code(outcome.source.short)} at {_code(outcome.source.commit[:12])} "
    blocks = [head + (words[outcome.state] if not outcome.skipped else "ended without a result")]
    blocks += [_escape(outcome.skipped)] if outcome.skipped else []
    told = outcome.failures[:MAX_FAILURES]
    blocks += ["\n".join(f"- **{_escape(item.task)}** failed: {_escape(item.reason)}" for item in told)]
    blocks += [_gates(outcome.evaluations), _facts_table(outcome), _way_on(outcome)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _gates(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return ""
    rows = [
        (
            _escape(item.stage),
            _MARKS[item.verdict],
            ", ".join(f"{_escape(name)} {_number(value)}" for name, value in sorted(item.metrics.items())),
            _against(item),
            str(item.num_items),
            _escape(item.reason),
        )
        for item in evaluations
    ]
    return _table(("Gate", "Verdict", "Metrics", "Beside the champion", "Items", "Why"), rows)


def _against(item: Evaluation) -> str:
    """Return ``v1.2.0: -0.013 [-0.021, -0.005]``: the paired difference with its confidence interval."""
    if not item.champion or item.delta is None:
        return "no champion" if not item.champion else _escape(item.champion)
    text = f"{_escape(item.champion)}: {_signed(item.delta)}"
    return f"{text} [{_signed(item.interval[0])}, {_signed(item.interval[1])}]" if item.interval else text


def _facts_table(outcome: RunOutcome) -> str:
    rows: list[tuple[str, str]] = []
    if outcome.version:
        rows.append(("Version", f"{_escape(outcome.model)} {_escape(outcome.version)}"))
    if outcome.checkpoint is not None:
        metrics = sorted(outcome.checkpoint.metrics.items())
        rows.append(("Training", ", ".join(f"{_escape(name)} {_number(value)}" for name, value in metrics)))
        rows.append(("Steps", f"{outcome.checkpoint.step:,} ({outcome.checkpoint.tokens:,} tokens)"))
    if outcome.dataset is not None:
        rows.append(("Dataset", f"{_escape(outcome.dataset.name)} {_code(outcome.dataset.version[:12])}"))
    if outcome.device_seconds:
        rows.append(("Cost", f"{outcome.usd:.2f} USD ({outcome.device_seconds / 3600:.2f} device-hours)"))
    return _table(("", ""), rows) if rows else ""


def _way_on(outcome: RunOutcome) -> str:
    links = [("Airflow run", outcome.url), ("Tracker", outcome.tracker_url)]
    shown = [f"[{name}]({_url(url)})" for name, url in links if _url(url)]
    target = f"{outcome.model}@{outcome.version}" if outcome.version else outcome.run_id
    return " · ".join([*shown, _code(f"deepseek-ops why {target}")])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _escape(text: str) -> str:
    """Return text as Markdown shows it literally, on one line: no formatting, link, HTML, mention or table cell."""
    return _SPECIAL.sub(r"\\\1", _line(text)).replace("\\@", "@\u200b").replace("\\<", "&lt;").replace("\\>", "&gt;")


def _code(text: str) -> str:
    """Return text as inline code; what would end it is left out."""
    return f"`{_line(text).replace('`', '').replace('|', '')}`"


def _url(url: str) -> str:
    """Return a URL that can stand in a link, or an empty text for what is none."""
    if not re.fullmatch(r"https?://[^\s<>\"'`|\\^{}]+", url):
        return ""
    return url.replace("(", "%28").replace(")", "%29")


def _line(text: str) -> str:
    return " ".join(text.split())


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def _signed(value: float) -> str:
    return f"{value:+.4g}"


__all__ = [
    "COMMENT_KEY",
    "FAILURE",
    "RunOutcome",
    "TaskFailure",
    "comment_text",
    "cost_of",
    "failures_of",
    "note_failure",
]
