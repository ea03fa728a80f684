"""Why an attempt ended: decided from what was raised, told, counted and killed, and carried as a cause."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepseek_ops.adapters.local_launcher.folder import JobFolder, StopRequest
from deepseek_ops.adapters.remote_launcher.layout import RemoteAttempt
from deepseek_ops.core.jobs import EXIT_RETRY, JobCause, JobPhase, JobSpec, JobStatus
from deepseek_ops.jobs.attend_watch import PEER_SILENCE_SECONDS, Watch
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.ending import judge
from deepseek_ops.jobs.entry import Outcome, call, silent_ending, stop_on_signal
from deepseek_ops.jobs.leases import AFTER_LEASE_SECONDS, over_at, patience
from deepseek_ops.jobs.memory_kills import MemoryKills
from deepseek_ops.jobs.nodes import NodePlace
from deepseek_ops.jobs.ranks import RankGroupRunner, RankRun, first_of
from deepseek_ops.jobs.rendezvous import Failure, Gathering

SPEC = JobSpec(name="job", kind="train", payload={})


class OutOfMemoryError(RuntimeError):
    """Named as torch's and Ray's are."""


def context_on(folder: Path) -> JobContext:
    return JobContext(SPEC, folder)


def ending_of(error: BaseException, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    def run(context: JobContext) -> dict[str, object]:
        raise error

    monkeypatch.setattr("deepseek_ops.jobs.entry.function_of", lambda kind: run)
    return call(context_on(folder))


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError(), JobCause.OUT_OF_MEMORY),
        (OSError(12, "Cannot allocate memory"), JobCause.OUT_OF_MEMORY),
        (OutOfMemoryError("Task was killed due to the node running low on memory"), JobCause.OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), JobCause.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), JobCause.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), JobCause.OUT_OF_MEMORY),
        (RuntimeError("NCCL error in: x.cpp:1, unhandled cuda error\nCuda failure 2 'out of memory'"),
         JobCause.OUT_OF_MEMORY),
        (RuntimeError("std::bad_alloc"), JobCause.OUT_OF_MEMORY),
        (RuntimeError("can't start new thread"), JobCause.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), JobCause.MACHINE_LOST),
        (RuntimeError("Timed out waiting 1800000ms for recv operation to complete"), None),
        (ConnectionResetError(104, "Connection reset by peer"), None),
    ],
)  # fmt: skip
def test_what_libraries_say_of_memory_devices_and_peers_is_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, cause: JobCause | None
) -> None:
    ending = ending_of(error, tmp_path, monkeypatch)
    assert (ending.exit_status, ending.cause) == (EXIT_RETRY, cause)
    assert judge(ending, None).phase is JobPhase.LOST
    assert ending.peer_lost == (cause is None), "who knows why a connection broke is asked first"


@pytest.mark.parametrize("text", ["the memory of sorrows ran out", "CUDA error: device-side assert triggered"])
def test_other_words_stay_errors_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    ending = ending_of(RuntimeError(text), tmp_path, monkeypatch)
    assert (judge(ending, None).phase, ending.cause) == (JobPhase.FAILED, None)


def test_a_notice_of_the_machine_is_a_preemption_and_a_signal_from_outside_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def saves_and_leaves(context: JobContext) -> dict[str, object]:
        context.request_stop("spot notice: in two minutes", JobCause.PREEMPTED)
        context.request_stop("SIGTERM")
        return {"asked": context.stop_requested}

    monkeypatch.setattr("deepseek_ops.jobs.entry.function_of", lambda kind: saves_and_leaves)
    verdict = judge(call(context_on(tmp_path)), None)
    assert (verdict.phase, verdict.cause) == (JobPhase.LOST, JobCause.PREEMPTED)
    assert "spot notice: in two minutes" in verdict.reason

    def told(context: JobContext) -> dict[str, object]:
        stop_on_signal(context)
        signal.raise_signal(signal.SIGTERM)
        return {"asked": context.stop_requested}

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("deepseek_ops.jobs.entry.function_of", lambda kind: told)
    try:
        verdict = judge(call(context_on(tmp_path)), None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (verdict.phase, verdict.cause) == (JobPhase.LOST, None)


def test_one_told_rank_or_node_tells_for_all() -> None:
    told = Outcome(rank=2, result={}, told="spot notice: x", told_cause=JobCause.PREEMPTED)
    ended = {0: Outcome(rank=0, result={"step": 3}, stop_seen=True), 2: told}
    first = RankRun(running={}, ended=ended).outcome
    assert (first.result, first.told_cause, first.stop_seen) == ({"step": 3}, JobCause.PREEMPTED, True)
    assert first_of({1: first, 0: Outcome(result={"step": 4})}).told == "spot notice: x"


@pytest.mark.parametrize(
    ("request_", "phase", "cause"),
    [
        (StopRequest(attempt=1, reason="a person"), JobPhase.STOPPED, None),
        (StopRequest(attempt=1, reason="too long", cause="timeout"), JobPhase.FAILED, JobCause.TIMED_OUT),
        (StopRequest(attempt=1, reason="node 1 was silent", cause="signal", counts_as=JobCause.MACHINE_LOST),
         JobPhase.LOST, JobCause.MACHINE_LOST),
    ],
)  # fmt: skip
def test_who_wanted_the_end_decides_what_it_counts_as(
    request_: StopRequest, phase: JobPhase, cause: JobCause | None
) -> None:
    verdict = judge(Outcome(result={}, stop_seen=True), request_)
    assert (verdict.phase, verdict.cause) == (phase, cause)


def test_a_status_of_an_older_release_has_no_cause() -> None:
    assert JobStatus.load({"name": "job", "phase": "lost", "reason": "x"}).cause is None


def machine(root: Path, group: str, counted: int, host: int = 7) -> Path:
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "sys/fs/cgroup/jobs").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(group)
    (root / "proc/vmstat").write_text(f"nr_free_pages 1\noom_kill {host}\n")
    (root / "sys/fs/cgroup/jobs/memory.events").write_text(f"low 0\noom 3\noom_kill {counted}\n")
    return root


def test_a_kill_of_the_kernel_is_told_by_the_counter_of_our_own_group(tmp_path: Path) -> None:
    kills = MemoryKills(machine(tmp_path, "0::/jobs\n", 2))
    machine(tmp_path, "0::/jobs\n", 2, host=9)
    assert kills.seen() is False, "a neighbour was killed"
    machine(tmp_path, "0::/jobs\n", 3)
    assert kills.seen() is True


def test_without_a_group_the_machine_counts_and_without_that_nobody_knows(tmp_path: Path) -> None:
    kills = MemoryKills(machine(tmp_path, "", 0))
    machine(tmp_path, "", 0, host=8)
    assert kills.seen() is True
    assert MemoryKills(tmp_path / "nothing").seen() is None


def test_on_this_machine_a_counter_is_found() -> None:
    assert MemoryKills().seen() is not None


@pytest.mark.parametrize(
    ("starved", "words", "cause"),
    [
        (True, "killed by SIGKILL (out of memory)", JobCause.OUT_OF_MEMORY),
        (False, "killed by SIGKILL", None),
        (None, "killed by SIGKILL (out of memory?)", None),
    ],
)
def test_a_sigkill_is_want_of_memory_only_where_the_kernel_counted_one(
    starved: bool | None, words: str, cause: JobCause | None
) -> None:
    ending = silent_ending(signal.SIGKILL, who="rank 1", starved=starved)
    assert (ending.reason, ending.cause) == (f"rank 1 was {words}", cause)
    assert silent_ending(signal.SIGSEGV, who="rank 1", starved=True).cause is None


class Meeting:
    """Where a group says how its start ended."""

    node, num_nodes = 0, 1

    def __init__(self) -> None:
        self.said: list[Failure] = []

    def fail(self, generation: int, failure: Failure) -> None:
        del generation
        self.said.append(failure)


@pytest.mark.parametrize(("cause", "final"), [(JobCause.OUT_OF_MEMORY, True), (JobCause.HUNG, False), (None, False)])
def test_ranks_without_memory_are_not_started_again_with_the_same_batch(
    tmp_path: Path, cause: JobCause | None, final: bool
) -> None:
    meeting = Meeting()
    group = RankGroupRunner(JobFolder(tmp_path), SPEC, 1, meeting)  # type: ignore[arg-type]
    group._fail(Gathering(), Outcome(reason="x", retry=True, cause=cause))
    assert [failure.final for failure in meeting.said] == [final]


@pytest.mark.parametrize("lease", [2.0, 30.0, 180.0])
@pytest.mark.parametrize("grace", [0.0, 30.0, 60.0, 90.0, 600.0])
def test_whatever_its_grace_a_job_is_over_a_minute_after_its_lease(lease: float, grace: float) -> None:
    told = patience(lease, grace, last_words=5)
    assert lease / 2 <= told <= lease
    killed = min(told + grace, over_at(0, lease, last_words=5))
    assert killed + 5 <= lease + AFTER_LEASE_SECONDS
    assert over_at(0, 0, last_words=5) == float("inf")


class Mirror:
    """What an agent sees of the store: the other node's beat, which never changes, and when it looked."""

    alive, problem = True, ""

    def __init__(self) -> None:
        self.contact = self.renewed = time.monotonic()
        self.asked: list[StopRequest] = []
        self.control = self

    def newest_beat(self, attempt: int, node: int) -> str:
        return f"{attempt}/beat/{node}"

    def has(self, attempt: int, name: str) -> bool:
        del attempt, name
        return False

    def request_stop(self, request: StopRequest) -> None:
        self.asked.append(request)


def test_a_node_that_fell_silent_is_a_lost_machine_and_the_engines_signal_a_preemption(tmp_path: Path) -> None:
    spec, mirror = SPEC.evolve(num_nodes=2), Mirror()
    record = RemoteAttempt(spec=spec, attempt=1, engine_id="job-1", life="x")
    place = NodePlace(rank=0, count=2, address="127.0.0.1", host="127.0.0.1", instance="i")
    child = SimpleNamespace(signal=lambda number: None)
    watch = Watch(mirror, JobFolder(tmp_path), record, place, child)  # type: ignore[arg-type]
    watch._check(time.monotonic())
    assert mirror.asked == []
    mirror.contact = mirror.renewed = later = time.monotonic() + PEER_SILENCE_SECONDS + 1
    watch._check(later)
    watch._told_at = later - 3
    watch._check(later)
    silent, told = mirror.asked
    assert (silent.cause, silent.counts_as) == ("signal", JobCause.MACHINE_LOST)
    assert (told.cause, told.counts_as) == ("signal", JobCause.PREEMPTED)
