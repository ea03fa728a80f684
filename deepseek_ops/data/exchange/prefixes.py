"""Plain files in a folder or below a prefix of any store: taken in as a version, and written out of one."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.core.errors import IntegrityError, ObjectNotFoundError, PermanentError, TransientError
from deepseek_ops.core.ports import ObjectInfo, ObjectStore, Progress
from deepseek_ops.core.records import canonical_json
from deepseek_ops.data.exchange.intake import Arriving
from deepseek_ops.data.exchange.ordered import contents
from deepseek_ops.data.exchange.paths import PathGate, RefusedMemberError
from deepseek_ops.data.folders import SKIPPED, local_error
from deepseek_ops.data.packs import Stored
from deepseek_ops.data.pages import LOOSE
from deepseek_ops.data.parallel import in_order
from deepseek_ops.data.snapshot import SplitOf

MARKERS = ("_READY", "_SUCCESS", "manifest.json")
"""Objects that say "this upload is complete" and are no data."""
UPLOAD_MANIFEST = "manifest.json"
UPLOAD_FORMAT = "deepseek-ops-upload/1"
CHUNK_BYTES = 8 << 20
WORKERS = 8
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"


@dataclass(eq=False)
class ChangedInSourceError(TransientError):
    """An object changed between the listing and the reading of it."""

    uri: str
    listed: int
    read: int

    def __str__(self) -> str:
        return f"{self.uri} had {self.listed} bytes when it was listed and {self.read} when it was read; import again."


@dataclass(eq=False)
class PointerFileError(PermanentError):
    """A file that stands for another one, which was not fetched."""

    path: str

    def __str__(self) -> str:
        return f"{self.path} is a Git LFS pointer, not the data; run `git lfs pull` there and import again."


def prefix_files(
    source: ObjectStore, *, split_of: SplitOf, case_sensitive: bool = False, expected: Sequence[ObjectInfo] = ()
) -> Iterator[Arriving]:
    """Yield the objects of a store as files, markers left out; each is read in ranges when its turn comes.

    With ``expected`` exactly those objects are taken, whatever else is there now. Raises RefusedMemberError,
    ChangedInSourceError (transient) when an object is not as long as it was said to be.
    """
    gate = PathGate(source.uri, case_sensitive=case_sensitive)
    for info in expected or source.list(""):
        if info.key.rpartition("/")[2] in MARKERS or not SKIPPED.isdisjoint(info.key.split("/")):
            continue
        if info.key.endswith("/") and info.size == 0:  # what consoles put there for a folder
            continue
        name = gate.admit(info.key)
        yield Arriving(name, _Ranges(source, info), split_of(name))


class _Ranges:
    """Reads one object in ranges."""

    def __init__(self, store: ObjectStore, info: ObjectInfo) -> None:
        self._store, self._info = store, info

    def __call__(self) -> Iterator[bytes]:
        store, info, at = self._store, self._info, 0
        where = f"{store.uri}/{info.key}"
        while True:
            try:
                chunk = store.get(info.key, start=at, length=CHUNK_BYTES)
            except ObjectNotFoundError:
                raise ChangedInSourceError(where, info.size, 0) from None
            at += len(chunk)
            if at > info.size:
                break
            yield chunk
            if len(chunk) < CHUNK_BYTES:
                break
        if at != info.size:
            raise ChangedInSourceError(where, info.size, at)


def folder_files(folder: Path, *, split_of: SplitOf, case_sensitive: bool = False) -> Iterator[Arriving]:
    """Yield the files of a Hugging Face dataset folder: a clone, a download, or a snapshot of the hub's cache.

    A snapshot holds links into the ``blobs`` beside it: those are followed, no others are. Raises RefusedMemberError,
    PointerFileError for Git LFS pointers without their data, LocalDiskError.
    """
    gate = PathGate(str(folder), case_sensitive=case_sensitive)
    root = folder.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    for path, name in _walk(root, ""):
        if name == ".gitattributes" or name.startswith(".cache/huggingface/"):
            continue
        if path.is_symlink() and not (blobs is not None and path.resolve().parent == blobs and path.is_file()):
            raise RefusedMemberError(str(folder), name, "is a symbolic link")
        if not path.is_file():
            raise RefusedMemberError(str(folder), name, "is no plain file")
        admitted = gate.admit(name)
        yield Arriving(admitted, _LocalFile(path), split_of(admitted))


class _LocalFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> Iterator[bytes]:
        try:
            with self._path.open("rb") as file:
                chunk = file.read(CHUNK_BYTES)
                if chunk.startswith(_LFS_POINTER):
                    raise PointerFileError(str(self._path))
                while chunk:
                    yield chunk
                    chunk = file.read(CHUNK_BYTES)
        except OSError as error:
            raise local_error(self._path, error) from error


def _walk(folder: Path, prefix: str) -> Iterator[tuple[Path, str]]:
    try:
        children = sorted(os.scandir(folder), key=lambda child: child.name)
    except OSError as error:
        raise local_error(folder, error) from error
    for child in children:
        if child.name in SKIPPED:
            continue
        if child.is_dir(follow_symlinks=False):
            yield from _walk(Path(child.path), f"{prefix}{child.name}/")
        else:
            yield Path(child.path), prefix + child.name


@dataclass(frozen=True, slots=True)
class PrefixExport:
    """What an export to a prefix did."""

    uri: str
    num_files: int
    num_sent: int
    manifest: str
    """Key of the object that lists all others with size and SHA-256; written last."""


def export_prefix(
    store: ObjectStore, files: Iterable[Stored], target: ObjectStore, *, progress: Progress | None = None
) -> PrefixExport:
    """Write the files as plain objects, and then ``manifest.json`` that lists them.

    A reader who waits for the manifest never sees half of it, and our own arrival watcher does. Objects that an earlier
    manifest names with the same digest, and that are there, are not sent again. Raises RefusedMemberError when a
    file of the version has the manifest's name.
    """
    before = _listed(target)
    objects: list[JsonValue] = []
    sent = 0

    def wanted() -> Iterator[Stored]:
        nonlocal sent
        for file in files:
            path, size, digest, _ = file.entry
            if path == UPLOAD_MANIFEST:
                raise RefusedMemberError(target.uri, path, "has the name of the upload's own list")
            objects.append({"key": path, "size": size, "sha256": digest.hex()})
            there = target.head(path) if before.get(path) == digest.hex() else None
            if there is None or there.size != size:
                sent += 1
                yield file

    with tempfile.TemporaryDirectory(prefix="deepseek-ops-export-") as scratch:
        put = _Put(target, Path(scratch))
        for number, _ in enumerate(in_order(put, put.prepared(contents(store, wanted())), WORKERS), start=1):
            if progress is not None and number % 1000 == 0:
                progress(f"sent {number} files to {target.uri}", None)
    body: dict[str, JsonValue] = {"format": UPLOAD_FORMAT, "objects": objects}
    target.put_blob(UPLOAD_MANIFEST, canonical_json(body))
    return PrefixExport(target.uri, len(objects), sent, UPLOAD_MANIFEST)


def _listed(target: ObjectStore) -> dict[str, str]:
    """Return key -> SHA-256 of an earlier export; empty when there is none that can be read."""
    try:
        body = json.loads(target.get(UPLOAD_MANIFEST))
        return {str(item["key"]): str(item["sha256"]) for item in body["objects"]}
    except (ObjectNotFoundError, IntegrityError, ValueError, KeyError, TypeError):
        return {}


class _Put:
    """Sends files: small ones from memory by threads, large ones from a scratch file, one at a time."""

    def __init__(self, target: ObjectStore, scratch: Path) -> None:
        self._target, self._scratch = target, scratch

    def prepared(self, files: Iterable[tuple[Stored, Iterable[bytes]]]) -> Iterator[tuple[str, bytes | None]]:
        for file, chunks in files:
            if file.location != LOOSE:
                yield file.entry.path, b"".join(chunks)
                continue
            path = self._scratch / secrets.token_hex(8)
            try:
                with path.open("xb") as spool:
                    for chunk in chunks:
                        spool.write(chunk)
                self._target.put_blob(file.entry.path, path)
            except OSError as error:
                raise local_error(path, error) from error
            finally:
                path.unlink(missing_ok=True)
            yield file.entry.path, None

    def __call__(self, item: tuple[str, bytes | None]) -> None:
        path, data = item
        if data is not None:
            self._target.put_blob(path, data)
