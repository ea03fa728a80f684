"""Jobs from a terminal: started, followed, asked and ended without Airflow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_launcher import job, settled, until
from typer.testing import CliRunner

from deepseek_ops.adapters.local_launcher import LocalLauncher
from deepseek_ops.cli.jobs_wait import RequestNotDoneError
from deepseek_ops.cli.main import build
from deepseek_ops.core.errors import ConfigError, JobFailedError
from deepseek_ops.core.jobs import JobPhase, JobSpec


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[LocalLauncher]:
    launcher = LocalLauncher(tmp_path / "root", warm=False)
    try:
        yield launcher
    finally:
        launcher.shutdown(grace_seconds=2)


@pytest.fixture
def said() -> list[str]:
    """What the commands said on stderr."""
    return []


@pytest.fixture
def call(tmp_path: Path, launcher: LocalLauncher, said: list[str]):
    (tmp_path / "root").mkdir()

    def call(*arguments: str) -> str:
        words = [*arguments, "--at", str(tmp_path / "root")]
        done = CliRunner().invoke(build(words), words)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        said.append(done.stderr)
        return done.stdout

    return call


def written(folder: Path, spec: JobSpec) -> str:
    path = folder / f"{spec.name}.json"
    path.write_text(json.dumps(spec.dump()))
    return str(path)


def test_a_job_is_run_to_its_end_with_its_log_on_stderr_and_json_alone_on_stdout(call, said, tmp_path: Path) -> None:
    spec = job("chatty", {"lines": 3})
    assert json.loads(call("run", written(tmp_path, spec), "--follow"))["phase"] == "succeeded"
    assert said[0].startswith("--- attempt 1")
    assert call("logs", spec.name) == said[0]


def test_a_log_longer_than_one_reading_is_printed_to_its_end(call, launcher, tmp_path: Path) -> None:
    spec = job("chatty", {"lines": 3})
    launcher.submit(spec)
    settled(launcher, spec.name)
    with (tmp_path / "root" / "jobs" / spec.name / "log.txt").open("a") as file:
        file.write("ß" * (9 << 20) + "\nthe end\n")
    for more in ((), ("--follow",)):
        shown = call("logs", spec.name, *more)
        assert shown.endswith("ß\nthe end\n")
        assert shown.count("ß") == 9 << 20


def test_a_job_that_nobody_follows_is_started_without_its_lease(call, said, launcher, tmp_path: Path) -> None:
    spec = job("wait", lease_seconds=180)
    call("run", written(tmp_path, spec))
    assert "without its lease of 180 s" in said[0]
    stored = json.loads((tmp_path / "root" / "jobs" / spec.name / "spec.json").read_text())
    assert stored["lease_seconds"] == 0
    launcher.stop(spec.name, "enough")
    settled(launcher, spec.name)
    leased = job("echo", lease_seconds=180)
    call("run", written(tmp_path, leased), "--follow")
    assert json.loads((tmp_path / "root" / "jobs" / leased.name / "spec.json").read_text())["lease_seconds"] == 180


def test_a_job_that_fails_ends_the_command_with_its_reason(call, tmp_path: Path) -> None:
    spec = job("fail", {"raise": "value"})
    with pytest.raises(JobFailedError, match="the learning rate is a fish"):
        call("run", written(tmp_path, spec), "--follow")


def test_a_running_job_is_seen_asked_and_stopped_by_the_beginning_of_its_name(call, launcher, tmp_path: Path) -> None:
    spec = job("wait")
    call("run", written(tmp_path, spec))
    until(lambda: launcher.status(spec.name).phase is JobPhase.RUNNING)
    beginning = spec.name[:-1]
    assert json.loads(call("status", beginning))["name"] == spec.name
    assert json.loads(call("checkpoint-now", beginning))["request"] == 1
    assert json.loads(call("rewind", beginning, "--to", "40"))["request"] == 2
    asked = [json.loads(path.read_text()) for path in sorted((tmp_path / "root/jobs").glob("*/requests/*.json"))]
    assert [(one["verb"], one.get("step")) for one in asked] == [("checkpoint", None), ("rewind", 40)]
    assert all("@" in one["by"] for one in asked)
    assert "1 running" in call("top", "--once")
    call("stop", beginning, "--reason", "enough is enough")
    assert settled(launcher, spec.name).reason == "enough is enough"
    assert "no job is running" in call("top", "--once")
    assert "enough is enough" in call("status", "--table")


def test_an_empty_name_ends_nothing_and_no_demo(call, launcher, tmp_path: Path) -> None:
    spec = job("wait")
    launcher.submit(spec)
    for command in ("stop", "rewind", "checkpoint-now", "logs"):
        with pytest.raises(ConfigError, match=r"^job: the name is empty"):
            call(command, "")
    with pytest.raises(ConfigError, match=r"^job: the name is empty"):
        CliRunner().invoke(build(["stop", ""]), ["stop", " ", "--at", str(tmp_path / "none")], catch_exceptions=False)
    assert launcher.status(spec.name).phase is JobPhase.RUNNING
    launcher.stop(spec.name, "enough")


def test_who_waits_for_a_stop_learns_how_it_ended(call, launcher) -> None:
    spec, failed = job("wait"), job("fail", {"raise": "value"})
    for one in (spec, failed):
        launcher.submit(one)
    until(lambda: launcher.status(spec.name).step)
    ended = json.loads(call("stop", spec.name, "--wait", "--reason", "enough"))
    assert (ended["phase"], ended["reason"]) == ("stopped", "enough")
    settled(launcher, failed.name)
    with pytest.raises(JobFailedError):
        call("stop", failed.name, "--wait")


def test_who_waits_for_a_request_learns_what_came_of_it(call, launcher) -> None:
    """``answer`` gives the answers of our trainer, and of a script, one after another."""
    spec = job("answer", kind="train")
    launcher.submit(spec)
    until(lambda: launcher.status(spec.name).step)
    done = json.loads(call("checkpoint-now", spec.name, "--wait"))
    assert (done["request"], done["outcome"]["kind"], done["outcome"]["step"]) == (1, "checkpoint", 10)
    back = json.loads(call("rewind", spec.name, "--to", "4", "--wait"))
    assert (back["request"], back["outcome"]["went_to"]) == (2, 3)
    with pytest.raises(RequestNotDoneError, match="the rewind was not done: no healthy checkpoint of step 1 or before"):
        call("rewind", spec.name, "--to", "1", "--wait")
    with pytest.raises(RequestNotDoneError, match="a script's own loop cannot go back"):
        call("rewind", spec.name, "--wait")
    with pytest.raises(RequestNotDoneError, match="step 900 is still to come: the training is at step 10"):
        call("rewind", spec.name, "--to", "900")
    with pytest.raises(RequestNotDoneError, match="the checkpoint was not done: it ended before"):
        call("checkpoint-now", spec.name, "--wait")


def test_a_name_that_fits_no_job_or_several_is_refused_with_the_candidates(call, launcher) -> None:
    first, second = job("echo", name="same-one"), job("echo", name="same-two")
    for spec in (first, second):
        launcher.submit(spec)
        settled(launcher, spec.name)
    with pytest.raises(ConfigError, match="names 2 jobs: same-one, same-two"):
        call("status", "same")
    with pytest.raises(ConfigError, match="names 0 jobs"):
        call("logs", "other")


def test_events_are_printed_one_a_line(call, launcher) -> None:
    spec = job("echo")
    launcher.submit(spec)
    settled(launcher, spec.name)
    rows = [json.loads(line) for line in call("logs", spec.name, "--events").splitlines()]
    assert [row["kind"] for row in rows if row["kind"] in ("started", "ended")] == ["started", "ended"]


def test_a_place_that_is_not_there_is_named_with_the_variable(tmp_path: Path) -> None:
    words = ["status", "--at", str(tmp_path / "nowhere")]
    done = CliRunner().invoke(build(words), words)
    assert isinstance(done.exception, ConfigError)
    assert "DEEPSEEK_OPS_LAUNCHER" in str(done.exception)


def test_a_folder_that_holds_no_jobs_is_refused_with_the_right_one(call, launcher, tmp_path: Path) -> None:
    spec = job("echo")
    launcher.submit(spec)
    settled(launcher, spec.name)
    inside = tmp_path / "root" / "jobs"
    (tmp_path / "empty").mkdir()
    for place, says in (
        (inside, f"Name {tmp_path / 'root'}"),
        (inside / spec.name, f"and the job {spec.name}"),
        (tmp_path / "empty", "no job was ever started in it"),
    ):
        for words in (["status"], ["top", "--once"], ["logs", spec.name]):
            done = CliRunner().invoke(build(words), [*words, "--at", str(place)])
            assert isinstance(done.exception, ConfigError), (place, words)
            assert says in str(done.exception)
