"""The checkpoints of a training in the store: where they are, which are whole, and how they get there and back.

::

    <run>/checkpoints/step-00000050.001-000-000/node-000.json     what the first machine has stored
                                                checkpoint.json   all machines have: the checkpoint is whole
                                                healthy.json      N clean steps came after it

Every key is created once and never changed; the files themselves are content-addressed, so what is there is not sent
again. A record goes before its parts when a checkpoint is let go, and the files go with the next collection of
garbage, when no record names them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.core.errors import ObjectExistsError, ObjectNotFoundError
from deepseek_ops.core.objects import blob_key
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import FileEntry, canonical_json
from deepseek_ops.data.blobs import StoreBlobs
from deepseek_ops.data.gc_guard import writing
from deepseek_ops.data.parallel import in_parallel
from deepseek_ops.training.checkpoints import Candidate, CheckpointName, Life, StoredCheckpoint, kept

KEPT_STORED = 3
_WHOLE, _HEALTHY = "checkpoint.json", "healthy.json"
_TRANSFERS = 4


@dataclass(frozen=True, slots=True)
class Sent:
    """What an upload came to."""

    num_bytes: int
    new_bytes: int
    """Of them, those that the store did not have yet."""


class StoredCheckpoints:
    """The checkpoints of one run. Every method raises what the store raises."""

    def __init__(self, store: ObjectStore, run_prefix: str, *, plan: str) -> None:
        self._store = store
        self._plan = plan
        self.prefix = f"{run_prefix}/checkpoints/"

    def candidates(self) -> list[Candidate]:
        """Return the whole checkpoints, by two reads of the store for each."""
        found = []
        for name, healthy in sorted(self.whole().items()):
            with suppress(ObjectNotFoundError):  # let go since it was listed
                found.append(Candidate(name, healthy, self.read(name).calm))
        return found

    def whole(self) -> dict[CheckpointName, bool]:
        """Return the whole checkpoints and whether each is healthy."""
        keys = {info.key for info in self._store.list(self.prefix)}
        names = {name for key in keys if key.endswith(f"/{_WHOLE}") and (name := self._name_in(key)) is not None}
        return {name: self._key(name, _HEALTHY) in keys for name in names}

    def read(self, name: CheckpointName) -> StoredCheckpoint:
        """Return the record of a whole checkpoint. Raises ObjectNotFoundError."""
        return StoredCheckpoint.load(json.loads(self._store.get(self._key(name, _WHOLE))))

    def send(self, name: CheckpointName, folder: Path, files: Sequence[FileEntry], *, node: int) -> Sent:
        """Store the files that a machine has of a checkpoint, and its part; done again, it sends what is missing."""
        new: list[int] = []
        with writing(self._store, holder=f"checkpoint {name}") as guarded:
            blobs = StoreBlobs(guarded)

            def send(entry: FileEntry) -> None:
                if not blobs.present(entry.digest, entry.size):
                    guarded.put_blob(blob_key(entry.digest), folder / entry.path)
                    new.append(entry.size)

            in_parallel(send, files, _TRANSFERS)
            part: dict[str, JsonValue] = {"files": [entry.dump() for entry in files]}
            self._create(self._key(name, f"node-{node:03d}.json"), part)
        return Sent(sum(entry.size for entry in files), sum(new))

    def parts(self, name: CheckpointName, *, num_nodes: int) -> list[FileEntry] | None:
        """Return the files of all machines, each path once; None while a machine has not stored its part."""
        found: dict[str, FileEntry] = {}
        for node in range(num_nodes):
            try:
                part = json.loads(self._store.get(self._key(name, f"node-{node:03d}.json")))
            except ObjectNotFoundError:
                return None
            for item in part["files"]:
                entry = FileEntry.load(item)
                found.setdefault(entry.path, entry)
        return [found[path] for path in sorted(found)]

    def seal(self, checkpoint: StoredCheckpoint) -> None:
        """Declare a checkpoint whole."""
        self._store_once(checkpoint.name, _WHOLE, checkpoint.dump())

    def mark_healthy(self, name: CheckpointName) -> None:
        """Note that N clean steps came after the checkpoint."""
        self._store_once(str(name), _HEALTHY, {"healthy": True})

    def remove(self, names: Iterable[CheckpointName]) -> None:
        """Let checkpoints go, the record that makes each whole first."""
        for name in names:
            self._store.delete([self._key(name, _WHOLE)])
            self._store.delete([info.key for info in self._store.list(f"{self.prefix}{name}/")])

    def prune(self, *, held: Iterable[CheckpointName] = (), keep: int = KEPT_STORED) -> list[CheckpointName]:
        """Let go what the policy does not keep, and parts of checkpoints that nobody completed; return which.

        Parts of a life that is not the newest are nobody's work in progress, and neither are those that are older than
        a whole checkpoint: machines send in the order of the steps. Whole ones are judged by the policy.
        """
        everything, whole = self._everything(), self.whole()
        stay = kept([Candidate(name, healthy) for name, healthy in whole.items()], keep, held=held)
        life, newest = max((name.life for name in everything), default=None), max(whole, default=None)
        parts = {name for name in everything if name.life == life and (newest is None or name > newest)}
        gone = everything - stay - (parts - whole.keys())
        self.remove(sorted(gone))
        return sorted(gone)

    def newest_life(self) -> Life | None:
        """Return the newest life that has stored anything."""
        return max((name.life for name in self._everything()), default=None)

    def clear(self) -> None:
        """Let everything go: the run's result is stored."""
        self.remove(sorted(self._everything()))

    def fetch(self, files: Sequence[FileEntry], folder: Path, *, step: Callable[[], None] = lambda: None) -> None:
        """Write files below ``folder``, each digest verified; those that are right already stay. Raises IntegrityError.

        ``step`` is called after each file.
        """
        blobs = StoreBlobs(self._store)
        folder.mkdir(parents=True, exist_ok=True)

        def fetch(entry: FileEntry) -> None:
            (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
            blobs.fetch(entry, folder / entry.path)
            step()

        in_parallel(fetch, files, _TRANSFERS)

    def _everything(self) -> set[CheckpointName]:
        return {name for info in self._store.list(self.prefix) if (name := self._name_in(info.key)) is not None}

    def _name_in(self, key: str) -> CheckpointName | None:
        return CheckpointName.parse(key.removeprefix(self.prefix).partition("/")[0])

    def _key(self, name: CheckpointName | str, file: str) -> str:
        return f"{self.prefix}{name}/{file}"

    def _store_once(self, name: str, file: str, body: dict[str, JsonValue]) -> None:
        self._create(self._key(name, file), body)

    def _create(self, key: str, body: dict[str, JsonValue]) -> None:
        try:
            self._store.create(key, canonical_json(body))
        except ObjectExistsError:
            if self._store.get(key) != canonical_json(body):  # else ours: the answer to an earlier try was lost
                raise
