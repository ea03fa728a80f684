"""A Kubernetes API server in miniature, on loopback, with controllers and a kubelet whose containers are processes.

What is here behaves as the real one does in what the engine relies on: names are taken (409), unknown fields are
refused where the client asks for strict validation, uids are preconditions, labels select, deletion in the foreground
waits for the pods and owned objects go with their owner, variables are resolved by the kubelet (``fieldRef``,
``secretKeyRef``, ``$(NAME)``), a pod has its grace. Kueue and faults are played by the tests, through ``edit``.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

SHAPES = json.loads((Path(__file__).parent / "unit/kubernetes_shapes.json").read_text())
Body = dict[str, Any]
TICK_SECONDS = 0.05
PATH = re.compile(
    r"^/(?:api|apis/(?P<group>[^/]+))/(?P<version>v[^/]+)/namespaces/(?P<namespace>[^/]+)/(?P<plural>[^/]+)"
    r"(?:/(?P<name>[^/]+)(?P<log>/log)?)?$"
)


def misfits(value: Any, shape: Any, path: str = "") -> list[str]:
    """Return where ``value`` is not of the shape: unknown fields and wrong types, as the CRD's schema has them."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{path}: is no object"]
        if "*" in shape:
            return [found for key, item in value.items() for found in misfits(item, shape["*"], f"{path}.{key}")]
        unknown = [f'unknown field "{path}.{key}"'.replace('"."', '"') for key in value if key not in shape]
        return unknown + [
            found for key in value if key in shape for found in misfits(value[key], shape[key], f"{path}.{key}")
        ]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{path}: is no list"]
        return [found for n, item in enumerate(value) for found in misfits(item, shape[0], f"{path}[{n}]")]
    types: dict[str, Any] = {"string": str, "integer": int, "boolean": bool, "object": dict, "array": list}
    fits = shape in ("any", "int-or-string") or isinstance(value, types[shape])
    fits = fits and not (shape == "integer" and isinstance(value, bool))
    return [] if fits else [f"{path}: {value!r} is no {shape}"]


