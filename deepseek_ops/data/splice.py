"""A tree with some of its files replaced: pages without a change are taken over unread, and no bytes are moved.

Pages are cut where a path's own hash says so, so after the last change of a stretch the cuts soon fall where they fell
before. The result is the tree that storing the same files as a folder gives, whatever way led to it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence

from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.data.layout import tree_key
from deepseek_ops.data.packs import Stored
from deepseek_ops.data.pages import Entry, Location, PageRef, cut, encode_page, encode_tree, page_ref, tree_digest
from deepseek_ops.data.parallel import in_parallel
from deepseek_ops.data.trees import Tree

Edits = Mapping[str, Stored | None]
"""Path -> the file that is to be there, or None where there is to be none."""


def splice(store: ObjectStore, tree: Tree, edits: Edits, *, workers: int = 8) -> Tree:
    """Return the tree with these edits, stored. Only pages that hold an edited path, and a few after, are read.

    Without files the result is a tree without pages. Raises ObjectNotFoundError, IntegrityError.
    """
    if not edits:
        return tree
    pages: list[PageRef] = []
    fresh: list[tuple[PageRef, Sequence[Entry], Mapping[bytes, Location]]] = []
    for taken, entries, places in _runs(tree, edits):
        if taken is not None:
            pages.append(taken)
            continue
        for page in cut(entries):
            ref = page_ref(page)
            pages.append(ref)
            fresh.append((ref, page, places))
    shared = {page.digest for page in tree.pages}

    def put(item: tuple[PageRef, Sequence[Entry], Mapping[bytes, Location]]) -> None:
        ref, entries, places = item
        store.put_blob(tree_key(ref.digest), encode_page(entries, places))

    in_parallel(put, (item for item in fresh if item[0].digest not in shared), workers)
    digest = tree_digest(pages)
    store.put_blob(tree_key(digest), encode_tree(pages))
    return Tree(store, digest, pages, workers=workers)


def _runs(tree: Tree, edits: Edits) -> Iterator[tuple[PageRef | None, list[Entry], dict[bytes, Location]]]:
    """Yield pages to take over as they are, and runs of entries to cut again with the places of their files.

    A run goes on, page after page, until it ends where a page is cut anyway.
    """
    waiting = _by_page(tree, edits)
    entries: list[Entry] = []
    places: dict[bytes, Location] = {}
    for index, ref in enumerate(tree.pages):
        here = waiting.get(index, {})
        if not here and not entries:
            yield ref, [], {}
            continue
        page = tree.read_one(ref)
        old = {entry.path: Stored(entry, place) for entry, place in zip(page.entries, page.locations, strict=True)}
        files = {**old, **here}
        for path in sorted(files):
            file = files[path]
            if file is not None:
                entries.append(file.entry)
                places[file.entry.digest] = file.location
        if _ends_with_a_cut(entries):
            yield None, entries, places
            entries, places = [], {}
    rest = [file for _, file in sorted(waiting.get(0, {}).items()) if file is not None] if not tree.pages else []
    entries += [file.entry for file in rest]
    places |= {file.entry.digest: file.location for file in rest}
    if entries:
        yield None, entries, places


def _ends_with_a_cut(entries: list[Entry]) -> bool:
    """Return whether the next page of the old tree can begin right after these entries; true for none."""
    *_, last = cut([*entries, Entry("\U0010ffff", 0, b"", "")])
    return len(last) == 1


def _by_page(tree: Tree, edits: Edits) -> dict[int, dict[str, Stored | None]]:
    """Return the edits of each page, by its number in the tree."""
    firsts = [page.first for page in tree.pages]
    found: dict[int, dict[str, Stored | None]] = {}
    for path, file in edits.items():
        found.setdefault(max(bisect_right(firsts, path) - 1, 0), {})[path] = file
    return found
