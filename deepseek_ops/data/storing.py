"""The pages of a folder on their way into the store, reading and sending only what the parent does not have.

The folder comes in path order, cut into pages by names alone. A page of which the stat cache and the parent say that
nothing changed costs a comparison. Of the others, files that the cache does not know are read and hashed, and small
ones that nobody has stored go into packs as they were hashed: what is stored under a digest is what was read, also
when somebody writes to the folder meanwhile. A page goes up after the packs it names. Few pages and packs are in
memory at any time, however many files there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest
from deepseek_ops.data.folders import ChangedWhileReadError
from deepseek_ops.data.hashing import Hashed, LargeFiles, SmallFiles
from deepseek_ops.data.layout import pack_key, tree_key
from deepseek_ops.data.listing import Listing
from deepseek_ops.data.packs import PackWriter
from deepseek_ops.data.pages import LOOSE_BYTES, Location, PageRef, column_digest, encode_columns
from deepseek_ops.data.progress import Meter
from deepseek_ops.data.statcache import Chunk, StatCache
from deepseek_ops.data.trees import Tree

PAGES_AHEAD = 8
"""Pages for which the parent's are being read."""
PAGES_BEHIND = 16
"""Pages that may wait for what is on its way before the scan does."""
PAGES_WAITING = 128
"""Pages that may wait for an open pack to be filled before it is sent as it is; each holds about 1 MB."""


