"""The mirror of a training in an experiment tracker, beside the training and never in its way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException
from pydantic import JsonValue

from deepseek_ops.airflow.hooks import ConnectionMissingError
from deepseek_ops.airflow.hooks_reporting import TrackerHook
from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator, as_object
from deepseek_ops.airflow.operators.review import run_url
from deepseek_ops.airflow.triggers.tracking import MirrorMetricsTrigger
from deepseek_ops.core.errors import DeepSeekOpsError, TransientError

if TYPE_CHECKING:
    from deepseek_ops.core.reporting import RunEnd
    from deepseek_ops.pipeline.tracking import Mirror

_ENDS: dict[str, RunEnd] = {"success": "finished", "failed": "failed", "upstream_failed": "failed"}


class MirrorMetricsOperator(DeepSeekOpsOperator):
    """Show a training in the tracker of a ``deepseek_tracker`` connection while it runs; skipped where there is none.

    Runs beside the training task and reads what that has written to the store, so the training neither waits for a
    tracker nor fails with it. What could not be mirrored in the end is said, and the task is skipped, not failed.

    :param run: what ``PlanRunOperator`` returned (templated).
    :param dataset: what ``PrepareDatasetOperator`` returned (templated).
    :param plan: what ``PlanTrainingOperator`` returned (templated).
    :param train_task_id: the task that trains the plan.
    :param tracker_conn_id: connection of the tracker (templated).
    :return: where the run is in the tracker, ``{tracker, run_id, url}``.
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "run", "dataset", "plan", "tracker_conn_id")

    def __init__(
        self,
        *,
        run: Any,
        dataset: Any,
        plan: Any,
        train_task_id: str = "train",
        tracker_conn_id: str = TrackerHook.default_conn_name,
        poll_seconds: float = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.dataset = dataset
        self.plan = plan
        self.train_task_id = train_task_id
        self.tracker_conn_id = tracker_conn_id
        self.poll_seconds = poll_seconds

    def pre_execute(self, context: Context) -> None:
        """Look at nothing: a training that ends because of a newer push ends in the tracker, too."""

    def execute(self, context: Context) -> NoReturn:
        mirror = self._mirror(context)
        mirror.sync()  # the run is there, with its address, before the training ends
        self._remember(mirror, context)
        if mirror.report.error is not None:
            self.log.warning("the tracker is not told yet: %s", mirror.report.problem)
        ti: Any = context["ti"]
        self.defer(
            trigger=MirrorMetricsTrigger(
                tracked=asdict(mirror.run),
                prefix=mirror.prefix,
                dag_id=str(ti.dag_id),
                run_id=str(context["run_id"]),
                task_id=self.train_task_id,
                store_conn_id=self.store_conn_id,
                tracker_conn_id=self.tracker_conn_id,
                poll_interval=self.poll_seconds,
            ),
            method_name="execute_complete",
        )
        raise AssertionError("defer() returns never")

    def execute_complete(self, context: Context, event: dict[str, JsonValue] | None = None) -> dict[str, JsonValue]:
        told = event or {}
        mirror = self._mirror(context)
        mirror.after, mirror.step = int(str(told.get("after", -1))), int(str(told.get("step", -1)))
        report = mirror.finish(_ENDS.get(str(told.get("state")), "killed"))
        self._remember(mirror, context)
        if report.error is not None:
            self._not_told(report.error, context)
        if mirror.place is None:
            raise AirflowSkipException("the tracker has no run")
        self.log.info("%s: %s is complete up to step %d", mirror.tracker.name, mirror.place.url, mirror.step)
        return {"tracker": mirror.tracker.name, "run_id": mirror.place.run_id, "url": mirror.place.url}

    def _not_told(self, error: DeepSeekOpsError, context: Context) -> NoReturn:
        ti: Any = context["ti"]
        if isinstance(error, TransientError) and ti.try_number <= ti.max_tries:
            raise error
        problem = f"the tracker was not told everything; clear this task to send the rest: {error}"
        self.log.warning("%s", problem)
        raise AirflowSkipException(problem) from error

    def _mirror(self, context: Context) -> Mirror:
        from deepseek_ops.core.records import DatasetVersion, TrainingPlan
        from deepseek_ops.pipeline.runs import RunPlan
        from deepseek_ops.pipeline.tracking import Mirror, tracked_run

        try:
            tracker = TrackerHook(self.tracker_conn_id).tracker
        except ConnectionMissingError:
            raise AirflowSkipException(f"no tracker: there is no connection {self.tracker_conn_id}") from None
        except DeepSeekOpsError as error:
            self.log.warning("no tracker: %s", error)
            raise AirflowSkipException(f"no tracker: {error}") from error
        plan = TrainingPlan.load(as_object(self.plan))
        tracked = tracked_run(
            RunPlan.load(as_object(self.run)).manifest,
            DatasetVersion.load(as_object(self.dataset)),
            plan,
            run_id=str(context["run_id"]),
            run_url=run_url(context),
        )
        return Mirror(self.store_hook.store, plan.run_prefix, tracker, tracked)

    def _remember(self, mirror: Mirror, context: Context) -> None:
        """Keep the address for the experiment's commit: from a commit to the run."""
        from deepseek_ops.pipeline.tracking import TrackedPlace, remember_place

        if mirror.place is None:
            return
        tags = mirror.run.tags
        place = TrackedPlace(
            tracker=mirror.tracker.name,
            run_id=mirror.place.run_id,
            url=mirror.place.url,
            commit=tags["deepseek_ops.commit"],
            plan=tags["deepseek_ops.plan"],
        )
        remember_place(self.facts, place, run=str(context["run_id"]))
