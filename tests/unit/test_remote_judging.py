"""What an attempt is that has not said how it ended: every pair of what the engine and the store show."""

from __future__ import annotations

from typing import NoReturn

import pytest

from deepseek_ops.adapters.environments.images import image_tag
from deepseek_ops.adapters.launchers import LauncherSettings, LauncherSettingsError, open_launcher
from deepseek_ops.adapters.remote_launcher.asking import NodeShape, engine_job, is_of_store, new_engine_id
from deepseek_ops.adapters.remote_launcher.errors import NoEnvironmentError
from deepseek_ops.adapters.remote_launcher.judging import SETTLE_SECONDS, START_SECONDS, Seen, judged
from deepseek_ops.adapters.remote_launcher.layout import Beat, RemoteAttempt
from deepseek_ops.core.jobs import EnginePhase, EngineState, JobCause, JobPhase, JobSpec

SPEC = JobSpec(name="job", kind="train", payload={}, num_ranks=4, num_nodes=2, grace_seconds=5)
RECORD = RemoteAttempt(spec=SPEC, attempt=2, engine_id="job-2", life="x", device_seconds=100)
BEAT = Beat(node=0, step=7, restarts=1, wall_seconds=10)


def seen(phase: EnginePhase | None, **fields: object) -> Seen:
    state = None
    if phase is not None:
        known = {name: fields.pop(name) for name in ("cause", "exit_status") if name in fields}
        state = EngineState(id="job-2", phase=phase, reason=str(fields.pop("why", "")), **known)  # type: ignore[arg-type]
    return Seen(RECORD, state, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "phase", "reason"),
    [
        (seen(EnginePhase.PENDING, why="Resources"), JobPhase.RUNNING, "waits for machines: Resources"),
        (seen(EnginePhase.RUNNING), JobPhase.RUNNING, "its machines get ready"),
        (seen(EnginePhase.RUNNING, beat=BEAT), JobPhase.RUNNING, ""),
        (seen(EnginePhase.RUNNING, beat=Beat(node=0, stopping="budget")), JobPhase.RUNNING, "is ending: budget"),
        (seen(EnginePhase.PREEMPTED, why="spot"), JobPhase.LOST, "the engine took its machines away: spot"),
        (seen(EnginePhase.CANCELLED), JobPhase.LOST, "it was cancelled in the engine"),
        (seen(EnginePhase.CANCELLED, stop_reason="enough"), JobPhase.STOPPED, "enough; then: it was cancelled"),
        (seen(EnginePhase.ENDED, exit_status=-9, claimed=True), JobPhase.LOST, "(exit status -9)"),
        (
            seen(EnginePhase.ENDED, exit_status=78, last_words="no store"),
            JobPhase.FAILED,
            "the last line was: no store",
        ),
        (seen(EnginePhase.ENDED, exit_status=78, claimed=True), JobPhase.LOST, "exit status 78"),
        (seen(None, created_age=5), JobPhase.RUNNING, "is being started"),
        (seen(None, created_age=START_SECONDS + 1), JobPhase.LOST, "nobody started it"),
        (seen(None, created_age=5, stop_reason="enough"), JobPhase.STOPPED, "enough; then: nobody started it"),
        (seen(None, started_age=5), JobPhase.RUNNING, "is being started"),
        (seen(None, started_age=SETTLE_SECONDS + 1), JobPhase.LOST, "does not know it any more"),
        (seen(None, started_age=900, beat=BEAT, beat_age=5), JobPhase.RUNNING, "its machines answer"),
        (seen(None, started_age=900, beat=BEAT, beat_age=SETTLE_SECONDS + 1), JobPhase.LOST, "do not answer"),
    ],
)
def test_what_engine_and_store_show_decides(given: Seen, phase: JobPhase, reason: str) -> None:
    status = judged(given, log="where")
    assert status.phase is phase
    assert reason in status.reason if reason else status.reason == ""


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        (seen(EnginePhase.PREEMPTED, why="spot"), JobCause.PREEMPTED),
        (seen(EnginePhase.PREEMPTED, cause=JobCause.MACHINE_LOST), JobCause.MACHINE_LOST),
        (seen(EnginePhase.ENDED, exit_status=137, claimed=True, cause=JobCause.OUT_OF_MEMORY), JobCause.OUT_OF_MEMORY),
        (seen(EnginePhase.ENDED, exit_status=137, claimed=True), None),
        (seen(EnginePhase.CANCELLED), None),
        (seen(EnginePhase.PREEMPTED, stop_reason="enough"), None),
        (seen(EnginePhase.RUNNING, beat=BEAT), None),
        (seen(None, started_age=SETTLE_SECONDS + 1), JobCause.MACHINE_LOST),
        (seen(None, created_age=START_SECONDS + 1), None),
    ],
)
def test_the_cause_is_what_the_engine_knows(given: Seen, cause: JobCause | None) -> None:
    assert judged(given, log="where").cause is cause


