"""The objects that the Kubernetes engine makes, against the fields that the CRDs and the official client know.

``kubernetes_shapes.json`` lists the fields of JobSet v1alpha2 and TrainJob v1alpha1 with their types, at every level
that the engine uses. Rules that the CRDs state in CEL, and what webhooks add, are not in it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures_kubernetes import SHAPES, misfits
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.adapters.engines.kubernetes.errors import NoImageError
from deepseek_ops.adapters.engines.kubernetes.objects import manifest, object_name
from deepseek_ops.adapters.engines.kubernetes.settings import KubernetesSettings
from deepseek_ops.adapters.launchers import LauncherSettings, LauncherSettingsError, open_launcher
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.errors import InvalidRecordError
from deepseek_ops.core.jobs import EngineJob
from deepseek_ops.jobs.nodes import node_place

INCLUDED = Path(__file__).parents[2] / "include/kubernetes"
FULL: dict[str, Any] = {
    "queue": "gpus", "priority_class": "high", "image": "i", "image_pull_policy": "Always",
    "image_pull_secrets": ["pull"], "service_account": "trainer", "node_selector": {"a": "b"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "extra_resources": {"rdma/ib": "1"}, "scratch": "10Gi", "capabilities": ["IPC_LOCK"],
    "volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "cache", "readOnly": True}}],
    "volume_mounts": [{"name": "cache", "mountPath": "/cache", "readOnly": True}],
}  # fmt: skip
KINDS = ["jobset", "trainjob"]


def job(**fields: Any) -> EngineJob:
    body = {"id": "Train_7B.v2-1-abcdef0123", "command": ("python", "-m", "x"), "num_nodes": 3, "ranks_per_node": 8,
            "gpus_per_node": 8, "cpus_per_node": 32, "memory_bytes": 2**40, "timeout_seconds": 60.5,
            "grace_seconds": 29.1, "environment": {"A": "$(B) $x"}}  # fmt: skip
    return EngineJob.model_validate(body | fields)


def made(kind: str, **fields: Any) -> dict[str, Any]:
    return manifest(job(), KubernetesSettings.load(FULL | {"kind": kind} | fields), ["TOKEN"])


def pod_of(body: dict[str, Any]) -> dict[str, Any]:
    if body["kind"] == "JobSet":
        return body["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]  # type: ignore[no-any-return]
    patch = body["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    return patch["template"]["spec"]["template"]  # type: ignore[no-any-return]


def variables(body: dict[str, Any]) -> dict[str, Any]:
    listed = pod_of(body)["spec"]["containers"][0].get("env") or body["spec"]["trainer"]["env"]
    return {entry["name"]: entry for entry in listed}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [FULL, {"image": "i"}], ids=["everything", "little"])
def test_every_field_is_one_that_the_crd_has(kind: str, fields: dict[str, Any]) -> None:
    body = manifest(job(), KubernetesSettings.load(fields | {"kind": kind}), ["TOKEN"])
    shape = SHAPES[body["kind"]]
    assert body["apiVersion"] == shape["apiVersion"]
    assert misfits(body["spec"], shape["spec"]) == []
    body["spec"]["unheardOf"] = 1
    assert misfits(body["spec"], shape["spec"])


def test_the_clients_own_types_keep_all_of_the_pod() -> None:
    from kubernetes.client import ApiClient

    class Reply:
        data = ""

    template = pod_of(made("jobset"))
    client = ApiClient()
    try:
        kept = client.deserialize(json.dumps(template), "V1PodTemplateSpec", "application/json")
    except TypeError:  # the client of an earlier release
        reply = Reply()
        reply.data = json.dumps(template)
        kept = client.deserialize(reply, "V1PodTemplateSpec")
    assert client.sanitize_for_serialization(kept) == template


@pytest.mark.parametrize("kind", KINDS)
def test_pods_have_no_rights_and_their_grace(kind: str) -> None:
    spec = pod_of(made(kind))["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
    }
    assert spec["terminationGracePeriodSeconds"] == 30
    assert spec.get("automountServiceAccountToken", False) is False


def test_kubernetes_itself_tries_nothing_again() -> None:
    included = yaml.safe_load((INCLUDED / "training-runtime.yaml").read_text())["spec"]["template"]
    for top in (made("jobset"), included):
        work = top["spec"]["replicatedJobs"][0]["template"]["spec"]
        assert top["spec"]["failurePolicy"] == {"maxRestarts": 0}
        assert work["backoffLimit"] == 0
        assert work["podFailurePolicy"]["rules"][0]["action"] == "FailJob"
        assert work["template"]["spec"]["restartPolicy"] == "Never"
        assert work["template"]["spec"]["automountServiceAccountToken"] is False
        assert work["completionMode"] == "Indexed"


@pytest.mark.parametrize("kind", KINDS)
def test_a_node_knows_its_place_from_its_variables(kind: str) -> None:
    name, given = object_name(job().id), variables(made(kind))
    environment = {key: entry["value"] for key, entry in given.items() if "value" in entry}
    environment["DEEPSEEK_OPS_NODE_RANK"] = "2"  # by the kubelet, from the annotation
    environment["DEEPSEEK_OPS_NODE_HOST"] = environment["DEEPSEEK_OPS_NODE_HOST"].replace(
        "$(DEEPSEEK_OPS_NODE_RANK)", "2"
    )
    place = node_place(environment)
    assert (place.rank, place.count) == (2, 3)
    assert place.address == f"{name}-node-0-0.{name}"
    assert place.host == f"{name}-node-0-2.{name}"
    order = list(given)
    assert order.index("DEEPSEEK_OPS_NODE_RANK") < order.index("DEEPSEEK_OPS_NODE_HOST"), "it could not be expanded"


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_not_expanded_and_secrets_are_references(kind: str) -> None:
    given = variables(made(kind))
    assert given["A"]["value"] == "$$(B) $$x"
    assert given["TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": object_name(job().id), "key": "TOKEN"}}


def test_a_job_cannot_take_the_variables_of_its_place() -> None:
    body = manifest(job(environment={"DEEPSEEK_OPS_NODE_COUNT": "9"}), KubernetesSettings(image="i"))
    assert variables(body)["DEEPSEEK_OPS_NODE_COUNT"]["value"] == "3"


@given(st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z"))
def test_names_are_labels_with_room_for_what_jobset_adds(name: str) -> None:
    found = object_name(name)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found)
    assert len(f"{found}-node-0-99999-abcde") <= 63
    assert found == object_name(name)


def test_ids_that_look_alike_have_names_of_their_own() -> None:
    ids = ["a.b", "a-b", "A-b", "a_b", "x" * 99, "x" * 100, "1", "-".join("ab")]
    assert len({object_name(each) for each in ids}) == len({*ids})


def test_without_an_image_nothing_is_made() -> None:
    with pytest.raises(NoImageError, match="image"):
        manifest(job(), KubernetesSettings())


@pytest.mark.parametrize(
    "wrong",
    [{"queue": "Not A Label"}, {"run_as_user": 0}, {"volume_mounts": [{"name": "none", "mountPath": "/x"}]},
     {"shared_memory": "lots"}, {"kind": "pod"}, {"unknown": 1}],
    ids=["label", "root", "mount", "quantity", "kind", "field"],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecordError):
        KubernetesSettings.load(wrong)


def test_included_manifests_fit_together_and_the_role_has_the_verbs_that_are_used() -> None:
    role, account, binding = yaml.safe_load_all((INCLUDED / "engine-role.yaml").read_text())
    flavor, cluster_queue, queue = yaml.safe_load_all((INCLUDED / "kueue-queue.yaml").read_text())
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]
    rights = {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}
    assert rights == {
        "jobsets": {"create", "get", "list", "delete"},
        "trainjobs": {"create", "get", "list", "delete"},
        "configmaps": {"create", "get", "list", "delete"},
        "secrets": {"create", "get", "delete"},
        "pods": {"list", "delete"},
        "pods/log": {"get"},
        "jobs": {"list"},
        "workloads": {"list"},
    }
    assert queue["spec"]["clusterQueue"] == cluster_queue["metadata"]["name"]
    (group,) = cluster_queue["spec"]["resourceGroups"]
    assert group["flavors"][0]["name"] == flavor["metadata"]["name"]
    assert [entry["name"] for entry in group["flavors"][0]["resources"]] == group["coveredResources"]
    runtime = yaml.safe_load((INCLUDED / "training-runtime.yaml").read_text())
    assert runtime["metadata"]["name"] == KubernetesSettings().runtime
    assert runtime["kind"] == KubernetesSettings().runtime_kind
    jobset = SHAPES["JobSet"]["spec"]
    assert misfits(runtime["spec"]["template"]["spec"], jobset) == []


def test_launchers_of_both_engines_open_from_settings(tmp_path: Path) -> None:
    def store() -> Any:
        return LocalStore(tmp_path), {}

    options: dict[str, Any] = {"namespace": "training", "image": "i"}
    kubernetes = LauncherSettings(engine="kubernetes", address="http://127.0.0.1:9", options=options)
    open_launcher(kubernetes, store=store)
    account: dict[str, Any] = {"role_arn": "arn:aws:iam::123456789012:role/x", "output_uri": "s3://b",
                               "instance_type": "ml.p5.48xlarge", "region": "eu-central-1"}  # fmt: skip
    open_launcher(LauncherSettings(engine="sagemaker", options=account), store=store)
    with pytest.raises(LauncherSettingsError, match="options of sagemaker"):
        open_launcher(LauncherSettings(engine="sagemaker", options={}), store=store)
