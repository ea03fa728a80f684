"""A trigger that fires for pushes: any host over the Git protocol, by polling refs, without a clone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TriggerEvent

from deepseek_ops.airflow.hooks import GitRemoteHook
from deepseek_ops.airflow.triggers.watching import Memory, OnStart, WatchTrigger, pause_after
from deepseek_ops.core.errors import DeepSeekOpsError

if TYPE_CHECKING:
    from deepseek_ops.adapters.git import GitRepository
    from deepseek_ops.core.records import GitRef

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RefSnapshot:
    """All branches and tags of a repository, as one poll saw them."""

    remote: GitRepository
    refs: Mapping[str, str]


class GitRefTrigger(WatchTrigger):
    """Fire for every watched branch or tag that moved, with a :class:`~deepseek_ops.core.records.GitRef` as JSON.

    For asset watchers, where it goes on from the commit it announced last, and for ``GitRefSensor``. Triggers with the
    same connection and interval share one poll, however many refs they watch.

    :param git_conn_id: connection of the repository.
    :param asset_name: asset whose state store remembers what was announced; empty in a deferred task.
    :param refs: globs on full ref names, such as ``refs/heads/exp/*``; ``*`` crosses ``/``.
    :param paths: path globs (``**``, ``!`` to exclude); a branch that changed none of them does not fire.
    :param pipeline_file: read this file from the pushed commit and fire only if its own Git triggers want the push.
    :param poll_interval: seconds between two looks.
    :param after: ref -> commit that counts as announced already, where there is no memory.
    :param on_start: what a first start does with refs that exist: ``skip`` or ``announce`` them.
    """

    def __init__(
        self,
        *,
        git_conn_id: str = GitRemoteHook.default_conn_name,
        asset_name: str = "",
        refs: Sequence[str] = ("refs/heads/*",),
        paths: Sequence[str] = (),
        pipeline_file: str = "",
        poll_interval: float = 30.0,
        after: Mapping[str, str] | None = None,
        on_start: OnStart = "skip",
    ) -> None:
        super().__init__(asset_name=asset_name, poll_interval=poll_interval, on_start=on_start)
        self.git_conn_id = git_conn_id
        self.refs = list(refs)
        self.paths = list(paths)
        self.pipeline_file = pipeline_file
        self.after = None if after is None else dict(after)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "deepseek_ops.airflow.triggers.git.GitRefTrigger",
            {
                "git_conn_id": self.git_conn_id,
                "asset_name": self.asset_name,
                "refs": self.refs,
                "paths": self.paths,
                "pipeline_file": self.pipeline_file,
                "poll_interval": self.poll_interval,
                "after": self.after,
                "on_start": self.on_start,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        async for event in self.filter_shared_stream(self.open_shared_stream(self.serialize()[1])):
            yield event

    def shared_stream_key(self) -> Hashable | None:
        return ("deepseek_ops.git", self.git_conn_id, self.poll_interval)

    @classmethod
    async def open_shared_stream(cls, kwargs: dict[str, Any]) -> AsyncIterator[RefSnapshot]:
        """Yield a snapshot per poll, equal ones included: a trigger that joins late gets its state from the next."""
        remote: GitRepository | None = None
        failures = 0
        while True:
            try:
                if remote is None:
                    remote = await asyncio.to_thread(_open, kwargs["git_conn_id"])
                snapshot = RefSnapshot(remote, await remote.refs_async())
            except Exception as error:  # noqa: BLE001  (a trigger that raises is started again without a pause)
                failures += 1
                remote = None  # read the connection again: a token may have been renewed
                wait = pause_after(failures, kwargs["poll_interval"])
                level = logging.WARNING if isinstance(error, DeepSeekOpsError) else logging.ERROR
                log.log(level, "poll %d failed, next in %.0f s: %s", failures, wait, error)
                await asyncio.sleep(wait)
                continue
            failures = 0
            yield snapshot
            await asyncio.sleep(kwargs["poll_interval"])

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """Yield one event for each watched ref that moved in a way the filters want."""
        watch = _Watch(self)
        async for snapshot in shared_stream:
            url = snapshot.remote.url
            there = self._watched(snapshot)
            if not await watch.begun(url, there):
                continue
            fired = False
            for ref in watch.moved(url, there):
                wanted = await self._wanted(snapshot.remote, ref)
                if wanted:
                    fired = True
                    yield TriggerEvent(ref.dump())
                if wanted is not None:  # could not be told: the next poll asks again
                    watch.seen[ref.name] = ref.commit
            if fired:
                await asyncio.sleep(self.handover_seconds)
            await watch.remember()

    def _watched(self, snapshot: RefSnapshot) -> dict[str, str]:
        from deepseek_ops.adapters.git.refs import matches

        return {
            name: commit
            for name, commit in sorted(snapshot.refs.items())
            if matches(name, self.refs) and _is_record(snapshot.remote.url, name, commit)
        }

    async def _wanted(self, remote: GitRepository, ref: GitRef) -> bool | None:
        from deepseek_ops.airflow.triggers.wanted import is_wanted

        try:
            return await asyncio.to_thread(is_wanted, remote, ref, paths=self.paths, pipeline_file=self.pipeline_file)
        except Exception as error:  # noqa: BLE001  (one ref that cannot be looked at must not stop the others)
            log.warning("cannot look at %s at %s yet: %s", ref.short, ref.commit[:12], error)
            return None


class _Watch:
    """One run of the trigger: what counts as announced, and where that is remembered."""

    def __init__(self, trigger: GitRefTrigger) -> None:
        self.seen: dict[str, str] = {}
        self._trigger = trigger
        self._memory: Memory | None = None
        self._stored: dict[str, str] | None = None

    async def begun(self, url: str, there: Mapping[str, str]) -> bool:
        """Return whether it is known what was announced; finds out at the first snapshot."""
        if self._stored is not None:
            return True
        trigger = self._trigger
        try:
            self._memory = trigger.memory(
                [url, trigger.git_conn_id, *trigger.refs, "", *trigger.paths, "", trigger.pipeline_file]
            )
            known = await self._memory.load() if self._memory is not None else None
            if known is None:
                known = self._first(there)
                log.info("first look at %s: %d refs, %d count as announced", url, len(there), len(known))
                if self._memory is not None:
                    await self._memory.save(known)
        except Exception:
            # Without what was announced before, nothing can be announced now.
            log.warning("could not read the watermark; trying again with the next poll", exc_info=True)
            return False
        self.seen, self._stored = dict(known), dict(known)
        return True

    def moved(self, url: str, there: Mapping[str, str]) -> list[GitRef]:
        """Return the refs that are new or elsewhere. A deleted one is forgotten: if it comes back, it is new."""
        from deepseek_ops.core.records import GitRef

        self.seen = {name: commit for name, commit in self.seen.items() if name in there}
        return [
            GitRef(repository=url, name=name, commit=commit, previous=self.seen.get(name))
            for name, commit in there.items()
            if self.seen.get(name) != commit
        ]

    async def remember(self) -> None:
        if self._memory and self.seen != self._stored and await self._memory.save_or_log(self.seen):
            self._stored = dict(self.seen)

    def _first(self, there: Mapping[str, str]) -> dict[str, str]:
        if self._trigger.after is not None:
            return dict(self._trigger.after)
        return dict(there) if self._trigger.on_start == "skip" else {}


def _open(git_conn_id: str) -> GitRepository:
    return GitRemoteHook(git_conn_id).remote


def _is_record(url: str, name: str, commit: str) -> bool:
    from deepseek_ops.core.records import GitRef

    try:
        GitRef(repository=url, name=name, commit=commit)
    except ValueError:
        log.debug("ref %r cannot be watched", name)
        return False
    return True
