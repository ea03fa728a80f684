"""Whatever happens to a repository, its watchers and their memory: each wanted move is told once, no unwanted one.

A real bare repository gets random pushes, forced pushes, merges, tags and deletions; three watchers are paused, killed
in the middle of a hand-over, cut off from their server or from their memory, by a clock the test turns. Beside them
goes a model that asks plain git in the whole repository. At the end everything is up, and comes to rest.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fixtures_git import run_git
from fixtures_triggers import StateStore
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from deepseek_ops.adapters.git import GitRepository, open_git
from deepseek_ops.airflow.triggers.git import GitRefTrigger
from deepseek_ops.airflow.triggers.git_stream import Appointments, RefSnapshot
from deepseek_ops.core.records import GitRef

BRANCHES = ["main", "exp/a", "exp/b"]
TAGS = ["v1", "other"]
FILES = ["deepseek/a", "deepseek/b", "docs/c"]
CONSUMERS: list[dict[str, Any]] = [
    {"refs": ["refs/heads/*"], "paths": ["deepseek/**"]},
    {"refs": ["refs/heads/exp/*", "refs/tags/v*"], "claimed": True},
    {"refs": ["refs/heads/*"], "paths": ["deepseek/**"], "debounce": 30.0},
]
Told = tuple[str, str, str | None]


class Bare:
    """A bare repository that is written to by one plumbing process per push, and that can be away."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / "model.git"
        run_git(folder, "init", "--quiet", "--bare", "--initial-branch=main", str(self.place))
        self._number = 0

    @property
    def refs(self) -> dict[str, str]:
        lines = run_git(self.place, "for-each-ref", "--format=%(refname) %(objectname) %(*objectname)").splitlines()
        return {line.split()[0]: line.split()[-1] for line in lines}

    def commit(self, branch: str, files: list[str], parents: list[str]) -> None:
        self._number += 1
        lines = [
            f"commit refs/heads/{branch}",
            f"committer A <a@b> {1_700_000_000 + self._number} +0000",
            "data 1",
            "x",
        ]
        lines += [f"{word} {parent}" for word, parent in zip(("from", "merge"), parents, strict=False)]
        for file in files:
            content = f"{file} {self._number}"
            lines += [f"M 100644 inline {file}", f"data {len(content)}", content]
        run_git(self.place, "fast-import", "--quiet", "--force", data=("\n".join(lines) + "\n").encode())

    def update(self, ref: str, commit: str) -> None:
        run_git(self.place, "update-ref", ref, commit)

    def changed(self, old: str | None, new: str) -> list[str]:
        if old is None:
            return run_git(self.place, "ls-tree", "-r", "--name-only", new).splitlines()
        return run_git(self.place, "diff", "--name-only", "--no-renames", old, new).splitlines()

    def merge_base(self, one: str, other: str) -> str | None:
        return (
            (run_git(self.place, "merge-base", "--all", one, other, "--") or None) if self.related(one, other) else None
        )

    def related(self, one: str, other: str) -> bool:
        ancestors = [set(run_git(self.place, "rev-list", commit).split()) for commit in (one, other)]
        return bool(ancestors[0] & ancestors[1])


