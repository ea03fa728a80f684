"""What the end-to-end tests look at: a kept demo, a client that loads its endpoint, its processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from deepseek_ops.adapters.git import open_git
from deepseek_ops.cli.demo_repository import DemoRepository
from deepseek_ops.embedded.airflow_standalone import AirflowClient
from deepseek_ops.embedded.stack import GIT_USER

PROJECT = Path(__file__).parents[1]
DAGS = ("retrain", "release", "deploy")


def command(*arguments: str, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deepseek_ops.cli.main", *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Left:
    """What a kept demo left up."""

    def __init__(self, root: Path, output: str) -> None:
        self.root = root
        self.output = output
        self.url = re.search(r"Airflow: (http://\S+)", output)[1]
        login = re.search(r"login (\S+) / (\S+)", output)
        self.client = AirflowClient(self.url, login[1], login[2])
        self.runs = {dag_id: str(self.client.runs(dag_id)[0]["dag_run_id"]) for dag_id in DAGS}
        ports = json.loads((root / "ports.json").read_text())
        self.git_url = f"http://127.0.0.1:{ports['git']}/tiny-deepseek.git"
        self.token = (root / "git.token").read_text()
        identity = json.loads((root / "s3" / "identities.json").read_text())["identities"][0]["credentials"][0]
        s3 = json.loads((root / "s3" / "ports.json").read_text())
        self.environment = {
            "AWS_ACCESS_KEY_ID": identity["accessKey"],
            "AWS_SECRET_ACCESS_KEY": identity["secretKey"],
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3['s3']}",
        }

    def returned(self, dag_id: str, task: str, index: int = -1):
        return self.client.xcom(dag_id, self.runs[dag_id], task, index)

    def user(self) -> DemoRepository:
        """The person who pushes, with the clone the demo left."""
        return DemoRepository(
            self.git_url,
            username=GIT_USER,
            token=self.token,
            folder=self.root / "clone",
            template=PROJECT / "include" / "examples" / "tiny-deepseek",
        )

    def wait(self, look, seconds: float = 240):
        """Return what ``look`` returns once that is something."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := look():
                return found
            time.sleep(0.5)
        raise AssertionError("it did not happen in time")

    def wait_for_run(self, dag_id: str, states: tuple[str, ...]) -> str:
        """Return the id of the DAG's newest run once it is in one of the states."""

        def look() -> str:
            run = self.client.runs(dag_id)[0]
            return str(run["dag_run_id"]) if run["state"] in states else ""

        return str(self.wait(look))

    def wait_for_second_deployment(self, seconds: float = 900) -> dict[str, str]:
        """Return the newest run of each DAG once the second deployment has ended well."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            runs = {dag_id: self.client.runs(dag_id) for dag_id in DAGS}
            failed = [run["dag_run_id"] for found in runs.values() for run in found if run["state"] == "failed"]
            assert failed == []
            if all(len(found) == 2 and found[0]["state"] == "success" for found in runs.values()):
                return {dag_id: str(found[0]["dag_run_id"]) for dag_id, found in runs.items()}
            time.sleep(1)
        raise AssertionError("the second push was not deployed in time")

    def repository(self, cache: Path):
        return open_git(self.git_url, username=GIT_USER, password=self.token, cache=cache)


class Load:
    """One client that asks the endpoint again and again, and remembers every answer that was not one."""

    def __init__(self, url: str, model: str) -> None:
        self.failures: list[str] = []
        self.answers = 0
        self.versions: dict[str, int] = {}
        self._body = {"model": model, "prompt": "The", "max_tokens": 1, "temperature": 0}
        self._url = f"{url}/v1/completions"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        number = 0
        with httpx.Client(timeout=60) as client:
            while not self._stop.wait(0.2):
                number += 1
                try:
                    answer = client.post(self._url, json=self._body, headers={"x-user-id": f"user-{number}"})
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                if answer.status_code != httpx.codes.OK:
                    self.failures.append(f"{answer.status_code} {answer.text[:200]}")
                    continue
                self.answers += 1
                version = answer.headers["x-model-version"]
                self.versions[version] = self.versions.get(version, 0) + 1

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(2)  # the new version answers somebody else than us, too
        self._stop.set()
        self._thread.join()


def basic(left: Left) -> str:
    import base64

    return base64.b64encode(f"{GIT_USER}:{left.token}".encode()).decode()


def processes_below(root: Path) -> list[str]:
    """Return the command lines of processes that name the demo's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(root) in line:
                found.append(line)
    return found