def test_the_last_beat_tells_how_far_it_came_and_what_it_cost_on_all_nodes() -> None:
    status = judged(seen(EnginePhase.ENDED, beat=BEAT, claimed=True), log="where")
    assert (status.step, status.restarts, status.wall_seconds, status.attempt) == (7, 1, 10, 2)
    assert status.device_seconds == 100 + 10 * 4 * 2


def test_the_engine_is_asked_for_what_the_job_needs_and_its_limit_comes_after_the_jobs_own() -> None:
    shape = NodeShape(python="/venv/bin/python", cpus_per_rank=8, gpus_per_rank=1, image="jobs:1")
    asked = engine_job(RECORD, shape)
    assert asked.command == ("/venv/bin/python", "-m", "deepseek_ops.jobs", "attend", "--job", "job", "--attempt", "2")
    assert (asked.num_nodes, asked.ranks_per_node, asked.gpus_per_node, asked.cpus_per_node) == (2, 4, 4, 32)
    assert asked.timeout_seconds > SPEC.timeout_seconds + SPEC.grace_seconds
    other = engine_job(RECORD.evolve(spec=SPEC.evolve(kind="evaluate", python="/own/python")), shape)
    assert (other.gpus_per_node, other.ranks_per_node, other.command[0]) == (0, 1, "/own/python")


def test_an_image_follows_the_environment_of_the_run_as_its_tag_does() -> None:
    key = "0123456789abcdef" * 2
    shape = NodeShape(image="host:5000/team/trainer:{environment}")
    of_run = engine_job(RECORD.evolve(spec=SPEC.evolve(environment_key=key)), shape)
    assert of_run.image == image_tag("host:5000/team/trainer", key) == "host:5000/team/trainer:0123456789ab"
    assert engine_job(RECORD, NodeShape(image="plain@sha256:" + "a" * 64)).image == "plain@sha256:" + "a" * 64
    with pytest.raises(NoEnvironmentError, match=r"job job belongs to no run.*without {environment}"):
        engine_job(RECORD, shape)


@pytest.mark.parametrize("image", ["x:{key}", "x:{environment!r}", "x:{environment:3}", "x:{}", "x:{environment", "x}"])
def test_another_placeholder_in_an_image_is_refused_with_the_one_there_is(image: str) -> None:
    for settings in (
        {"engine": "slurm", "machine": {"image": image}},
        {"engine": "kubernetes", "address": "https://127.0.0.1:1", "options": {"image": image}},
    ):
        with pytest.raises(LauncherSettingsError, match=r"machine cannot be used: image=.*\{environment\} is the one"):
            open_launcher(LauncherSettings.load(settings), store=_no_store)


def _no_store() -> NoReturn:
    raise AssertionError("nothing is opened for settings that cannot be used")


def test_an_engines_id_says_whose_it_is_and_is_never_the_same_twice() -> None:
    ids = {new_engine_id("a" * 100, 3, "s3://bucket/x") for _ in range(50)}
    assert len(ids) > 45
    assert all(len(engine_id) <= 100 and is_of_store(engine_id, "s3://bucket/x") for engine_id in ids)
    assert not any(is_of_store(engine_id, "s3://bucket/y") for engine_id in ids)
    assert not is_of_store("somebody-elses-job", "s3://bucket/x")
