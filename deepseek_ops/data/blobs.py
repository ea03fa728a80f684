"""Content-addressed files over any ObjectStore: what checkpoints, models and large dataset files are stored as.

The key is the Git LFS layout, ``objects/sha256/ab/cd/<hex>``, so one object serves a dataset, a weight that Git LFS
pushed and a registry entry. Nothing is believed: bytes are hashed when they leave and when they come back.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from pathlib import Path

from deepseek_ops.core.errors import IntegrityError, ObjectNotFoundError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest, FileEntry, FileSet, digest_of
from deepseek_ops.data.folders import ChangedWhileReadError, LocalFile, checked_targets, local_error, scan_folder
from deepseek_ops.data.layout import blob_key
from deepseek_ops.data.parallel import in_parallel

RANGE_BYTES = 16 << 20
ASK_FIRST_BYTES = 256 << 10
"""From this size on a HEAD is cheaper than sending what may be there already."""


def hash_file(path: Path) -> tuple[Digest, int]:
    """Return SHA-256 and size of a file. Raises LocalDiskError when it cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    except OSError as error:
        raise local_error(path, error) from error


class StoreBlobs:
    """The Blobs port over an ObjectStore. Safe for use by many threads."""

    def __init__(self, store: ObjectStore, *, workers: int = 8) -> None:
        self._store = store
        self._workers = workers

    def put(self, data: bytes) -> Digest:
        """Store ``data`` and return its SHA-256."""
        digest = digest_of(data)
        if not self.present(digest, len(data)):
            self._store.put_blob(blob_key(digest), data)
        return digest

    def put_file(self, path: Path) -> tuple[Digest, int]:
        """Store one file and return its SHA-256 and size. Raises ChangedWhileReadError."""
        digest, size = hash_file(path)
        self.ensure(digest, size, path)
        return digest, size

    def ensure(self, digest: Digest, size: int, source: bytes | Path) -> None:
        """Store bytes or a file that were hashed already, unless they are there. Raises ChangedWhileReadError."""
        if not self.present(digest, size):
            try:
                self._store.put_blob(blob_key(digest), source)
            except IntegrityError:
                raise ChangedWhileReadError(str(source) if isinstance(source, Path) else digest) from None

    def present(self, digest: Digest, size: int) -> bool:
        """Return whether the store says that it has the object; of small ones it is not asked."""
        if size < ASK_FIRST_BYTES:
            return False
        info = self._store.head(blob_key(digest))
        return info is not None and info.size == size

    def get(self, digest: Digest) -> bytes:
        """Return verified bytes. Raises ObjectNotFoundError, IntegrityError."""
        data = self._store.get(blob_key(digest))
        self._check(digest, digest_of(data))
        return data

    def put_folder(self, folder: Path) -> FileSet:
        """Store every file below ``folder`` and return the set, sorted by path.

        ``.git`` is left out. Raises UnstorableFileError for links, devices and names that other machines cannot hold:
        a set must mean the same everywhere.
        """

        def send(file: LocalFile) -> FileEntry:
            digest, size = self.put_file(folder / file.name)
            return FileEntry(path=file.name, size=size, digest=digest)

        return FileSet(files=tuple(in_parallel(send, scan_folder(folder), self._workers)))

    def fetch_folder(self, files: FileSet, target: Path) -> None:
        """Write the set below ``target`` with every digest verified. Raises IntegrityError, ObjectNotFoundError.

        A target that does not exist appears complete or not at all. In one that does, each file is replaced as a
        whole, files that are right already stay, and files of other names are left alone.
        """
        if target.exists():
            self._fetch_into(files, target)
            return
        staging = target.parent / f".{secrets.token_hex(8)}.part"
        try:
            staging.mkdir(parents=True)
            self._fetch_into(files, staging)
            staging.rename(target)
        except OSError as error:
            raise local_error(target, error) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _fetch_into(self, files: FileSet, target: Path) -> None:
        paths = checked_targets(target, [entry.path for entry in files.files])
        pairs = zip(files.files, paths, strict=True)
        in_parallel(lambda pair: self.fetch(pair[0], Path(pair[1])), pairs, self._workers)

    def fetch(self, entry: FileEntry, target: Path) -> None:
        """Write one verified file to ``target``; a file there that is right already stays."""
        if target.is_file() and target.stat().st_size == entry.size and hash_file(target)[0] == entry.digest:
            return
        partial = target.parent / f".{secrets.token_hex(8)}.part"
        try:
            self._store.download(blob_key(entry.digest), partial)
            self._check(entry.digest, hash_file(partial)[0])
            partial.replace(target)
        except OSError as error:
            raise local_error(target, error) from error
        finally:
            partial.unlink(missing_ok=True)

    def verify(self, entry: FileEntry) -> None:
        """Read the object back and check size and digest. Raises IntegrityError, ObjectNotFoundError."""
        key = blob_key(entry.digest)
        info = self._store.head(key)
        if info is None:
            raise ObjectNotFoundError(f"{self._store.uri}/{key}")
        if info.size != entry.size:
            raise IntegrityError(f"{self._store.uri}/{key}", f"{entry.size} bytes", f"{info.size} bytes")
        seen = hashlib.sha256()
        for start in range(0, entry.size, RANGE_BYTES):
            seen.update(self._store.get(key, start=start, length=RANGE_BYTES))
        self._check(entry.digest, seen.hexdigest())

    def get_part(self, digest: Digest, *, start: int, length: int) -> bytes:
        """Return a part of the object, which no digest can vouch for: a header, say. Raises ObjectNotFoundError."""
        return self._store.get(blob_key(digest), start=start, length=length)

    def size_of(self, digest: Digest) -> int | None:
        """Return the size of the stored object without reading it, or None when there is none."""
        info = self._store.head(blob_key(digest))
        return None if info is None else info.size

    def _check(self, expected: Digest, actual: Digest) -> None:
        if actual != expected:
            raise IntegrityError(f"{self._store.uri}/{blob_key(expected)}", expected, actual)
