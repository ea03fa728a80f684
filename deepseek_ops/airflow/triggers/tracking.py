"""A trigger that mirrors the metrics of a training into a tracker while it runs, without a worker slot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from deepseek_ops.airflow.hooks import StoreHook
from deepseek_ops.airflow.hooks_reporting import TrackerHook
from deepseek_ops.airflow.triggers.watching import pause_after

if TYPE_CHECKING:
    from deepseek_ops.pipeline.tracking import Mirror

SETTLED = ("success", "failed", "upstream_failed", "skipped", "removed")

log = logging.getLogger(__name__)


class MirrorMetricsTrigger(BaseTrigger):
    """Send new metrics every few seconds, and fire with where the mirror stands when the training task has settled.

    A tracker or a store that is away is asked less and less often; the training knows nothing of it.

    :param tracked: fields of the :class:`~deepseek_ops.core.reporting.TrackedRun`.
    :param prefix: of the training in the store.
    :param dag_id: DAG of the training task.
    :param run_id: its run.
    :param task_id: the training task.
    :param store_conn_id: connection of the object store.
    :param tracker_conn_id: connection of the tracker.
    :param poll_interval: seconds between two looks.
    """

    def __init__(
        self,
        *,
        tracked: dict[str, Any],
        prefix: str,
        dag_id: str,
        run_id: str,
        task_id: str,
        store_conn_id: str = StoreHook.default_conn_name,
        tracker_conn_id: str = TrackerHook.default_conn_name,
        poll_interval: float = 10.0,
    ) -> None:
        super().__init__()
        self.tracked = tracked
        self.prefix = prefix
        self.dag_id = dag_id
        self.run_id = run_id
        self.task_id = task_id
        self.store_conn_id = store_conn_id
        self.tracker_conn_id = tracker_conn_id
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("tracked", "prefix", "dag_id", "run_id", "task_id", "store_conn_id", "tracker_conn_id")
        arguments = {name: getattr(self, name) for name in (*names, "poll_interval")}
        return "deepseek_ops.airflow.triggers.tracking.MirrorMetricsTrigger", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        mirror, failures = await asyncio.to_thread(self._mirror), 0
        while True:
            # The state first: what is written before the training settles is read by the look after it.
            state = await self._state()
            sent = await asyncio.to_thread(mirror.sync)
            if state in SETTLED:
                yield TriggerEvent({"state": state, "after": mirror.after, "step": mirror.step})
                return
            failures = 0 if sent else failures + 1
            if failures:
                log.warning("metrics of run %s are not mirrored yet: %s", self.run_id, mirror.report.problem)
            await asyncio.sleep(pause_after(failures, self.poll_interval) if failures else self.poll_interval)

    def _mirror(self) -> Mirror:
        from deepseek_ops.core.reporting import TrackedRun
        from deepseek_ops.pipeline.tracking import Mirror

        store, tracker = StoreHook(self.store_conn_id).store, TrackerHook(self.tracker_conn_id).tracker
        return Mirror(store, self.prefix, tracker, TrackedRun(**self.tracked))

    async def _state(self) -> str:
        try:
            return await asyncio.to_thread(task_state, self.dag_id, self.run_id, self.task_id)
        except Exception as error:  # noqa: BLE001  (an API that is away for a while ends no wait)
            log.warning("cannot ask for the state of %s of run %s: %s", self.task_id, self.run_id, error)
            return ""


def task_state(dag_id: str, run_id: str, task_id: str) -> str:
    """Return the state of a task of a run, empty before it has one. Asks Airflow."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    states = RuntimeTaskInstance.get_task_states(dag_id=dag_id, task_ids=[task_id], run_ids=[run_id])
    return str(states.get(run_id, {}).get(task_id) or "")
