"""The whole product on one machine: S3, Git over HTTP, Airflow, each a real server, all below one folder.

``make demo`` runs on it and so do the end-to-end test and the benchmarks. Ports, keys and data are kept between
starts; nothing listens beyond the loopback interface and nothing is written outside the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.adapters.git import open_git
from deepseek_ops.adapters.local_launcher import LocalLauncher
from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.ports import GitRemote
from deepseek_ops.embedded.airflow_standalone import AirflowClient, AirflowStandalone, rows
from deepseek_ops.embedded.git_server import TOKEN_VARIABLE
from deepseek_ops.embedded.processes import GuardedProcess, end_recorded, free_port, port_is_free
from deepseek_ops.embedded.seaweedfs import SeaweedServer

if TYPE_CHECKING:
    from deepseek_ops.adapters.envoy import EnvoyGateway

BUCKETS = ("deepseek-ops", "data-lake", "model-registry")
REPOSITORY = "tiny-deepseek"
LAKE_PREFIX = "raw/deepseek/"
GIT_USER = "deepseek"


class Stack:
    """One set of servers below ``root``.

    Args:
        root: Folder of everything: data, logs, keys, job folders.
        dags: Folder of DAG files.
        keep: Leave the servers up when this process ends; ``stop_kept`` ends them.
    """

    def __init__(self, root: Path, *, dags: Path, keep: bool = False) -> None:
        self.root = root.absolute()
        self.dags = dags
        self.keep = keep
        self.s3 = SeaweedServer(self.root / "s3", buckets=BUCKETS, detached=keep)
        self.git_url = ""
        self._git: GuardedProcess | None = None
        self._airflow: AirflowStandalone | None = None
        self._ports: dict[str, int] = {}

    # --- addresses ----------------------------------------------------------------------------------------------------

    @property
    def store_uri(self) -> str:
        return f"s3://{BUCKETS[0]}/store"

    @property
    def facts_dsn(self) -> str:
        return f"sqlite:///{self.root / 'facts.db'}"

    @property
    def airflow(self) -> AirflowStandalone:
        if self._airflow is None:
            raise RuntimeError("start_airflow() was not called")
        return self._airflow

    @property
    def client(self) -> AirflowClient:
        return self.airflow.client()

    @property
    def launcher(self) -> LocalLauncher:
        """The engine that Airflow's tasks use, seen from here."""
        return LocalLauncher(self.root / "jobs")

    @property
    def gateway(self) -> EnvoyGateway:
        """The gateway that Airflow's tasks use, seen from here."""
        from deepseek_ops.adapters.envoy import EnvoyGateway

        return EnvoyGateway(self.root / "gateway", port=self._port("gateway"))

    @property
    def repository(self) -> GitRemote:
        """The model repository over HTTP, with its credentials."""
        return open_git(
            self.git_url, username=GIT_USER, password=self._secret("git.token"), cache=self.root / "cache" / "git"
        )

    @property
    def git_token(self) -> str:
        return self._secret("git.token")

    def connections(self) -> dict[str, Mapping[str, JsonValue]]:
        """Return the Airflow connections that the DAGs use."""
        keys = self.s3.credentials
        extra = {"endpoint_url": keys["AWS_ENDPOINT_URL"], "region_name": keys["AWS_REGION"]}

        def bucket(uri: str) -> Mapping[str, JsonValue]:
            return {
                "conn_type": "deepseek_store",
                "host": uri,
                "login": keys["AWS_ACCESS_KEY_ID"],
                "password": keys["AWS_SECRET_ACCESS_KEY"],
                "extra": {**extra},
            }

        return {
            "deepseek_ops_store": bucket(self.store_uri),
            "deepseek_ops_lake": bucket(f"s3://{BUCKETS[1]}/{LAKE_PREFIX}"),
            "deepseek_ops_facts": {"conn_type": "deepseek_facts", "host": self.facts_dsn},
            "deepseek_ops_launcher": {"conn_type": "deepseek_launcher", "host": str(self.root / "jobs")},
            "deepseek_ops_gateway": {
                "conn_type": "deepseek_gateway",
                "host": str(self.root / "gateway"),
                "port": self._port("gateway"),
            },
            "deepseek_ops_git": {
                "conn_type": "git",
                "host": self.git_url,
                "login": GIT_USER,
                "password": self.git_token,
            },
        }

    # --- life ---------------------------------------------------------------------------------------------------------

    def start_servers(self) -> None:
        """Start S3 and Git; returns when both answer."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.s3.start()
        self._start_git()

    def start_airflow(self, environment: Mapping[str, str] | None = None) -> None:
        """Start Airflow; ``airflow.wait_healthy`` waits for it."""
        self._airflow = AirflowStandalone(
            self.root / "airflow",
            dags=self.dags,
            connections=self.connections(),
            environment={"DEEPSEEK_OPS_CACHE": str(self.root / "cache"), **(environment or {})},
            keep=self.keep,
        )
        self._airflow.start()

    def prepare_airflow(self, *, unpause: tuple[str, ...], gpu_slots: int = 2) -> None:
        """Make the pool, wait until the DAGs are parsed, and switch them on."""
        client = self.client
        pool: dict[str, JsonValue] = {"name": "gpu", "slots": gpu_slots, "include_deferred": True}
        if "gpu" not in {str(row.get("name")) for row in rows(client.get("/pools", limit=100), "pools")}:
            client.post("/pools", pool)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            known = {str(row.get("dag_id")) for row in rows(client.get("/dags", limit=100), "dags")}
            if set(unpause) <= known:
                break
            time.sleep(0.5)
        for dag_id in unpause:
            client.unpause(dag_id)

    def stop(self) -> None:
        """End every server and every job; returns when no process of the stack is left."""
        # Airflow first: nothing may submit a job after the launcher was shut down.
        if self._airflow is not None:
            self._airflow.stop()
        with contextlib.suppress(DeepSeekOpsError):
            self.launcher.shutdown()
        with contextlib.suppress(DeepSeekOpsError):
            self.gateway.stop()
        if self._git is not None:
            self._git.stop()
        self.s3.stop()

    @contextlib.contextmanager
    def running(self) -> Iterator[Stack]:
        """Stop the stack when the block ends, however it ends, unless it is to be kept and all went well."""
        try:
            yield self
        except BaseException:
            self.stop()
            raise
        if not self.keep:
            self.stop()

    def _start_git(self) -> None:
        port = self._port("git")
        self._git = GuardedProcess(
            "git-server",
            [
                sys.executable,
                "-m",
                "deepseek_ops.embedded.git_server",
                *("--root", str(self.root / "git"), "--port", str(port), "--username", GIT_USER),
                *("--create", REPOSITORY),
                *(["--detach"] if self.keep else []),
            ],
            folder=self.root,
            environment={**os.environ, TOKEN_VARIABLE: self.git_token},
            keep=self.keep,
        )
        self._git.start()
        self.git_url = f"http://127.0.0.1:{port}/{REPOSITORY}.git"
        deadline = time.monotonic() + 30
        while True:
            self._git.require_running()
            try:
                self.repository.refs()
            except DeepSeekOpsError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def _port(self, name: str) -> int:
        """Return the port of a server: the one it had at the last start, if that is free."""
        if name in self._ports:
            return self._ports[name]
        path = self.root / "ports.json"
        ports: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
        if name not in ports or not port_is_free(ports[name]):
            ports[name] = free_port()
            self.root.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(ports))
        self._ports[name] = ports[name]
        return ports[name]

    def _secret(self, name: str) -> str:
        path = self.root / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(24))
        return path.read_text()


def stop_kept(root: Path) -> list[str]:
    """End what a kept stack left up below ``root`` and return the names of the servers ended."""
    if not root.exists():
        return []
    from deepseek_ops.adapters.envoy import EnvoyGateway

    ended = end_recorded(root)
    with contextlib.suppress(DeepSeekOpsError):
        LocalLauncher(root / "jobs").shutdown()
    with contextlib.suppress(DeepSeekOpsError):
        EnvoyGateway(root / "gateway").stop()
    return [*ended, *end_recorded(root / "s3")]
