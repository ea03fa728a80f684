"""Stores, folders and helpers of the dataset tests."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import fixtures_s3
import pytest

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.ports import ObjectInfo, ObjectStore
from deepseek_ops.data import (
    DatasetRepository,
)

s3_server, s3_uri, s3_store = fixtures_s3.s3_server, fixtures_s3.s3_uri, fixtures_s3.s3_store


class CountingStore:
    """A store that counts what is asked of it, and can be told to act before a write."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.uri = store.uri
        self.puts: list[str] = []
        """Keys of what was stored; a writer's lease, one small object for each writing, is in ``leases``."""
        self.leases: list[str] = []
        self.gets: list[str] = []
        self.before_write: Callable[[str], None] = lambda key: None

    def create(self, key: str, data: bytes) -> None:
        self.before_write(key)
        (self.leases if key.startswith("leases/") else self.puts).append(key)
        self._store.create(key, data)

    def put_blob(self, key: str, source: bytes | Path) -> None:
        self.before_write(key)
        self.puts.append(key)
        self._store.put_blob(key, source)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        self.gets.append(key)
        return self._store.get(key, start=start, length=length)

    def download(self, key: str, target: Path) -> None:
        self.gets.append(key)
        self._store.download(key, target)

    def head(self, key: str) -> ObjectInfo | None:
        return self._store.head(key)

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        return self._store.list(prefix, start_after=start_after, limit=limit)

    def delete(self, keys: list[str]) -> None:
        self._store.delete(keys)


def contents(folder: Path) -> dict[str, bytes]:
    """Return path -> bytes of what a dataset folder holds."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if not name.startswith(".deepseek-ops/")}


def fill(folder: Path, *, files: int = 40, seed: int = 1, large: bool = True) -> None:
    numbers = random.Random(seed)  # noqa: S311
    for index in range(files):
        path = folder / f"part{index % 3}" / f"{index:04}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(numbers.randbytes(numbers.randrange(3000)))
    (folder / "empty").touch()
    (folder / "größe.txt").write_text("ü")
    if large:
        (folder / "weights.bin").write_bytes(numbers.randbytes((1 << 20) + 17))


def age(folder: Path) -> None:
    """Make every file look as if it was written long before the scan: the stat cache trusts no fresh times."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (1_700_000_000, 1_700_000_000))


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CountingStore:
    if request.param == "s3":
        return CountingStore(request.getfixturevalue("s3_store"))
    return CountingStore(open_store(str(tmp_path_factory.mktemp("store"))))


@pytest.fixture
def local(tmp_path_factory: pytest.TempPathFactory) -> CountingStore:
    return CountingStore(open_store(str(tmp_path_factory.mktemp("store"))))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "corpus"
    source.mkdir()
    fill(source)
    return source


def commit(store: ObjectStore, folder: Path, **options: object):
    values = {"name": "corpus", "message": "more", "author": "me", **options}
    return DatasetRepository.open(store).commit(folder, **values)  # type: ignore[arg-type]
