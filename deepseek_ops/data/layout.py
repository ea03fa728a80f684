"""Where everything lies in a store, and whether a store may be used at all.

::

    store.json                                format and digest; made once
    objects/sha256/ab/cd/<hex>                files of 1 MiB and more, and everything Git LFS pushes
    packs/<hex>                               small files end to end, about 12 MiB each; pages say what lies where
    trees/<hex>                               manifest pages of about 2,048 files, and one root page for each tree
    commits/<hex>                             what a version is: tree, parents, author, message, counts, lineage
    refs/tags/<name>                          create-only: a tag never moves
    refs/heads/<dataset>/<branch>/<inverted>  create-only log of a branch; the newest entry sorts first

Nothing is ever written twice with other bytes, so a store needs one ability beyond put and get: to refuse a second
create of a key. Most servers that speak S3 answer 200 there and overwrite; ``require_format`` asks before first use.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass

from pydantic import JsonValue

from deepseek_ops.core.errors import ObjectExistsError, ObjectNotFoundError, PermanentError
from deepseek_ops.core.objects import blob_key
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest, canonical_json

__all__ = ["blob_key", "commit_key", "creates_once", "pack_key", "require_format", "tree_key"]

FORMAT = "deepseek-ops-store/1"
STORE_KEY = "store.json"


@dataclass(eq=False)
class UnsafeStoreError(PermanentError):
    """The store lets two writers create one key."""

    uri: str

    def __str__(self) -> str:
        return (
            f"object store {self.uri} overwrites a key that was to be created only once, so concurrent writers would "
            "lose data; use a store that honours If-None-Match, or open it with single_writer=True."
        )


@dataclass(eq=False)
class UnknownFormatError(PermanentError):
    """The store was made by something else."""

    uri: str
    found: str

    def __str__(self) -> str:
        return f"{self.uri}/{STORE_KEY} has format {self.found}, this version reads {FORMAT}; choose another prefix."


def pack_key(digest: Digest) -> str:
    """Return the key of a pack."""
    return f"packs/{digest}"


def tree_key(digest: Digest) -> str:
    """Return the key of a page or a root page."""
    return f"trees/{digest}"


def commit_key(digest: Digest) -> str:
    """Return the key of a commit."""
    return f"commits/{digest}"


def require_format(store: ObjectStore, *, single_writer: bool = False) -> None:
    """Make sure the store has our format and keeps what it must; the first call on an empty one marks it.

    Raises UnsafeStoreError, UnknownFormatError.
    """
    described = _described(store)
    if described is None:
        safe = creates_once(store)
        if not safe and not single_writer:
            raise UnsafeStoreError(store.uri)
        body: dict[str, JsonValue] = {"create_only": safe, "digest": "sha256", "format": FORMAT}
        try:
            store.create(STORE_KEY, canonical_json(body))
        except ObjectExistsError:
            described = _described(store)
        else:
            return
    if described is not None and not described.get("create_only") and not single_writer:
        raise UnsafeStoreError(store.uri)


def _described(store: ObjectStore) -> dict[str, JsonValue] | None:
    try:
        data = store.get(STORE_KEY)
    except ObjectNotFoundError:
        return None
    try:
        body = json.loads(data)
    except ValueError:
        body = None
    if not isinstance(body, dict) or body.get("format") != FORMAT or body.get("digest") != "sha256":
        found = body.get("format") if isinstance(body, dict) else None
        raise UnknownFormatError(store.uri, repr(found))
    return body


def creates_once(store: ObjectStore) -> bool:
    """Return whether the store refuses a second create of a key and keeps the first one's bytes."""
    key = f"probe/{secrets.token_hex(16)}"
    store.create(key, b"first")
    try:
        store.create(key, b"second")
    except ObjectExistsError:
        return store.get(key) == b"first"
    else:
        return False
    finally:
        store.delete([key])
