"""Trees of a store: reading only the pages that matter, and comparing two versions by what they do not share."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest
from deepseek_ops.data.layout import tree_key
from deepseek_ops.data.pages import Entry, Page, PageRef, decode_page, decode_tree
from deepseek_ops.data.parallel import in_parallel


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
        self._workers = workers
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
            lambda page: decode_page(self._store.get(tree_key(page.digest)), page.digest), pages, self._workers
        )

    def read_one(self, page: PageRef) -> Page:
        """Read one page. Raises ObjectNotFoundError, IntegrityError."""
        return decode_page(self._store.get(tree_key(page.digest)), page.digest)

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
    """Return what changed from one tree to another; pages they share are not read."""
    shared = {page.digest for page in old.pages} & {page.digest for page in new.pages}
    before = _entries(old, shared)
    after = _entries(new, shared)
    return DatasetDiff(
        added=tuple(sorted(after.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - after.keys())),
        modified=tuple(sorted(path for path in before.keys() & after.keys() if before[path] != after[path])),
    )


def _entries(tree: Tree, shared: set[Digest]) -> dict[str, Entry]:
    pages = tree.read(page for page in tree.pages if page.digest not in shared)
    return {entry.path: entry for entry in chain.from_iterable(page.entries for page in pages)}
