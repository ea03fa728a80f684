"""What both sensors share: what counted as old when the wait began, kept over retries."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import BaseSensorOperator
from airflow.sdk import Context
from airflow.triggers.base import BaseEventTrigger
from pydantic import JsonValue

from deepseek_ops.core.errors import TransientError

BASELINE_KEY = "waits_after"  # never rename: running tasks look it up


class NoEventError(TransientError):
    """The trigger ended without an event (it was removed by hand, or its triggerer was replaced)."""

    def __str__(self) -> str:
        return "the wait ended without an event; the next try goes on waiting from where this one began."


class WaitSensor(BaseSensorOperator):
    """Base of our sensors: look once, then wait in the triggerer (``deferrable``) or poll in this process.

    :param deferrable: wait without a worker slot; the default.
    """

    def __init__(self, *, deferrable: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.deferrable = deferrable

    def baseline(self, context: Context, begin: Callable[[], JsonValue]) -> JsonValue:
        """Return what counts as old: what the first try of this task found, where Airflow remembers it (3.3)."""
        memory: Any = context.get("task_state_store")
        known: JsonValue = memory.get(BASELINE_KEY) if memory is not None else None
        if known is None:
            known = begin()
            if memory is not None:
                memory.set(BASELINE_KEY, known)
        return known

    def wait_for(self, trigger: BaseEventTrigger) -> Any:
        """Defer to the trigger until it fires or the sensor's own timeout has passed; does not return."""
        return self.defer(trigger=trigger, method_name="execute_complete", timeout=timedelta(seconds=self.timeout))

    def execute_complete(self, context: Context, event: dict[str, JsonValue] | None = None) -> dict[str, JsonValue]:
        """Return the event's payload. Raises NoEventError when there is none."""
        if event is None:
            raise NoEventError
        return event
