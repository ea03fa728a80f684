"""What every engine promises, held against each of them. Jobs really run: small scripts that write what they saw.

An engine is slow to start a job, so the tests share a few jobs that each show several things.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
from pydantic import JsonValue

from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.jobs import EngineJob, EnginePhase, EngineState
from deepseek_ops.core.ports import Engine

T = TypeVar("T")
SECRET = "open-sesame-7f3a9"
GRACE_SECONDS = 6.0
_NUMBERS = itertools.count()

SCRIPT = '''
"""A command of the contract: writes what it sees into a folder, one file for each process that ran it."""
import hashlib, json, os, signal, sys, time
from pathlib import Path

folder, work = Path(sys.argv[1]), sys.argv[2]
node = os.environ.get(sys.argv[3], "?")
seen = {
    "pid": os.getpid(),
    "node": node,
    "plain": os.environ.get("CONTRACT_PLAIN", ""),
    "secret": hashlib.sha256(os.environ.get("CONTRACT_TOKEN", "").encode()).hexdigest(),
    "arguments": sys.argv[4:],
}
part = folder / f".{node}-{os.getpid()}"
part.write_text(json.dumps(seen))

def told(number, frame):
    (folder / f"told-{node}").write_text(signal.Signals(number).name)
    if work == "save":
        time.sleep(1)
        (folder / f"saved-{node}").touch()
        raise SystemExit(75)

signal.signal(signal.SIGTERM, told)
part.rename(folder / f"seen-{node}-{os.getpid()}")
print("the command speaks", flush=True)
if work == "fail" and node == "1":
    time.sleep(1)
    raise SystemExit(78)
while work != "end":
    time.sleep(0.1)
'''


def until(condition: Callable[[], T], *, within: float = 120.0) -> T:
    """Return the first true value of ``condition``."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"it did not happen within {within} s"
        time.sleep(0.2)
    return value


