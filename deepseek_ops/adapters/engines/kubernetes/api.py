"""The few requests that we make of a Kubernetes API server, by the official client; what its answers mean."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from deepseek_ops.adapters.engines.kubernetes.bodies import Body, parts, text
from deepseek_ops.adapters.engines.kubernetes.errors import (
    KubernetesAccessError,
    KubernetesRefusedError,
    KubernetesUnavailableError,
)
from deepseek_ops.adapters.engines.kubernetes.settings import KubernetesSettings
from deepseek_ops.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from kubernetes import client as sdk

TRIES = 3
CONNECT_SECONDS = 10.0
LOG_LINES = 400
_NOT_FOUND, _CONFLICT = 404, 409
_OVERLOADED = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object, as the API server's paths name it; group "" = of the core."""

    group: str
    version: str
    plural: str


JOBSETS = Resource("jobset.x-k8s.io", "v1alpha2", "jobsets")
TRAINJOBS = Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs")
JOBS = Resource("batch", "v1", "jobs")
SECRETS = Resource("", "v1", "secrets")
CONFIG_MAPS = Resource("", "v1", "configmaps")
PODS = Resource("", "v1", "pods")


class KubernetesApi(Protocol):
    """One namespace of a cluster. Every request raises KubernetesUnavailableError, KubernetesAccessError or
    KubernetesRefusedError where it has no better answer.
    """

    where: str
    """The API server and namespace, for people."""

    def create(self, resource: Resource, body: Body) -> bool:
        """Create the object; return False when one of that name is there."""

    def get(self, resource: Resource, name: str) -> Body | None:
        """Return the object, or None."""

    def list(self, resource: Resource, selector: str) -> list[Body]:
        """Return the objects whose labels match."""

    def delete(self, resource: Resource, name: str, *, uid: str, grace_seconds: int | None = None) -> None:
        """Delete the object with that uid, after all that it owns. One that is gone, or another's, is no error."""

    def log(self, pod: str, container: str, *, num_bytes: int) -> str:
        """Return the end of a container's output; "" where there is none (yet, or any more)."""


class Answer(Protocol):
    """An answer of the API server, unread."""

    status: int
    data: bytes


