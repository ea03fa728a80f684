"""A folder's files in runs that are the pages they will become: which ones, from the names alone."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from deepseek_ops.core.records import Digest
from deepseek_ops.data.folders import STAT_FIELDS, Run
from deepseek_ops.data.pages import MAX_ENTRIES, Location, page_ends
from deepseek_ops.data.statcache import Chunk


@dataclass(slots=True)
class Listing:
    """The files of one page on their way into the store."""

    names: list[str]
    stats: array[int]
    sizes: list[int]
    exact: Chunk | None = None
    """What the stat cache knows of exactly these files."""
    near: list[Chunk] = field(default_factory=list)
    """What else in it may know some of them."""
    digests: list[bytes | None] = field(default_factory=list)
    places: list[Location | int | None] = field(default_factory=list)
    """Where each content lies: in the store, or (a number) in a pack that is not up yet."""
    known: dict[bytes, Location] = field(default_factory=dict)
    """Where contents lie that the parent has in this stretch of paths."""
    unread: int = 0
    """Files that are still to be read."""
    sending: list[Future[None]] = field(default_factory=list)
    """Large files on their way."""
    newest_place: int = -1
    """The last place in a pack that is not up yet."""
    recalled: bool = False
    """Something of it was stored by a commit that did not end."""
    splits: list[str] = field(default_factory=list)
    """Empty when no file has one."""
    page: Digest = ""
    """Its id, once that is known."""

    def forget(self) -> None:
        """Drop what only reading needs, once everything is read: many pages may wait for their packs."""
        if not self.unread and not self.sending:
            self.known, self.near = {}, []

    def stat(self, index: int) -> array[int]:
        """Return the stat fields of one file."""
        return self.stats[index * STAT_FIELDS : (index + 1) * STAT_FIELDS]


def listings(runs: Iterable[Run]) -> Iterator[Listing]:
    """Yield the files in listings that end where pages end."""
    names: list[str] = []
    stats = array("q")
    for run in runs:
        start = 0
        for end in [*page_ends(run.names), len(run.names)]:
            names += run.names[start:end]
            stats += run.stats[start * STAT_FIELDS : end * STAT_FIELDS]
            closed = end > start and (end < len(run.names) or _ends_here(run.names))
            while len(names) >= MAX_ENTRIES:
                yield _listing(names[:MAX_ENTRIES], stats[: MAX_ENTRIES * STAT_FIELDS])
                names, stats = names[MAX_ENTRIES:], stats[MAX_ENTRIES * STAT_FIELDS :]
            if closed and names:
                yield _listing(names, stats)
                names, stats = [], array("q")
            start = end
    if names:
        yield _listing(names, stats)


def _ends_here(names: list[str]) -> bool:
    return bool(page_ends(names[-1:]))


def _listing(names: list[str], stats: array[int]) -> Listing:
    return Listing(names, stats, stats[::STAT_FIELDS].tolist())
