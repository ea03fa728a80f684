"""Results go back to where the change is discussed: a status at once, and the verdict with its reasons at the end.

A review host that is down never fails a run: the last try skips the task and says what could not be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import BaseNotifier, Context, conf
from airflow.sdk.exceptions import AirflowSkipException
from pydantic import JsonValue

from deepseek_ops.airflow.hooks import FactsHook
from deepseek_ops.airflow.hooks_reporting import ReviewHook
from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator, as_object
from deepseek_ops.core.errors import DeepSeekOpsError, TransientError

if TYPE_CHECKING:
    from deepseek_ops.core.reporting import Review
    from deepseek_ops.pipeline.review import RunOutcome

_SETTLED_BY_OTHERS = ("other_pushes", "retrain_other_pushes", "report_started", "report_result", "mirror_metrics")
"""Tasks whose end says nothing about the change."""


class ReviewOperator(DeepSeekOpsOperator):
    """Base of operators that report: skips where nothing is configured, and instead of failing.

    :param source: what ``ResolveSourceOperator`` returned (templated).
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "source")

    def __init__(self, *, source: Any, git_conn_id: str = "{{ params.repository }}", **kwargs: Any) -> None:
        super().__init__(git_conn_id=git_conn_id, **kwargs)
        self.source = source

    @cached_property
    def review(self) -> Any:
        return ReviewHook(self.git_conn_id).review

    def pre_execute(self, context: Context) -> None:
        """Look at nothing: what ended because of a newer push is reported, too."""

    def execute(self, context: Context) -> Any:
        if self.source is None:
            raise AirflowSkipException("no commit was resolved, so there is nothing to report about")
        try:
            review = self.review
            if review is None:
                raise AirflowSkipException(f"connection {self.git_conn_id} has no review system (extra 'review')")
            return self.report(review, context)
        except DeepSeekOpsError as error:
            ti: Any = context["ti"]
            if isinstance(error, TransientError) and ti.try_number <= ti.max_tries:
                raise
            self.log.warning("not reported: %s", error)
            raise AirflowSkipException(f"not reported: {error}") from error

    def report(self, review: Review, context: Context) -> Any:
        raise NotImplementedError


class ReportStartedOperator(ReviewOperator):
    """Set the commit's status to pending; skipped for a dry run, which has no result to wait for.

    :param run: what ``PlanRunOperator`` returned; None when it failed, which is reported at the end (templated).
    """

    template_fields: Sequence[str] = (*ReviewOperator.template_fields, "run")

    def __init__(self, *, run: Any, **kwargs: Any) -> None:
        super().__init__(trigger_rule="all_done", **kwargs)
        self.run = run

    def report(self, review: Review, context: Context) -> None:
        from deepseek_ops.pipeline.pushes import Source

        if self.run is None or as_object(self.run).get("dry_run"):
            raise AirflowSkipException("nothing was started")
        commit = Source.load(as_object(self.source)).ref.commit
        review.status(commit, "pending", "the run of this commit has started", url=run_url(context))
        self.log.info("%s: %s is pending", review.name, commit)


