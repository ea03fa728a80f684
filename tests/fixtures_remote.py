"""A store, an engine of processes, and launchers on both: everything a job on other machines needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures_launcher import until
from fixtures_process_engine import ProcessEngine
from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher.processes import process
from deepseek_ops.adapters.remote_launcher import NodeShape, RemoteLauncher
from deepseek_ops.adapters.remote_launcher.layout import JobKeys, read_control
from deepseek_ops.adapters.stores import store_environment
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.ports import ObjectStore


@dataclass
class Cluster:
    """One store and one engine."""

    root: Path
    store: ObjectStore
    engine: ProcessEngine
    credentials: Mapping[str, str]

    def launcher(self, store: ObjectStore | None = None) -> RemoteLauncher:
        """Return a launcher that remembers nothing, as a new process makes it."""
        access = store_environment(self.store.uri, self.credentials)
        return RemoteLauncher(store or self.store, self.engine, shape=NodeShape(python=sys.executable), access=access)

    def engine_id(self, name: str, attempt: int = 1) -> str:
        """Return the engine's id of an attempt."""
        body = json.loads(self.store.get(JobKeys(name).attempt(attempt)))
        return str(body["engine_id"])

    def events(self, name: str, kind: str) -> list[dict[str, JsonValue]]:
        """Return the job's events of a kind."""
        return [event for event in self.launcher().events(name) if event["kind"] == kind]

    def pids(self, name: str) -> list[int]:
        """Return the processes that a job has said are its own."""
        events = until(lambda: self.events(name, "processes"))
        return [int(str(pid)) for event in events for pid in event["pids"]]  # type: ignore[union-attr]

    def has(self, name: str, what: str, attempt: int = 1) -> bool:
        """Return whether the store shows something of an attempt."""
        return read_control(self.store, JobKeys(name)).has(attempt, what)

    def texts(self) -> Iterator[bytes]:
        """Yield everything that is stored."""
        for info in self.store.list(""):
            yield self.store.get(info.key)


def living(pids: list[int]) -> list[int]:
    """Return those of the processes that still run."""
    return [pid for pid in pids if (found := process(pid)) is not None and not found.zombie]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of its own for a test, in a folder."""
    store = LocalStore(tmp_path / "store")
    engine = ProcessEngine(tmp_path)
    yield Cluster(tmp_path, store, engine, {})
    engine.close()
