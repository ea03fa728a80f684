"""From Airflow connections to ports. A hook reads its connection when the port is first used, never when it is made.

Default connection ids: ``deepseek_ops_git``, ``deepseek_ops_store``, ``deepseek_ops_facts``, ``deepseek_ops_launcher``,
``deepseek_ops_gateway``. Adapters are imported where they are built, so that parsing a DAG imports none of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from deepseek_ops.core.errors import PermanentError

if TYPE_CHECKING:
    from deepseek_ops.adapters.engines.sagemaker import AwsClients
    from deepseek_ops.adapters.environments import VenvCache
    from deepseek_ops.adapters.envoy import EnvoyGateway
    from deepseek_ops.adapters.git import GitRepository
    from deepseek_ops.adapters.launchers import LauncherSettings
    from deepseek_ops.core.ports import Blobs, Facts, Launcher, ObjectStore
    from deepseek_ops.data import DatasetRepository

_LOGIN_VARIABLES = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "gs": ("", "GOOGLE_SERVICE_ACCOUNT_KEY"),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
}
"""What login and password of a store's connection are, by the kind of store."""
_EXTRA_VARIABLES = {
    "s3": {
        "AWS_SESSION_TOKEN": "aws_session_token",
        "AWS_REGION": "region_name",
        "AWS_ENDPOINT_URL": "endpoint_url",
    },
    "gs": {
        "GOOGLE_SERVICE_ACCOUNT_KEY": "keyfile_dict",
        "GOOGLE_APPLICATION_CREDENTIALS": "key_path",
        "GOOGLE_BASE_URL": "endpoint_url",
    },
    "az": {"AZURE_STORAGE_SAS_TOKEN": "sas_token", "AZURE_ENDPOINT_URL": "endpoint_url"},
}


@dataclass(eq=False)
class ConnectionMissingError(PermanentError):
    """An Airflow connection does not exist."""

    conn_id: str
    conn_type: str
    example: str

    def __str__(self) -> str:
        return (
            f"Airflow has no connection {self.conn_id!r}: add one of type {self.conn_type} under Admin > Connections, "
            f"or with: airflow connections add {self.conn_id} {self.example}"
        )


@dataclass(eq=False)
class ConnectionFieldError(PermanentError):
    """A field of an Airflow connection is missing or cannot be used."""

    conn_id: str
    field: str
    problem: str

    def __str__(self) -> str:
        return f"connection {self.conn_id!r}: {self.field} {self.problem}."


class PortHook(BaseHook):
    """Base of our hooks: the connection, read once and late.

    :param conn_id: id of the Airflow connection.
    """

    conn_type = ""
    hook_name = ""
    example = ""

    def __init__(self, conn_id: str) -> None:
        super().__init__()
        self.conn_id = conn_id

    @cached_property
    def connection(self) -> Any:
        """The Airflow connection. Raises ConnectionMissingError naming it and how to add it."""
        try:
            return self.get_connection(self.conn_id)
        except AirflowNotFoundException:
            raise ConnectionMissingError(self.conn_id, self.conn_type, self.example) from None

    @cached_property
    def extra(self) -> dict[str, Any]:
        return dict(self.connection.extra_dejson)

    def required(self, field: str, value: object, remedy: str) -> str:
        """Return ``value`` as text. Raises ConnectionFieldError when it is empty."""
        if not value:
            raise ConnectionFieldError(self.conn_id, field, f"is empty: {remedy}")
        return str(value)

    def folder(self) -> Path:
        """Return the folder in ``host`` (or extra ``root``)."""
        return Path(self.required("host", self.connection.host or self.extra.get("root"), "give a folder")).expanduser()


class GitRemoteHook(PortHook):
    """The model repository behind a ``git`` connection, with the fields of the Git provider's ``GitHook``.

    Host = URL, login = user name, password = token; extras ``key_file`` or ``private_key``, ``known_hosts_file``,
    ``github_app_id`` with ``github_installation_id``; ``signing_key`` (an Ed25519 private key or its path) signs
    commits and tags.
    """

    conn_name_attr = "git_conn_id"
    default_conn_name = "deepseek_ops_git"
    conn_type = "git"
    hook_name = "deepseek-ops model repository"
    example = "--conn-type git --conn-host https://host/team/model.git --conn-password TOKEN"

    def __init__(self, git_conn_id: str = default_conn_name) -> None:
        super().__init__(git_conn_id)

    @cached_property
    def remote(self) -> GitRepository:
        """The repository. Nothing is contacted before its first call."""
        from deepseek_ops.adapters.git import open_git

        for unsupported in ("private_key_passphrase", "ssh_config_file", "host_proxy_cmd", "ssh_port"):
            if self.extra.get(unsupported):
                remedy = "is not supported; use a deploy key without passphrase and put host and port into the URL"
                raise ConnectionFieldError(self.conn_id, f"extra {unsupported}", remedy)
        username, password = self._login()
        return open_git(
            self.required("host", self.connection.host, "give the URL of the repository"),
            username=username,
            password=password,
            ssh_key="" if self.extra.get("github_app_id") else self._ssh_key(),
            known_hosts=str(self.extra.get("known_hosts_file") or ""),
            signing_key=str(self.extra.get("signing_key") or ""),
            cache=cache_folder() / "git",
        )

    def _login(self) -> tuple[str, str]:
        if not self.extra.get("github_app_id"):
            return str(self.connection.login or ""), str(self.connection.password or "")
        from airflow.providers.git.hooks.git import GitHook

        app = GitHook(self.conn_id)
        with app.configure_hook_env():  # mints an installation token
            return str(app.user_name), str(app.auth_token)

    def _ssh_key(self) -> str:
        return str(self.extra.get("private_key") or self.extra.get("key_file") or "")


