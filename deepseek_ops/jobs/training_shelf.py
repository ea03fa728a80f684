"""The checkpoints on this machine's disk: complete or not there.

::

    <folder>/step-00000050.001-000-000/           a checkpoint: DeepSpeed's files, and
        trainer.json                              what is common to all ranks: plan, progress, lives
        files.json                                size and digest of each file that this machine has of it
        healthy                                   N clean steps came after it
    <folder>/step-00000100.001-000-000.partial/   being written; part-00001.json: rank 1 has written its files

Every rank writes its own files and then its part. When all parts of the machine are there its first rank writes
``files.json``, renames the folder, and only then lets older ones go. A kill at any instant, or a disk that is full,
leaves the checkpoints before.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.core.errors import InvalidRecordError, LocalDiskError
from deepseek_ops.core.records import FileEntry
from deepseek_ops.data.blobs import hash_file
from deepseek_ops.training.checkpoints import Candidate, CheckpointName, kept

KEPT = 2
STATE = "trainer.json"
FILES = "files.json"
HEALTHY = "healthy"
PARTIAL, ARRIVING = ".partial", ".arriving"
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Shelved:
    """One complete checkpoint on this machine."""

    name: CheckpointName
    folder: Path
    plan: str
    world_size: int
    num_nodes: int
    healthy: bool
    calm: bool
    files: tuple[FileEntry, ...]

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.name, healthy=self.healthy, calm=self.calm)

    def state(self) -> dict[str, JsonValue]:
        """Return what ``trainer.json`` says."""
        read = read_json(self.folder / STATE)
        return read if isinstance(read, dict) else {}

    def damaged(self, wanted: Iterable[FileEntry]) -> list[str]:
        """Return which of the ``wanted`` files are missing or have other bytes than were written."""
        return [entry.path for entry in wanted if not _is_whole(self.folder / entry.path, entry)]


class Shelf:
    """The folder of one training on one machine. Only the machine's first rank changes it."""

    def __init__(self, folder: Path, *, plan: str) -> None:
        self.folder = folder
        self._plan = plan
        self._held: set[CheckpointName] = set()
        self.pinned: set[CheckpointName] = set()
        """Kept here and in the store, whatever the policy says."""
        self._early: set[CheckpointName] = set()
        """Healthy before they were sealed: N steps may take less time than a disk to write them."""

    def path(self, name: CheckpointName) -> Path:
        return self.folder / str(name)

    def partial(self, name: CheckpointName) -> Path:
        return self.folder / f"{name}{PARTIAL}"

    def arriving(self, name: CheckpointName) -> Path:
        return self.folder / f"{name}{ARRIVING}"

    def all(self) -> list[Shelved]:
        """Return the complete checkpoints of this plan."""
        names = ((CheckpointName.parse(path.name), path) for path in _entries(self.folder))
        found = (self._read(name, path) for name, path in names if name is not None)
        return sorted((one for one in found if one is not None), key=lambda one: one.name)

    def get(self, name: CheckpointName) -> Shelved | None:
        """Return one of them."""
        return self._read(name, self.path(name))

    def hold(self, name: CheckpointName) -> None:
        """Keep the checkpoint while somebody reads it."""
        self._held.add(name)

    def let_go(self, name: CheckpointName) -> None:
        """End ``hold``."""
        self._held.discard(name)

    def tidy(self) -> None:
        """Remove what a dead process left half done, and checkpoints of other plans; what was being fetched stays."""
        good = {str(one.name) for one in self.all()}
        for path in _entries(self.folder):
            if path.name.startswith("step-") and path.name not in good and not path.name.endswith(ARRIVING):
                shutil.rmtree(path, ignore_errors=True)

    def seal(self, name: CheckpointName, files: Sequence[FileEntry], *, building: Path | None = None) -> Path:
        """Make the partial folder the checkpoint and return it. Raises OSError; then nothing has changed."""
        partial, final = building or self.partial(name), self.path(name)
        for part in partial.glob("part-*"):
            part.unlink()
        write_json(partial / FILES, [entry.dump() for entry in files])
        sync_folder(partial)
        if final.exists():  # restored from the store once more
            shutil.rmtree(final)
        partial.rename(final)
        if name in self._early:
            self.mark_healthy(name)
        sync_folder(self.folder)
        return final

    def prune(self, keep: int = KEPT) -> None:
        """Remove what the policy does not keep."""
        shelved = self.all()
        stay = kept([one.candidate for one in shelved], keep, held=self._held | self.pinned)
        for one in shelved:
            if one.name not in stay:
                self.remove(one.name)

    def remove(self, name: CheckpointName) -> None:
        """Remove a checkpoint: first its name, so that no half of one is ever found."""
        self._early.discard(name)
        gone = self.folder / f"{name}.gone"
        with suppress(OSError):
            self.path(name).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def mark_healthy(self, name: CheckpointName) -> None:
        """Note that N clean steps came after the checkpoint; a disk that is full just does not learn it."""
        self._early.add(name)  # first: the thread that seals it looks after it has given it its name
        with suppress(OSError):
            (self.path(name) / HEALTHY).touch()
            self._early.discard(name)

    def clear(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, name: CheckpointName, path: Path) -> Shelved | None:
        state, listed = read_json(path / STATE), read_json(path / FILES)
        if not isinstance(state, dict) or not isinstance(listed, list) or state.get("plan") != self._plan:
            return None
        try:
            files = tuple(FileEntry.load(item) for item in listed if isinstance(item, dict))
            world, nodes = int(str(state["world_size"])), int(str(state["num_nodes"]))
        except (InvalidRecordError, KeyError, ValueError):
            return None
        healthy, calm = (path / HEALTHY).exists(), state.get("calm") is True
        return Shelved(name, path, self._plan, world, nodes, healthy, calm, files)


