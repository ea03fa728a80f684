"""Names that keep objects: every SHA-256 in what people and programs have written down.

A name is any 64 hex digits. Which of them mean an object is not asked: one that means nothing keeps nothing, and one
that means something in a way we do not know keeps it all the same. A blob that is named, and is JSON, may itself name
others (the list of a commit's files is such a blob), so it is read. The entries of a list of files are not: they are
somebody's data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import JsonValue

from deepseek_ops.core.errors import ObjectNotFoundError
from deepseek_ops.core.objects import LFS_ROOTS, blob_key
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.data.gc_digests import DigestSet
from deepseek_ops.data.leases import pinned
from deepseek_ops.data.parallel import in_order

HEX = re.compile(rb"(?<![0-9a-fA-F])[0-9a-f]{64}(?![0-9a-fA-F])")
RECORDS = ("runs/", "registry/", "models/", "versions/", "identities/", "aliases/")
"""Prefixes of a store under which records lie that no log of ours lists. Only ``.json`` objects are read."""
MAX_RECORD_BYTES = 64 << 20
MAX_LIST_BYTES = 256 << 20
WORKERS = 8


@dataclass
class Names:
    """What is named, and by whom we have asked."""

    names: DigestSet = field(default_factory=DigestSet)
    """Versions, blobs, or nothing at all."""
    leaves: DigestSet = field(default_factory=DigestSet)
    """Files of lists of files: they name nothing themselves."""
    asked_facts: bool = False
    """Whether every database of facts that can name something here has been read."""
    asked_git: bool = False
    """Whether every Git repository that can name something here has been read."""
    notes: list[str] = field(default_factory=list)
    """For people: who was not asked, and what that keeps."""

    @property
    def complete(self) -> bool:
        return self.asked_facts and self.asked_git

    def add_text(self, data: bytes) -> None:
        """Take every name in a text."""
        for match in HEX.finditer(data):
            self.names.add(bytes.fromhex(match[0].decode()))

    def add_json(self, value: JsonValue) -> None:
        """Take every name in a value."""
        if isinstance(value, str):
            self.add_text(value.encode("utf-8", "surrogatepass"))
        elif isinstance(value, list):
            for item in value:
                self.add_json(item)
        elif isinstance(value, dict):
            if (leaf := _file_digest(value)) is not None:
                self.leaves.add(leaf)
                return
            for key, item in value.items():
                self.add_json(key)
                self.add_json(item)

    def add_document(self, data: bytes) -> None:
        """Take every name in JSON, or in whatever it is."""
        try:
            value = json.loads(data)
        except ValueError:
            self.add_text(data)
        else:
            self.add_json(value)


ReadNames = Callable[[], Names]
"""Asks everybody again: called for the plan, and once more for the sweep."""


def nobody_asked() -> Names:
    """Return no names: neither facts nor Git were asked, so what only they could name stays."""
    return Names()


def _file_digest(value: dict[str, JsonValue]) -> bytes | None:
    digest, path = value.get("digest"), value.get("path")
    is_file = isinstance(path, str) and "size" in value and isinstance(digest, str)
    if is_file and HEX.fullmatch(str(digest).encode()):
        return bytes.fromhex(str(digest))
    return None


def add_names_in_store(store: ObjectStore, names: Names) -> None:
    """Add what records, pins and notes of the store itself name, and what named lists name in turn."""
    for prefix in RECORDS:
        keys = (i.key for i in store.list(prefix) if i.key.endswith(".json") and i.size <= MAX_RECORD_BYTES)
        for data in in_order(lambda key: _read(store, key), keys, WORKERS):
            names.add_document(data)
    for versions, digests in pinned(store):
        names.add_json(list(versions))
        for digest in digests:
            names.leaves.add(bytes.fromhex(digest))
    for info in store.list(LFS_ROOTS):
        names.add_text(info.key.rpartition("/")[2].encode())
    follow(store, names)


def follow(store: ObjectStore, names: Names) -> None:
    """Read every named blob that is JSON, and those that they name, until nothing new is named."""
    done = DigestSet()
    while True:
        fresh = [digest for digest in names.names if done.add(digest)]
        if not fresh:
            return
        for data in in_order(lambda digest: _read_list(store, digest.hex()), fresh, WORKERS):
            if data:
                names.add_document(data)


def _read(store: ObjectStore, key: str) -> bytes:
    try:
        return store.get(key)
    except ObjectNotFoundError:
        return b""


def _read_list(store: ObjectStore, digest: str) -> bytes:
    """Return a blob that may be a list of files; nothing for one that is missing, large or no JSON."""
    key = blob_key(digest)
    try:
        if store.get(key, length=1) not in (b"{", b"["):
            return b""
        info = store.head(key)
        return store.get(key) if info is not None and info.size <= MAX_LIST_BYTES else b""
    except ObjectNotFoundError:
        return b""
