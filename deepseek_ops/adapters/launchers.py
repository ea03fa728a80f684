"""From settings to a launcher: the one place that knows every engine by its name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, JsonValue

from deepseek_ops.core.errors import ConfigError, InvalidRecordError, PermanentError
from deepseek_ops.core.records import Record

if TYPE_CHECKING:
    from deepseek_ops.adapters.engines.sagemaker import AwsClients
    from deepseek_ops.core.ports import Engine, Launcher, ObjectStore

EngineName = Literal["local", "ray", "slurm", "kubernetes", "sagemaker"]
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"  # noqa: S105  (the name of a variable; Ray's own)
SEAL_VARIABLE = "DEEPSEEK_OPS_SEAL_KEY"


@dataclass(eq=False)
class LauncherSettingsError(PermanentError):
    """A setting of a launcher is missing or cannot be used."""

    where: str
    field: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field} {self.problem}."


class RayOptions(Record):
    """What a Ray cluster is used with."""

    python: str = Field(default="python", description="Interpreter with deepseek-ops[ray] on every node.")
    cluster_provides: tuple[str, ...] = Field(default=(), description="Secrets that every node has itself, by name.")
    max_failures: int = Field(default=3, ge=0, description="Worker processes of Ray that may die in one training.")
    verify: bool | str = Field(default=True, description="TLS verification, or the path of a CA bundle.")


class LauncherSettings(Record):
    """Where jobs run: the extra of an Airflow connection, or a file. Secrets come beside it, never inside."""

    engine: EngineName = "local"
    address: str = Field(
        default="", description="Folder of local jobs; URL of Ray's dashboard or of a Kubernetes API server."
    )
    machine: dict[str, JsonValue] = Field(
        default_factory=dict, description="What a job gets of each machine: python, cpus_per_rank, gpus_per_rank, ..."
    )
    options: dict[str, JsonValue] = Field(default_factory=dict, description="Of the engine: a queue, an account, ...")


@dataclass(frozen=True, slots=True, repr=False)
class LauncherSecrets:
    """What opens an engine. Not shown by ``repr``."""

    token: str = ""
    seal_key: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> LauncherSecrets:
        """Return what this process's variables hold."""
        return cls(token=environment.get(TOKEN_VARIABLE, ""), seal_key=environment.get(SEAL_VARIABLE, ""))


StoreAccess = Callable[[], "tuple[ObjectStore, Mapping[str, str]]"]
"""Gives the store of the jobs' state, and the variables that open it on the machines."""
AwsAccess = Callable[[str], "AwsClients"]
"""Gives the clients of an account in a region; an empty region is the account's own."""


def open_launcher(
    settings: LauncherSettings,
    *,
    store: StoreAccess,
    secrets: LauncherSecrets | None = None,
    aws: AwsAccess | None = None,
    where: str = "launcher",
) -> Launcher:
    """Return the launcher that the settings describe; nothing is contacted yet.

    Args:
        settings: The engine and what it is used with.
        store: Asked by scale-out engines, whose jobs live in the store.
        secrets: What opens the engine.
        aws: Opens the account that SageMaker is used in; None = with the credentials of this process.
        where: Names the settings in errors, such as ``connection 'x'``.

    Raises:
        LauncherSettingsError: A setting cannot be used; says which.
    """
    if settings.engine == "local":
        from deepseek_ops.adapters.local_launcher import LocalLauncher

        if not settings.address:
            raise LauncherSettingsError(where, "address", "is empty: give the folder of the jobs")
        return LocalLauncher(Path(settings.address).expanduser())
    from deepseek_ops.adapters.remote_launcher import NodeShape, RemoteLauncher

    what = "machine"
    try:
        # An engine's own image is that of jobs that name none: said here, it may follow the environment, too.
        shape = NodeShape.load({"image": settings.options.get("image", ""), **settings.machine})
        what = f"options of {settings.engine}"
        engine = _engine(settings, secrets or LauncherSecrets(), aws, where)
    except InvalidRecordError as error:
        raise LauncherSettingsError(where, what, f"cannot be used: {error.problem}") from None
    opened, access = store()
    return RemoteLauncher(opened, engine, shape=shape, access=access)


def launcher_from_file(path: Path, *, store: StoreAccess) -> Launcher:
    """Return the launcher that a JSON file describes; secrets come from this process's variables."""
    try:
        body = json.loads(path.read_text())
        settings = LauncherSettings.load(body if isinstance(body, dict) else {})
    except (OSError, ValueError, InvalidRecordError) as error:
        raise ConfigError(str(path), 0, "", f"describes no launcher: {error}", "See README, engines.") from None
    return open_launcher(
        settings, store=store, secrets=LauncherSecrets.from_environment(os.environ), where=f"launcher file {path}"
    )


def _engine(settings: LauncherSettings, secrets: LauncherSecrets, aws: AwsAccess | None, where: str) -> Engine:
    if settings.engine == "ray":
        return _ray(settings, secrets, where)
    if settings.engine == "slurm":
        from deepseek_ops.adapters.engines.slurm.engine import SlurmEngine
        from deepseek_ops.adapters.engines.slurm.settings import SlurmSettings

        return SlurmEngine(SlurmSettings.load(settings.options))
    if settings.engine == "kubernetes":
        from deepseek_ops.adapters.engines.kubernetes import KubernetesEngine, KubernetesSettings, open_client

        chosen = KubernetesSettings.load(settings.options)
        return KubernetesEngine(open_client(chosen, address=settings.address, token=secrets.token), chosen)
    from deepseek_ops.adapters.engines.sagemaker import SageMakerEngine, SageMakerSettings, open_clients

    account = SageMakerSettings.load(settings.options)
    return SageMakerEngine((aws or open_clients)(account.region), account)


def _ray(settings: LauncherSettings, secrets: LauncherSecrets, where: str) -> Engine:
    from deepseek_ops.adapters.engines.ray import RayEngine, RayJobsApi

    if not settings.address:
        raise LauncherSettingsError(where, "address", "is empty: give the URL of Ray's dashboard")
    options = RayOptions.load(settings.options)
    api = RayJobsApi(settings.address, token=secrets.token, verify=options.verify)
    return RayEngine(
        api,
        python=options.python,
        seal_key=secrets.seal_key,
        cluster_provides=options.cluster_provides,
        max_failures=options.max_failures,
    )