class Sealing:
    """Waits for the parts of one checkpoint, in a thread, and seals it when all of this machine's are there."""

    def __init__(
        self,
        shelf: Shelf,
        name: CheckpointName,
        *,
        ranks: Sequence[int],
        state: Mapping[str, JsonValue],
        sealed: Callable[[CheckpointName], None],
        failed: Callable[[CheckpointName, str], None],
    ) -> None:
        self._shelf, self._name, self._ranks, self._state = shelf, name, ranks, state
        self._sealed, self._failed = sealed, failed
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoint-sealing", daemon=True)
        self._thread.start()

    def settle(self) -> None:
        """Return when it is sealed or given up. All ranks have written what they could: nobody else will come."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        partial = self._shelf.partial(self._name)
        problem = ""
        while not problem:
            closed = self._closed.is_set()  # before looking: what was written before it was set is seen
            parts = [read_json(part_of(partial, rank)) for rank in self._ranks]
            said = [part.get("problem") for part in parts if isinstance(part, dict)]
            problem = next((str(one) for one in said if one), "")
            if all(isinstance(part, dict) for part in parts) and not problem:
                problem = self._seal(partial, parts)
                if not problem:
                    self._sealed(self._name)
                    return
            elif closed and not problem:
                missing = [rank for rank, part in zip(self._ranks, parts, strict=True) if part is None]
                problem = f"ranks {missing} could not write their files"
            time.sleep(_POLL_SECONDS)
        shutil.rmtree(partial, ignore_errors=True)
        self._failed(self._name, problem)

    def _seal(self, partial: Path, parts: Sequence[JsonValue]) -> str:
        try:
            write_json(partial / STATE, dict(self._state))
            size, digest = (partial / STATE).stat().st_size, hash_file(partial / STATE)[0]
            files = [FileEntry(path=STATE, size=size, digest=digest)]
            for part in parts:
                listed = part.get("files") if isinstance(part, dict) else None
                items = listed if isinstance(listed, list) else []
                files += [FileEntry.load(item) for item in items if isinstance(item, dict)]
            self._shelf.seal(self._name, files)
        except OSError as error:
            return error.strerror or str(error)
        except LocalDiskError as error:
            return str(error)
        return ""


def part_of(partial: Path, rank: int) -> Path:
    """Return where a rank says that it has written its files."""
    return partial / f"part-{rank:05d}.json"


def leave_part(partial: Path, rank: int, files: Iterable[FileEntry], problem: str) -> None:
    """Say what this rank has written, or why it could not; on a disk that is full nothing is said."""
    body: dict[str, JsonValue] = {"files": [entry.dump() for entry in files], "problem": problem}
    with suppress(OSError):
        partial.mkdir(parents=True, exist_ok=True)
        write_json(part_of(partial, rank), body)


def read_json(path: Path) -> JsonValue:
    """Return what the file holds; None when it is missing or not whole."""
    try:
        body: JsonValue = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return body


def write_json(path: Path, body: JsonValue) -> None:
    """Replace the file, on the disk when this returns. Raises OSError."""
    partial = path.with_name(f"{path.name}.part")
    with partial.open("w") as file:
        json.dump(body, file, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_whole(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.size and hash_file(path)[0] == entry.digest
