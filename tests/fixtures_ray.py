"""A real Ray cluster of two nodes on this machine: token, seal key, dashboard and job agents included.

It takes about a minute of this machine to start and 2.5 GB of memory, so there is one for a session, and one file of
tests that uses it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from deepseek_ops.adapters.engines.ray import KEY_VARIABLE, RayEngine, RayJobsApi

TOKEN = "cluster-token-of-the-tests-0123456789"
SEAL_KEY = "seal-key-of-the-tests"
PROVIDED = "CLUSTER_HAS_THIS"
NODES = 2
START_SECONDS = 240
TRIES = 4
Node = subprocess.Popen[bytes]


class RayCluster:
    """A head and worker nodes, each ``ray start --block``: a process that ends all of its own when it is told to."""

    def __init__(self, *, cpus: int = 2) -> None:
        # Ray's sockets lie below; a path of pytest's would be longer than the 107 bytes that a socket's may have.
        self.folder = Path(tempfile.mkdtemp(prefix="dsray-", dir="/tmp"))
        self._cpus = cpus
        self._gcs = _free_port()
        self._dashboard = _free_port()
        self._nodes: list[Node] = []
        self._started = itertools.count()
        self._client = httpx.Client(base_url=self.address, headers=_headers(), timeout=10)

    @property
    def scratch(self) -> Path:
        """Where jobs work, on every node."""
        return self.folder / "scratch"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._dashboard}"

    @property
    def head(self) -> Node:
        return self._nodes[0]

    def api(self, *, token: str = TOKEN) -> RayJobsApi:
        return RayJobsApi(self.address, token=token)

    def engine(self, **options: object) -> RayEngine:
        return RayEngine(self.api(), **{"python": sys.executable, "seal_key": SEAL_KEY, **options})  # type: ignore[arg-type]

    def start_head(self) -> Node:
        """Start the head and return its process once it counts itself among the nodes."""
        head = ["--head", f"--port={self._gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={self._dashboard}"]
        return self._up(1, *head, f"--temp-dir={self.folder}", "--include-dashboard=true", "--disable-usage-stats")

    def start_node(self) -> Node:
        """Start another node and return its process once the head counts it."""
        return self._up(self.living_nodes() + 1, f"--address=127.0.0.1:{self._gcs}")

    def complete(self) -> None:
        """Replace a node that a test took away."""
        while len(self._nodes) < NODES:
            self.start_node()

    def living_nodes(self) -> int:
        """Return how many nodes the head counts as alive."""
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
            summary = self._client.get("/nodes?view=summary").json()["data"]["summary"]
            return sum(1 for node in summary if node["raylet"].get("state") == "ALIVE")
        return 0

    def get(self, path: str) -> str:
        """Return what the dashboard answers, as text."""
        return self._client.get(path).text

    def node_of(self, pid: int) -> Node:
        """Return the node that a process runs on."""
        parents = {parent.pid for parent in psutil.Process(pid).parents()}
        return next(node for node in self._nodes if node.pid in parents)

    def kill_node(self, node: Node) -> None:
        """Take a machine away without a word: all of its processes at once, as a power cut does."""
        for process in _below(node.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.kill()
        node.wait()
        self._nodes.remove(node)

    def stop(self) -> None:
        """End every node, the head last."""
        for node in reversed(self._nodes[:]):
            node.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(timeout=20)
            self.kill_node(node)
        self._client.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _up(self, count: int, *options: str) -> Node:
        """Start a node until it stays: on a busy machine a raylet gives up after 15 s without its dashboard agent."""
        for _ in range(TRIES):
            node = self._start(*options)
            deadline = time.monotonic() + START_SECONDS
            while time.monotonic() < deadline and node.poll() is None and not _lost_its_raylet(node.pid):
                if self.living_nodes() >= count:
                    return node
                time.sleep(0.5)
            self.kill_node(node)
        logs = "\n".join(path.read_text()[-3000:] for path in self.folder.glob("start-*.log"))
        raise AssertionError(f"a node of the cluster did not come up\n{logs}")

    def _start(self, *options: str) -> Node:
        ports = (
            f"--{name}={_free_port()}"
            for name in (
                "dashboard-agent-listen-port",
                "dashboard-agent-grpc-port",
                "runtime-env-agent-port",
                "metrics-export-port",
                "node-manager-port",
                "object-manager-port",
            )
        )
        command = [
            *(sys.executable, "-m", "deepseek_ops.jobs.ray_guard", "5", "--"),  # ends the cluster with the tests
            *(str(Path(sys.executable).parent / "ray"), "start", "--block", "--node-ip-address=127.0.0.1"),
            *(f"--num-cpus={self._cpus}", "--num-gpus=0", "--object-store-memory=80000000"),
            *ports,
            *options,
        ]
        with (self.folder / f"start-{next(self._started)}.log").open("wb") as log:
            node = Node(
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=_environment(self.scratch)
            )
        self._nodes.append(node)
        return node


def _environment(scratch: Path) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if "AIRFLOW" not in name and name != "PYTHONPATH"},
        "RAY_raylet_start_wait_time_s": "240",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        # A machine that is gone is noticed after 5 tries in these tests, not after 5 x 3 s + 10 s.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_initial_delay_ms": "3000",
        KEY_VARIABLE: SEAL_KEY,
        PROVIDED: "the-nodes-have-it",
        "DEEPSEEK_OPS_SCRATCH": str(scratch),
    }


def _headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}"}


def _below(root: int) -> list[psutil.Process]:
    """Return the processes below ``root``, as their parents stand now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(root).children(recursive=True)
    return []


def _lost_its_raylet(root: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(p.status() == psutil.STATUS_ZOMBIE and p.name() == "raylet" for p in _below(root))
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """Two nodes with two CPUs each."""
    cluster = RayCluster()
    try:
        cluster.start_head()
        cluster.complete()
        yield cluster
    finally:
        cluster.stop()