class Model:
    """What one watcher should do."""

    def __init__(self, bare: Bare, options: dict[str, Any]) -> None:
        self.bare = bare
        self.prefixes = [glob.rstrip("*") for glob in options["refs"]]
        self.by_path = "paths" in options
        self.debounce = options.get("debounce", 0.0)
        self.stored: dict[str, str] | None = None
        self.seen: dict[str, str] | None = None
        self.moving: dict[str, tuple[str, float, float, bool]] = {}
        """Ref -> commit, first move, this move, and whether it is known what it changed."""
        self.numbers: dict[str, int] = {}
        """How often each ref has moved: the name of its newest move, which two moves never share."""
        self.stored_numbers: dict[str, int] = {}
        self.names: list[int] = []
        """Of what was told."""

    def restart(self) -> None:
        self.seen, self.moving = None, {}

    def look(self, refs: dict[str, str], now: float, *, memory: bool, server: bool) -> list[Told]:
        """Return what is told now. ``server``: whether commits can be fetched after the look."""
        there = {name: commit for name, commit in refs.items() if name.startswith(tuple(self.prefixes))}
        if self.seen is None:
            if not memory:
                return []
            self.seen = dict(there) if self.stored is None else dict(self.stored)
            self.stored = dict(self.seen)
            self.numbers = dict(self.stored_numbers)
        seen = self.seen = {name: commit for name, commit in self.seen.items() if name in there}
        self.moving = {name: at for name, at in self.moving.items() if name in there and seen.get(name) != there[name]}
        found: list[Told] = []
        for name, commit in sorted(there.items()):
            if seen.get(name) == commit:
                continue
            before = self.moving.get(name)
            first, since = (before[1], before[2] if before[0] == commit else now) if before else (now, now)
            known = server or not self.by_path or bool(before and before[0] == commit and before[3])
            self.moving[name] = (commit, first, since, known)
            if not known:
                continue
            wanted = self.wanted(name, seen.get(name), commit, refs)
            if wanted and self.debounce and now < min(since + self.debounce, first + 10 * self.debounce):
                continue
            self.numbers[name] = self.numbers.get(name, 0) + 1
            if wanted:
                found.append((name, commit, seen.get(name)))
                self.names.append(self.numbers[name])
            seen[name] = commit
            del self.moving[name]
        if memory:
            self.stored, self.stored_numbers = dict(seen), dict(self.numbers)
        return found

    def wanted(self, name: str, old: str | None, new: str, refs: dict[str, str]) -> bool:
        if not self.by_path:
            return True
        main = refs.get("refs/heads/main")
        if old is None and main is not None and name != "refs/heads/main":
            old = self.bare.merge_base(main, new)
        return any(path.startswith("deepseek/") for path in self.bare.changed(old, new))


class Consumer:
    """A real trigger, fed by hand, with a memory that outlives it."""

    def __init__(self, options: dict[str, Any], loop: asyncio.AbstractEventLoop) -> None:
        self.options = options
        self.store = StateStore()
        self.told: list[Told] = []
        self.moves: list[str] = []
        self._loop = loop
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._feed: asyncio.Queue[RefSnapshot] = asyncio.Queue()
        self._asked = asyncio.Event()
        trigger = GitRefTrigger(git_conn_id="model", asset_name="m", poll_interval=1e-3, **self.options)
        trigger.asset_state_store = self.store  # type: ignore[assignment]
        trigger.handover_seconds = 0.0
        trigger._unclaimed = _all_taken  # type: ignore[method-assign]
        trigger._ours = lambda repository: lambda commits: []  # type: ignore[method-assign]
        self.trigger = trigger
        self._task = self._loop.create_task(self._listen())

    async def _listen(self) -> None:
        async for event in self.trigger.filter_shared_stream(self._stream()):
            ref = GitRef.load(event.payload)
            self.told.append((ref.name, ref.commit, ref.previous))
            self.moves.append(ref.move or "")

    async def _stream(self) -> AsyncIterator[RefSnapshot]:
        while True:
            self._asked.set()
            snapshot = await self._feed.get()
            yield snapshot

    async def look(self, snapshot: RefSnapshot) -> None:
        """Return when the trigger asks for the next snapshot."""
        self._asked.clear()
        self._feed.put_nowait(snapshot)
        async with asyncio.timeout(60):
            await self._asked.wait()

    async def killed_after(self, snapshot: RefSnapshot, count: int) -> None:
        """Stop the trigger when it has told ``count`` more events and waits for Airflow to store them."""
        self.trigger.handover_seconds = 3600.0
        expected = len(self.told) + count
        self._feed.put_nowait(snapshot)
        async with asyncio.timeout(60):
            while len(self.told) < expected:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        await self.stop()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._task = None

    @property
    def running(self) -> bool:
        return self._task is not None


async def _all_taken(refs: Sequence[GitRef]) -> list[GitRef]:
    return []


