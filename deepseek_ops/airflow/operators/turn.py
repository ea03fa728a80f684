"""Whose turn it is: runs of pushes to one branch wait for each other, or take each other's place."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException
from pydantic import JsonValue

from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator, as_object
from deepseek_ops.airflow.triggers.turn import TurnTrigger, has_ended

if TYPE_CHECKING:
    from deepseek_ops.pipeline.policy import Lane, Policy
    from deepseek_ops.pipeline.runs import RunPlan


class AwaitTurnOperator(DeepSeekOpsOperator):
    """Do what the push trigger's ``concurrency`` says about runs of earlier pushes to the branch.

    ``queue`` waits, without a worker slot, until they have ended; ``supersede`` makes them stop their jobs and end as
    skipped; ``parallel`` goes on. Runs that no push started go on at once.

    :param source: what ``ResolveSourceOperator`` returned (templated).
    :param run: what ``PlanRunOperator`` returned (templated).
    :param poll_seconds: between two looks while it waits.
    :return: what became of the turn, as a line for people.
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "source", "run")

    def __init__(self, *, source: Any, run: Any, poll_seconds: float = 5.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.run = run
        self.poll_seconds = poll_seconds

    def execute(self, context: Context) -> str:
        from deepseek_ops.pipeline.policy import Turn, enter, lane_key
        from deepseek_ops.pipeline.pushes import Source
        from deepseek_ops.pipeline.runs import RunPlan

        run = RunPlan.load(as_object(self.run))
        if Source.load(as_object(self.source)).cause != "push" or run.dry_run:
            return self._told(context, "no push: waits for nobody, and nobody takes its place")
        dag_run: Any = context["dag_run"]
        turn = Turn(
            run=str(context["run_id"]),
            commit=run.manifest.source.commit,
            order=dag_run.run_after.astimezone(UTC).isoformat(timespec="microseconds"),
            policy=self._policy(run),
        )
        enter(self.facts, lane_key(run.manifest.source), turn)
        return self._go_on(context)

    def execute_complete(self, context: Context, event: dict[str, JsonValue] | None = None) -> str:
        return self.execute(context)  # it enters where its turn was forgotten (older versions did), and waits again

    def _go_on(self, context: Context) -> str:
        """Return when the turn has come, wait for it, or end the run."""
        from deepseek_ops.pipeline.policy import advance, lane_key
        from deepseek_ops.pipeline.runs import RunPlan

        dag_run: Any = context["dag_run"]
        run_id, key = str(context["run_id"]), lane_key(RunPlan.load(as_object(self.run)).manifest.source)
        lane = advance(self.facts, key, run_id, has_ended=lambda other: has_ended(dag_run.dag_id, other))
        turn = lane.turn(run_id)
        if turn is not None and turn.state == "superseded":
            raise AirflowSkipException(self._line(lane, context))
        if turn is not None and turn.state == "waiting":
            self._wait(context, lane, key)
        return self._line(lane, context)

    def _wait(self, context: Context, lane: Lane, key: str) -> NoReturn:
        self._line(lane, context)
        dag_run: Any = context["dag_run"]
        self.defer(
            trigger=TurnTrigger(
                dag_id=str(dag_run.dag_id),
                run_id=str(context["run_id"]),
                lane=key,
                facts_conn_id=self.facts_conn_id,
                poll_interval=self.poll_seconds,
            ),
            method_name="execute_complete",
        )
        raise AssertionError("defer() returns never")

    def _line(self, lane: Lane, context: Context) -> str:
        from deepseek_ops.pipeline.policy import explain_turn

        return self._told(context, explain_turn(lane, str(context["run_id"])))

    def _told(self, context: Context, line: str) -> str:
        self.note(context, line)
        return line

    def _policy(self, run: RunPlan) -> Policy:
        """Return the ``concurrency`` of the first push trigger that watches the branch."""
        from deepseek_ops.pipeline.runs import push_policy

        return push_policy(self.config(run), run.manifest.source)
