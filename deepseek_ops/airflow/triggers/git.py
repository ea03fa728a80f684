"""A trigger that fires for pushes: any host over the Git protocol, by polling refs, without a clone.

What is announced is the move from the commit that counts as announced (``previous``) to where the ref is now. Each move
is announced once; what comes and goes between two looks, or while no DAG listens, leaves no trace.

==============================  ========================================================================================
What happens                    What it is
==============================  ========================================================================================
push, several pushes            one move from the last announced commit to the newest
forced push                     a move like any other; its paths are those that differ between the two commits; where
                                the server dropped the old one, those since the branch left the default branch
merge                           a move of the branch it was pushed to; its paths are what it brought to that branch
ref moved and moved back        between two looks nothing; otherwise two moves
deleted ref                     nothing; recreated after a look it is a new ref, even at the same commit
new branch                      all it has since it left the default branch; without common history all its files; at a
                                commit the default branch has, no paths at all (path globs keep it out)
new or moved tag                a move without paths: path globs do not apply; an annotated tag counts by its commit;
                                with ``pipeline_file`` one on a file or a folder is nothing
our own record of a training    with ``claimed`` nothing; what people push on it, also in the same look, is compared
                                with it, and announced with it as ``previous``
rename                          both names changed
submodule                       a moved submodule is a change of its path; submodules are never fetched
empty repository                no refs; the first push makes a new branch
SHA-256 repository              as any other
a commit the server refuses     looked up by the name of its ref, then in the branch's history; else asked again later
repository renamed or moved     redirects on one host are followed; a connection with the new address goes on with the
                                watermark as long as a remembered commit is found there, and begins afresh otherwise
DAG paused, triggerer away      announced at the next start, as one move per ref; Airflow ends the watcher of a paused
                                DAG when it next parses the file, and what is announced until then starts no run: with
                                ``claimed`` it is announced again at the next start
triggerer killed                what it had fired in its last seconds may come again: consumers claim a push once
==============================  ========================================================================================
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TriggerEvent

from deepseek_ops.airflow.hooks import FactsHook, GitRemoteHook
from deepseek_ops.airflow.triggers.git_stream import RefSnapshot, snapshots
from deepseek_ops.airflow.triggers.git_watch import GitWatch
from deepseek_ops.airflow.triggers.watching import Memory, OnStart, WatchTrigger

if TYPE_CHECKING:
    from deepseek_ops.airflow.triggers.wanted import Wish
    from deepseek_ops.core.records import GitRef
    from deepseek_ops.pipeline.own_pushes import Ours

BATCH = 100
"""Refs dealt with before they are handed over and remembered: a restart repeats no more than these."""

log = logging.getLogger(__name__)


class GitRefTrigger(WatchTrigger):
    """Fire for every watched branch or tag that moved, with a :class:`~deepseek_ops.core.records.GitRef` as JSON.

    For asset watchers, where it goes on from the commit it announced last, and for ``GitRefSensor``. Triggers with the
    same connections and interval share one poll, however many refs they watch. Webhooks of the connection (see
    ``deepseek_ops.web.hooks``) wake it between two polls.

    :param git_conn_id: connection of the repository.
    :param asset_name: asset whose state store remembers what was announced; empty in a deferred task.
    :param refs: globs on full ref names, such as ``refs/heads/exp/*``; ``*`` crosses ``/``.
    :param paths: path globs (``**``, ``!`` to exclude); a branch that changed none of them does not fire.
    :param pipeline_file: read this file from the pushed commit and fire only if its own Git triggers want the push.
    :param poll_interval: seconds between two looks.
    :param after: ref -> commit that counts as announced already, where there is no memory.
    :param on_start: what a first start does with refs that exist: ``skip`` or ``announce`` them.
    :param debounce: seconds a ref must rest before its newest commit is announced, ten times that at most; the pushed
        pipeline file may ask for more.
    :param facts_conn_id: facts database through which webhooks wake this watcher; empty: polling only.
    :param claimed: the DAGs that listen claim each push in the facts (``pipeline.pushes.claim``), so one that nobody
        claimed started no run: it is announced again when the watcher starts, or after two minutes. Airflow loses an
        event that comes while it makes a run of another one. Each move has a name then (``move``), and keeps it.
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
        debounce: float = 0.0,
        facts_conn_id: str = FactsHook.default_conn_name,
        claimed: bool = False,
    ) -> None:
        super().__init__(asset_name=asset_name, poll_interval=poll_interval, on_start=on_start)
        self.git_conn_id = git_conn_id
        self.refs = list(refs)
        self.paths = list(paths)
        self.pipeline_file = pipeline_file
        self.after = None if after is None else dict(after)
        self.debounce = debounce
        self.facts_conn_id = facts_conn_id
        self.claimed = claimed

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
                "debounce": self.debounce,
                "facts_conn_id": self.facts_conn_id,
                "claimed": self.claimed,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        async for event in self.filter_shared_stream(self.open_shared_stream(self.serialize()[1])):
            yield event

    def shared_stream_key(self) -> Hashable | None:
        return ("deepseek_ops.git", self.git_conn_id, self.poll_interval, self.facts_conn_id)

    @classmethod
    async def open_shared_stream(cls, kwargs: dict[str, Any]) -> AsyncIterator[RefSnapshot]:
        """Yield what each poll of the repository saw, for every trigger that watches it."""
        async for snapshot in snapshots(kwargs["git_conn_id"], kwargs["poll_interval"], kwargs["facts_conn_id"]):
            yield snapshot

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """Yield one event for each watched ref that moved in a way the filters want, once it rests."""
        watch = GitWatch(
            self._memory,
            after=self.after,
            announce=self.on_start == "announce",
            interval=self.poll_interval,
            claimed=self.claimed,
        )
        async for snapshot in shared_stream:
            if watch.idle(snapshot):
                continue
            there = self._watched(snapshot)
            if not await watch.begun(snapshot.remote, there):
                continue
            lost = await watch.lost(there, snapshot.at, self._unclaimed)
            refs = watch.due(watch.moved(snapshot.remote.url, there), snapshot.at)
            for start in range(0, max(len(refs), 1), BATCH):
                told = [*lost, *await self._at_rest(watch, snapshot, refs[start : start + BATCH])]
                lost = []
                for ref in told:
                    yield TriggerEvent(ref.dump())
                if told:
                    await asyncio.sleep(self.handover_seconds)
                await watch.remember()

    def _memory(self) -> Memory | None:
        # The URL is no part of it: a repository that is renamed stays what it was.
        return self.memory([self.git_conn_id, *self.refs, "", *self.paths, "", self.pipeline_file])

    async def _at_rest(self, watch: GitWatch, snapshot: RefSnapshot, refs: Sequence[GitRef]) -> list[GitRef]:
        """Return the refs to announce; these and the unwanted ones are settled, the others stay for a later look."""
        fresh = [ref for ref in refs if watch.wish(ref) is None]
        await self._prefetch(snapshot, fresh)
        found = []
        for ref in refs:
            wish = watch.wish(ref) or await self._wish(snapshot, ref)
            if wish is None:
                watch.failed(ref, snapshot.at)
                continue
            later = watch.rests(ref, wish, max(self.debounce, wish.debounce), snapshot.at)
            if later is not None:
                snapshot.appointments.ask(later)
                continue
            told = ref.evolve(previous=wish.base) if wish.base else ref
            watch.settle(ref, snapshot.at, told=told if wish.wanted else None)
            if wish.wanted:
                found.append(told)
        return found

    async def _unclaimed(self, refs: Sequence[GitRef]) -> list[GitRef]:
        from deepseek_ops.pipeline.pushes import is_claimed

        facts = await asyncio.to_thread(lambda: FactsHook(self.facts_conn_id).facts)
        return [ref for ref in refs if not await asyncio.to_thread(is_claimed, facts, ref)]

    def _ours(self, repository: str) -> Ours:
        """Return what tells our own commits: runs that push them note them in the facts."""
        from deepseek_ops.pipeline.own_pushes import own_commits

        return lambda commits: own_commits(FactsHook(self.facts_conn_id).facts, repository, commits)

    def _watched(self, snapshot: RefSnapshot) -> dict[str, str]:
        from deepseek_ops.adapters.git.refs import matches

        return {
            name: commit
            for name, commit in sorted(snapshot.refs.items())
            if matches(name, self.refs) and _is_record(snapshot.remote.url, name, commit)
        }

    async def _prefetch(self, snapshot: RefSnapshot, refs: Sequence[GitRef]) -> None:
        """Get the commits of many refs with one request, where each would be a request of its own."""
        if len(refs) < 2 or not (self.paths or self.pipeline_file):
            return
        commits = sorted({commit for ref in refs for commit in (ref.commit, ref.previous) if commit})
        try:
            await asyncio.to_thread(snapshot.remote.prefetch, commits)
        except Exception as error:  # noqa: BLE001  (each ref is asked for by itself next, and says what is wrong)
            log.debug("%d commits could not be fetched together: %s", len(commits), error)

    async def _wish(self, snapshot: RefSnapshot, ref: GitRef) -> Wish | None:
        from deepseek_ops.airflow.triggers.wanted import wish_of

        try:
            return await asyncio.to_thread(
                wish_of,
                snapshot.remote,
                ref,
                paths=self.paths,
                pipeline_file=self.pipeline_file,
                look=snapshot,
                ours=self._ours(ref.repository) if self.claimed else None,
            )
        except Exception as error:  # noqa: BLE001  (one ref that cannot be looked at must not stop the others)
            log.warning("cannot look at %s at %s yet: %s", ref.short, ref.commit[:12], error)
            return None


def _is_record(url: str, name: str, commit: str) -> bool:
    from deepseek_ops.core.records import GitRef

    try:
        GitRef(repository=url, name=name, commit=commit)
    except ValueError:
        log.debug("ref %r cannot be watched", name)
        return False
    return True
