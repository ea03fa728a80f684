"""One operation of ``data_versioning.py`` in a process of its own, so that its CPU time and memory are its own.

    python data_versioning_ops.py OPERATION STORE FOLDER [ARGUMENT ...]

Prints one JSON line: CPU seconds of the imports and of the operation, its wall time, and what it counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import data_versioning_data as data

PACK_BYTES = 12 << 20
PUTS_AT_ONCE = 4
PART_BYTES = 16 << 20


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class Clock:
    """Times the operation alone: what a peer's floor would not do either (imports, reading ahead) is left out."""

    def __init__(self) -> None:
        self.import_cpu = 0.0
        self.cpu = 0.0
        self.wall = 0.0
        self._started = (cpu_seconds(), time.monotonic())

    def start(self) -> None:
        self.import_cpu = cpu_seconds() - self._started[0]
        self._started = (cpu_seconds(), time.monotonic())

    def stop(self) -> None:
        self.cpu, self.wall = cpu_seconds() - self._started[0], time.monotonic() - self._started[1]


Operation = Callable[[Clock, str, Path, list[str]], dict[str, float]]


# What our engine does.


def commit(clock: Clock, store: str, folder: Path, _arguments: list[str]) -> dict[str, float]:
    from deepseek_ops.data import DatasetRepository

    counted = Counted(store)
    repository = DatasetRepository.open(counted)
    counted.requests = 0
    clock.start()
    version = repository.commit(folder, name="corpus", message="benchmark", author="benchmark")
    clock.stop()
    pages = len(repository.tree(version.version).pages)
    return {"puts": counted.requests, "sent_bytes": counted.num_bytes, "pages": pages, "bytes": version.num_bytes}


def diff(clock: Clock, store: str, _folder: Path, _arguments: list[str]) -> dict[str, float]:
    from deepseek_ops.data import DatasetRepository

    repository = DatasetRepository(Counted(store))
    clock.start()
    new, old = (entry.version for entry in repository.log("corpus", limit=2))
    changes = repository.diff(old, new)
    clock.stop()
    return {"modified": len(changes.modified), "added": len(changes.added), "removed": len(changes.removed)}


def fresh(clock: Clock, store: str, folder: Path, arguments: list[str]) -> dict[str, float]:
    """Write the newest version to a new folder, every byte hashed."""
    from deepseek_ops.data.checkout import stream_selected, write_folder
    from deepseek_ops.data.repository import DatasetRepository

    repository = DatasetRepository(Counted(store))
    clock.start()
    tree = repository.tree(repository.resolve("corpus"))
    write_folder(repository.store, stream_selected(tree), folder, verify="all" if not arguments else "none")
    clock.stop()
    return {"files": tree.num_files}


def worktree(clock: Clock, store: str, folder: Path, _arguments: list[str]) -> dict[str, float]:
    """Write the newest version as a folder that can be switched."""
    from deepseek_ops.data.materialise import materialise

    counted = Counted(store)
    clock.start()
    done = materialise(counted, "corpus", folder)
    clock.stop()
    return {"files": done.num_files}


def switch_back(clock: Clock, store: str, folder: Path, _arguments: list[str]) -> dict[str, float]:
    """Switch a folder to the version before the newest."""
    return _switch(clock, store, folder, 1)


def switch_forth(clock: Clock, store: str, folder: Path, _arguments: list[str]) -> dict[str, float]:
    return _switch(clock, store, folder, 0)


def _switch(clock: Clock, store: str, folder: Path, back: int) -> dict[str, float]:
    from deepseek_ops.data import DatasetRepository
    from deepseek_ops.data.switching import recover, switch
    from deepseek_ops.data.worktree import Worktree

    counted = Counted(store)
    clock.start()
    version = DatasetRepository(counted).log("corpus", limit=2)[back].version
    tree = Worktree(folder)
    with tree.locked():
        recover(tree)
        record = tree.record().evolve(version=version)
        switch(counted, tree, record)
    clock.stop()
    return {}


def collect(clock: Clock, store: str, _folder: Path, _arguments: list[str]) -> dict[str, float]:
    """Mark all that is named and list all that is not."""
    from deepseek_ops.data.gc_history import RetentionPolicy
    from deepseek_ops.pipeline.collection import Witnesses
    from deepseek_ops.pipeline.collection import collect as plan

    counted = Counted(store)
    clock.start()
    plan(counted, RetentionPolicy(), Witnesses(standalone=True), delete=False, say=lambda *_: None)
    clock.stop()
    return {}


def push_packs(clock: Clock, store: str, folder: Path, _arguments: list[str]) -> dict[str, float]:
    """Send small files, which are in memory and hashed, as packs."""
    from deepseek_ops.data.packs import PackWriter

    counted = Counted(store)
    files = [(hashlib.sha256(content).digest(), content) for content in _contents(folder)]
    clock.start()
    with PackWriter(counted) as packs:
        for digest, content in files:
            packs.add(digest, content)
        packs.finish()
    clock.stop()
    return {"bytes": counted.num_bytes}


# The floor: what the machine needs for the same bytes without versions.


def floor_stat(clock: Clock, _store: str, folder: Path, _arguments: list[str]) -> dict[str, float]:
    def count(path: str) -> int:
        found = 0
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    found += count(entry.path)
                else:
                    entry.stat(follow_symlinks=False)
                    found += 1
        return found

    clock.start()
    files = count(str(folder))
    clock.stop()
    return {"files": files}