class Watching(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="watching-"))
        self.bare = Bare(self.folder)
        self.remote: GitRepository = open_git(f"file://{self.bare.place}", cache=self.folder / "cache")
        self.loop = asyncio.new_event_loop()
        self.consumers = [Consumer(options, self.loop) for options in CONSUMERS]
        self.models = [Model(self.bare, options) for options in CONSUMERS]
        self.expected: list[list[Told]] = [[] for _ in CONSUMERS]
        self.now = 1000.0
        self.refs: dict[str, str] = {}
        for consumer in self.consumers:
            consumer.start()

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            for number, consumer in enumerate(self.consumers):
                if not consumer.running:
                    self.go_on(number)
            for seconds in (0.0, 40.0, 40.0):
                self.now += seconds
                self.poll()
        finally:
            for consumer in self.consumers:
                self.loop.run_until_complete(consumer.stop())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            shutil.rmtree(self.folder)

    # --- what developers do ---

    @rule(branch=st.sampled_from(BRANCHES), files=st.lists(st.sampled_from(FILES), unique=True, max_size=2))
    def push(self, branch: str, files: list[str]) -> None:
        refs = self.bare.refs
        parent = refs.get(f"refs/heads/{branch}") or refs.get("refs/heads/main")
        self.bare.commit(branch, files, [parent] if parent else [])

    @rule(branch=st.sampled_from(BRANCHES), files=st.lists(st.sampled_from(FILES), unique=True, max_size=2))
    def force_push_without_history(self, branch: str, files: list[str]) -> None:
        self.bare.commit(branch, files, [])

    @rule(branch=st.sampled_from(BRANCHES), other=st.sampled_from(BRANCHES))
    def move_to_another_branch(self, branch: str, other: str) -> None:
        if commit := self.bare.refs.get(f"refs/heads/{other}"):
            self.bare.update(f"refs/heads/{branch}", commit)

    @rule(branch=st.sampled_from(BRANCHES))
    def step_back(self, branch: str) -> None:
        if commit := self.bare.refs.get(f"refs/heads/{branch}"):
            parents = run_git(self.bare.place, "rev-list", "--parents", "-1", commit).split()[1:]
            if parents:
                self.bare.update(f"refs/heads/{branch}", parents[0])

    @rule(
        branch=st.sampled_from(BRANCHES), other=st.sampled_from(BRANCHES), files=st.sampled_from([[], ["deepseek/a"]])
    )
    def merge(self, branch: str, other: str, files: list[str]) -> None:
        refs = self.bare.refs
        parents = [refs.get(f"refs/heads/{name}") for name in (branch, other)]
        if all(parents) and parents[0] != parents[1]:
            self.bare.commit(branch, files, [str(parent) for parent in parents])

    @rule(name=st.sampled_from([f"refs/heads/{b}" for b in BRANCHES] + [f"refs/tags/{t}" for t in TAGS]))
    def delete(self, name: str) -> None:
        if name in self.bare.refs:
            run_git(self.bare.place, "update-ref", "-d", name)

    @rule(tag=st.sampled_from(TAGS), branch=st.sampled_from(BRANCHES), annotated=st.booleans())
    def move_tag(self, tag: str, branch: str, annotated: bool) -> None:
        if commit := self.bare.refs.get(f"refs/heads/{branch}"):
            run_git(self.bare.place, "tag", "-f", *(["-a", "-m", "x"] if annotated else []), tag, commit)

    # --- what happens to the watchers ---

    @rule(seconds=st.sampled_from([0.0, 5.0, 20.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.poll()

    @rule(branch=st.sampled_from(BRANCHES))
    def come_back(self, branch: str) -> None:
        """Seen to be deleted, a branch is new again, at whatever commit."""
        if commit := self.bare.refs.get(f"refs/heads/{branch}"):
            self.delete(f"refs/heads/{branch}")
            self.poll()
            self.bare.update(f"refs/heads/{branch}", commit)
            self.poll()

    @rule(branch=st.sampled_from(BRANCHES), pauses=st.lists(st.sampled_from([1.0, 20.0, 29.0, 31.0]), max_size=14))
    def burst(self, branch: str, pauses: list[float]) -> None:
        for seconds in pauses:
            self.push(branch, ["deepseek/a"])
            self.time_passes(seconds)

    @rule(branch=st.sampled_from(BRANCHES), files=st.lists(st.sampled_from(FILES), max_size=4))
    def push_after_push(self, branch: str, files: list[str]) -> None:
        for file in files:
            self.push(branch, [file])
            self.time_passes(0.0)

    @rule(branch=st.sampled_from(BRANCHES))
    def look_and_lose_the_server(self, branch: str) -> None:
        """The refs were told; when the commits are to be fetched the server is away."""
        self.push(branch, ["deepseek/b"])
        shutil.rmtree(self.folder / "cache", ignore_errors=True)  # else it need not be asked
        self.poll(server=False)

    @rule()
    def look_without_memory(self) -> None:
        self.poll(memory=False)

    @rule(number=st.sampled_from(range(len(CONSUMERS))))
    def pause(self, number: int) -> None:
        self.loop.run_until_complete(self.consumers[number].stop())

    @rule(number=st.sampled_from(range(len(CONSUMERS))))
    def go_on(self, number: int) -> None:
        if not self.consumers[number].running:
            self.models[number].restart()
            self.consumers[number].start()

    @rule(number=st.sampled_from(range(len(CONSUMERS))))
    def kill_before_the_memory_moves(self, number: int) -> None:
        """What was told may not have been stored, so it is told again: the one case of twice, and the very same."""
        consumer, model = self.consumers[number], self.models[number]
        if consumer.running:
            stored, numbers = model.stored, model.stored_numbers
            snapshot = self.snapshot()
            told = model.look(dict(snapshot.refs), self.now, memory=True, server=True)
            if told:
                self.loop.run_until_complete(consumer.killed_after(snapshot, len(told)))
                model.stored, model.stored_numbers = stored, numbers
                self.check(number, told)
                self.go_on(number)
            else:
                self.loop.run_until_complete(consumer.look(snapshot))
                self.check(number, [])

    def snapshot(self) -> RefSnapshot:
        look = self.loop.run_until_complete(self.remote.look_async())
        if look.refs != self.refs:
            self.refs = dict(look.refs)
        assert self.refs == self.bare.refs
        return RefSnapshot(self.remote, self.refs, look.default, self.now, Appointments())

    def poll(self, *, memory: bool = True, server: bool = True) -> None:
        snapshot = self.snapshot()
        running = [number for number, consumer in enumerate(self.consumers) if consumer.running]
        told = {}
        for number in running:
            told[number] = self.models[number].look(dict(snapshot.refs), self.now, memory=memory, server=server)
        away = self.folder / "away"
        if not server:
            self.bare.place.rename(away)
        for number in running:
            self.consumers[number].store.fails = not memory
            self.loop.run_until_complete(self.consumers[number].look(snapshot))
            self.consumers[number].store.fails = False
        if not server:
            away.rename(self.bare.place)
            self.now += 70.0  # longer than the longest back-off
        for number in running:
            self.check(number, told[number])

    def check(self, number: int, told: list[Told]) -> None:
        self.expected[number] += told
        consumer = self.consumers[number]
        assert consumer.told == self.expected[number], f"consumer {number}: {CONSUMERS[number]}"
        if "claimed" in CONSUMERS[number]:
            assert [move.partition(".")[2] for move in consumer.moves] == [
                str(one) for one in self.models[number].names
            ]
            assert len({move.partition(".")[0] for move in consumer.moves}) <= 1


@pytest.mark.slow
def test_each_wanted_move_is_told_once_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = int(os.environ.get("DEEPSEEK_OPS_EXAMPLES", "5"))
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Watching,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize="DEEPSEEK_OPS_EXAMPLES" not in os.environ,
            suppress_health_check=list(HealthCheck),
        ),
    )
