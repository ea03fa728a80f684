"""The few requests that we make of a Kubernetes API server, by the official client; what its answers mean."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from deepseek_ops.adapters.engines.kubernetes.bodies import Body, text
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
_NOT_FOUND, _CONFLICT = 404, 409
_OVERLOADED = frozenset({408, 425, 429})
T = TypeVar("T")


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


class KubernetesClient:
    """``KubernetesApi`` by the package ``kubernetes``."""

    def __init__(self, client: sdk.ApiClient, settings: KubernetesSettings) -> None:
        from kubernetes import client as sdk

        self._namespace = settings.namespace
        self._timeout = (CONNECT_SECONDS, settings.timeout_seconds)
        self._client = client
        self._core = sdk.CoreV1Api(client)
        self._custom = sdk.CustomObjectsApi(client)
        self.where = f"{client.configuration.host} namespace {settings.namespace}"

    def close(self) -> None:
        self._client.close()

    def create(self, resource: Resource, body: Body) -> bool:
        what = f"create {resource.plural} {text(body, 'metadata', 'name')}"

        def ask() -> object:
            strict = {"field_validation": "Strict", "_request_timeout": self._timeout}
            if resource == SECRETS:
                return self._core.create_namespaced_secret(self._namespace, body, **strict)
            if resource == CONFIG_MAPS:
                return self._core.create_namespaced_config_map(self._namespace, body, **strict)
            path = (resource.group, resource.version, self._namespace, resource.plural)
            return self._custom.create_namespaced_custom_object(*path, body, **strict)

        return self._asked(what, ask, otherwise=_CONFLICT) is not None

    def get(self, resource: Resource, name: str) -> Body | None:
        def ask() -> object:
            if resource == SECRETS:
                return self._core.read_namespaced_secret(name, self._namespace, _request_timeout=self._timeout)
            if resource == CONFIG_MAPS:
                return self._core.read_namespaced_config_map(name, self._namespace, _request_timeout=self._timeout)
            path = (resource.group, resource.version, self._namespace, resource.plural)
            return self._custom.get_namespaced_custom_object(*path, name, _request_timeout=self._timeout)

        found = self._asked(f"get {resource.plural} {name}", ask, otherwise=_NOT_FOUND)
        return None if found is None else self._body(found)

    def list(self, resource: Resource, selector: str) -> list[Body]:
        chosen = {"label_selector": selector, "_request_timeout": self._timeout}

        def ask() -> object:
            if resource == PODS:
                return self._core.list_namespaced_pod(self._namespace, **chosen)
            if resource == CONFIG_MAPS:
                return self._core.list_namespaced_config_map(self._namespace, **chosen)
            path = (resource.group, resource.version, self._namespace, resource.plural)
            return self._custom.list_namespaced_custom_object(*path, **chosen)

        items = self._body(self._asked(f"list {resource.plural}", ask)).get("items")
        return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []

    def delete(self, resource: Resource, name: str, *, uid: str, grace_seconds: int | None = None) -> None:
        from kubernetes import client as sdk

        options = sdk.V1DeleteOptions(
            propagation_policy="Background" if resource == PODS else "Foreground",
            preconditions=sdk.V1Preconditions(uid=uid),
            grace_period_seconds=grace_seconds,
        )
        bounded = {"body": options, "_request_timeout": self._timeout}

        def ask() -> object:
            if resource == PODS:
                return self._core.delete_namespaced_pod(name, self._namespace, **bounded)
            if resource == SECRETS:
                return self._core.delete_namespaced_secret(name, self._namespace, **bounded)
            if resource == CONFIG_MAPS:
                return self._core.delete_namespaced_config_map(name, self._namespace, **bounded)
            path = (resource.group, resource.version, self._namespace, resource.plural)
            return self._custom.delete_namespaced_custom_object(*path, name, **bounded)

        try:
            self._asked(f"delete {resource.plural} {name}", ask, otherwise=_NOT_FOUND)
        except _ConflictError:  # the name is another object's by now
            return

    def log(self, pod: str, container: str, *, num_bytes: int) -> str:
        def ask() -> object:
            # Not `limit_bytes`, which keeps the beginning.
            return self._core.read_namespaced_pod_log(
                pod, self._namespace, container=container, tail_lines=400, _request_timeout=self._timeout
            )

        try:
            found = self._asked(f"get log of {pod}", ask, otherwise=_NOT_FOUND)
        except KubernetesRefusedError:  # 400: its container has not begun
            return ""
        return found[-num_bytes:] if isinstance(found, str) else ""

    def _body(self, found: object) -> Body:
        body = self._client.sanitize_for_serialization(found)
        return body if isinstance(body, dict) else {}

    def _asked(self, what: str, ask: Callable[[], object], *, otherwise: int | None = None) -> object | None:
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

    def _once(self, what: str, ask: Callable[[], object], otherwise: int | None) -> object | None:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        request = f"{what} in {self.where}"
        try:
            return ask()
        except ApiException as error:
            status, problem = int(error.status or 0), f"{error.status} {_message(error.body)}"
            if status == otherwise and (status != _CONFLICT or _is_taken(error.body)):
                return None
        except HTTPError as error:
            raise KubernetesUnavailableError(request, str(error)[:400] or type(error).__name__) from None
        if status in (401, 403):
            raise KubernetesAccessError(request, problem)
        if status == _CONFLICT:
            raise _ConflictError(request, problem)
        if status == 0 or status >= 500 or status in _OVERLOADED:
            raise KubernetesUnavailableError(request, problem)
        raise KubernetesRefusedError(request, problem)


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


def _status(body: object) -> Mapping[str, object]:
    try:
        found = json.loads(body) if isinstance(body, str | bytes) else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _message(body: object) -> str:
    """Return what the API server said (a Status object), cut; never the object that was sent."""
    return " ".join(str(_status(body).get("message") or body or "(no text)").split())[:400]


def _is_taken(body: object) -> bool:
    """Return whether a 409 says that the name is taken, and not that the namespace is going or a write was lost."""
    return _status(body).get("reason") == "AlreadyExists"