class KubernetesClient:
    """``KubernetesApi`` by the package ``kubernetes``."""

    def __init__(self, client: sdk.ApiClient, settings: KubernetesSettings) -> None:
        from kubernetes import client as sdk

        self._namespace = settings.namespace
        # Raw answers: the client's own models refuse what a newer, or an unusual, server adds to an object.
        self._raw: dict[str, bool | tuple[float, float]] = {
            "_preload_content": False,
            "_request_timeout": (CONNECT_SECONDS, settings.timeout_seconds),
        }
        self._client = client
        self._core = sdk.CoreV1Api(client)
        self._custom = sdk.CustomObjectsApi(client)
        self.where = f"{client.configuration.host} namespace {settings.namespace}"

    def close(self) -> None:
        self._client.close()

    def create(self, resource: Resource, body: Body) -> bool:
        what = f"create {resource.plural} {text(body, 'metadata', 'name')}"
        path: tuple[object, ...]
        if resource == SECRETS:
            call, path = self._core.create_namespaced_secret, (self._namespace, body)
        elif resource == CONFIG_MAPS:
            call, path = self._core.create_namespaced_config_map, (self._namespace, body)
        else:
            call, path = self._custom.create_namespaced_custom_object, (*self._path(resource), body)
        return self._asked(what, lambda: call(*path, field_validation="Strict", **self._raw), _CONFLICT) is not None

    def get(self, resource: Resource, name: str) -> Body | None:
        path: tuple[object, ...]
        if resource == SECRETS:
            call, path = self._core.read_namespaced_secret, (name, self._namespace)
        elif resource == CONFIG_MAPS:
            call, path = self._core.read_namespaced_config_map, (name, self._namespace)
        else:
            call, path = self._custom.get_namespaced_custom_object, (*self._path(resource), name)
        found = self._asked(f"get {resource.plural} {name}", lambda: call(*path, **self._raw), _NOT_FOUND)
        return None if found is None else _object(found)

    def list(self, resource: Resource, selector: str) -> list[Body]:
        path: tuple[object, ...]
        if resource == PODS:
            call, path = self._core.list_namespaced_pod, (self._namespace,)
        elif resource == CONFIG_MAPS:
            call, path = self._core.list_namespaced_config_map, (self._namespace,)
        else:
            call, path = self._custom.list_namespaced_custom_object, self._path(resource)
        what = f"list {resource.plural}"
        return parts(_object(self._asked(what, lambda: call(*path, label_selector=selector, **self._raw))), "items")

    def delete(self, resource: Resource, name: str, *, uid: str, grace_seconds: int | None = None) -> None:
        from kubernetes import client as sdk

        options = sdk.V1DeleteOptions(
            propagation_policy="Background" if resource == PODS else "Foreground",
            preconditions=sdk.V1Preconditions(uid=uid),
            grace_period_seconds=grace_seconds,
        )
        core = {
            PODS: self._core.delete_namespaced_pod,
            SECRETS: self._core.delete_namespaced_secret,
            CONFIG_MAPS: self._core.delete_namespaced_config_map,
        }
        path: tuple[object, ...]
        if resource in core:
            call, path = core[resource], (name, self._namespace)
        else:
            call, path = self._custom.delete_namespaced_custom_object, (*self._path(resource), name)
        what = f"delete {resource.plural} {name}"
        with suppress(_ConflictError):  # the name is another object's by now
            self._asked(what, lambda: call(*path, body=options, **self._raw), _NOT_FOUND)

    def log(self, pod: str, container: str, *, num_bytes: int) -> str:
        def ask() -> Answer:
            # Not `limit_bytes`, which keeps the beginning.
            answer: Answer = self._core.read_namespaced_pod_log(
                pod, self._namespace, container=container, tail_lines=LOG_LINES, **self._raw
            )
            return answer

        try:
            found = self._asked(f"get log of {pod}", ask, _NOT_FOUND)
        except KubernetesRefusedError:  # 400: its container has not begun
            return ""
        return (found or b"")[-num_bytes:].decode(errors="replace")

    def _path(self, resource: Resource) -> tuple[str, str, str, str]:
        return (resource.group, resource.version, self._namespace, resource.plural)

    def _asked(self, what: str, ask: Callable[[], Answer], otherwise: int | None = None) -> bytes | None:
        """Return the answer; None for the status that is ``otherwise``. Asks again while the server is away.

        Every request is safe to make twice: objects have names of their own, and deletions name the uid.
        """
        for attempt in range(TRIES):
            try:
                return self._once(what, ask, otherwise)
            except KubernetesUnavailableError:
                if attempt == TRIES - 1:
                    raise
                time.sleep(0.3 * 2**attempt * random.uniform(0.5, 1.0))  # noqa: S311
        raise AssertionError("the last try returned or raised")

    def _once(self, what: str, ask: Callable[[], Answer], otherwise: int | None) -> bytes | None:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        request = f"{what} in {self.where}"
        try:
            answer = ask()
            status, body = int(answer.status), bytes(answer.data)
        except ApiException as error:  # the client of an earlier release raises where this one answers
            status, body = int(error.status or 0), str(error.body or "").encode()
        except HTTPError as error:
            raise KubernetesUnavailableError(request, str(error)[:400] or type(error).__name__) from None
        if 200 <= status < 300:
            return body
        if status == otherwise and (status != _CONFLICT or _is_taken(body)):
            return None
        raise _error(status, request, f"{status} {_message(body)}")


class _ConflictError(KubernetesRefusedError):
    """Something else than what the request is about."""


def open_client(settings: KubernetesSettings, *, address: str = "", token: str = "") -> KubernetesClient:
    """Return a client of the cluster; nothing is contacted yet.

    Args:
        settings: Context, namespace, CA and time limit.
        address: Of the API server; empty = as this process's pod or kubeconfig says.
        token: Bearer token for the address.

    Raises MissingDependencyError, and KubernetesAccessError where there is no configuration.
    """
    try:
        from kubernetes import client as sdk
        from kubernetes import config
    except ImportError as error:
        raise MissingDependencyError("kubernetes", "k8s", "running jobs on Kubernetes") from error
    chosen = sdk.Configuration()
    try:
        if address:
            chosen = sdk.Configuration(host=address, api_key={"authorization": f"Bearer {token}"} if token else None)
            if settings.ca_file:
                chosen.ssl_ca_cert = settings.ca_file
        elif settings.context or not _in_cluster():
            config.load_kube_config(context=settings.context or None, client_configuration=chosen)
        else:
            config.load_incluster_config(client_configuration=chosen)
    except config.ConfigException as error:
        raise KubernetesAccessError("a connection", str(error)) from None
    return KubernetesClient(sdk.ApiClient(chosen), settings)


def _in_cluster() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ


def _error(status: int, request: str, problem: str) -> Exception:
    if status in (401, 403):
        return KubernetesAccessError(request, problem)
    if status == _CONFLICT:
        return _ConflictError(request, problem)
    if status < 300 or status >= 500 or status in _OVERLOADED:
        return KubernetesUnavailableError(request, problem)
    return KubernetesRefusedError(request, problem)


def _object(data: bytes | None) -> Body:
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _message(data: bytes) -> str:
    """Return what the API server said (a Status object), cut; never the object that was sent."""
    return " ".join((text(_object(data), "message") or data.decode(errors="replace") or "(no text)").split())[:400]


def _is_taken(data: bytes) -> bool:
    """Return whether a 409 says that the name is taken, and not that the namespace is going or a write was lost."""
    return text(_object(data), "reason") == "AlreadyExists"