class ReportResultOperator(ReviewOperator):
    """Set the final status and write the comment with gates, metrics, cost and the way on. Runs whatever happened.

    :param dataset: what ``PrepareDatasetOperator`` returned (templated).
    :param checkpoint: what was trained (templated).
    :param evaluations: the gates' evidence (templated).
    :param version: what ``RegisterModelOperator`` returned (templated).
    :param recorded: what ``RecordExperimentOperator`` returned (templated).
    """

    template_fields: Sequence[str] = (
        *ReviewOperator.template_fields,
        "dataset",
        "checkpoint",
        "evaluations",
        "version",
        "recorded",
    )

    def __init__(
        self, *, dataset: Any, checkpoint: Any, evaluations: Any, version: Any, recorded: Any, **kwargs: Any
    ) -> None:
        super().__init__(trigger_rule="all_done", **kwargs)
        self.dataset = dataset
        self.checkpoint = checkpoint
        self.evaluations = evaluations
        self.version = version
        self.recorded = recorded

    def report(self, review: Review, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.pipeline.review import COMMENT_KEY, comment_text

        outcome = self._outcome(context)
        commits = {outcome.source.commit: None}
        if isinstance(self.recorded, dict) and self.recorded.get("commit"):
            commits[str(self.recorded["commit"])] = None  # the branch ends there now, and a review shows its end
        places: dict[str, None] = {}
        for commit in commits:
            review.status(commit, outcome.state, outcome.summary, url=outcome.url)
            places |= dict.fromkeys(review.comment(commit, comment_text(outcome), key=COMMENT_KEY))
        self.log.info("%s: %s is %s (%s)", review.name, outcome.source.commit, outcome.state, outcome.summary)
        return {"state": outcome.state, "summary": outcome.summary, "comments": list(places)}

    def _outcome(self, context: Context) -> RunOutcome:
        from deepseek_ops.core.records import Checkpoint, DatasetVersion, Evaluation, ModelVersion
        from deepseek_ops.pipeline.policy import lane_key, superseded_reason
        from deepseek_ops.pipeline.pushes import Source
        from deepseek_ops.pipeline.review import RunOutcome, cost_of, failures_of
        from deepseek_ops.pipeline.tracking import tracker_url

        source, run_id = Source.load(as_object(self.source)).ref, str(context["run_id"])
        version = ModelVersion.load(as_object(self.version)) if self.version else None
        failures = failures_of(self.facts, run_id, failed_tasks(context))
        usd, device_seconds = cost_of(self.facts, run_id)
        skipped = ""
        if version is None and not failures:
            lane = lane_key(source)
            skipped = superseded_reason(self.facts, lane, run_id) or "the run ended before it had a result"
        return RunOutcome(
            source=source,
            run_id=run_id,
            url=run_url(context),
            model=version.name if version else "",
            version=version.version if version else "",
            tracker_url=tracker_url(self.facts, run_id),
            checkpoint=Checkpoint.load(as_object(self.checkpoint)) if self.checkpoint else None,
            dataset=DatasetVersion.load(as_object(self.dataset)) if self.dataset else None,
            evaluations=tuple(Evaluation.load(item) for item in self.evaluations or () if item),
            failures=failures,
            skipped=skipped,
            usd=usd,
            device_seconds=device_seconds,
        )


class NoteFailure(BaseNotifier):
    """Keep why a task failed, for the report at the end of the run. Never raises: the failure comes first.

    :param facts_conn_id: connection of the facts database.
    """

    def __init__(self, facts_conn_id: str = "deepseek_ops_facts", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.facts_conn_id = facts_conn_id

    def notify(self, context: Any) -> None:
        from deepseek_ops.pipeline.review import note_failure

        ti = context["ti"]
        reason = str(context.get("exception") or "no reason was reported")
        try:
            note_failure(FactsHook(self.facts_conn_id).facts, str(ti.run_id), str(ti.task_id), reason)
        except Exception as error:  # noqa: BLE001  (what cannot be noted must not hide the failure it is about)
            self.log.warning("the reason was not kept for the review: %s", error)


NOTE_FAILURE = NoteFailure()
"""The callback of every task whose failure a review is told about."""


def failed_tasks(context: Context) -> list[str]:
    """Return the tasks of the run that stand as failed now, without those that say nothing about the change."""
    ti: Any = context["ti"]
    states = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id]).get(ti.run_id, {})
    names = [str(name) for name, state in states.items() if str(state) == "failed"]
    # A mapped task is named with its index: evaluate_0.
    plain = {name.rpartition("_")[0] if name.rpartition("_")[2].isdigit() else name for name in names}
    return sorted(plain - set(_SETTLED_BY_OTHERS))


def run_url(context: Context) -> str:
    """Return where people see the run in Airflow; empty where Airflow does not know its own address."""
    ti: Any = context["ti"]
    base = str(conf.get("api", "base_url", fallback="") or "").rstrip("/")
    return f"{base}/dags/{quote(ti.dag_id)}/runs/{quote(ti.run_id, safe='')}" if base else ""
