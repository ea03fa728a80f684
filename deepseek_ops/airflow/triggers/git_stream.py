"""One poll per repository: what its refs are, told to every watcher, and woken early by webhooks or appointments."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek_ops.airflow.hooks import ConnectionMissingError, FactsHook, GitRemoteHook
from deepseek_ops.airflow.triggers.watching import pause_after
from deepseek_ops.core.errors import DeepSeekOpsError

if TYPE_CHECKING:
    from deepseek_ops.adapters.git import GitRepository
    from deepseek_ops.pipeline.wakes import Wakes

BELL_SECONDS = 1.0
"""Between two looks at the bell, a row of the facts database. Polls that are hardly slower need no bell."""
ECHOES = (1.0, 2.0, 4.0, 8.0)
"""After a webhook: when to look again while nothing has moved. A host may call before all its servers know the push."""
WITHOUT_FACTS_SECONDS = 60.0

log = logging.getLogger(__name__)


class Appointments:
    """When somebody wants a look before its turn, in seconds of ``time.monotonic``."""

    def __init__(self) -> None:
        self._at: float | None = None

    def ask(self, at: float) -> None:
        """Ask for a look at ``at``; the earliest wish counts."""
        self._at = at if self._at is None else min(self._at, at)

    def take(self) -> float | None:
        """Return the earliest wish since the last time, and forget it."""
        at, self._at = self._at, None
        return at

    def before(self, end: float) -> float:
        return end if self._at is None else min(end, self._at)


@dataclass(frozen=True, slots=True)
class RefSnapshot:
    """All branches and tags of a repository, as one poll saw them. ``refs`` is the same object until one moves."""

    remote: GitRepository
    refs: Mapping[str, str]
    default: str | None
    """Full name of the default branch; None in an empty repository."""
    at: float
    """When, by ``time.monotonic``."""
    appointments: Appointments


class Bell:
    """Hears webhooks through the facts. Without facts, or while they are away, nothing is heard and polling goes on."""

    def __init__(self, facts_conn_id: str, repository: str) -> None:
        self._conn_id = facts_conn_id
        self._repository = repository
        self._wakes: Wakes | None = None
        self._count: int | None = None
        self._failures = 0
        self._quiet_until = 0.0

    async def rung(self) -> bool:
        """Return whether somebody rang since the last call."""
        if not self._conn_id or time.monotonic() < self._quiet_until:
            return False
        try:
            count = await asyncio.to_thread(self._read)
        except Exception as error:  # noqa: BLE001  (whatever it is with the facts, polling goes on)
            self._failures += 1
            self._wakes = None
            missing = isinstance(error, ConnectionMissingError)
            pause = WITHOUT_FACTS_SECONDS if missing else pause_after(self._failures, BELL_SECONDS)
            self._quiet_until = time.monotonic() + pause
            if self._failures == 1:
                log.log(
                    logging.INFO if missing else logging.WARNING, "webhooks wake nobody, polling goes on: %s", error
                )
            return False
        self._failures = 0
        before, self._count = self._count, count
        return before is not None and before != count

    def _read(self) -> int:
        from deepseek_ops.pipeline.wakes import Wakes

        if self._wakes is None:
            self._wakes = Wakes(FactsHook(self._conn_id).facts)
        return self._wakes.count(self._repository)


async def snapshots(git_conn_id: str, poll_interval: float, facts_conn_id: str) -> AsyncIterator[RefSnapshot]:
    """Yield a snapshot per poll, equal ones included: a trigger that joins late gets its state from the next.

    It never ends and never raises: Airflow would start it again without a pause. After a failure it waits by itself,
    longer each time, and reads the connection again: a token may have been renewed.
    """
    bell = Bell(facts_conn_id if poll_interval > 2 * BELL_SECONDS else "", git_conn_id)
    appointments = Appointments()
    remote: GitRepository | None = None
    refs: Mapping[str, str] = {}
    failures = 0
    echoes: list[float] = []
    while True:
        try:
            if await bell.rung():  # before the look: a ring that comes during it is heard after it
                echoes = list(ECHOES)
            if remote is None:
                remote = await asyncio.to_thread(_open, git_conn_id)
            look = await remote.look_async()
        except Exception as error:  # noqa: BLE001
            failures += 1
            remote = None
            wait = pause_after(failures, poll_interval)
            level = logging.WARNING if isinstance(error, DeepSeekOpsError) else logging.ERROR
            log.log(level, "poll %d failed, next in %.0f s: %s", failures, wait, error)
            await asyncio.sleep(wait)
            continue
        failures = 0
        if look.refs != refs:
            refs, echoes = look.refs, []
        now = time.monotonic()
        yield RefSnapshot(remote, refs, look.default, now, appointments)
        end = now + min([poll_interval, *echoes[:1]])
        echoes = echoes[1:]
        if await _pause(end, bell, appointments):
            echoes = list(ECHOES)


async def _pause(end: float, bell: Bell, appointments: Appointments) -> bool:
    """Return at ``end``, at an appointment, or with True as soon as somebody rings."""
    while (left := appointments.before(end) - time.monotonic()) > 0:
        await asyncio.sleep(min(left, BELL_SECONDS))
        if await bell.rung():
            return True
    appointments.take()
    return False


def _open(git_conn_id: str) -> GitRepository:
    return GitRemoteHook(git_conn_id).remote
