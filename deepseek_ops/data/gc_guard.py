"""How writers and collectors keep out of each other's way, and why nothing that is referenced is ever deleted.

There is no lock and no compare-and-swap, only create-only puts, listing, deletion and the store's stamp on each object.

**Collector.** A *plan* lists candidates: objects that nothing reached and that are older than the grace. A *sweep*, at
the earliest after a second interval,

1. creates a marker, ``gc/open/<run>.<id>``, and keeps it fresh;
2. lists the writers' leases, and waits until those that may not know of the marker are released or have lapsed;
3. reads all roots again and marks what they reach;
4. asks for the stamp of each candidate that is still unreached, and deletes it if it is still older than the grace;
5. says ``done`` and removes the marker.

**Writer** (``writing``). It creates a lease, keeps it fresh, and then looks for markers. If it sees one it notes so
beside its lease, and touches none of that run's candidates, neither to rely on them nor to store them again, until the
marker is gone. It publishes (creates a ref, or returns digests) in three steps: the commit record, stored again just
now, says what is going to be published; the lease is checked against the record's stamp; the ref is created.

**Why it is right.** *Either sees the other.* The lease is written before markers are looked for, the marker before
leases are. So for any writer and any sweep, the writer saw the marker, or the sweep saw the lease, or both. A writer
that saw it relies on no candidate. One that did not is waited for: what it published is a root in step 3, and what it
stored has a new stamp in step 4. *A lease that lapses* does so by the store's clock: the collector first asks for the
time and then for the leases, so whom it holds for dead had not renewed by then. The writer compares stamps of its own
renewals and of the commit record: if they cover the record, nobody held it for dead before the record was there, and
so step 3 found the record: a commit record younger than the grace is a root, whether or not a ref names it. Then the
ref may come later, after a pause of any length below the grace. If they do not cover it, the writer takes a new lease
and looks whether everything it relies on is there (``RelianceLostError`` if not). *A collector that dies* leaves a
marker that is not kept fresh; the next one sweeps the run again under a marker of its own, from step 1. Two that sweep
one run at a time are as right as each of them: deleting twice is deleting once. A writer waits for an abandoned marker
for ``abandoned_seconds`` at most, withdraws its note, and looks again: a collector that took over meanwhile is seen,
one that does so later sees a lease without a note, and waits.

**What is left.** A deletion cannot be fenced in S3. A collector checks its own marker right before each request for
deletion; one that sleeps between that check and the request for longer than ``abandoned_seconds`` (an hour) could
delete what a writer has begun to rely on. And a writer that sleeps between its check and the creation of the ref for
longer than the grace (a week) could publish what was collected; it looks afterwards, and says so.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.core.errors import ObjectNotFoundError, TransientError
from deepseek_ops.core.ports import ObjectInfo, ObjectStore
from deepseek_ops.core.records import Digest, canonical_json
from deepseek_ops.data.gc_clock import local_time
from deepseek_ops.data.gc_digests import DigestSet
from deepseek_ops.data.gc_leases import DEFAULT_TIMES, GuardTimes, Lease
from deepseek_ops.data.gc_runs import key_of
from deepseek_ops.data.gc_whole import VersionGoneError, missing_parts
from deepseek_ops.data.layout import commit_key, tree_key

PINS = "leases/pins/"
REFS = ("refs/heads/", "refs/tags/")
CONFIRM_TRIES = 3


@dataclass(eq=False)
class RelianceLostError(TransientError):
    """A writer stood still for so long that a collection went on without it and deleted what it needed."""

    holder: str
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.holder} stood still and lost its lease, and {len(self.missing)} objects it relied on are gone "
            f"({', '.join(self.missing[:3])}); nothing was published, run it again."
        )


class GuardedStore:
    """The ObjectStore of one ``writing`` block: what goes through it is safe from collections. Thread-safe."""

    def __init__(self, store: ObjectStore, holder: str, times: GuardTimes) -> None:
        self.uri = store.uri
        self.store = store
        """The store behind it."""
        self._holder = holder
        self._times = times
        self._found = DigestSet()
        self._touched = DigestSet()
        self._last_put = ""
        self._last_put_took = 0.0
        self._published = False
        self._pinned = False
        self._lease = Lease(store, holder, times)

    # --- the port ---

    def create(self, key: str, data: bytes) -> None:
        """Store ``data`` if the key is free; a ref only when what it names is there and stays."""
        version = _version_in(data) if key.startswith(REFS) else None
        begun = local_time()
        if version is None:
            self.store.create(key, data)
            if key.startswith(PINS):
                self._last_put, self._last_put_took, self._pinned = key, local_time() - begun, True
            return
        self._confirm_version(version)
        self.store.create(key, data)
        self._published = True
        if local_time() - begun > self._times.pin_seconds / 2:
            self._require(missing_parts(self.store, version))

    def put_blob(self, key: str, source: bytes | Path) -> None:
        """Store content-addressed bytes once no collection is about to delete the key."""
        named = self._lease.wait_for(key)
        begun = local_time()
        self.store.put_blob(key, source)
        if named is not None:
            self._last_put, self._last_put_took = key, local_time() - begun
            self._published = False
            if named[0] == "objects":
                self._touched.add(named[1])

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Return the object, once no collection is about to delete it."""
        self._lease.wait_for(key)
        return self.store.get(key, start=start, length=length)

    def download(self, key: str, target: Path) -> None:
        """Write the object to ``target``, once no collection is about to delete it."""
        self._lease.wait_for(key)
        self.store.download(key, target)

    def head(self, key: str) -> ObjectInfo | None:
        """Return the object, once no collection is about to delete it: what is there now stays."""
        named = self._lease.wait_for(key)
        info = self.store.head(key)
        if named is not None and named[0] == "objects" and info is not None:
            self._touched.add(named[1])
            self._found.add(named[1])
        return info

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        """Yield what is there; that it is listed does not keep it."""
        return self.store.list(prefix, start_after=start_after, limit=limit)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove the objects."""
        self.store.delete(keys)

    # --- the protocol ---

    def _confirm_version(self, version: Digest) -> None:
        """Return when the version is announced by a fresh commit record that our lease covers."""
        key = commit_key(version)
        for _ in range(CONFIRM_TRIES):
            if self._last_put != key:
                self._announce(version)
            if self._covered(key):
                return
            self._renew()
            self._require(missing_parts(self, version))
            self._last_put = ""
        raise self._too_slow()

    def _announce(self, version: Digest) -> None:
        """Store the record of an old version again, which is to get a new name. Raises VersionGoneError."""
        key = commit_key(version)
        try:
            data = self.get(key)
        except ObjectNotFoundError:
            raise VersionGoneError(self.uri, (key,)) from None
        self.put_blob(key, data)
        root = tree_key(str(json.loads(data)["tree"]))
        if self.head(root) is None:  # the first thing to go when retention drops a version
            raise VersionGoneError(self.uri, (root,))

    def finish(self) -> None:
        """Make sure that what was stored or found outlives the block, for callers that return digests."""
        if self._published or not (len(self._found) or self._last_put):
            return
        for _ in range(CONFIRM_TRIES):
            if len(self._found) and not self._pinned:
                self._last_put, begun = f"{PINS}{secrets.token_hex(12)}", local_time()
                self.store.create(self._last_put, self._uses())
                self._last_put_took = local_time() - begun
            if self._covered(self._last_put):
                return
            self._pinned = False  # what was pinned may have been collected before the pin was seen
            self._renew()
            keys = [key_of("objects", digest) for digest in self._touched]
            self._require(tuple(key for key in keys if self.head(key) is None))
        raise self._too_slow()

    def _covered(self, key: str) -> bool:
        """Return whether nobody held us for dead when the object that we have just stored could be seen."""
        info = self.store.head(key)
        return info is not None and self._lease.covers(info.modified + self._last_put_took)

    def _too_slow(self) -> RelianceLostError:
        return RelianceLostError(self._holder, (f"{self._lease.key} (renewed too slowly)",))

    def _uses(self) -> bytes:
        digests = [digest.hex() for digest in self._found]
        return canonical_json({"holder": self._holder, "seconds": self._times.pin_seconds, "digests": list(digests)})

    def _require(self, missing: Sequence[str]) -> None:
        if missing:
            raise RelianceLostError(self._holder, tuple(missing))

    def _renew(self) -> None:
        """Start again with a new lease: the old one may have been taken for dead."""
        self._lease.release()
        self._lease = Lease(self.store, self._holder, self._times)

    def release(self) -> None:
        """Give up the lease."""
        self._lease.release()


@contextmanager
def writing(store: ObjectStore, *, holder: str = "", times: GuardTimes = DEFAULT_TIMES) -> Iterator[GuardedStore]:
    """Yield a store through which to write: nothing that goes through it is collected before it is referenced.

    ``holder`` says who it is, for people. Inside another ``writing`` block the same store comes back. Raises
    SweepUnderWayError from any of its methods, RelianceLostError when refs are created and at the end.
    """
    if isinstance(store, GuardedStore):
        yield store
        return
    guarded = GuardedStore(store, holder or "a writer", times)
    try:
        yield guarded
        guarded.finish()
    finally:
        guarded.release()


def _version_in(data: bytes) -> Digest | None:
    """Return the version that a ref entry names, or None when it names none."""
    try:
        body = json.loads(data)
    except ValueError:
        return None
    version = body.get("version") if isinstance(body, dict) else None
    return version if isinstance(version, str) and len(version) == 64 else None
