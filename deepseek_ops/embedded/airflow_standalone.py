"""Airflow standalone with a home of its own: SQLite, LocalExecutor, one admin, loopback only.

Nothing here imports Airflow: the server is a process, and the client below speaks its public REST API.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import httpx
from pydantic import JsonValue

from deepseek_ops.embedded.processes import GuardedProcess, ServerStartError, free_port

TRIES = 4
"""How often a call is made that timed out: half a minute each, on a machine that has other work."""
HEALTHY_COMPONENTS = ("metadatabase", "scheduler", "triggerer", "dag_processor")


class AirflowStandalone:
    """One standalone Airflow.

    Args:
        home: AIRFLOW_HOME; kept between starts, so that the database is migrated once.
        dags: Folder of DAG files.
        connections: Connection id -> JSON of an Airflow connection. Passed through the environment, never on disk.
        keep: Leave it up when this process ends.
    """

    def __init__(
        self,
        home: Path,
        *,
        dags: Path,
        connections: Mapping[str, Mapping[str, JsonValue]],
        parallelism: int = 4,
        environment: Mapping[str, str] | None = None,
        keep: bool = False,
    ) -> None:
        self.home = home
        self.username = "admin"
        self.password = ""
        self.port = 0
        self._dags = dags
        self._connections = connections
        self._parallelism = parallelism
        self._extra = dict(environment or {})
        self._keep = keep
        self._process: GuardedProcess | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.home.parent / "airflow.log"

    def start(self) -> None:
        """Start the process; ``wait_healthy`` waits for it."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.password = self._secret("admin.password")
        self._write_passwords()
        self._process = GuardedProcess(
            "airflow",
            [sys.executable, "-m", "airflow", "standalone"],
            folder=self.home.parent,
            environment=self._environment(),
            keep=self._keep,
        )
        self._process.start()

    def wait_healthy(self, timeout: float = 300.0, tick: Callable[[], None] = lambda: None) -> None:
        """Return when every component has a heartbeat. Raises ServerStartError when it ends or takes too long."""
        if self._process is None:
            raise ServerStartError("airflow", "start() was not called", str(self.log))
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self._process.require_running()
            try:
                health = httpx.get(f"{self.url}/api/v2/monitor/health", timeout=5).json()
                if all((health.get(part) or {}).get("status") == "healthy" for part in HEALTHY_COMPONENTS):
                    return
            except (httpx.HTTPError, ValueError):
                pass
            tick()
            time.sleep(0.5)
        raise ServerStartError("airflow", f"not healthy after {timeout:.0f} s", str(self.log))

    def client(self) -> AirflowClient:
        return AirflowClient(self.url, self.username, self.password)

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop(timeout=60)

    def _secret(self, name: str) -> str:
        """Return a secret made once per home, readable by its owner only."""
        path = self.home / name
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(12 if name.endswith(".password") else 64))
        return path.read_text()

    def _write_passwords(self) -> None:
        """Write the file SimpleAuthManager reads: without it, it would print a password of its own to the log."""
        self._passwords.touch(mode=0o600)
        self._passwords.write_text(json.dumps({self.username: self.password}))

    @property
    def _passwords(self) -> Path:
        return self.home / "passwords.json"

    def _environment(self) -> dict[str, str]:
        loopback = {f"AIRFLOW_CONN_{name.upper()}": json.dumps(value) for name, value in self._connections.items()}
        execution = f"{self.url}/execution/"
        secret = self._secret("server.secret")
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "PYTEST"))},
            # Airflow's own command lines look up `airflow` and `gunicorn` on PATH.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self._dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(self._parallelism),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": execution,
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{self.username}:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self._passwords),
            "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(hashlib.sha256(secret.encode()).digest()).decode(),
            "AIRFLOW__API__SECRET_KEY": secret,
            "AIRFLOW__API_AUTH__JWT_SECRET": secret,
            "AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "5",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__TRIGGERER__DEFAULT_CAPACITY": "200",
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "OMP_NUM_THREADS": "1",
            **loopback,
            **self._extra,
        }


class AirflowClient:
    """The few calls of Airflow's REST API v2 that the demo, the tests and the benchmarks make."""

    def __init__(self, url: str, username: str, password: str) -> None:
        self._url = url
        self._login: dict[str, JsonValue] = {"username": username, "password": password}
        self._http = httpx.Client(base_url=url, timeout=30)
        self._token = ""

    def get(self, path: str, **parameters: str | int) -> dict[str, JsonValue]:
        return self._call("GET", path, params=dict(parameters))

    def post(self, path: str, body: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        return self._call("POST", path, body=body)

    def patch(self, path: str, body: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        return self._call("PATCH", path, body=body)

    def unpause(self, dag_id: str) -> None:
        """Switch a DAG on, and have its file read again now: Airflow starts an asset's watchers only then."""
        dag = self.patch(f"/dags/{dag_id}", {"is_paused": False})
        self._call("PUT", f"/parseDagFile/{dag['file_token']}")

    def runs(self, dag_id: str) -> list[dict[str, JsonValue]]:
        """Return the DAG's runs, newest first."""
        answer = self.get(f"/dags/{dag_id}/dagRuns", limit=50, order_by="-run_after")
        return rows(answer, "dag_runs")

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, JsonValue]]:
        """Return the run's task instances, mapped ones included."""
        answer = self.get(f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", limit=100)
        return rows(answer, "task_instances")

    def xcom(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> JsonValue:
        """Return what a task returned."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        return self.get(path, map_index=map_index, deserialize="true").get("value")

    def task_log(self, dag_id: str, run_id: str, task_id: str, try_number: int, map_index: int = -1) -> str:
        """Return the log of one try as text, one line an event."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        content = rows(self.get(path, map_index=map_index), "content")
        return "\n".join(str(row.get("event", "")) for row in content)

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        body: Mapping[str, JsonValue] | None = None,
    ) -> dict[str, JsonValue]:
        for attempt in (1, 2):
            if not self._token:
                answer = self._answer("POST", "/auth/token", json=self._login)
                answer.raise_for_status()
                self._token = str(answer.json()["access_token"])
            headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
            answer = self._answer(method, f"/api/v2{path}", params=params, json=body, headers=headers)
            if answer.status_code == httpx.codes.UNAUTHORIZED and attempt == 1:
                self._token = ""
                continue
            break
        answer.raise_for_status()
        parsed: dict[str, JsonValue] = answer.json() if answer.content else {}
        return parsed

    def _answer(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        json: Mapping[str, JsonValue] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Return the answer; a server that is too busy is asked again where asking twice changes nothing."""
        request = self._http.build_request(method, path, params=params, json=json, headers=headers)
        tries = 1 if method == "POST" and path != "/auth/token" else TRIES
        for _ in range(tries - 1):
            with suppress(httpx.TimeoutException):
                return self._http.send(request)
        return self._http.send(request)


def rows(answer: Mapping[str, JsonValue], key: str) -> list[dict[str, JsonValue]]:
    """Return the objects of a list in an answer."""
    value = answer.get(key)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
