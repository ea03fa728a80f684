"""Whether a version is all there: by what its pages name, without reading the files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from deepseek_ops.core.errors import ObjectNotFoundError, PermanentError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest
from deepseek_ops.data.layout import blob_key, commit_key, pack_key, tree_key
from deepseek_ops.data.pages import LOOSE, Page, decode_page, decode_tree
from deepseek_ops.data.parallel import in_order

WORKERS = 8


@dataclass(eq=False)
class VersionGoneError(PermanentError):
    """What was to be kept or named is not there, or not whole."""

    uri: str
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.missing)} objects that are to be kept or named are not in {self.uri} any more "
            f"({', '.join(self.missing[:3])}): retention has dropped them; choose a version that is still there."
        )


def missing_parts(store: ObjectStore, version: Digest) -> tuple[str, ...]:
    """Return the keys of what the version needs and the store has not: commit, root, pages, packs, objects.

    Raises IntegrityError for a page that is damaged.
    """
    missing: list[str] = []
    needed: set[str] = set()
    try:
        tree = str(json.loads(store.get(commit_key(version)))["tree"])
    except ObjectNotFoundError:
        return (commit_key(version),)
    try:
        pages = decode_tree(store.get(tree_key(tree)), tree)
    except ObjectNotFoundError:
        return (tree_key(tree),)

    def read(digest: Digest) -> Page | None:
        try:
            return decode_page(store.get(tree_key(digest)), digest)
        except ObjectNotFoundError:
            return None

    digests = [page.digest for page in pages]
    for digest, page in zip(digests, in_order(read, digests, WORKERS), strict=True):
        if page is None:
            missing.append(tree_key(digest))
        else:
            needed.update(_content_keys(page))
    for key, there in zip(sorted(needed), in_order(store.head, sorted(needed), WORKERS), strict=True):
        if there is None:
            missing.append(key)
    return tuple(missing)


def _content_keys(page: Page) -> Iterator[str]:
    for entry, location in zip(page.entries, page.locations, strict=True):
        yield blob_key(entry.digest.hex()) if location == LOOSE else pack_key(location.pack.hex())
