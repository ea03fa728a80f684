"""The parts of the Ray engine that need no Ray: sealing, the gang, new attempts, and what we tell KubeRay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from deepseek_ops.adapters.engines.ray.api import RayJobsApi
from deepseek_ops.adapters.engines.ray.engine import EXIT_OUT_OF_MEMORY, RayEngine
from deepseek_ops.adapters.engines.ray.errors import RayAddressError, SealBrokenError
from deepseek_ops.adapters.engines.ray.sealing import KEY_VARIABLE, seal, unseal
from deepseek_ops.adapters.remote_launcher.layout import (
    Beat,
    JobKeys,
    RemoteAttempt,
    RemoteResult,
    RemoteStop,
    read_control,
)
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.jobs import EXIT_RETRY, EngineJob, JobCause, JobPhase, JobSpec, JobStatus
from deepseek_ops.core.records import canonical_json
from deepseek_ops.jobs.ray_again import ask_for_checkpoint, attended_job, begin_again, with_attempt
from deepseek_ops.jobs.ray_driver import read_job, status_of
from deepseek_ops.jobs.ray_gang import MAX_WAITING_CHARACTERS, Gang
from deepseek_ops.jobs.ray_workers import usable_nodes

KEY = "a passphrase of the tests"
NODE = {KEY_VARIABLE: KEY}
ATTEND = ("python", "-m", "deepseek_ops.jobs", "attend", "--job", "train", "--attempt", "1")
MANIFESTS = Path(__file__).parent.parent.parent / "include/kuberay"
SHAPE = Path(__file__).parent / "kuberay_shape.json"


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_what_was_sealed_opens_with_the_key_and_for_its_job_only() -> None:
    secrets = {"TOKEN": "ü $x", "EMPTY": ""}
    sealed = seal(secrets, KEY, job="a.1")
    assert "TOKEN" not in sealed
    assert unseal(sealed, NODE, job="a.1") == secrets
    for environment, job in ((NODE, "a.2"), ({KEY_VARIABLE: KEY + "!"}, "a.1")):
        with pytest.raises(SealBrokenError, match=r"another key .* or for another job"):
            unseal(sealed, environment, job=job)


def test_equal_secrets_do_not_look_equal() -> None:
    assert len({seal({"A": "b"}, KEY, job="a") for _ in range(3)}) == 3


@pytest.mark.parametrize("position", [0, 20, 40, -3])
def test_a_changed_seal_does_not_open(position: int) -> None:
    sealed = seal({"A": "b"}, KEY, job="a")
    other = "A" if sealed[position] != "A" else "B"
    at = position % len(sealed)
    with pytest.raises(SealBrokenError):
        unseal(sealed[:at] + other + sealed[at + 1 :], NODE, job="a")


def test_a_node_without_the_key_says_which_variable_it_lacks(tmp_path: Path) -> None:
    sealed = seal({"A": "b"}, KEY, job="a")
    with pytest.raises(SealBrokenError, match=KEY_VARIABLE):
        unseal(sealed, {}, job="a")
    (tmp_path / "key").write_text(KEY + "\n")
    assert unseal(sealed, {f"{KEY_VARIABLE}_FILE": str(tmp_path / "key")}, job="a") == {"A": "b"}
    with pytest.raises(SealBrokenError, match="No such file"):
        unseal(sealed, {f"{KEY_VARIABLE}_FILE": str(tmp_path / "none")}, job="a")


@pytest.mark.parametrize("address", ["", "head:8265", "ray://head:10001", "http://", "http://me:secret@head:8265"])
def test_an_address_that_is_no_dashboard_is_refused_without_its_credentials(address: str) -> None:
    from deepseek_ops.adapters.engines.ray.api import RayJobsApi

    with pytest.raises(RayAddressError) as refused:
        RayJobsApi(address)
    assert "secret" not in str(refused.value)


# --- the gang ---------------------------------------------------------------------------------------------------------


def test_nodes_go_on_until_one_fails_and_the_first_failure_is_the_job_s(monkeypatch: pytest.MonkeyPatch) -> None:
    gang, clock = Gang(), [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    instance = gang.begin()
    assert all(gang.enter(instance, node, "m") for node in range(3))
    assert gang.tell(instance, 0, "hello\n") == ""
    gang.leave(instance, 1, "", 78)
    gang.leave(instance, 2, "", 75)
    assert gang.tell(instance, 0, "") == "", "it may notice by itself"
    clock[0] += 11
    assert gang.tell(instance, 0, "") == "stop"
    view = gang.look()
    assert (view.failure, view.running, view.output) == ((1, 78), 1, [(0, "hello\n")])
    assert gang.look().output == [], "said once"


def test_only_the_newest_gathering_is_listened_to() -> None:
    gang = Gang()
    old = gang.begin()
    gang.enter(old, 0, "m")
    new = gang.begin()
    assert gang.tell(old, 0, "") == "stop"
    assert not gang.enter(old, 1, "m")
    gang.leave(old, 0, "", 1)
    assert gang.look().failure is None
    assert gang.enter(new, 0, "m")


def test_a_gang_that_is_stopped_lets_nobody_begin() -> None:
    gang = Gang()
    instance = gang.begin()
    gang.enter(instance, 0, "m")
    gang.stop()
    assert gang.tell(instance, 0, "") == "stop"
    assert not gang.enter(instance, 1, "m")


def test_the_first_node_is_told_once_to_save() -> None:
    gang = Gang()
    instance = gang.begin()
    gang.enter(instance, 0, "a"), gang.enter(instance, 1, "b")
    gang.save()
    assert [gang.tell(instance, node, "") for node in (1, 0, 0)] == ["", "save", ""]
    assert gang.look().machines == ("a", "b")


def test_output_that_nobody_prints_is_left_out_beyond_a_limit() -> None:
    gang = Gang()
    instance = gang.begin()
    for _ in range(5):
        gang.tell(instance, 0, "x" * (MAX_WAITING_CHARACTERS // 2))
    assert sum(len(text) for _, text in gang.look().output) < MAX_WAITING_CHARACTERS + 100
    gang.tell(instance, 0, "y")
    assert gang.look().output == [(0, "y")], "there is room again"


@pytest.mark.parametrize(
    ("available", "wanted", "used"), [(4, 4, 4), (3, 4, 2), (1, 4, 1), (5, 6, 3), (8, 4, 4), (2, 3, 1), (0, 2, 0)]
)
def test_of_fewer_machines_as_many_are_used_as_divide_the_batch(available: int, wanted: int, used: int) -> None:
    assert usable_nodes(available, wanted) == used


def test_a_machine_with_room_for_two_nodes_counts_once() -> None:
    from deepseek_ops.jobs.ray_trainer import machines_with  # imports Ray Train

    machines = [{"CPU": 4.0}, {"CPU": 1.0}, {"GPU": 8.0}, {"CPU": 2.0, "GPU": 1.0}]
    assert machines_with({"CPU": 2.0}, machines) == 2
    assert machines_with({"CPU": 1.0, "GPU": 1.0}, machines) == 1


def test_a_gathering_that_ray_ended_for_want_of_memory_says_so_to_its_engine() -> None:
    from ray.exceptions import OutOfMemoryError, WorkerCrashedError
    from ray.train import WorkerGroupError

    assert status_of(WorkerGroupError("x", {0: WorkerCrashedError(), 1: OutOfMemoryError("y")})) == EXIT_OUT_OF_MEMORY
    assert status_of(WorkerGroupError("x", {0: WorkerCrashedError()})) == EXIT_RETRY
    engine = RayEngine(RayJobsApi("http://127.0.0.1:1"))
    shown = {"submission_id": "a", "status": "FAILED", "driver_exit_code": EXIT_OUT_OF_MEMORY}
    assert engine._state(shown).cause is JobCause.OUT_OF_MEMORY
    assert engine._state({**shown, "driver_exit_code": EXIT_RETRY}).cause is None


def test_the_driver_reads_a_job_as_json_and_as_base64() -> None:
    import base64

    spec = EngineJob(id="a.1", command=("echo", "$HOME"), timeout_seconds=1, grace_seconds=1)
    text = canonical_json(spec.dump())
    assert read_job(text.decode()) == read_job(base64.b64encode(text).decode()) == spec


# --- another attempt --------------------------------------------------------------------------------------------------


@pytest.fixture
def keys() -> JobKeys:
    return JobKeys("train")


@pytest.fixture
def store(tmp_path: Path, keys: JobKeys) -> LocalStore:
    """A job whose first attempt runs on the machines of ``train-1-x``."""
    store = LocalStore(tmp_path)
    spec = JobSpec(name="train", kind="train", payload={}, num_ranks=2, num_nodes=2)
    record = RemoteAttempt(spec=spec, attempt=1, engine_id="train-1-x", life="l", device_seconds=10)
    store.create(keys.attempt(1), canonical_json(record.dump()))
    store.create(keys.of(1, "engine.json"), b'{"engine": 1}')
    beat = Beat(node=0, step=7, restarts=1, wall_seconds=25)
    store.create(keys.of(1, "beats/0/000001"), canonical_json(beat.dump()))
    return store


def test_machines_that_are_gathered_anew_get_a_new_attempt_and_the_old_one_is_over(store, keys) -> None:
    assert begin_again(store, "train", "train-1-x", 1) == 2
    record = RemoteAttempt.load(json.loads(store.get(keys.attempt(2))))
    assert (record.engine_id, record.life, record.device_seconds) == ("train-1-x", "l", 10 + 25 * 4)
    assert record.spec.num_nodes == 1
    end = JobStatus.load(json.loads(store.get(keys.of(1, "ended.json"))))
    assert (end.phase, end.step, end.attempt) == (JobPhase.LOST, 7, 1)
    assert store.get(keys.of(2, "engine.json")) == b'{"engine": 1}'
    assert begin_again(store, "train", "train-1-x", 1) == 3
    assert read_control(store, keys).attempts == (1, 2, 3)


@pytest.mark.parametrize("what", ["another engine's job", "a stop", "an end", "a result"])
def test_machines_that_the_job_does_not_need_get_none(store: LocalStore, keys: JobKeys, what: str) -> None:
    done = JobStatus(name="train", phase=JobPhase.SUCCEEDED)
    if what == "another engine's job":
        record = RemoteAttempt.load(json.loads(store.get(keys.attempt(1))))
        store.create(keys.attempt(2), canonical_json(record.evolve(attempt=2, engine_id="train-2-y").dump()))
    elif what == "a stop":
        store.create(keys.of(1, "stop.json"), canonical_json(RemoteStop(reason="enough").dump()))
    elif what == "an end":
        store.create(keys.of(1, "ended.json"), canonical_json(done.dump()))
    else:
        store.create(keys.result(1), canonical_json(RemoteResult(status=done, result={"loss": 1}).dump()))
    newest = read_control(store, keys).newest
    assert begin_again(store, "train", "train-1-x", 1) == 0
    assert read_control(store, keys).newest == newest
    if what == "a result":
        assert read_control(store, keys).has(1, "ended.json"), "the result is promoted to the attempt's end"


def test_a_new_gathering_has_what_the_old_one_left_of_the_budget(tmp_path: Path) -> None:
    from deepseek_ops.jobs.ray_again import _left_of

    spec = JobSpec(name="train", kind="train", payload={}, timeout_seconds=100, budget_seconds=300, num_nodes=2)
    ended = JobStatus(name="train", phase=JobPhase.LOST, wall_seconds=60)
    assert _left_of(spec, ended).timeout_seconds == 40
    assert _left_of(spec, ended.evolve(wall_seconds=100)).timeout_seconds == 1
    assert _left_of(spec.evolve(budget_seconds=None), ended).timeout_seconds == 100


def test_a_job_that_was_retired_gets_no_attempt(tmp_path: Path) -> None:
    assert begin_again(LocalStore(tmp_path), "train", "train-1-x", 1) == 0
    assert ask_for_checkpoint(LocalStore(tmp_path), "train") == 0


def test_a_checkpoint_is_asked_of_the_newest_attempt_in_the_order_of_all_requests(store, keys) -> None:
    assert ask_for_checkpoint(store, "train") == 1
    begin_again(store, "train", "train-1-x", 1)
    assert ask_for_checkpoint(store, "train") == 2
    assert json.loads(store.get(keys.of(2, "requests/000002.json")))["verb"] == "checkpoint"


def test_only_a_command_that_attends_a_job_gets_another_attempt() -> None:
    assert attended_job(ATTEND) == "train"
    assert attended_job(("python", "train.py", "--job", "x")) == ""
    assert with_attempt(ATTEND, 12) == (*ATTEND[:-1], "12")


# --- KubeRay ----------------------------------------------------------------------------------------------------------


def _problems(value: object, shape: object, where: str, pod: object) -> list[str]:
    """Return what of ``value`` KubeRay's schema does not have; ``shape`` is its names, types and required fields."""
    if shape == "any":
        return []
    if isinstance(shape, str):
        kinds = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "int-or-string": (int, str)}
        fits = isinstance(value, kinds[shape]) and (shape == "boolean" or not isinstance(value, bool))
        return [] if fits else [f"{where}: {value!r} is no {shape}"]
    assert isinstance(shape, dict)
    if "ref" in shape:
        return _problems(value, pod, where, pod)
    if "enum" in shape:
        return [] if value in shape["enum"] else [f"{where}: {value!r} is none of {shape['enum']}"]
    if "list" in shape:
        items = value if isinstance(value, list) else []
        return [p for n, item in enumerate(items) for p in _problems(item, shape["list"], f"{where}[{n}]", pod)]
    if not isinstance(value, dict):
        return [f"{where}: {value!r} is no object"]
    known = shape.get("object") or dict.fromkeys(value, shape.get("map"))
    missing = [f"{where}.{name} is missing" for name in shape.get("required", []) if name not in value]
    unknown = [f"{where}.{name} is unknown" for name in value if name not in known]
    fields = [name for name in value if name in known]
    below = [p for name in fields for p in _problems(value[name], known[name], f"{where}.{name}", pod)]
    return [*missing, *unknown, *below]