class EngineContract:
    """Subclasses provide ``engine`` and ``another`` (a second client of the same cluster), both of class scope."""

    node_variable: str
    """Variable in which the engine tells a command the number of its node, from 0."""
    forgets = True
    """Whether the engine can forget a settled job when it is told to."""
    patience = 120.0
    """Seconds in which a small job starts or ends on a busy machine."""

    def descriptions(self, engine: Engine, name: str) -> list[str]:
        """Return all that the engine's own interface shows of the job, as raw as it comes; subclasses add to it."""
        state = engine.state(name)
        return [engine.tail(name), json.dumps(None if state is None else state.dump())]

    # --- the jobs -----------------------------------------------------------------------------------------------------

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """What the jobs write; every node of the cluster is on this machine."""
        root = tmp_path_factory.mktemp("engine")
        (root / "command.py").write_text(SCRIPT)
        return root

    def job(self, folder: Path, work: str, *arguments: str, **fields: object) -> EngineJob:
        """Return a job of one node with an id of its own, which writes into the folder of that name."""
        name = f"{work}-{os.getpid()}-{next(_NUMBERS)}.a1"
        (folder / name).mkdir()
        command = (sys.executable, str(folder / "command.py"), str(folder / name), work, self.node_variable, *arguments)
        body = {"id": name, "command": command, "timeout_seconds": 600, "grace_seconds": GRACE_SECONDS, **fields}
        return EngineJob.model_validate(body)

    def seen(self, folder: Path, name: str) -> list[dict[str, JsonValue]]:
        """Return what each process of the job saw, by node."""
        files = [json.loads(path.read_text()) for path in (folder / name).glob("seen-*")]
        return sorted(files, key=lambda entry: str(entry["node"]))

    def settled(self, engine: Engine, name: str) -> EngineState:
        def end() -> EngineState | None:
            state = engine.state(name)
            assert state is not None, f"{name} was forgotten while it ran"
            return state if state.settled else None

        try:
            return until(end, within=self.patience)
        except AssertionError as error:
            raise AssertionError(f"{error}: {engine.state(name)}\n{engine.tail(name)}") from error

    @pytest.fixture(scope="class")
    def ended(self, engine: Engine, another: Engine, folder: Path) -> Iterator[EngineJob]:
        """A job on two nodes that six callers started at once, and that has ended well."""
        words = ("two words", "$HOME", "it's", 'a "quote"', "*")
        job = self.job(folder, "end", *words, num_nodes=2, environment={"CONTRACT_PLAIN": "ü $x 'y'"})
        secrets = {"CONTRACT_TOKEN": SECRET}
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda number: (engine, another)[number % 2].start(job, secrets=secrets), range(6)))
        self.settled(engine, job.id)
        yield job
        engine.retire(job.id)

    @pytest.fixture(scope="class")
    def running(self, engine: Engine, folder: Path) -> Iterator[EngineJob]:
        """A job on one node that runs until it is told to stop, and then saves."""
        job = self.job(folder, "save")
        state = engine.start(job, secrets={"CONTRACT_TOKEN": SECRET})
        assert state.phase in (EnginePhase.PENDING, EnginePhase.RUNNING)
        until(lambda: self.seen(folder, job.id), within=self.patience)
        yield job
        engine.cancel(job.id, grace_seconds=GRACE_SECONDS)

    # --- the promises -------------------------------------------------------------------------------------------------

    def test_a_command_that_returns_has_ended_with_status_0(self, engine: Engine, ended: EngineJob) -> None:
        state = engine.state(ended.id)
        assert state is not None
        assert (state.id, state.phase, state.exit_status) == (ended.id, EnginePhase.ENDED, 0), engine.tail(ended.id)

    def test_the_command_runs_once_on_each_node_which_knows_its_number(self, ended, folder) -> None:
        assert [entry["node"] for entry in self.seen(folder, ended.id)] == ["0", "1"]

    def test_arguments_and_variables_arrive_as_they_were_given(self, ended, folder) -> None:
        for entry in self.seen(folder, ended.id):
            assert entry["arguments"] == list(ended.command[5:]), "a shell has read them"
            assert entry["plain"] == ended.environment["CONTRACT_PLAIN"]

    def test_secrets_reach_every_node_and_are_in_no_description(self, engine, ended, folder) -> None:
        expected = hashlib.sha256(SECRET.encode()).hexdigest()
        assert [entry["secret"] for entry in self.seen(folder, ended.id)] == [expected, expected]
        assert not [text for text in self.descriptions(engine, ended.id) if SECRET in text]

    def test_secrets_of_a_running_job_are_in_no_argument_list_and_no_description(self, engine, running) -> None:
        assert not [line for line in _argument_lists() if SECRET in line]
        assert not [text for text in self.descriptions(engine, running.id) if SECRET in text]

    def test_the_engine_has_the_last_lines_of_the_output(self, engine: Engine, ended: EngineJob) -> None:
        assert "the command speaks" in engine.tail(ended.id)

    def test_starting_again_finds_the_running_job(self, engine, another, running, folder) -> None:
        with ThreadPoolExecutor(4) as pool:
            states = list(pool.map(lambda number: (engine, another)[number % 2].start(running), range(4)))
        assert {(state.id, state.phase) for state in states} == {(running.id, EnginePhase.RUNNING)}
        time.sleep(1)
        assert len(self.seen(folder, running.id)) == 1

    def test_starting_again_finds_the_ended_job(self, another: Engine, ended: EngineJob, folder: Path) -> None:
        assert another.start(ended).phase is EnginePhase.ENDED
        time.sleep(1)
        assert len(self.seen(folder, ended.id)) == 2

    def test_of_many_concurrent_starts_one_runs(self, engine, ended, folder) -> None:
        assert len(self.seen(folder, ended.id)) == ended.num_nodes
        assert [state.id for state in engine.list()].count(ended.id) == 1

    def test_jobs_are_listed_with_what_their_state_says(self, engine, another, ended, running) -> None:
        listed = {state.id: state.phase for state in another.list()}
        assert listed[ended.id] is EnginePhase.ENDED
        assert listed[running.id] is EnginePhase.RUNNING

    def test_a_node_that_fails_ends_the_job_with_its_status_and_takes_the_others_along(self, engine, folder) -> None:
        job = self.job(folder, "fail", num_nodes=2)
        engine.start(job)
        state = self.settled(engine, job.id)
        assert (state.phase, state.exit_status) == (EnginePhase.ENDED, 78), engine.tail(job.id)
        until(lambda: not _alive([entry["pid"] for entry in self.seen(folder, job.id)]))

    def test_a_command_that_cannot_start_says_so_until_it_is_retired(self, engine: Engine, folder: Path) -> None:
        job = self.job(folder, "end").evolve(command=("/no/such/program", "--at-all"))
        engine.start(job)
        state = self.settled(engine, job.id)
        assert state.phase is EnginePhase.ENDED
        assert state.exit_status != 0
        assert "/no/such/program" in engine.tail(job.id) + state.reason
        for _ in range(2):
            engine.retire(job.id)
        if self.forgets:
            assert engine.state(job.id) is None

    def test_a_cancelled_job_is_told_and_has_its_grace(self, engine, another, folder) -> None:
        job = self.job(folder, "save")
        engine.start(job)
        until(lambda: self.seen(folder, job.id), within=self.patience)
        another.cancel(job.id, grace_seconds=GRACE_SECONDS)
        assert self.settled(engine, job.id).phase is EnginePhase.CANCELLED
        until(lambda: not _alive([entry["pid"] for entry in self.seen(folder, job.id)]))
        assert (folder / job.id / "told-0").read_text() == "SIGTERM"
        assert (folder / job.id / "saved-0").exists(), "it was killed within its grace"
        another.cancel(job.id, grace_seconds=0)  # settled: nothing to do
        assert engine.start(job).phase is EnginePhase.CANCELLED, "a cancelled job must not come back by itself"

    def test_a_stubborn_job_is_killed_when_its_grace_is_over(self, engine: Engine, folder: Path) -> None:
        job = self.job(folder, "stubborn", grace_seconds=1)
        engine.start(job)
        (entry,) = until(lambda: self.seen(folder, job.id), within=self.patience)
        engine.cancel(job.id, grace_seconds=1)
        assert self.settled(engine, job.id).phase is EnginePhase.CANCELLED
        until(lambda: not _alive([entry["pid"]]), within=30)
        assert (folder / job.id / "told-0").exists()

    def test_a_job_nobody_started_is_unknown(self, engine: Engine) -> None:
        assert engine.state("nobody.a1") is None
        assert engine.tail("nobody.a1") == ""
        engine.cancel("nobody.a1", grace_seconds=1)
        engine.retire("nobody.a1")

    def test_a_running_job_is_not_retired(self, engine: Engine, running: EngineJob) -> None:
        with contextlib.suppress(DeepSeekOpsError):  # refusing is as good as ignoring
            engine.retire(running.id)
        state = engine.state(running.id)
        assert state is not None
        assert state.phase is EnginePhase.RUNNING


def _argument_lists() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _alive(pids: Sequence[JsonValue]) -> list[int]:
    """Return the processes among ``pids`` that have not ended."""
    living = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                living.append(int(str(pid)))
    return living
