"""Blobs for a look: what is put stays in a scratch place, what is read comes from there or from the real one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.core.ports import Blobs
from deepseek_ops.core.records import Digest, FileEntry, FileSet


@dataclass(frozen=True)
class ScratchBlobs:
    """The Blobs port over two: a plan can be made of a commit without a byte written to the team's store."""

    scratch: Blobs
    real: Blobs | None = None

    def put(self, data: bytes) -> Digest:
        """Keep ``data`` in the scratch place and return its SHA-256."""
        return self.scratch.put(data)

    def put_folder(self, folder: Path) -> FileSet:
        """Keep every file below ``folder`` in the scratch place and return the set."""
        return self.scratch.put_folder(folder)

    def get(self, digest: Digest) -> bytes:
        """Return verified bytes. Raises ObjectNotFoundError, IntegrityError."""
        return self._of(digest).get(digest)

    def fetch_folder(self, files: FileSet, target: Path) -> None:
        """Write the set below ``target``, each file from where it is."""
        for place in filter(None, (self.scratch, self.real)):
            some = tuple(entry for entry in files.files if self._of(entry.digest) is place)
            if some:
                place.fetch_folder(FileSet(files=some), target)

    def verify(self, entry: FileEntry) -> None:
        """Read the object back and check it. Raises IntegrityError, ObjectNotFoundError."""
        self._of(entry.digest).verify(entry)

    def get_part(self, digest: Digest, *, start: int, length: int) -> bytes:
        """Return a part of the object. Raises ObjectNotFoundError."""
        return self._of(digest).get_part(digest, start=start, length=length)

    def size_of(self, digest: Digest) -> int | None:
        """Return the size of the object, or None when neither place has it."""
        return self._of(digest).size_of(digest)

    def _of(self, digest: Digest) -> Blobs:
        if self.real is None or self.scratch.size_of(digest) is not None:
            return self.scratch
        return self.real
