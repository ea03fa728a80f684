"""Sets of files that no dataset version names, stored so that a collection at the same time takes none of them."""

from __future__ import annotations

from pathlib import Path

from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest, FileSet
from deepseek_ops.data.blobs import StoreBlobs
from deepseek_ops.data.gc_guard import writing
from deepseek_ops.data.gc_leases import DEFAULT_TIMES, GuardTimes


class GuardedBlobs(StoreBlobs):
    """``StoreBlobs`` whose digests are safe to hold for a week before a record names them; see ``gc_guard``.

    What is stored gets a new stamp, what is found is pinned. Whoever keeps digests longer in no record pins them.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        workers: int = 8,
        holder: str = "a writer of files",
        times: GuardTimes = DEFAULT_TIMES,
    ) -> None:
        super().__init__(store, workers=workers)
        self._holder = holder
        self._times = times

    def put(self, data: bytes) -> Digest:
        """Store ``data`` and return its SHA-256."""
        with writing(self._store, holder=self._holder, times=self._times) as store:
            return StoreBlobs(store, workers=self._workers).put(data)

    def put_file(self, path: Path) -> tuple[Digest, int]:
        """Store one file and return its SHA-256 and size. Raises ChangedWhileReadError."""
        with writing(self._store, holder=self._holder, times=self._times) as store:
            return StoreBlobs(store, workers=self._workers).put_file(path)

    def put_folder(self, folder: Path) -> FileSet:
        """Store every file below ``folder`` and return the set, sorted by path; see ``StoreBlobs``."""
        with writing(self._store, holder=self._holder, times=self._times) as store:
            return StoreBlobs(store, workers=self._workers).put_folder(folder)
