"""Uploads in a bucket: what lies below a prefix, which folder belongs to which upload, and whether one is complete."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING
from urllib.parse import unquote

from pydantic import Field

from deepseek_ops.core.errors import ObjectNotFoundError
from deepseek_ops.core.records import Digest, Record

if TYPE_CHECKING:
    from deepseek_ops.core.ports import ObjectInfo, ObjectStore

MARKERS = ("_READY", "_SUCCESS", "manifest.json")
"""Object names that say "this upload is complete"."""
MANIFEST = "manifest.json"
"""The marker that can also list what the upload holds: then it is complete when all of that is there."""
NOTHING = hashlib.sha256().hexdigest()
MAX_MANIFEST_BYTES = 256 << 20
_NAMES = ("key", "path", "url")
_SIZES = ("size", "content_length", "bytes")


class DataArrival(Record):
    """What lies below a prefix once an upload is complete. Equal content, equal digest."""

    uri: str = Field(description="The store, without credentials.")
    prefix: str
    digest: Digest = Field(description="SHA-256 over the lines 'key size' of every object in key order.")
    num_objects: int = Field(ge=0)
    num_bytes: int = Field(ge=0)


@dataclass(frozen=True, slots=True)
class Listing:
    """A listing, summed up; it takes no memory however many objects there are."""

    digest: str
    num_objects: int
    num_bytes: int
    last_key: str
    marked: bool
    manifests: tuple[str, ...] = ()
    """Keys of the manifests in it."""

    def arrival(self, store: ObjectStore, prefix: str) -> DataArrival:
        """Return the arrival this listing is, once it is complete."""
        return DataArrival(
            uri=store.uri, prefix=prefix, digest=self.digest, num_objects=self.num_objects, num_bytes=self.num_bytes
        )


def survey(store: ObjectStore, prefix: str, *, after: str = "", markers: Sequence[str] = MARKERS) -> Listing:
    """Return the summed-up listing of the objects below ``prefix`` whose keys come after ``after``. Blocking."""
    return _summed(store.list(prefix, start_after=after), markers, after)


def _summed(objects: Iterable[ObjectInfo], markers: Sequence[str], last: str = "") -> Listing:
    digest, count, size, marked = hashlib.sha256(), 0, 0, False
    manifests: list[str] = []
    for item in objects:
        digest.update(f"{item.key}\x00{item.size}\n".encode())
        count, size, last = count + 1, size + item.size, item.key
        name = item.key.rpartition("/")[2]
        marked = marked or name in markers
        if name == MANIFEST and name in markers:
            manifests.append(item.key)
    return Listing(digest.hexdigest(), count, size, last, marked, tuple(manifests))


def folder_of(key: str, prefix: str, depth: int) -> str:
    """Return the upload a key belongs to: the folder ``depth`` levels below the prefix, with ``/``; or nothing."""
    parts = key[len(prefix) :].split("/")
    return prefix + "/".join(parts[:depth]) + "/" if len(parts) > depth else ""


def survey_folders(
    store: ObjectStore, prefix: str, depth: int, *, after: str = "", markers: Sequence[str] = MARKERS
) -> Iterator[tuple[str, Listing]]:
    """Yield each folder ``depth`` levels below the prefix with the listing of its objects after the key. Blocking."""
    objects = store.list(prefix, start_after=after)
    for folder, members in groupby(objects, key=lambda item: folder_of(item.key, prefix, depth)):
        listing = _summed(members, markers)
        if folder:
            yield folder, listing


def fulfilled(store: ObjectStore, manifests: Iterable[str]) -> bool:
    """Return whether everything that these manifests list is there with the size they say. Blocking.

    A manifest that lists nothing we understand is a mere marker; one that cannot be read yet is not fulfilled.
    """
    return all(_fulfilled(store, key) for key in manifests)


def _fulfilled(store: ObjectStore, key: str) -> bool:
    try:
        data = store.get(key, start=0, length=MAX_MANIFEST_BYTES)
    except ObjectNotFoundError:
        return False
    folder = key[: -len(MANIFEST)]
    wanted = dict(listed(data, folder, store.uri))
    for item in store.list(folder):
        size = wanted.get(item.key, -1)
        if item.key in wanted and size in (None, item.size):
            del wanted[item.key]
    return not wanted


def listed(data: bytes, folder: str, uri: str) -> Iterator[tuple[str, int | None]]:
    """Yield the key and size (None where not said) of each object a manifest lists.

    Understood are ``objects``, ``files`` or ``entries`` with ``key``, ``path`` or ``url``, relative to the manifest,
    and ``size``, ``bytes`` or ``meta.content_length``.
    """
    try:
        body = json.loads(data)
    except ValueError:
        return
    lists = [body.get(name) for name in ("objects", "files", "entries")] if isinstance(body, dict) else []
    for item in next((found for found in lists if isinstance(found, list)), []):
        if isinstance(item, str):
            item = {"key": item}  # noqa: PLW2901
        name = next((str(item[key]) for key in _NAMES if item.get(key)), "") if isinstance(item, dict) else ""
        if not name:
            continue
        meta = item.get("meta") if isinstance(item.get("meta"), dict) else {}
        sizes = [{**meta, **item}.get(key) for key in _SIZES]
        size = next((size for size in sizes if isinstance(size, int)), None)
        yield _key(name, folder, uri), size


def _key(name: str, folder: str, uri: str) -> str:
    if "://" in name:
        return unquote(name).removeprefix(f"{uri.rstrip('/')}/")
    return name if folder and name.startswith(folder) else folder + name.removeprefix("./")