class PageStore:
    """Stores the pages of one folder, taken in path order. A context manager."""

    def __init__(
        self,
        store: ObjectStore,
        parent: Tree,
        cache: StatCache,
        packs: PackWriter,
        small: SmallFiles,
        large: LargeFiles,
        *,
        splits: Callable[[str], str] | None,
        workers: int,
        meter: Meter,
    ) -> None:
        self._store = store
        self._parent = parent
        self._shared = {page.digest for page in parent.pages}
        self._cache = cache
        self._packs = packs
        self._small = small
        self._large = large
        self._split_of = splits
        self._workers = workers
        self._meter = meter
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pages")
        self._pack_sizes: dict[bytes, int] = {}
        self._left: dict[bytes, Location] | None = None
        self._ahead: deque[tuple[Listing, Future[dict[bytes, Location]] | None]] = deque()
        self._behind: deque[Listing] = deque()
        self._puts: deque[Future[None]] = deque()
        self._pages: list[PageRef] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, listing: Listing) -> None:
        """Store the next page; raises what reading and sending files raises, also of earlier pages."""
        listing.exact, near = self._cache.look_up(listing.names, listing.stats)
        listing.splits = self._splits(listing)
        page = "" if listing.exact is None else self._known_page(listing, listing.exact)
        if page in self._shared:
            listing.page = page
            self._ahead.append((listing, None))
        else:
            listing.near = list(near)
            parents = self._parent.overlapping(listing.names[0], listing.names[-1])
            self._ahead.append((listing, self._pool.submit(self._places, parents) if parents else None))
        while len(self._ahead) > PAGES_AHEAD:
            self._begin(*self._ahead.popleft())

    def finish(self) -> list[PageRef]:
        """Return the lines of the root page, once all pages are stored."""
        while self._ahead:
            self._begin(*self._ahead.popleft())
        self._pack(self._small.rest())
        self._packs.close_pack()
        while self._behind:
            self._end(self._behind.popleft())
        while self._puts:
            self._puts.popleft().result()
        return self._pages

    def _known_page(self, listing: Listing, chunk: Chunk) -> Digest:
        if chunk.page and not listing.splits:
            return chunk.page
        return column_digest(listing.names, listing.sizes, chunk.contents(), listing.splits)

    def _splits(self, listing: Listing) -> list[str]:
        splits = [] if self._split_of is None else list(map(self._split_of, listing.names))
        return splits if any(splits) else []

    def _places(self, parents: Iterable[PageRef]) -> dict[bytes, Location]:
        places: dict[bytes, Location] = {}
        for ref in parents:
            places |= self._parent.read_one(ref).places()
        return places

    def _begin(self, listing: Listing, parents: Future[dict[bytes, Location]] | None) -> None:
        """Find out which files of a page must be read, and have them read."""
        if not listing.page:
            listing.known = parents.result() if parents else {}
            listing.digests = self._cached_digests(listing)
            listing.places = [None if digest is None else listing.known.get(digest) for digest in listing.digests]
            missing = [index for index, place in enumerate(listing.places) if place is None]
            self._recall(listing, missing)
            missing = [index for index in missing if listing.places[index] is None]
            small = [index for index in missing if listing.sizes[index] < LOOSE_BYTES]
            listing.unread = len(small)
            for index in missing:
                if listing.sizes[index] >= LOOSE_BYTES:
                    self._large.send(listing, index)
            self._behind.append(listing)
            if self._left is None:
                self._left = self._cache.left_places(self._store.uri)
            self._pack(self._small.read(listing, small))
            listing.forget()
        else:
            self._behind.append(listing)
        self._settle()

    def _cached_digests(self, listing: Listing) -> list[bytes | None]:
        if listing.exact is not None:
            return list(listing.exact.contents())
        return self._cache.digests(listing.near, listing.names, listing.stats)

    def _recall(self, listing: Listing, missing: list[int]) -> None:
        """Find contents that the parent has not, in packs of this commit and of one that did not end."""
        wanted = {digest for index in missing if (digest := listing.digests[index]) is not None}
        if not wanted:
            return
        hints: dict[bytes, Location] = {}
        for chunk in listing.near:
            if chunk.store == self._store.uri:
                hints |= {digest: place for digest, place in chunk.places().items() if place.pack and digest in wanted}
        for index in missing:
            digest = listing.digests[index]
            if digest is None:
                continue
            hint = hints.get(digest)
            if hint is not None and hint.offset + listing.sizes[index] <= self._pack_size(hint.pack):
                listing.places[index] = hint
                listing.recalled = True
            else:
                self._put_at(listing, index, self._packs.place(digest))

    def _pack_size(self, pack: bytes) -> int:
        """Return the size of a pack in the store, -1 when it is not there; the store is asked once in a commit."""
        if pack not in self._pack_sizes:
            info = self._store.head(pack_key(pack.hex()))
            self._pack_sizes[pack] = -1 if info is None else info.size
        return self._pack_sizes[pack]

    def _pack(self, results: Iterable[Hashed]) -> None:
        packs = self._packs
        for listing, files in results:
            known, digests = listing.known, listing.digests
            for index, digest, data in files:
                if digests[index] is None:
                    digests[index] = digest
                elif digests[index] != digest:  # the cache was wrong about it
                    raise ChangedWhileReadError(listing.names[index])
                if digest in known:
                    listing.places[index] = known[digest]
                elif self._left and (left := self._left_place(digest, len(data))) is not None:
                    listing.places[index] = left
                else:
                    stored = packs.place(digest)
                    self._put_at(listing, index, packs.add(digest, data) if stored is None else stored)
            listing.unread -= len(files)
            listing.forget()

    def _left_place(self, digest: bytes, size: int) -> Location | None:
        """Return where a commit that did not end has put a content, if the store still has it."""
        place = (self._left or {}).get(digest)
        return place if place is not None and place.offset + size <= self._pack_size(place.pack) else None

    def _put_at(self, listing: Listing, index: int, place: int | None) -> None:
        listing.places[index] = place
        if place is not None and place > listing.newest_place:
            listing.newest_place = place

    def _settle(self) -> None:
        """Store the pages at the front of which everything is up; wait for them when too many stand behind."""
        while self._behind:
            listing = self._behind[0]
            if listing.unread:
                return
            if not self._packs.closed(listing.newest_place):
                if len(self._behind) <= PAGES_WAITING:
                    return
                self._packs.close_pack()
            on_its_way = not self._packs.sent(listing.newest_place) or not all(f.done() for f in listing.sending)
            if on_its_way and len(self._behind) <= PAGES_BEHIND:
                return
            self._end(self._behind.popleft())

    def _end(self, listing: Listing) -> None:
        """Store a page whose contents are up, or soon will be."""
        num_files, num_bytes = len(listing.names), sum(listing.sizes)
        for sending in listing.sending:
            sending.result()
        if listing.exact is not None and listing.page:
            self._cache.keep(listing.exact)
        else:
            self._store_page(listing)
        self._pages.append(PageRef(listing.names[0], num_files, num_bytes, listing.page))
        self._meter.add(num_files, num_bytes)

    def _store_page(self, listing: Listing) -> None:
        digests = [digest for digest in listing.digests if digest is not None]
        listing.page = column_digest(listing.names, listing.sizes, digests, listing.splits)
        places = self._packs.locations([place for place in listing.places if place is not None])
        if listing.page not in self._shared:
            while len(self._puts) > 2 * self._workers:
                self._puts.popleft().result()
            data = encode_columns(listing.names, listing.sizes, digests, listing.splits, places)
            again = listing.recalled and listing.newest_place < 0 and not listing.sending
            self._puts.append(self._pool.submit(self._put_page, listing.page, data, again))
        plain = "" if listing.splits else listing.page
        self._cache.remember(listing.names, listing.stats, digests, places, page=plain, store=self._store.uri)

    def _put_page(self, page: Digest, data: bytes, again: bool) -> None:
        if again:  # a commit that did not end may have got so far
            info = self._store.head(tree_key(page))
            if info is not None and info.size == len(data):
                return
        self._store.put_blob(tree_key(page), data)