def floor_hash_write(clock: Clock, store: str, folder: Path, arguments: list[str]) -> dict[str, float]:
    """Read and hash every file and write its bytes plainly: one file for each thread, no flush."""
    threads = int(arguments[0])
    paths = [str(folder / name) for name, _ in data.sizes(folder)]

    def work(number: int) -> None:
        with Path(f"{store}.{number}").open("wb", buffering=0) as out:
            for path in paths[number::threads]:
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                digest = hashlib.sha256()
                while content := os.read(handle, PART_BYTES):
                    digest.update(content)
                    out.write(content)
                os.close(handle)
                digest.digest()

    clock.start()
    _threads(work, threads)
    clock.stop()
    return {"files": len(paths)}


def floor_create_hash(clock: Clock, _store: str, folder: Path, arguments: list[str]) -> dict[str, float]:
    """Hash as many bytes as the files have, from memory, and create the files: one thread, no flush."""
    target = Path(arguments[0])
    files = data.sizes(folder)
    block = os.urandom(PART_BYTES * 2)
    for name in {name.rpartition("/")[0] for name, _ in files}:
        (target / name).mkdir(parents=True, exist_ok=True)
    clock.start()
    for number, (name, size) in enumerate(files):
        handle = os.open(f"{target}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        digest = hashlib.sha256()
        for start in range(0, size, PART_BYTES):
            at = (number * 4099) % PART_BYTES
            content = memoryview(block)[at : at + min(PART_BYTES, size - start)]
            digest.update(content)
            os.write(handle, content)
        digest.digest()
        os.close(handle)
    clock.stop()
    return {"files": len(files)}


def floor_put(clock: Clock, store: str, folder: Path, _arguments: list[str]) -> dict[str, float]:
    """Put the small files' bytes in objects of 12 MiB, from memory, with obstore and nothing else."""
    client = _raw_client(store)
    packs = list(_packed(_contents(folder)))
    clock.start()
    with ThreadPoolExecutor(PUTS_AT_ONCE) as pool:
        list(pool.map(lambda item: client.put(f"raw/{item[0]}", item[1], use_multipart=False), enumerate(packs)))
    clock.stop()
    return {"bytes": sum(map(len, packs))}


def floor_hash_put(clock: Clock, store: str, folder: Path, _arguments: list[str]) -> dict[str, float]:
    """Read and hash every file and put the bytes raw: small ones in objects of 12 MiB, large ones in parts."""
    client = _raw_client(store)
    clock.start()
    with ThreadPoolExecutor(PUTS_AT_ONCE) as pool:
        waiting = []
        for number, pack in enumerate(_packed(_hashed(_contents(folder)))):
            waiting.append(pool.submit(client.put, f"raw/{number}", pack, use_multipart=False))
            if len(waiting) >= PUTS_AT_ONCE:
                waiting.pop(0).result()
        for future in waiting:
            future.result()
    for name, size in data.sizes(folder):
        if size >= data.BLOCK_BYTES:
            with (folder / name).open("rb") as file:
                hashlib.file_digest(file, "sha256")
            client.put(f"raw/{name}", folder / name, chunk_size=PART_BYTES, max_concurrency=PUTS_AT_ONCE)
    clock.stop()
    return {}


def _contents(folder: Path) -> Iterator[bytes]:
    for name, size in data.sizes(folder):
        if size < data.BLOCK_BYTES:
            handle = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            yield os.read(handle, size + 1)
            os.close(handle)


def _hashed(contents: Iterator[bytes]) -> Iterator[bytes]:
    for content in contents:
        hashlib.sha256(content).digest()
        yield content


def _packed(contents: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    size = 0
    for content in contents:
        parts.append(content)
        size += len(content)
        if size >= PACK_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


def _threads(work: Callable[[int], None], threads: int) -> None:
    if threads == 1:
        work(0)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


def _raw_client(uri: str) -> object:
    from obstore.store import S3Store

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return S3Store(
        bucket,
        prefix=prefix,
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region=os.environ["AWS_REGION"],
        client_options={"allow_http": True},
    )


class Counted:
    """The store, with the PUT requests its writes take."""

    def __init__(self, uri: str) -> None:
        from deepseek_ops.adapters.stores import open_store

        self._store = open_store(uri, os.environ)
        self.uri = self._store.uri
        self._store.delete(["warm/up"])  # connections and what is loaded for them count as the program's start
        self.requests = 0
        self.num_bytes = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def create(self, key: str, content: bytes) -> None:
        self._count(len(content))
        self._store.create(key, content)

    def put_blob(self, key: str, source: bytes | Path) -> None:
        self._count(len(source) if isinstance(source, bytes) else source.stat().st_size)
        self._store.put_blob(key, source)

    def _count(self, size: int) -> None:
        self.requests += 1 if size <= 2 * PART_BYTES else -(-size // PART_BYTES)
        self.num_bytes += size


OPERATIONS: dict[str, Operation] = {
    operation.__name__: operation
    for operation in (
        commit,
        diff,
        fresh,
        worktree,
        switch_back,
        switch_forth,
        collect,
        push_packs,
        floor_stat,
        floor_hash_write,
        floor_create_hash,
        floor_put,
        floor_hash_put,
    )
}


def main(words: list[str]) -> None:
    name, store, folder, *arguments = words
    clock = Clock()
    counted = OPERATIONS[name](clock, store, Path(folder), list(islice(arguments, 4)))
    print(json.dumps({"import_cpu": clock.import_cpu, "cpu": clock.cpu, "wall": clock.wall, **counted}))


if __name__ == "__main__":
    main(sys.argv[1:])
