"""Checkpoints of a few bytes on a disk and in a store that can be away: the ways of files, without any training."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.errors import StoreUnavailableError
from deepseek_ops.core.records import FileEntry
from deepseek_ops.data.blobs import hash_file
from deepseek_ops.jobs.training_shelf import STATE, Shelf
from deepseek_ops.jobs.training_store import StoredCheckpoints
from deepseek_ops.jobs.training_upload import Place, Uploads
from deepseek_ops.training.checkpoints import CheckpointName, Life

PLAN = "f" * 64


class MovingStore(LocalStore):
    """A store that is away while ``away`` is set, waits while ``slow`` is set, and counts the blobs that it is sent."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.away, self.slow = threading.Event(), threading.Event()
        self.refused = 0
        self.blobs: list[str] = []

    def create(self, key: str, data: bytes) -> None:
        """Store, or refuse."""
        self._arrive()
        super().create(key, data)

    def put_blob(self, key: str, source: bytes | Path) -> None:
        """Store, or refuse."""
        self._arrive()
        self.blobs.append(key)
        super().put_blob(key, source)

    def _arrive(self) -> None:
        while self.slow.is_set():
            time.sleep(0.01)
        if self.away.is_set():
            self.refused += 1
            raise StoreUnavailableError(self.uri, "it is away")


class Desk:
    """One machine's checkpoints and uploads."""

    def __init__(self, folder: Path, store: MovingStore, *, node: int = 0, num_nodes: int = 1) -> None:
        self.store, self.node, self.num_nodes = store, node, num_nodes
        self.shelf = Shelf(folder / f"node-{node}", plan=PLAN)
        self.stored = StoredCheckpoints(store, "runs/this", plan=PLAN)
        self.said: list[tuple[str, dict[str, object]]] = []
        self.current = True
        self.mute = False
        """Whether what was said cannot be brought to the store, the next time."""
        self.settled: list[list[CheckpointName]] = []
        """The whole checkpoints each time another one was about to be declared whole."""
        place = Place(node, num_nodes, lambda: self.current, self._settle)
        self.uploads = Uploads(self.stored, self.shelf, place, self._say, retry=0.05)

    def _settle(self) -> None:
        self.settled.append([one.name for one in self.stored.candidates()])
        if self.mute:
            self.mute = False
            raise StoreUnavailableError(self.store.uri, "it is away")

    def make(self, step: int, *, attempt: int = 1, weights: str = "", calm: bool = True) -> CheckpointName:
        """Put a checkpoint on the disk."""
        name = CheckpointName(Life(attempt, 0), step)
        partial = self.shelf.partial(name)
        partial.mkdir(parents=True)
        first = 2 * self.node
        for rank in (first, first + 1):
            (partial / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_text(f"rank {rank} at {step}{attempt}")
        (partial / "mp_rank_00_model_states.pt").write_text(weights or f"weights at {step}{attempt}")
        (partial / "base.pt").write_bytes(b"b" * 300_000)
        state = {"plan": PLAN, "world_size": 2 * self.num_nodes, "num_nodes": self.num_nodes, "calm": calm}
        (partial / STATE).write_text(json.dumps({**state, "progress": {"step": step}}))
        paths = sorted(partial.iterdir())
        self.shelf.seal(name, [entry_of(path) for path in paths])
        return name

    def sent(self, within: float = 20.0) -> None:
        """Wait until everything is sent."""
        assert self.uploads.drain(within), self.said

    def kinds(self) -> list[str]:
        """Return what was said."""
        return [kind for kind, _ in self.said]

    def _say(self, kind: str, **fields: object) -> None:
        self.said.append((kind, fields))


def entry_of(path: Path) -> FileEntry:
    """Return a file's entry."""
    digest, size = hash_file(path)
    return FileEntry(path=path.name, size=size, digest=digest)


def until(condition: Callable[[], object], within: float = 20.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> MovingStore:
    """A store."""
    return MovingStore(tmp_path / "store")


@pytest.fixture
def desk(tmp_path: Path, store: MovingStore) -> Desk:
    """The only machine."""
    return Desk(tmp_path, store)
