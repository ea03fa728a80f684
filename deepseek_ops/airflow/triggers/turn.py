"""A trigger that waits, without a worker slot, until the runs of earlier pushes to a branch have ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from deepseek_ops.airflow.hooks import FactsHook
from deepseek_ops.airflow.triggers.watching import pause_after
from deepseek_ops.core.errors import PermanentError

log = logging.getLogger(__name__)


class TurnTrigger(BaseTrigger):
    """Fire when nothing is ahead of a run in the lane of its branch, or a newer push took its place.

    The event says only that there is something to look at: the task that wakes up reads the lane again.

    :param dag_id: DAG of the runs.
    :param run_id: the run that waits.
    :param lane: key of the lane.
    :param facts_conn_id: connection of the facts database.
    :param poll_interval: seconds between two looks.
    """

    def __init__(
        self,
        *,
        dag_id: str,
        run_id: str,
        lane: str,
        facts_conn_id: str = FactsHook.default_conn_name,
        poll_interval: float = 5.0,
    ) -> None:
        super().__init__()
        self.dag_id = dag_id
        self.run_id = run_id
        self.lane = lane
        self.facts_conn_id = facts_conn_id
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "deepseek_ops.airflow.triggers.turn.TurnTrigger",
            {
                "dag_id": self.dag_id,
                "run_id": self.run_id,
                "lane": self.lane,
                "facts_conn_id": self.facts_conn_id,
                "poll_interval": self.poll_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        failures = 0
        while True:
            try:
                state = await asyncio.to_thread(self._look)
            except PermanentError:
                raise
            except Exception as error:  # noqa: BLE001  (a database or an API that is away for a while ends no wait)
                failures += 1
                wait = pause_after(failures, self.poll_interval)
                log.warning("cannot look at lane %s, next in %.0f s: %s", self.lane, wait, error)
                await asyncio.sleep(wait)
                continue
            failures = 0
            if state != "waiting":
                yield TriggerEvent({"state": state})
                return
            await asyncio.sleep(self.poll_interval)

    def _look(self) -> str:
        from deepseek_ops.pipeline.policy import advance

        facts = FactsHook(self.facts_conn_id).facts
        lane = advance(facts, self.lane, self.run_id, has_ended=lambda other: has_ended(self.dag_id, other))
        turn = lane.turn(self.run_id)
        return "gone" if turn is None else turn.state


def has_ended(dag_id: str, run_id: str) -> bool:
    """Return whether a run is neither queued nor running: ended, or deleted. Asks Airflow."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    live: int = RuntimeTaskInstance.get_dr_count(dag_id, run_ids=[run_id], states=["queued", "running"])
    return live == 0
