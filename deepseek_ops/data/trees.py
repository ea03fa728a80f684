"""Trees of a store: reading only the pages that matter, and comparing two versions by what they do not share."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest
from deepseek_ops.data.layout import tree_key
from deepseek_ops.data.pages import Page, PageRef, decode_page, decode_tree
from deepseek_ops.data.parallel import in_order, in_parallel

Row = tuple[str, int, bytes, str]
"""Path, size, digest and split of a file."""


@dataclass(frozen=True, slots=True)
class DatasetDiff:
    """Paths that differ between two versions, each sorted."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    modified: tuple[str, ...]
    """Other bytes, or another split."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.modified)


class Tree:
    """A tree whose root page is read; pages are read on demand."""

    def __init__(self, store: ObjectStore, digest: Digest, pages: Sequence[PageRef], *, workers: int = 8) -> None:
        self.digest = digest
        self.pages = tuple(pages)
        self._store = store
        self.workers = workers
        self._firsts = [page.first for page in pages]

    @classmethod
    def load(cls, store: ObjectStore, digest: Digest) -> Tree:
        """Read a root page. Raises ObjectNotFoundError, IntegrityError."""
        return cls(store, digest, decode_tree(store.get(tree_key(digest)), digest))

    @classmethod
    def empty(cls, store: ObjectStore) -> Tree:
        """Return a tree without files, which is stored nowhere."""
        return cls(store, "", [])

    @property
    def num_files(self) -> int:
        return sum(page.num_files for page in self.pages)

    @property
    def num_bytes(self) -> int:
        return sum(page.num_bytes for page in self.pages)

    def read(self, pages: Iterable[PageRef]) -> list[Page]:
        """Read these pages at once. Raises ObjectNotFoundError, IntegrityError."""
        return in_parallel(
            lambda page: decode_page(self._store.get(tree_key(page.digest)), page.digest), pages, self.workers
        )

    def read_one(self, page: PageRef) -> Page:
        """Read one page. Raises ObjectNotFoundError, IntegrityError."""
        return decode_page(self.fetch(page), page.digest)

    def fetch(self, page: PageRef) -> bytes:
        """Return a page as it is stored. Raises ObjectNotFoundError."""
        return self._store.get(tree_key(page.digest))

    def holding(self, paths: Iterable[str]) -> list[PageRef]:
        """Return the pages in which the paths are, or would be."""
        found = {max(bisect_right(self._firsts, path) - 1, 0) for path in paths}
        return [self.pages[index] for index in sorted(found)] if self.pages else []

    def overlapping(self, first: str, last: str) -> list[PageRef]:
        """Return the pages that can hold paths from ``first`` to ``last``."""
        begin = max(bisect_right(self._firsts, first) - 1, 0)
        return list(self.pages[begin : bisect_right(self._firsts, last)])

    def below(self, prefix: str) -> list[PageRef]:
        """Return the pages that can hold paths that start with ``prefix``."""
        begin = max(bisect_right(self._firsts, prefix) - 1, 0)
        return list(self.pages[begin : bisect_left(self._firsts, prefix + "\U0010ffff")])


def diff(old: Tree, new: Tree) -> DatasetDiff:
    """Return what changed from one tree to another; pages they share are not read, and few of the others held at once.

    Pages of both trees come in the order of their first path. Rows that are in both cancel as they meet; what is left
    when the pages have moved past a path is a difference.
    """
    added: list[str] = []
    removed: list[str] = []
    modified: list[str] = []
    before: set[Row] = set()
    after: set[Row] = set()

    def settle(until: str | None) -> None:
        gone = {row[0] for row in before if until is None or row[0] < until}
        come = {row[0] for row in after if until is None or row[0] < until}
        added.extend(come - gone)
        removed.extend(gone - come)
        modified.extend(gone & come)
        before.difference_update([row for row in before if row[0] in gone])
        after.difference_update([row for row in after if row[0] in come])

    for first, is_new, rows in _unshared(old, new):
        settle(first)
        mine, other = (after, before) if is_new else (before, after)
        mine |= rows - other
        other -= rows
    settle(None)
    return DatasetDiff(tuple(sorted(added)), tuple(sorted(removed)), tuple(sorted(modified)))


def _unshared(old: Tree, new: Tree) -> Iterator[tuple[str, bool, set[Row]]]:
    """Yield first path, side and rows of the pages that only one tree has, by first path."""
    shared = {page.digest for page in old.pages} & {page.digest for page in new.pages}
    sides = ((page, tree is new) for tree in (old, new) for page in tree.pages if page.digest not in shared)
    pages = sorted(sides, key=lambda side: (side[0].first, side[1]))

    def fetch(side: tuple[PageRef, bool]) -> tuple[PageRef, bool, bytes]:
        ref, is_new = side
        return ref, is_new, (new if is_new else old).fetch(ref)

    # Threads wait for the store; unpacking is the interpreter's work, and they would fight over it.
    for ref, is_new, data in in_order(fetch, pages, min(old.workers, 4)):
        yield ref.first, is_new, set(decode_page(data, ref.digest).rows())