def _documents(name: str) -> list[dict[str, object]]:
    return [document for document in yaml.safe_load_all((MANIFESTS / name).read_text()) if document]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_the_manifests_fit_kuberay_s_schema(name: str) -> None:
    shapes = json.loads(SHAPE.read_text())
    ours = [document for document in _documents(name) if document["kind"] in ("RayCluster", "RayJob")]
    assert ours
    for document in ours:
        shape = shapes[str(document["kind"])]
        assert _problems(document, shape, str(document["kind"]), shapes["definitions"]["Pod"]) == []
        broken = {**document, "spec": {**document["spec"], "workers": 1}}  # type: ignore[dict-item]
        assert _problems(broken, shape, "broken", shapes["definitions"]["Pod"]) == ["broken.spec.workers is unknown"]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_an_idle_cluster_keeps_no_worker(name: str) -> None:
    for document in _documents(name):
        if document["kind"] == "Secret":
            continue
        spec = document["spec"]
        assert isinstance(spec, dict)
        spec = spec.get("rayClusterSpec", spec)
        assert spec["enableInTreeAutoscaling"] is True
        assert 0 < spec["autoscalerOptions"]["idleTimeoutSeconds"] <= 600
        for group in spec["workerGroupSpecs"]:
            assert (group["replicas"], group["minReplicas"]) == (0, 0)
            assert group["maxReplicas"] > 0
        assert spec["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0", "the head must not hold a GPU"


def test_the_job_of_the_manifest_is_one_that_the_driver_runs() -> None:
    (document,) = _documents("rayjob.yaml")
    spec = document["spec"]
    assert isinstance(spec, dict)
    variables = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    job = read_job(variables["DEEPSEEK_OPS_RAY_JOB"])
    assert job.id == spec["jobId"] == spec["entrypoint"].split()[-1]
    assert attended_job(job.command) == "train"
    assert spec["backoffLimit"] == 0
    assert set(spec["metadata"]) == {"deepseek-ops"}