class FakeCluster:
    """One namespace, ``training``; every request is answered under one lock."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Body] = {}
        self.processes: dict[str, tuple[subprocess.Popen[bytes], Path, list[float]]] = {}
        self.requests: list[str] = []
        self.answers: list[tuple[int, str]] = []
        """Answers for the next requests, in place of what they ask for."""
        self.forbidden: set[str] = set()
        self.scheduling = True
        self.lock = threading.RLock()
        self.numbers = itertools.count(1)
        self.folder = Path()
        self.token = "of-the-tests"
        self.closed = threading.Event()
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                sent = json.loads(self.rfile.read(length)) if length else {}
                with cluster.lock:
                    status, body = cluster.serve(self.command, self.path, sent, self.headers.get("Authorization"))
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.threads = [
            threading.Thread(target=self.server.serve_forever, args=(0.05,)),
            threading.Thread(target=self._run),
        ]
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        self.closed.set()
        self.server.shutdown()
        self.server.server_close()
        for thread in self.threads:
            thread.join()
        for process, _, _ in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()

    # --- for tests ----------------------------------------------------------------------------------------------------

    def edit(self, plural: str, name: str, change: Callable[[Body], object]) -> None:
        """Change an object, as a controller does."""
        with self.lock:
            change(self.objects[plural, name])

    def put(self, plural: str, body: Body) -> Body:
        """Store an object, as somebody else would."""
        with self.lock:
            meta = body["metadata"]
            meta.update(uid=str(uuid.uuid4()), resourceVersion=str(next(self.numbers)), creationTimestamp=now())
            self.objects[plural, meta["name"]] = body
        return body

    def of(self, plural: str) -> list[Body]:
        with self.lock:
            return [body for (kind, _), body in self.objects.items() if kind == plural]

    # --- the API server -----------------------------------------------------------------------------------------------

    def serve(self, method: str, path: str, sent: Body, authorization: str | None) -> tuple[int, Body | str]:
        parts = urlsplit(path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        found = PATH.match(parts.path)
        self.requests.append(f"{method} {parts.path}")
        if authorization != f"Bearer {self.token}":
            return status(401, "Unauthorized", "Unauthorized")
        if self.answers:
            return status(*self.answers.pop(0), "of the test")
        if found is None or found["namespace"] != "training":
            return status(404, "NotFound", "the server could not find the requested resource")
        plural, name = found["plural"], found["name"]
        if plural in self.forbidden:
            return status(403, "Forbidden", f'{plural} is forbidden: User "engine" cannot do this')
        if method == "POST":
            return self._create(plural, sent, query)
        if name is None:
            chosen = [body for body in self.of(plural) if selected(body, query.get("labelSelector", ""))]
            return 200, {"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": chosen}
        body = self.objects.get((plural, name))
        if body is None:
            return status(404, "NotFound", f'{plural} "{name}" not found')
        if found["log"]:
            return self._log(name)
        return (200, body) if method == "GET" else self._delete(plural, name, body, sent)

    def _create(self, plural: str, sent: Body, query: dict[str, str]) -> tuple[int, Body]:
        name = sent["metadata"]["name"]
        if (plural, name) in self.objects:
            return status(409, "AlreadyExists", f'{plural} "{name}" already exists')
        shape = SHAPES.get(sent["kind"])
        if shape is not None and query.get("fieldValidation") == "Strict":
            wrong = misfits(sent["spec"], shape["spec"], "spec")
            if wrong or sent["apiVersion"] != shape["apiVersion"]:
                return status(400, "BadRequest", f"strict decoding error: {'; '.join(wrong)}")
        if plural == "secrets":
            for key, value in sent.pop("stringData", {}).items():
                sent.setdefault("data", {})[key] = base64.b64encode(value.encode()).decode()
        return 201, self.put(plural, sent)

    def _delete(self, plural: str, name: str, body: Body, sent: Body) -> tuple[int, Body]:
        wanted = (sent.get("preconditions") or {}).get("uid")
        if wanted and wanted != body["metadata"]["uid"]:
            return status(409, "Conflict", "the UID in the precondition does not match")
        if plural == "pods":
            self._end_pod(body, sent.get("gracePeriodSeconds"))
        elif plural in ("jobsets", "trainjobs"):
            body["metadata"].setdefault("deletionTimestamp", now())
            body["metadata"]["finalizers"] = ["foregroundDeletion"]
        else:
            del self.objects[plural, name]
        return 200, {"kind": "Status", "status": "Success"}

    def _log(self, name: str) -> tuple[int, Body | str]:
        if name not in self.processes:
            return status(400, "BadRequest", f'container "node" in pod "{name}" is waiting to start')
        return 200, self.processes[name][1].read_text(errors="replace")

    # --- controllers and kubelet --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self.closed.wait(TICK_SECONDS):
            with self.lock:
                for kind in ("jobsets", "trainjobs"):
                    for top in self.of(kind):
                        self._reconcile(kind, top)
                for pod in self.of("pods"):
                    self._keep(pod)

    def _reconcile(self, kind: str, top: Body) -> None:
        name, spec = top["metadata"]["name"], top["spec"]
        pods = [pod for pod in self.of("pods") if pod["metadata"]["labels"].get("deepseek-ops/object") == name]
        if "deletionTimestamp" in top["metadata"]:
            if self.scheduling:
                for pod in pods:
                    self._end_pod(pod, None)
            if not pods or not self.scheduling:
                self._forget(kind, top)
            return
        done = {item["type"] for item in top.get("status", {}).get("conditions", ()) if item["status"] == "True"}
        if kind == "trainjobs" or spec.get("suspend") or done & {"Completed", "Failed"}:
            return
        job = self.objects.get(("jobs", f"{name}-node-0"))
        if job is None:
            self._make_pods(top)
        else:
            self._judge(top, job, pods)

    def _judge(self, top: Body, job: Body, pods: list[Body]) -> None:
        """Fail the job once its pods have ended, after one that failed; complete it when all have succeeded."""
        phases = {pod["status"]["phase"] for pod in pods}
        if "Failed" in phases:
            for pod in pods:
                if pod["status"]["phase"] in ("Pending", "Running"):
                    self._end_pod(pod, None)
            if not phases & {"Pending", "Running"}:
                set_condition(job, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
                set_condition(top, "Failed", "FailedJobs", f"jobset failed due to {job['metadata']['name']}")
        elif phases == {"Succeeded"}:
            set_condition(top, "Completed", "AllJobsCompleted", "jobset completed successfully")

    def _forget(self, kind: str, top: Body) -> None:
        name, uid = top["metadata"]["name"], top["metadata"]["uid"]
        self.objects.pop(("jobs", f"{name}-node-0"), None)
        for secret in self.of("secrets"):
            if any(owner["uid"] == uid for owner in secret["metadata"].get("ownerReferences", ())):
                del self.objects["secrets", secret["metadata"]["name"]]
        del self.objects[kind, name]

    def _make_pods(self, top: Body) -> None:
        name = top["metadata"]["name"]
        (replicated,) = top["spec"]["replicatedJobs"]
        work = replicated["template"]["spec"]
        labels = {"jobset.sigs.k8s.io/jobset-name": name}
        job = self.put("jobs", {"metadata": {"name": f"{name}-node-0", "labels": dict(labels)}, "status": {}})
        for index in range(work["completions"]):
            template = json.loads(json.dumps(work["template"]))
            meta = template.get("metadata", {})
            meta["name"] = f"{name}-node-0-{index}-{uuid.uuid4().hex[:5]}"
            meta["labels"] = meta.get("labels", {}) | labels
            meta["labels"] |= {"batch.kubernetes.io/controller-uid": job["metadata"]["uid"]}
            meta["annotations"] = meta.get("annotations", {}) | {"batch.kubernetes.io/job-completion-index": str(index)}
            self.put("pods", {"metadata": meta, "spec": template["spec"], "status": {"phase": "Pending"}})

    def _keep(self, pod: Body) -> None:
        name, running = pod["metadata"]["name"], self.processes.get(pod["metadata"]["name"])
        if running is None:
            if "deletionTimestamp" in pod["metadata"]:
                del self.objects["pods", name]
            elif self.scheduling and pod["status"]["phase"] == "Pending":
                self._begin(pod)
            return
        process, _, deadline = running
        if process.poll() is None:
            if deadline and time.monotonic() > deadline[0]:
                process.kill()
            return
        if pod["status"]["phase"] == "Running":
            code = process.returncode if process.returncode >= 0 else 128 - process.returncode
            pod["status"] = ended_pod(code, reason="Completed" if code == 0 else "Error")
        if "deletionTimestamp" in pod["metadata"]:
            del self.objects["pods", name]

    def _begin(self, pod: Body) -> None:
        (container,) = pod["spec"]["containers"]
        try:
            variables = self._variables(pod, container)
        except KeyError as error:
            waiting = {"reason": "CreateContainerConfigError", "message": f"secret {error} not found"}
            pod["status"]["containerStatuses"] = [{"name": "node", "state": {"waiting": waiting}, "ready": False,
                                                   "restartCount": 0, "image": "", "imageID": ""}]  # fmt: skip
            return
        name = pod["metadata"]["name"]
        output = self.folder / f"{name}.log"
        try:
            with output.open("wb") as file:
                process = subprocess.Popen(
                    container["command"], env=variables, stdout=file, stderr=file, start_new_session=True
                )
        except OSError as error:
            pod["status"] = ended_pod(128, reason="StartError", message=f"failed to start container: {error}")
            return
        self.processes[name] = (process, output, [])
        pod["status"] = {"phase": "Running"}

    def _variables(self, pod: Body, container: Body) -> dict[str, str]:
        found = {"PATH": os.environ["PATH"]}
        for entry in container["env"]:
            source = entry.get("valueFrom", {})
            if "fieldRef" in source:
                _, field, key = re.match(r"(metadata)\.(\w+)\['(.+)'\]", source["fieldRef"]["fieldPath"]).groups()  # type: ignore[union-attr]
                found[entry["name"]] = pod["metadata"][field][key]
            elif "secretKeyRef" in source:
                secret = self.objects["secrets", source["secretKeyRef"]["name"]]
                found[entry["name"]] = base64.b64decode(secret["data"][source["secretKeyRef"]["key"]]).decode()
            else:
                found[entry["name"]] = expanded(entry["value"], found)
        return found

    def _end_pod(self, pod: Body, grace: int | None) -> None:
        """Begin the end of a pod; a second time only shortens its grace."""
        pod["metadata"].setdefault("deletionTimestamp", now())
        running = self.processes.get(pod["metadata"]["name"])
        if running is None:
            return
        process, _, deadline = running
        seconds = pod["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
        if not deadline:
            deadline.append(time.monotonic() + seconds)
            if process.poll() is None:
                process.terminate()
        deadline[0] = min(deadline[0], time.monotonic() + seconds)


def expanded(value: str, known: dict[str, str]) -> str:
    """Return a value as a kubelet gives it: ``$$`` is ``$``, ``$(NAME)`` the value of an earlier variable."""

    def one(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return known.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)", one, value)


def ended_pod(code: int, **more: str) -> Body:
    """Return the status of a pod whose command has ended."""
    ended = {"exitCode": code, "finishedAt": now(), **more}
    shown = {"name": "node", "state": {"terminated": ended}, "ready": False, "restartCount": 0}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": [shown | {"image": "", "imageID": ""}]}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def status(code: int, reason: str, message: str) -> tuple[int, Body]:
    return code, {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


def selected(body: Body, selector: str) -> bool:
    labels = body["metadata"].get("labels", {})
    for term in filter(None, selector.split(",")):
        key, equals, value = term.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def set_condition(body: Body, kind: str, reason: str, message: str = "", value: str = "True") -> None:
    """Set one of an object's conditions, as its controller does."""
    found = body.setdefault("status", {}).setdefault("conditions", [])
    found[:] = [item for item in found if item["type"] != kind]
    found.append({"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": now()})


@pytest.fixture(scope="class")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCluster]:
    found = FakeCluster()
    found.folder = tmp_path_factory.mktemp("kubelet")
    with contextlib.closing(found):
        yield found
