# ruff: noqa: F811  (the fixture has the name of the import that brings it)
"""The Kubernetes engine and the official client against an API server in miniature whose pods are processes."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from contract_engine import EngineContract, until
from fixtures_kubernetes import FakeCluster, cluster, ended_pod, set_condition  # noqa: F401

from deepseek_ops.adapters.engines.kubernetes import KubernetesEngine, KubernetesSettings, open_client
from deepseek_ops.adapters.engines.kubernetes.errors import (
    ForeignObjectError,
    KubernetesAccessError,
    KubernetesRefusedError,
    KubernetesUnavailableError,
)
from deepseek_ops.adapters.engines.kubernetes.objects import OBJECT, object_name
from deepseek_ops.core.jobs import EngineJob, EnginePhase, JobCause

IMAGE = "registry.example.org/deepseek-ops@sha256:" + 64 * "0"


def engine_on(cluster: FakeCluster, **settings: Any) -> KubernetesEngine:
    chosen = KubernetesSettings(namespace="training", image=IMAGE, timeout_seconds=10, **settings)
    return KubernetesEngine(open_client(chosen, address=cluster.address, token=cluster.token), chosen)


class TestKubernetesEngine(EngineContract):
    node_variable = "DEEPSEEK_OPS_NODE_RANK"
    patience = 60.0

    @pytest.fixture(scope="class")
    def engine(self, request: pytest.FixtureRequest, cluster: FakeCluster) -> KubernetesEngine:
        request.cls.cluster = cluster
        return engine_on(cluster)

    @pytest.fixture(scope="class")
    def another(self, cluster: FakeCluster) -> KubernetesEngine:
        return engine_on(cluster)

    def descriptions(self, engine: KubernetesEngine, name: str) -> list[str]:
        """All objects except the Secrets, whose right it is to be read that guards them."""
        cluster: FakeCluster = self.cluster  # type: ignore[attr-defined]
        with cluster.lock:
            shown = [json.dumps(body) for (kind, _), body in cluster.objects.items() if kind != "secrets"]
        return [*super().descriptions(engine, name), *shown, *cluster.requests]


@pytest.fixture(params=["jobset", "trainjob"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestWhatKubernetesDoesToAJob:
    """Controllers, Kueue and faults are played by the tests; no pod runs."""

    @pytest.fixture(autouse=True)
    def quiet(self, cluster: FakeCluster) -> Iterator[None]:
        cluster.scheduling = False
        yield
        with cluster.lock:
            cluster.objects.clear()
        cluster.answers.clear()
        cluster.forbidden.clear()

    def job(self, name: str = "Train_7B.v2-1-abcdef0123", **fields: Any) -> EngineJob:
        body = {"id": name, "command": (sys.executable, "-V"), "timeout_seconds": 60, "grace_seconds": 20, **fields}
        return EngineJob.model_validate(body)

    def pod(self, cluster: FakeCluster, job: EngineJob, index: int, **status: Any) -> dict[str, Any]:
        name = object_name(job.id)
        labels = {OBJECT: name, "app.kubernetes.io/managed-by": "deepseek-ops",
                  "deepseek-ops/installation": "deepseek-ops"}  # fmt: skip
        meta = {"name": f"{name}-node-0-{index}-x", "labels": labels,
                "annotations": {"batch.kubernetes.io/job-completion-index": str(index)}}  # fmt: skip
        spec = {"nodeName": f"gpu-{index}", "containers": [{"name": "node"}]}
        return cluster.put("pods", {"metadata": meta, "spec": spec, "status": status})

    def plural(self, kind: str) -> str:
        return f"{kind}s"

    def ended(self, code: int, at: str, **more: Any) -> dict[str, Any]:
        return ended_pod(code, **more, finishedAt=f"2026-01-01T00:00:{at}Z")

    def started(self, cluster: FakeCluster, kind: str, **settings: Any) -> tuple[Any, EngineJob, str]:
        engine, job = engine_on(cluster, kind=kind, **settings), self.job(num_nodes=2)
        assert engine.start(job).phase is EnginePhase.PENDING
        return engine, job, object_name(job.id)

    # --- how it ends --------------------------------------------------------------------------------------------------

    def test_completed_is_status_0(self, cluster, kind) -> None:
        engine, job, name = self.started(cluster, kind)
        done = "Completed" if kind == "jobset" else "Complete"
        cluster.edit(self.plural(kind), name, lambda body: set_condition(body, done, "AllJobsCompleted"))
        state = engine.state(job.id)
        assert (state.phase, state.exit_status) == (EnginePhase.ENDED, 0)

    def test_the_pod_that_failed_first_gives_status_and_reason(self, cluster, kind) -> None:
        engine, job, name = self.started(cluster, kind)
        self.pod(cluster, job, 0, **self.ended(75, "09", reason="Error"))
        self.pod(cluster, job, 1, **self.ended(137, "08", reason="OOMKilled"))
        cluster.edit(self.plural(kind), name, lambda body: set_condition(body, "Failed", "FailedJobs", "one failed"))
        state = engine.state(job.id)
        assert (state.phase, state.exit_status) == (EnginePhase.ENDED, 137)
        assert "OOMKilled" in state.reason
        assert state.cause is JobCause.OUT_OF_MEMORY

    @pytest.mark.parametrize("reason", ["PreemptionByScheduler", "DeletionByTaintManager", "EvictionByEvictionAPI",
                                        "TerminationByKubelet"])  # fmt: skip
    def test_a_disrupted_pod_makes_the_job_preempted(self, cluster, kind, reason) -> None:
        engine, job, name = self.started(cluster, kind)
        condition = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "taken"}
        self.pod(cluster, job, 0, **self.ended(75, "09"))
        self.pod(cluster, job, 1, phase="Failed", conditions=[condition])
        cluster.edit(self.plural(kind), name, lambda body: set_condition(body, "Failed", "FailedJobs"))
        state = engine.state(job.id)
        assert (state.phase, state.exit_status) == (EnginePhase.PREEMPTED, None)
        assert reason in state.reason
        assert "gpu-1" in state.reason

    def test_a_pod_that_went_with_its_node_is_known_from_the_jobs_condition(self, cluster, kind) -> None:
        engine, job, name = self.started(cluster, kind)
        body = {"metadata": {"name": f"{name}-node-0", "labels": {"jobset.sigs.k8s.io/jobset-name": name}}}
        message = "Pod training/x has condition DisruptionTarget matching FailJob rule at index 0"
        set_condition(body, "Failed", "PodFailurePolicy", message)
        cluster.put("jobs", body)
        cluster.edit(self.plural(kind), name, lambda top: set_condition(top, "Failed", "FailedJobs"))
        assert engine.state(job.id).phase is EnginePhase.PREEMPTED
        assert [state.phase for state in engine.list()] == [EnginePhase.PREEMPTED]

    def test_an_exceeded_deadline_is_an_end_with_its_reason(self, cluster, kind) -> None:
        engine, job, name = self.started(cluster, kind)
        cluster.edit(self.plural(kind), name,
                     lambda top: set_condition(top, "Failed", "DeadlineExceeded", "was active too long"))  # fmt: skip
        state = engine.state(job.id)
        assert (state.phase, state.exit_status) == (EnginePhase.ENDED, None)
        assert "DeadlineExceeded" in state.reason

    # --- waiting ------------------------------------------------------------------------------------------------------

    def test_kueue_holds_the_job_and_says_why(self, cluster, kind) -> None:
        engine, job, name = self.started(cluster, kind, queue="gpus", priority_class="high")
        top = cluster.objects[self.plural(kind), name]
        assert top["spec"]["suspend"] is True
        assert top["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
        assert top["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
        workload = {"metadata": {"name": "w", "labels": {"kueue.x-k8s.io/job-uid": top["metadata"]["uid"]}}}
        set_condition(workload, "QuotaReserved", "Pending", "insufficient unused quota for nvidia.com/gpu", "False")
        cluster.put("workloads", workload)
        state = engine.state(job.id)
        assert state.phase is EnginePhase.PENDING
        assert "insufficient unused quota" in state.reason

    def test_a_job_that_kueue_evicted_is_preempted_and_does_not_run_again(self, cluster, kind) -> None:
        engine, job, name = self.started(cluster, kind, queue="gpus")
        top = cluster.objects[self.plural(kind), name]
        workload = {"metadata": {"name": "w", "labels": {"kueue.x-k8s.io/job-uid": top["metadata"]["uid"]}}}
        set_condition(workload, "Evicted", "Preempted", "a workload of higher priority")
        cluster.put("workloads", workload)
        assert [state.phase for state in engine.list()] == [EnginePhase.PREEMPTED]
        assert engine.state(job.id).phase is EnginePhase.PREEMPTED
        until(lambda: (self.plural(kind), name) not in cluster.objects, within=10)
        state = engine.state(job.id)
        assert (state.phase, "higher priority" in state.reason) == (EnginePhase.PREEMPTED, True)
        assert engine.start(job).phase is EnginePhase.PREEMPTED
        engine.retire(job.id)
        assert engine.state(job.id) is None

    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            ({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                              "message": "0/3 nodes are available"}]}, "0/3 nodes"),
            ({"containerStatuses": [{"name": "node", "state": {"waiting": {"reason": "ImagePullBackOff"}},
                                     "ready": False, "restartCount": 0, "image": "", "imageID": ""}]}, "ImagePull"),
        ],
        ids=["no-room", "no-image"],
    )  # fmt: skip
    def test_a_waiting_pod_says_why(self, cluster, kind, status, expected) -> None:
        engine, job, _ = self.started(cluster, "trainjob")
        self.pod(cluster, job, 0, phase="Pending", **status)
        state = engine.state(job.id)
        assert state.phase is EnginePhase.PENDING
        assert expected in state.reason

    # --- secrets ------------------------------------------------------------------------------------------------------

    def test_the_secret_belongs_to_the_job(self, cluster, kind) -> None:
        engine, job = engine_on(cluster, kind=kind), self.job()
        engine.start(job, secrets={"A": "hush-1", "B": "hush-2"})
        top, secret = (
            cluster.objects[self.plural(kind), object_name(job.id)],
            cluster.objects["secrets", object_name(job.id)],
        )
        (owner,) = secret["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == (top["kind"], top["metadata"]["uid"])
        assert base64.b64decode(secret["data"]["B"]) == b"hush-2"
        assert "hush" not in json.dumps(top)

    def test_a_start_that_died_before_the_secret_is_finished_by_the_next(self, cluster) -> None:
        engine, job = engine_on(cluster), self.job()
        cluster.forbidden.add("secrets")
        with pytest.raises(KubernetesAccessError, match="secrets is forbidden"):
            engine.start(job, secrets={"A": "b"})
        cluster.forbidden.clear()
        engine.start(job, secrets={"A": "b"})
        assert ("secrets", object_name(job.id)) in cluster.objects

    def test_the_secret_of_a_predecessor_is_replaced_and_that_of_a_stranger_is_not(self, cluster) -> None:
        engine, job = engine_on(cluster), self.job()
        old = {"metadata": {"name": object_name(job.id), "labels": {"app.kubernetes.io/managed-by": "deepseek-ops"},
                            "ownerReferences": [{"apiVersion": "v1", "kind": "JobSet", "name": "x", "uid": "gone"}]},
               "data": {"A": "b2xk"}}  # fmt: skip
        cluster.put("secrets", old)
        engine.start(job, secrets={"A": "new"})
        assert base64.b64decode(cluster.objects["secrets", object_name(job.id)]["data"]["A"]) == b"new"
        other = self.job("other-1-abcdef0123")
        cluster.put("secrets", {"metadata": {"name": object_name(other.id)}, "data": {}})
        with pytest.raises(ForeignObjectError, match="Secret"):
            engine.start(other, secrets={"A": "new"})

    # --- the API server -----------------------------------------------------------------------------------------------

    def test_an_object_of_somebody_else_is_left_alone(self, cluster, kind) -> None:
        engine, job = engine_on(cluster, kind=kind), self.job()
        engine_on(cluster, kind=kind, installation="staging").start(job)
        for act in (engine.start, lambda job: engine.state(job.id), lambda job: engine.cancel(job.id, grace_seconds=1)):
            with pytest.raises(ForeignObjectError, match=re.escape(job.id)):
                act(job)
        assert engine.list() == []
        assert len(cluster.of(self.plural(kind))) == 1

    def test_a_request_is_made_again_while_the_server_is_overloaded(self, cluster) -> None:
        engine, job = engine_on(cluster), self.job()
        cluster.answers[:] = [(500, "InternalError"), (503, "ServiceUnavailable")]
        assert engine.start(job).phase is EnginePhase.PENDING

    @pytest.mark.parametrize(
        ("code", "error"),
        [(503, KubernetesUnavailableError), (403, KubernetesAccessError), (422, KubernetesRefusedError)],
    )
    def test_the_servers_refusals_are_told_apart(self, cluster, code, error) -> None:
        cluster.answers[:] = [(code, "of the test")] * 3
        with pytest.raises(error, match=str(code)):
            engine_on(cluster).state("a-1-b")

    def test_a_create_whose_answer_was_lost_finds_its_own_object(self, cluster) -> None:
        engine, job = engine_on(cluster), self.job()
        real, lost = cluster.serve, []

        def lose(method: str, *rest: Any) -> Any:
            answer = real(method, *rest)
            if method == "POST" and not lost:
                lost.append(method)
                return 504, {"kind": "Status", "message": "gateway timeout", "reason": "Timeout"}
            return answer

        cluster.serve = lose
        try:
            assert engine.start(job).id == job.id
        finally:
            cluster.serve = real
        assert len(cluster.of("jobsets")) == 1

    def test_a_wrong_token_and_a_server_that_is_away_are_told_apart(self, cluster) -> None:
        settings = KubernetesSettings(namespace="training", timeout_seconds=2)
        engine = KubernetesEngine(open_client(settings, address=cluster.address, token="wrong"), settings)
        with pytest.raises(KubernetesAccessError, match="401"):
            engine.state("a-1-b")
        away = KubernetesEngine(open_client(settings, address="http://127.0.0.1:9", token="x"), settings)
        with pytest.raises(KubernetesUnavailableError, match="refused"):
            away.state("a-1-b")

    def test_a_cancel_shortens_the_grace_of_the_pods_and_never_forces_them(self, cluster) -> None:
        engine, job, name = self.started(cluster, "trainjob")
        pod = self.pod(cluster, job, 0, phase="Running")
        asked: list[Any] = []
        real = cluster._delete

        def watched(plural: str, target: str, body: Any, sent: Any) -> Any:
            asked.append((plural, sent.get("gracePeriodSeconds"), sent["preconditions"]["uid"]))
            return real(plural, target, body, sent)

        cluster._delete = watched
        try:
            engine.cancel(job.id, grace_seconds=0)
        finally:
            cluster._delete = real
        assert ("pods", 1, pod["metadata"]["uid"]) in asked
        until(lambda: ("trainjobs", name) not in cluster.objects, within=10)
        assert engine.state(job.id).phase is EnginePhase.CANCELLED
