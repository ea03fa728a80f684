"""Jobs from a terminal: started, followed, asked and ended without Airflow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_launcher import job, settled, until
from typer.testing import CliRunner

from deepseek_ops.adapters.local_launcher import LocalLauncher
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
def call(tmp_path: Path, launcher: LocalLauncher):
    (tmp_path / "root").mkdir()

    def call(*arguments: str) -> str:
        words = [*arguments, "--at", str(tmp_path / "root")]
        done = CliRunner().invoke(build(words), words)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    return call


def written(folder: Path, spec: JobSpec) -> str:
    path = folder / f"{spec.name}.json"
    path.write_text(json.dumps(spec.dump()))
    return str(path)


def test_a_job_is_run_to_its_end_and_its_log_shown_on_the_way(call, tmp_path: Path) -> None:
    spec = job("chatty", {"lines": 3})
    shown = call("run", written(tmp_path, spec), "--follow")
    assert json.loads(shown[shown.rindex("\n{") :])["phase"] == "succeeded"
    assert shown.startswith("--- attempt 1")
    assert call("logs", spec.name) == shown[: shown.rindex("\n{") + 1]


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