class StoreHook(PortHook):
    """The object store behind a ``deepseek_store``, ``aws`` or ``generic`` connection.

    Host or extra ``uri`` = ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://container/prefix`` or
    ``file:///folder``. Login and password = access key and secret (S3), account and its key (Azure); for Google the
    password or extra ``keyfile_dict`` is the service account's JSON, or extra ``key_path`` its file. Further extras:
    ``endpoint_url``, ``region_name``, ``aws_session_token``, ``sas_token``. Without any the machine's own credentials
    hold.
    """

    conn_name_attr = "store_conn_id"
    default_conn_name = "deepseek_ops_store"
    conn_type = "deepseek_store"
    hook_name = "deepseek-ops object store"
    example = "--conn-type deepseek_store --conn-host s3://bucket/prefix --conn-login KEY --conn-password SECRET"

    def __init__(self, store_conn_id: str = default_conn_name) -> None:
        super().__init__(store_conn_id)

    @cached_property
    def uri(self) -> str:
        """The store's URI, without credentials."""
        remedy = "give s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///folder"
        return self.required("host", self.extra.get("uri") or self.connection.host, remedy)

    def _credentials(self, uri: str) -> dict[str, str]:
        from deepseek_ops.adapters.stores.opening import VARIABLES_OF
        from deepseek_ops.adapters.stores.uris import StoreUri

        kind = StoreUri.parse(uri).kind
        extras = _EXTRA_VARIABLES.get(kind, {})
        found = {name: self.extra[key] for name, key in extras.items() if self.extra.get(key)}
        given = {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items()}
        pair = zip(_LOGIN_VARIABLES.get(kind, ()), (self.connection.login, self.connection.password), strict=False)
        keys = {name: str(value) for name, value in pair if name and value}
        if keys:
            return {**keys, **given}
        return {**{name: os.environ[name] for name in VARIABLES_OF.get(kind, ()) if name in os.environ}, **given}

    @cached_property
    def store(self) -> ObjectStore:
        return self.at(self.uri)

    def at(self, uri: str) -> ObjectStore:
        """Return the store at another URI, opened with this connection's credentials."""
        from deepseek_ops.adapters.stores import open_store

        return open_store(uri, self._credentials(uri))

    @cached_property
    def blobs(self) -> Blobs:
        from deepseek_ops.data.gc_blobs import GuardedBlobs

        return GuardedBlobs(self.store)

    @cached_property
    def datasets(self) -> DatasetRepository:
        from deepseek_ops.data import DatasetRepository

        return DatasetRepository(self.store)

    def environment(self) -> dict[str, str]:
        """Return the secret variables that let a job open the same store."""
        from deepseek_ops.adapters.stores import store_environment

        return store_environment(self.uri, self._credentials(self.uri))


class FactsHook(PortHook):
    """The facts database behind a ``deepseek_facts`` connection: host = DSN, password apart from it."""

    conn_name_attr = "facts_conn_id"
    default_conn_name = "deepseek_ops_facts"
    conn_type = "deepseek_facts"
    hook_name = "deepseek-ops facts database"
    example = "--conn-type deepseek_facts --conn-host sqlite:////folder/facts.db"

    def __init__(self, facts_conn_id: str = default_conn_name) -> None:
        super().__init__(facts_conn_id)

    @cached_property
    def facts(self) -> Facts:
        from deepseek_ops.adapters.facts import open_facts

        return open_facts(self._dsn())

    def _dsn(self) -> str:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        dsn = self.required("host", self.connection.host, "give a DSN such as sqlite:////folder/facts.db")
        try:
            url = make_url(dsn)
        except ArgumentError:
            problem = "is no DSN: write sqlite:////folder/facts.db or postgresql+psycopg://user@host/database"
            raise ConnectionFieldError(self.conn_id, "host", problem) from None
        if self.connection.password:
            url = url.set(password=self.connection.password)
        return url.render_as_string(hide_password=False)


