"""A trigger that fires when a schedule of the branch's own pipeline file is due: a change of cron needs no new DAG."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import zoneinfo
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TriggerEvent

from deepseek_ops.airflow.hooks import FactsHook, GitRemoteHook
from deepseek_ops.airflow.triggers.git import GitRefTrigger
from deepseek_ops.core.errors import PermanentError

if TYPE_CHECKING:
    from deepseek_ops.airflow.triggers.git_stream import RefSnapshot

log = logging.getLogger(__name__)


class PipelineScheduleTrigger(GitRefTrigger):
    """Fire once for the newest time that a ``schedule`` trigger of the branch's pipeline file has named.

    Polls with the other watchers of the repository. Times that passed while no DAG listened make one event at the next
    start; times before a schedule was first seen make none.

    :param refs: the branch, as one full ref name.
    :param pipeline_file: path of the pipeline file.
    """

    def __init__(
        self,
        *,
        git_conn_id: str = GitRemoteHook.default_conn_name,
        asset_name: str = "",
        refs: Sequence[str] = ("refs/heads/main",),
        pipeline_file: str = "deepseek.yaml",
        poll_interval: float = 30.0,
        facts_conn_id: str = FactsHook.default_conn_name,
    ) -> None:
        super().__init__(
            git_conn_id=git_conn_id,
            asset_name=asset_name,
            refs=refs,
            pipeline_file=pipeline_file,
            poll_interval=poll_interval,
            facts_conn_id=facts_conn_id,
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("git_conn_id", "asset_name", "refs", "pipeline_file", "poll_interval", "facts_conn_id")
        return (
            "deepseek_ops.airflow.triggers.schedule.PipelineScheduleTrigger",
            {name: getattr(self, name) for name in names},
        )

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """Yield one event for each look that finds a schedule due."""
        memory, known, commit = None, None, ""
        schedules: tuple[tuple[str, str], ...] = ()
        async for snapshot in shared_stream:
            try:
                if known is None:
                    memory = self._memory()
                    known = (await memory.load() if memory else None) or {}
                now_at = snapshot.refs.get(self.refs[0], "")
                if now_at and now_at != commit:
                    schedules = await asyncio.to_thread(self._schedules, snapshot, now_at)
                    commit = now_at
            except Exception as error:  # noqa: BLE001  (a trigger that raises is started again without a pause)
                log.warning("cannot read the schedules of %s yet: %s", self.refs[0], error)
                continue
            fired, seen = due(schedules, known, _now())
            if fired:
                yield TriggerEvent({"ref": self.refs[0], "due": fired})
                await asyncio.sleep(self.handover_seconds)
            if seen != known and (memory is None or await memory.save_or_log(seen)):
                known = seen

    def _schedules(self, snapshot: RefSnapshot, commit: str) -> tuple[tuple[str, str], ...]:
        """Return (cron, time zone) of the commit's schedule triggers; a file that cannot be read has none."""
        from deepseek_ops.core.config import ScheduleTrigger, load_pipeline

        try:
            pipeline = load_pipeline(snapshot.remote.read_file(commit, self.pipeline_file), file=self.pipeline_file)
        except PermanentError as error:
            log.warning("no schedules: %s", error)
            return ()
        return tuple((one.cron, one.timezone) for one in pipeline.triggers if isinstance(one, ScheduleTrigger))


def due(
    schedules: Sequence[tuple[str, str]], known: Mapping[str, str], now: dt.datetime
) -> tuple[dict[str, str], dict[str, str]]:
    """Return what is due, schedule -> time, and what is known then: schedule -> the time it is done up to.

    A schedule that is new begins now. One that cron or time zone make unreadable is left out, with a warning.
    """
    fired: dict[str, str] = {}
    seen: dict[str, str] = {}
    for cron, timezone in schedules:
        key = f"{cron} {timezone}"
        since = known.get(key)
        if since is None:
            seen[key] = now.isoformat()
            continue
        latest = _latest(cron, timezone, now)
        is_due = latest is not None and latest > dt.datetime.fromisoformat(since)
        if latest is not None and is_due:
            fired[key] = latest.isoformat()
        seen[key] = now.isoformat() if is_due else since
    return fired, seen


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _latest(cron: str, timezone: str, now: dt.datetime) -> dt.datetime | None:
    """Return the newest time up to ``now`` that the schedule names, in UTC."""
    from croniter import CroniterError, croniter  # type: ignore[import-untyped]  # Airflow's own

    try:
        local = now.astimezone(zoneinfo.ZoneInfo(timezone))
        # get_prev() is strictly before: a second later, a time that is just now counts.
        found: dt.datetime = croniter(cron, local + dt.timedelta(seconds=1)).get_prev(dt.datetime)
    except (CroniterError, ValueError, zoneinfo.ZoneInfoNotFoundError) as error:
        log.warning("schedule %r in %s is not understood: %s", cron, timezone, error)
        return None
    return found.astimezone(dt.UTC)
