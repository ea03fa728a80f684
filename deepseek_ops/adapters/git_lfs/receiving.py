"""Uploads that come through the server: hashed while they arrive, visible only when they are what they claim to be.

For folders, for stores that do not check presigned uploads, and for objects beyond the size of a single PUT. Bytes are
passed on as they arrive: a client waits half a minute for a silent server and then sends everything again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from obstore.exceptions import BaseError

from deepseek_ops.adapters.git_lfs.problems import LfsRequestError
from deepseek_ops.adapters.stores.disk import DISK_ERRNOS, disk_error
from deepseek_ops.adapters.stores.failures import explained
from deepseek_ops.adapters.stores.keys import RESERVED
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.adapters.stores.s3_client import connect
from deepseek_ops.adapters.stores.uris import StoreUri
from deepseek_ops.core.errors import DeepSeekOpsError, StoreUnavailableError
from deepseek_ops.core.objects import blob_key
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest

PART_BYTES = 16 << 20
MAX_PARTS = 9_000
"""S3 takes 10,000 parts an upload."""
PARALLEL_PARTS = 4
"""Parts of one upload in flight: 64 MiB of memory."""
SINGLE_PUT_BYTES = 2 * PART_BYTES
WRONG_CONTENT = 400
"""As S3 answers. git-lfs takes 422 for a quarrel about media types: it would let the push succeed."""


class Receiver(Protocol):
    """Stores an object from a stream."""

    def receive(self, oid: Digest, size: int, chunks: Iterator[bytes]) -> None:
        """Store the stream under its digest. Raises LfsRequestError (400) when it is not ``size`` bytes of ``oid``.

        What was there before stays when the stream is wrong, or ends early, or this process dies.
        """


def receiver_for(store: ObjectStore, uri: str, credentials: Mapping[str, str]) -> Receiver:
    """Return what receives uploads for the store."""
    if isinstance(store, LocalStore):
        return LocalReceiver(store)
    parsed = StoreUri.parse(uri)
    if parsed.kind == "s3":
        return S3Receiver(store, parsed, credentials)
    return SpoolReceiver(store)


class _Checked:
    """The stream, handed on while it is counted and hashed; raises at its end, or as soon as it is too long."""

    def __init__(self, oid: Digest, size: int, chunks: Iterator[bytes]) -> None:
        self._oid, self._size, self._chunks = oid, size, chunks
        self._hash = hashlib.sha256()
        self._seen = 0
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._chunks:
                self._seen += len(chunk)
                self._check_length()
                self._hash.update(chunk)
                yield chunk
            self._finish()
        except GeneratorExit:
            raise
        except BaseException as error:
            self.failure = error  # whoever consumes us may wrap it beyond recognition
            raise

    def _check_length(self) -> None:
        if self._seen > self._size:
            raise LfsRequestError(WRONG_CONTENT, f"more than the {self._size} bytes that were announced")

    def _finish(self) -> None:
        if self._seen != self._size:
            raise LfsRequestError(WRONG_CONTENT, f"{self._seen} of the {self._size} bytes that were announced")
        if self._hash.hexdigest() != self._oid:
            raise LfsRequestError(WRONG_CONTENT, f"the content is {self._hash.hexdigest()}, not {self._oid}")


class LocalReceiver:
    """Receives into a LocalStore: a file under ``.tmp``, flushed, then moved to its name."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    def receive(self, oid: Digest, size: int, chunks: Iterator[bytes]) -> None:
        """Store the stream. Raises LfsRequestError; 507 when the disk is full."""
        folder = self._store.folder
        temporary = folder / RESERVED / f"lfs-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb", buffering=0) as file:
                _reserve(file.fileno(), size)
                for chunk in _Checked(oid, size, chunks):
                    view = memoryview(chunk)
                    while view:
                        view = view[file.write(view) or 0 :]
                os.fsync(file.fileno())
            _publish(folder, temporary, folder / blob_key(oid))
        except OSError as error:
            if error.errno in DISK_ERRNOS:
                raise disk_error(folder, error) from error
            raise StoreUnavailableError(self._store.uri, error.strerror or "input/output error") from error
        finally:
            temporary.unlink(missing_ok=True)


def _reserve(handle: int, size: int) -> None:
    """Take the room now: a full disk shows before the transfer, not after most of it."""
    if not size:
        return
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno in DISK_ERRNOS:
            raise


def _publish(root: Path, temporary: Path, target: Path) -> None:
    new = [folder for folder in target.parents if not folder.is_dir()]
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(target)
    for folder in {target.parent, *(folder.parent for folder in new if folder != root)}:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class S3Receiver:
    """Receives into a bucket: small objects in one PUT, others part by part; S3 shows an object only when complete."""

    def __init__(self, store: ObjectStore, uri: StoreUri, credentials: Mapping[str, str]) -> None:
        self._store = store
        self._client = connect(uri, credentials)

    def receive(self, oid: Digest, size: int, chunks: Iterator[bytes]) -> None:
        """Store the stream. Raises LfsRequestError."""
        checked = _Checked(oid, size, chunks)
        if size <= SINGLE_PUT_BYTES:
            self._store.put_blob(blob_key(oid), b"".join(checked))
            return
        part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
        try:
            self._client.put(
                blob_key(oid), iter(checked), use_multipart=True, chunk_size=part_bytes, max_concurrency=PARALLEL_PARTS
            )
        except (BaseError, OSError, ValueError, RuntimeError, DeepSeekOpsError) as error:
            if checked.failure is not None:
                raise checked.failure from None
            raise explained(error, self._store.uri, blob_key(oid)) from error


class SpoolReceiver:
    """Receives for any other store: into a file of this machine first, then as the store sends files."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def receive(self, oid: Digest, size: int, chunks: Iterator[bytes]) -> None:
        """Store the stream. Raises LfsRequestError."""
        with tempfile.NamedTemporaryFile(prefix="deepseek-ops-lfs-") as file:
            try:
                _reserve(file.fileno(), size)
                for chunk in _Checked(oid, size, chunks):
                    file.write(chunk)
                file.flush()
            except OSError as error:
                raise disk_error(Path(file.name), error) from error
            self._store.put_blob(blob_key(oid), Path(file.name))