class LauncherHook(PortHook):
    """The engine behind a ``deepseek_launcher`` connection.

    Extra ``engine`` = ``local`` (host = folder of its jobs), ``ray`` (host = URL of the dashboard, password = token,
    extra ``seal_key``), ``slurm``, ``kubernetes`` or ``sagemaker``; extras ``machine`` and ``options`` are described by
    ``LauncherSettings``.

    ``machine.image`` is the container image of the jobs: a plain name, or one such as
    ``registry/trainer:{environment}``, where the tag is the short key of the run's environment, as ``image_tag`` names
    it. The engine ``local`` has a venv for each environment instead.

    Extra ``aws_conn_id`` names the Airflow connection whose account SageMaker is used in, with its region and the role
    it assumes; without it the machine's own credentials hold.
    """

    conn_name_attr = "launcher_conn_id"
    default_conn_name = "deepseek_ops_launcher"
    conn_type = "deepseek_launcher"
    hook_name = "deepseek-ops job launcher"
    example = "--conn-type deepseek_launcher --conn-host /folder/for/jobs"

    def __init__(self, launcher_conn_id: str = default_conn_name) -> None:
        super().__init__(launcher_conn_id)

    @cached_property
    def device(self) -> str:
        """Key of the price list for what one rank occupies: extra ``device``, ``cpu`` by default."""
        return str(self.extra.get("device") or "cpu")

    @cached_property
    def launcher(self) -> Launcher:
        """The launcher. Jobs of scale-out engines live in the store of extra ``store_conn_id``."""
        from deepseek_ops.adapters.launchers import LauncherSecrets, open_launcher

        secrets = LauncherSecrets(
            token=str(self.connection.password or ""), seal_key=str(self.extra.get("seal_key") or "")
        )
        where, aws = f"connection {self.conn_id!r}", self._aws if self.extra.get("aws_conn_id") else None
        return open_launcher(self.settings(), store=self._store, secrets=secrets, aws=aws, where=where)

    def settings(self) -> LauncherSettings:
        """Return what the connection says about the engine. Raises ConnectionFieldError."""
        from deepseek_ops.adapters.launchers import LauncherSettings
        from deepseek_ops.core.errors import InvalidRecordError

        engine = str(self.extra.get("engine") or "local")
        address = str(self.folder()) if engine == "local" else self.connection.host or ""
        body: dict[str, Any] = {"engine": engine, "address": address}
        body.update({name: self.extra[name] for name in ("machine", "options") if name in self.extra})
        try:
            return LauncherSettings.load(body)
        except InvalidRecordError as error:
            raise ConnectionFieldError(self.conn_id, "extra", f"cannot be used: {error.problem}") from None

    def _store(self) -> tuple[ObjectStore, Mapping[str, str]]:
        hook = StoreHook(str(self.extra.get("store_conn_id") or StoreHook.default_conn_name))
        return hook.store, hook.environment()

    def _aws(self, region: str) -> AwsClients:
        from deepseek_ops.airflow.hooks_aws import AwsAccountHook

        return AwsAccountHook(str(self.extra["aws_conn_id"])).clients(region)

    def environments(self) -> VenvCache:
        """Return this machine's cache of environments; extra ``environments_gib`` is how large it may grow."""
        from deepseek_ops.adapters.environments.venvs import DEFAULT_MAX_BYTES, VenvCache

        size = self.extra.get("environments_gib")
        try:
            limit = int(float(size) * (1 << 30)) if size else DEFAULT_MAX_BYTES
        except (TypeError, ValueError):
            problem = f"is {size!r}: write a number of GiB"
            raise ConnectionFieldError(self.conn_id, "extra environments_gib", problem) from None
        return VenvCache(cache_folder() / "environments", max_bytes=limit)


class GatewayHook(PortHook):
    """The traffic gateway behind a ``deepseek_gateway`` connection: host = its folder, port = where clients ask."""

    conn_name_attr = "gateway_conn_id"
    default_conn_name = "deepseek_ops_gateway"
    conn_type = "deepseek_gateway"
    hook_name = "deepseek-ops traffic gateway"
    example = "--conn-type deepseek_gateway --conn-host /folder/of/the/gateway --conn-port 8600"

    def __init__(self, gateway_conn_id: str = default_conn_name) -> None:
        super().__init__(gateway_conn_id)

    @cached_property
    def gateway(self) -> EnvoyGateway:
        given = self.connection.port or self.extra.get("port")
        port = int(self.required("port", given, "give the port clients use"))
        from deepseek_ops.adapters.envoy import EnvoyGateway

        return EnvoyGateway(self.folder(), port=port)


def cache_folder() -> Path:
    """Return this machine's folder for things that can be fetched again (``DEEPSEEK_OPS_CACHE`` moves it)."""
    home = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()
    return Path(os.environ.get("DEEPSEEK_OPS_CACHE") or home / "cache" / "deepseek-ops")
