"""What a job's code sees and says, and how its end is judged; no process is started here."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepseek_ops.adapters.local_launcher.errors import JobFolderError
from deepseek_ops.adapters.local_launcher.folder import Attempt, JobFolder, StopRequest, plain, read_json, write_json
from deepseek_ops.adapters.local_launcher.reading import last_step, read_events, read_log
from deepseek_ops.core.errors import PermanentError, TransientError
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.jobs.__main__ import main
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.ending import judge
from deepseek_ops.jobs.entry import Outcome, call, silent_ending
from deepseek_ops.jobs.rank_process import Place, rank_environment
from deepseek_ops.jobs.ranks import RankRun


def context_on(folder: Path, **fields: object) -> JobContext:
    return JobContext(JobSpec(name="a", kind="train", payload={"steps": 3}), folder, **fields)


class Scalar:
    """A number as numpy and torch wrap it."""

    def item(self) -> float:
        return 0.5


def test_events_are_json_that_every_parser_accepts(tmp_path: Path) -> None:
    context = context_on(tmp_path, attempt=2, rank=1)
    context.event("alert", loss=float("nan"), peak=float("-inf"), shape=(2, Scalar()), where=tmp_path)
    (event,) = read_events(JobFolder(tmp_path), 0)
    assert "NaN" not in json.dumps(event).replace('"NaN"', "")
    assert event["loss"] == "NaN"
    assert event["peak"] == "-Infinity"
    assert event["shape"] == [2, 0.5]
    assert (event["kind"], event["attempt"], event["rank"]) == ("alert", 2, 1)
    assert event["time"].endswith("+00:00")


def test_only_rank_0_reports_metrics(tmp_path: Path) -> None:
    context_on(tmp_path, rank=1).report(step=7, loss=1.0)
    assert last_step(JobFolder(tmp_path)) is None
    context_on(tmp_path).report(step=7, loss=1.0)
    assert last_step(JobFolder(tmp_path)) == 7


def test_what_is_not_json_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="bytes is not JSON"):
        plain({"weights": b""})


def test_lines_of_many_writers_never_mix(tmp_path: Path) -> None:
    context = context_on(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: context.event("x", text="y" * 5000, number=number), range(200)))
    events = read_events(JobFolder(tmp_path), 0)
    assert sorted(event["number"] for event in events) == list(range(200))


def test_a_damaged_line_keeps_its_place_and_an_unfinished_one_waits(tmp_path: Path) -> None:
    files = JobFolder(tmp_path)
    files.events.write_bytes(b'{"kind": "a"}\n{"ki\n{"kind": "b"}\n{"kind": "c"')
    assert [event["kind"] for event in read_events(files, 0)] == ["a", "damaged", "b"]
    assert [event["kind"] for event in read_events(files, 2)] == ["b"]


def test_a_character_that_is_cut_is_left_for_the_next_read(tmp_path: Path) -> None:
    files = JobFolder(tmp_path)
    files.log.write_bytes("ä€".encode()[:-1])
    text, offset = read_log(files, 0)
    assert (text, offset) == ("ä", 2)
    files.log.write_bytes("ä€!".encode())
    assert read_log(files, offset) == ("€!", 6)


def test_a_stop_concerns_its_own_attempt_only_and_the_first_reason_counts(tmp_path: Path) -> None:
    files, old, new = JobFolder(tmp_path), context_on(tmp_path, attempt=1), context_on(tmp_path, attempt=2)
    assert not old.stop_requested
    assert not old.stop_seen
    files.request_stop(StopRequest(attempt=1, reason="first"))
    files.request_stop(StopRequest(attempt=1, reason="second"))
    assert (old.stop_requested, old.stop_reason, old.stop_seen) == (True, "first", True)
    assert (new.stop_requested, new.stop_reason, new.stop_seen) == (False, "", False)


def test_an_attempt_knows_that_a_newer_one_has_begun(tmp_path: Path) -> None:
    context = context_on(tmp_path, attempt=1)
    assert context.is_current
    JobFolder(tmp_path).write("attempt.json", Attempt(attempt=2))
    assert not context.is_current


def test_a_file_that_is_not_whole_counts_as_missing_and_one_that_cannot_be_read_does_not(tmp_path: Path) -> None:
    (tmp_path / "half").write_text('{"attempt": ')
    assert read_json(tmp_path / "half") is None
    with pytest.raises(JobFolderError, match="Is a directory"):
        read_json(tmp_path)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a", {"x": float("nan")})
    assert read_json(tmp_path / "a") == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


GLOO = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")


@pytest.mark.parametrize(
    ("error", "exit_status", "reason"),
    [
        (PermanentError("no such model"), 78, "no such model"),
        (TransientError("store away"), 75, "store away"),
        (MemoryError(), 75, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 4 bytes"), 75, "out of memory"),
        (OSError(12, "Cannot allocate memory"), 75, "out of memory"),
        (ValueError("two\nlines"), 78, "ValueError: two\nlines"),
        (SystemExit(75), 75, "exit(75)"),
        (SystemExit(0), 78, "exit(0)"),
        (KeyboardInterrupt(), 75, "interrupted"),
        (GLOO, 75, "Connection reset by peer"),
    ],
)
def test_an_exception_becomes_an_exit_status_and_a_reason(tmp_path, monkeypatch, error, exit_status, reason) -> None:
    def run(context: JobContext) -> dict[str, object]:
        raise error

    monkeypatch.setattr("deepseek_ops.jobs.entry.function_of", lambda kind: run)
    ending = call(context_on(tmp_path))
    assert (ending.exit_status, ending.result) == (exit_status, None)
    assert reason in ending.reason


def test_a_result_that_is_no_object_is_an_error_of_the_code(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("deepseek_ops.jobs.entry.function_of", lambda kind: lambda context: [1])
    ending = call(context_on(tmp_path))
    assert (ending.exit_status, ending.reason) == (78, "run() of kind train returned a list, not a dict.")


def failure(rank: int, at: float, **fields: object) -> Outcome:
    return Outcome(rank=rank, at=at, reason="x", **fields)


@pytest.mark.parametrize(
    ("endings", "blamed"),
    [
        ([failure(0, 10.0, peer_lost=True, retry=True), failure(1, 10.1, killed=True, retry=True)], 1),
        ([failure(0, 10.0), failure(1, 10.1, killed=True, retry=True)], 1),
        ([failure(0, 10.2, peer_lost=True, retry=True), failure(1, 10.0)], 1),
        ([failure(0, 10.0), failure(1, 13.0, killed=True, retry=True)], 0),
    ],
    ids=["peer before the kill is seen", "unknown error before the kill is seen", "own error", "abort long after"],
)
def test_the_rank_that_began_it_is_blamed_and_not_its_peers(endings: list[Outcome], blamed: int) -> None:
    run = RankRun(running={}, ended={ending.rank: ending for ending in endings})
    assert run.cause.rank == blamed


def test_a_silent_end_is_told_by_its_status() -> None:
    killed = silent_ending(signal.SIGKILL, who="rank 3")
    assert (killed.reason, killed.retry) == ("rank 3 was killed by SIGKILL (out of memory?)", True)
    left = silent_ending(1 << 8, who="the job")
    assert (left.reason, left.retry) == ("the job ended with status 1 and no result", False)


def test_ranks_have_the_variables_of_torchrun_and_keep_those_of_the_job(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    spec = JobSpec(name="a", kind="train", payload={}, num_ranks=2, max_restarts=5)
    environment = rank_environment(spec, Place(local_rank=1, generation=3, port=12345))
    assert {name: environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")} == {
        "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "12345",
    }  # fmt: skip
    assert environment["TORCHELASTIC_RESTART_COUNT"] == "3"
    assert environment["TORCHELASTIC_USE_AGENT_STORE"] == "False", "every start has a store of its own"
    assert "OMP_NUM_THREADS" not in environment


def test_a_kind_can_be_done_by_code_of_ones_own(monkeypatch, tmp_path: Path, capsys) -> None:
    (tmp_path / "own_trainer.py").write_text("def train(context): return {'rank': context.rank, **context.payload}\n")
    (tmp_path / "plan.json").write_text('{"steps": 4}')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DEEPSEEK_OPS_JOB_KINDS", "evaluate=x:y,train=own_trainer:train")
    before = signal.getsignal(signal.SIGTERM)
    assert main(["train", str(tmp_path / "plan.json"), "--folder", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"rank": 0, "steps": 4}
    monkeypatch.setenv("DEEPSEEK_OPS_JOB_KINDS", "train=own_trainer:nothing")
    assert main(["train", str(tmp_path / "plan.json"), "--folder", str(tmp_path)]) == 78
    signal.signal(signal.SIGTERM, before)
    failed = read_events(JobFolder(tmp_path), 0)[-1]
    assert "own_trainer:nothing" in failed["reason"]


def test_the_supervisor_side_imports_nothing_heavy() -> None:
    code = "import sys, deepseek_ops.jobs.supervise, deepseek_ops.adapters.local_launcher as l; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {"torch", "numpy", "transformers", "deepspeed", "airflow", "obstore", "sqlalchemy"}


DONE, SEEN = Outcome(result={}), Outcome(result={}, stop_seen=True)
BROKEN, AWAY = Outcome(reason="bad"), Outcome(reason="away", retry=True)


@pytest.mark.parametrize(
    ("outcome", "cause", "phase"),
    [
        (DONE, None, "succeeded"),
        (DONE, "stop", "succeeded"),
        (DONE, "signal", "succeeded"),
        (SEEN, "stop", "stopped"),
        (SEEN, "timeout", "failed"),
        (SEEN, "signal", "lost"),
        (SEEN, None, "lost"),
        (BROKEN, None, "failed"),
        (BROKEN, "stop", "stopped"),
        (AWAY, None, "lost"),
        (AWAY, "timeout", "failed"),
        (Outcome(reason="rule", stopped=True), None, "stopped"),
        (Outcome(reason="rule", stopped=True), "signal", "stopped"),
    ],
)
def test_what_an_end_means_depends_on_who_wanted_it(outcome: Outcome, cause: str | None, phase: str) -> None:
    request = None if cause is None else StopRequest.model_validate({"attempt": 1, "reason": "why", "cause": cause})
    verdict = judge(outcome, request)
    assert verdict.phase == phase
    assert bool(verdict.reason) == (phase != "succeeded")
