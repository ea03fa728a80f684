"""The main job on real servers: a push becomes a deployed model, although its training ranks are killed on the way.

One demo run is shared by the tests of this module: they look at what it left up. A second one, on the same folder,
shows what is reused. Nothing here is simulated: real S3, real Git over HTTP, a live Airflow scheduler, DeepSpeed ranks,
Envoy, and the `transformers` server.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import httpx
import pytest
from fixtures_demo import DAGS, Left, Load, basic, command, processes_below

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.local_launcher import LocalLauncher
from deepseek_ops.cli.demo import ask
from deepseek_ops.core.records import (
    Checkpoint,
    Deployment,
    Evaluation,
    ExportedModel,
    ModelVersion,
    Phase,
    Release,
    Rollout,
    Trial,
)
from deepseek_ops.embedded.processes import port_is_free, start_time
from deepseek_ops.pipeline.records_in_git import parse_experiment, parse_release

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "stack"
    done = command("demo", "--keep", "--kill-ranks", "--root", str(root))
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield Left(root, done.stdout)
    finally:
        command("stop", "--root", str(root), timeout=120)


def test_every_task_of_the_runs_succeeded_in_the_real_scheduler(left):
    for dag_id in DAGS:
        tasks = left.client.tasks(dag_id, left.runs[dag_id])
        wrong = [(task["task_id"], task["state"]) for task in tasks if task["state"] not in ("success", "skipped")]
        assert wrong == []
        run = left.client.get(f"/dags/{dag_id}/dagRuns/{left.runs[dag_id]}")
        assert run["state"] == "success"
    skipped = [
        task["task_id"] for task in left.client.tasks("retrain", left.runs["retrain"]) if task["state"] == "skipped"
    ]
    # One push: there was no other one to start a run for. Neither a review system nor a tracker is connected.
    assert sorted(skipped) == ["mirror_metrics", "report_result", "report_started", "retrain_other_pushes"]


def test_the_run_was_started_by_the_push_and_by_nobody(left):
    run = left.client.get(f"/dags/retrain/dagRuns/{left.runs['retrain']}")
    assert run["run_type"] == "asset_triggered"
    assert len(left.client.runs("retrain")) == 1


def test_killed_ranks_go_on_from_their_checkpoint_and_the_loss_falls(left):
    checkpoint = Checkpoint.load(left.returned("retrain", "train"))
    assert "SIGKILL to the ranks" in left.output
    assert checkpoint.restarts >= 1
    losses = [loss for _, loss in checkpoint.curve]
    assert losses[-1] < losses[0] - 1.5, "nats per token"
    job = next(
        path
        for path in (left.root / "jobs" / "jobs").glob("train-*/events.jsonl")
        if '"ranks": 2' in path.read_text() or '"ranks":2' in path.read_text()
    )
    events = [json.loads(line) for line in job.read_text().splitlines()]
    resumed = [event for event in events if event["kind"] == "resumed"]
    saved = {event["step"] for event in events if event["kind"] == "checkpoint"}
    assert resumed
    assert resumed[0]["from_step"] in saved


def test_trials_are_mapped_tasks_and_the_best_one_is_trained(left):
    count = len([task for task in left.client.tasks("retrain", left.runs["retrain"]) if task["task_id"] == "run_trial"])
    trials = [Trial.load(left.returned("retrain", "run_trial", index)) for index in range(count)]
    assert count >= 3
    finished = [trial for trial in trials if trial.state == "complete" and trial.objective is not None]
    best = min(finished, key=lambda trial: trial.objective)
    plan = left.returned("retrain", "plan_training")
    assert plan["hyperparameters"]["learning_rate"] == best.values["learning_rate"]
    assert plan["nproc_per_node"] == 2


def test_the_gates_passed_on_items_that_are_stored(left):
    for index in (0, 1):
        evaluation = Evaluation.load(left.returned("retrain", "evaluate", index))
        assert evaluation.verdict == "pass"
        assert evaluation.num_items >= 20
        assert evaluation.items is not None


def test_every_export_agrees_with_the_checkpoint_or_says_why_it_is_not_verified(left):
    exports = {}
    for index in range(4):
        exported = ExportedModel.load(left.returned("retrain", "export", index))
        exports[exported.format] = exported
    assert set(exports) == {"onnx", "tensorrt", "torchscript", "safetensors"}
    for name in ("onnx", "torchscript", "safetensors"):
        assert exports[name].status == "verified", name
        assert exports[name].parity.top1_agreement > 0.99
    assert exports["tensorrt"].status in ("built_unverified", "verified")
    if exports["tensorrt"].status == "built_unverified":
        assert "cannot load the engine on this machine" in exports["tensorrt"].reason


def test_every_object_of_the_registry_verifies_by_digest(left):
    environment = {**os.environ, **left.environment}
    base = [sys.executable, "-m", "deepseek_ops.cli.main", "registry", "verify"]
    options = ["--store", "s3://model-registry/deepseek/", "--facts", f"sqlite:///{left.root / 'facts.db'}"]
    done = subprocess.run([*base, *options], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["num_files"] > 10
    assert not report.get("problems")


def test_the_tags_with_their_metrics_are_in_the_bare_repository(left, tmp_path):
    remote = left.repository(tmp_path / "cache")
    refs = remote.refs()
    version = ModelVersion.load(left.returned("retrain", "register"))
    release = Release.load(left.returned("release", "create_release"))
    assert refs[f"refs/tags/{release.tag}"] == release.commit
    assert release.tag == f"deepseek-v{version.version}"
    recorded = left.returned("retrain", "record_experiment")
    assert refs[f"refs/tags/{recorded['tag']}"] == recorded["commit"]
    clone = tmp_path / "bare"
    subprocess.run(
        [
            "git",
            "-c",
            f"http.extraHeader=Authorization: Basic {basic(left)}",
            "clone",
            "-q",
            "--bare",
            left.git_url,
            clone,
        ],
        check=True,
        timeout=60,
    )
    message = subprocess.run(
        ["git", "--git-dir", clone, "for-each-ref", "--format=%(contents)", f"refs/tags/{recorded['tag']}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    experiment = parse_experiment(message.rstrip("\n") + "\n")
    assert experiment is not None
    assert experiment.performance["val_loss"] == pytest.approx(version.metrics["val_loss"])
    assert experiment.dataset_version == left.returned("retrain", "prepare_dataset")["version"]
    text = subprocess.run(
        ["git", "--git-dir", clone, "for-each-ref", "--format=%(contents)", f"refs/tags/{release.tag}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert parse_release(text.rstrip("\n") + "\n").bundle == version.bundle


def test_the_deployed_model_answers_a_completion_request(left):
    deployment = Deployment.load(left.returned("deploy", "promote"))
    assert ask(deployment.url, deployment.endpoint)
    answer = httpx.post(
        f"{deployment.url}/v1/completions",
        json={"model": deployment.endpoint, "prompt": "Return a", "max_tokens": 4},
        timeout=60,
    )
    assert answer.headers["x-model-version"] == deployment.version
    assert answer.json()["usage"]["completion_tokens"] <= 4


def test_our_facts_agree_with_airflow(left):
    facts = open_facts(f"sqlite:///{left.root / 'facts.db'}")
    run = left.runs["retrain"]
    job = next(fact.key for fact in facts.find("result") if fact.key.startswith("prepare-"))
    assert facts.get("result", job).run == run
    assert facts.get("model_version", "deepseek-tiny/0.1.0").body == left.returned("retrain", "register")
    costs = facts.find("cost", run=run)
    assert {fact.body["label"] for fact in costs} >= {"productive"}
    assert facts.verify_audit() >= 3


def test_no_secret_is_in_a_log_or_an_xcom(left):
    secrets = [left.token, left.environment["AWS_SECRET_ACCESS_KEY"]]
    places = [
        left.root / "airflow" / "logs",
        left.root / "jobs",
        left.root / "airflow.log",
        left.root / "git-server.log",
    ]
    files = [path for place in places for path in ([place] if place.is_file() else place.rglob("*")) if path.is_file()]
    assert len(files) > 20
    for path in files:
        data = path.read_bytes()
        assert not any(secret.encode() in data for secret in secrets), path
    for task in left.client.tasks("retrain", left.runs["retrain"]):
        shown = json.dumps(task.get("rendered_fields"))
        assert not any(secret in shown for secret in secrets), task["task_id"]


def test_a_push_that_touches_no_watched_path_starts_no_task(left):
    user = left.user()
    user._git("pull", "--quiet", "origin", "exp/first")
    commit = user.push_untouched()
    assert commit
    time.sleep(20)  # four polls
    assert len(left.client.runs("retrain")) == 1


def test_the_next_push_reuses_what_is_unchanged_and_is_rolled_out_without_a_dropped_request(left):
    user = left.user()
    user._git("pull", "--quiet", "origin", "exp/first")
    first = {task: left.returned("retrain", task) for task in ("prepare_dataset", "plan_training")}
    endpoint = Deployment.load(left.returned("deploy", "promote"))
    commit, _ = user.push_change()
    with Load(endpoint.url, endpoint.endpoint) as load:
        runs = left.wait_for_second_deployment()
    retrain, deploy = runs["retrain"], runs["deploy"]
    assert left.client.xcom("retrain", retrain, "resolve_source")["ref"]["commit"] == commit
    assert left.client.xcom("retrain", retrain, "prepare_dataset") == first["prepare_dataset"]
    trials = [left.client.xcom("retrain", retrain, "run_trial", index) for index in range(4)]
    assert all(trial["reused"] for trial in trials)
    assert left.client.xcom("retrain", retrain, "plan_training")["seed"] == first["plan_training"]["seed"] + 1
    evaluation = Evaluation.load(left.client.xcom("retrain", retrain, "evaluate", 1))
    assert evaluation.champion == "0.1.0"
    assert evaluation.interval is not None
    rollout = Rollout.load(left.client.xcom("deploy", deploy, "roll_out"))
    assert (rollout.stable, rollout.candidate, rollout.strategy) == ("0.1.0", "0.2.0", "canary")
    assert (rollout.phase, rollout.reason) == (Phase.PROMOTED, "all steps held")
    assert load.failures == []
    assert load.answers > 20
    assert set(load.versions) == {"0.1.0", "0.2.0"}
    served = [path.name for path in (left.root / "jobs" / "jobs").glob("serve-*")]
    assert len(served) == 2
    facts = open_facts(f"sqlite:///{left.root / 'facts.db'}")
    assert facts.get("alias", "deepseek-tiny/champion").body["version"] == "0.2.0"


def test_a_broken_pipeline_file_fails_its_run_at_once_with_the_line(left):
    user = left.user()
    user._git("checkout", "--quiet", "-B", "exp/broken")
    path = left.root / "clone" / "deepseek.yaml"
    text = path.read_text()
    path.write_text(text.replace("  gpus_per_node: 2", "  gpus_per_nod: 2"))
    user._git("commit", "--quiet", "--all", "--message", "Misspell a key")
    user._git("push", "--quiet", "origin", "exp/broken")
    run_id = left.wait_for_run("retrain", ("failed",))
    task = next(task for task in left.client.tasks("retrain", run_id) if task["task_id"] == "plan_run")
    assert (task["state"], task["try_number"]) == ("failed", 1), "what would fail again is not tried again"
    log = left.client.task_log("retrain", run_id, "plan_run", 1)
    line = text[: text.index("  gpus_per_node: 2")].count("\n") + 1
    assert f":{line}: training.gpus_per_nod" in log
    assert "gpus_per_node" in log


def test_a_person_who_ends_the_training_task_ends_its_job(left):
    left.client.post(
        "/dags/retrain/dagRuns",
        {"logical_date": None, "dag_run_id": "stopped", "conf": {"ref": "exp/first", "train_again": True}},
    )
    launcher = LocalLauncher(left.root / "jobs")
    before = {status.name for status in launcher.list()}
    job = left.wait(lambda: next((s for s in launcher.list() if s.name not in before and s.step), None))
    assert job.phase == "running"
    left.client.patch("/dags/retrain/dagRuns/stopped/taskInstances/train", {"new_state": "failed"})
    settled = left.wait(lambda: s if (s := launcher.status(job.name)) and s.settled else None)
    assert settled.phase == "stopped"
    assert all(start_time(pid) is None for pid in ([job.pid] if job.pid else []))


def test_nothing_is_left_when_the_demo_is_stopped(left):
    ports = [int(re.search(r":(\d+)", left.url)[1]), int(re.search(r":(\d+)/", left.git_url)[1])]
    assert command("stop", "--root", str(left.root), timeout=120).returncode == 0
    assert processes_below(left.root) == []
    assert all(port_is_free(port) for port in ports)
