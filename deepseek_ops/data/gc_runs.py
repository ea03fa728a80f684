"""What collectors leave in a store: plans, markers of sweeps that are under way, and what came of them.

::

    gc/runs/<run>/candidates/<n>   sorted rows of 40 bytes: digest, size. Written before the plan that names them
    gc/runs/<run>/plan.json        the plan; without it the run was killed and counts for nothing
    gc/runs/<run>/done.json        what the sweep did; the plan is settled
    gc/open/<run>.<id>             a sweep of the run is under way; kept fresh while it is

A run's name begins with the store's time, so that runs sort by age.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import suppress
from typing import Literal

from pydantic import Field

from deepseek_ops.core.errors import IntegrityError, ObjectExistsError, ObjectNotFoundError
from deepseek_ops.core.objects import blob_key
from deepseek_ops.core.ports import ObjectInfo, ObjectStore
from deepseek_ops.core.records import Digest, Record, canonical_json, digest_of
from deepseek_ops.data.gc_clock import store_time
from deepseek_ops.data.gc_digests import find_row
from deepseek_ops.data.layout import commit_key, pack_key, tree_key
from deepseek_ops.data.pages import DIGEST_BYTES

RUNS = "gc/runs/"
OPEN = "gc/open/"
ROW_BYTES = DIGEST_BYTES + 8
PAGE_ROWS = 20_000

Kind = Literal["roots", "commits", "trees", "packs", "objects"]
KINDS: tuple[Kind, ...] = ("roots", "commits", "trees", "packs", "objects")
"""In the order in which a sweep deletes: what names comes before what is named. ``roots`` are root pages."""

_PREFIXES: dict[str, Kind] = {
    "objects/sha256/": "objects",
    "packs/": "packs",
    "trees/": "trees",
    "commits/": "commits",
}


class CandidatePage(Record):
    """One object full of candidates."""

    key: str
    kind: Kind
    first: Digest
    last: Digest
    digest: Digest
    rows: int = Field(ge=1)


class Tally(Record):
    """How many objects, and how many bytes."""

    objects: int = 0
    bytes: int = 0

    def plus(self, size: int) -> Tally:
        """Return the tally with one more object."""
        return Tally(objects=self.objects + 1, bytes=self.bytes + size)


class Plan(Record):
    """``plan.json``."""

    run: str
    pages: tuple[CandidatePage, ...]
    candidates: dict[str, Tally] = Field(description="By kind.")
    settle_seconds: float = Field(ge=0, description="A sweep begins no earlier than so long after the plan.")


def kind_of(key: str) -> tuple[Kind, bytes] | None:
    """Return kind and digest of a content-addressed key, or None for any other key."""
    name = key.rpartition("/")[2]
    for prefix, kind in _PREFIXES.items():
        if key.startswith(prefix) and len(name) == 2 * DIGEST_BYTES:
            try:
                return kind, bytes.fromhex(name)
            except ValueError:
                return None
    return None


def key_of(kind: Kind, digest: bytes) -> str:
    """Return the key of an object."""
    make = {"roots": tree_key, "trees": tree_key, "commits": commit_key, "packs": pack_key, "objects": blob_key}
    return make[kind](digest.hex())


def new_run(now: float) -> str:
    """Return a name for a run that begins now, by the store's clock."""
    return f"{int(now):011d}-{secrets.token_hex(4)}"


class CandidateWriter:
    """Writes candidates in pages. Rows of a kind come in ascending order of their digests."""

    def __init__(self, store: ObjectStore, run: str) -> None:
        self._store = store
        self._run = run
        self._rows: dict[Kind, bytearray] = {}
        self._pages: list[CandidatePage] = []

    def add(self, kind: Kind, digest: bytes, size: int) -> None:
        """Add a row; a full page is written."""
        rows = self._rows.setdefault(kind, bytearray())
        rows += digest + size.to_bytes(8)
        if len(rows) >= PAGE_ROWS * ROW_BYTES:
            self._write(kind)

    def finish(self) -> tuple[CandidatePage, ...]:
        """Write what is left and return every page, in the order in which a sweep deletes."""
        for kind in KINDS:
            self._write(kind)
        return tuple(sorted(self._pages, key=lambda page: (KINDS.index(page.kind), page.first)))

    def _write(self, kind: Kind) -> None:
        data = bytes(self._rows.pop(kind, b""))
        if not data:
            return
        page = CandidatePage(
            key=f"{RUNS}{self._run}/candidates/{len(self._pages):06d}",
            kind=kind,
            first=data[:DIGEST_BYTES].hex(),
            last=data[-ROW_BYTES:-8].hex(),
            digest=digest_of(data),
            rows=len(data) // ROW_BYTES,
        )
        self._store.create(page.key, data)
        self._pages.append(page)


def read_page(store: ObjectStore, page: CandidatePage) -> bytes:
    """Return the rows of a page. Raises IntegrityError, ObjectNotFoundError."""
    data = store.get(page.key)
    if (actual := digest_of(data)) != page.digest:
        raise IntegrityError(f"{store.uri}/{page.key}", page.digest, actual)
    return data


def rows_of(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield digest and size of each row."""
    for at in range(0, len(data), ROW_BYTES):
        yield data[at : at + DIGEST_BYTES], int.from_bytes(data[at + DIGEST_BYTES : at + ROW_BYTES])


def write_plan(store: ObjectStore, plan: Plan) -> None:
    """Store the plan: from now on it can be swept."""
    store.create(f"{RUNS}{plan.run}/plan.json", canonical_json(plan.dump()))


def read_plan(store: ObjectStore, run: str) -> tuple[Plan, float]:
    """Return a plan and when it was stored, by the store's clock. Raises ObjectNotFoundError."""
    key = f"{RUNS}{run}/plan.json"
    plan = Plan.load(json.loads(store.get(key)))
    info = store.head(key)
    if info is None:
        raise ObjectNotFoundError(f"{store.uri}/{key}")
    return plan, info.modified


def settle(store: ObjectStore, run: str, report: Record) -> None:
    """Say that a run is over and remove its candidates; doing it twice changes nothing."""
    with suppress(ObjectExistsError):
        store.create(f"{RUNS}{run}/done.json", canonical_json(report.dump()))
    store.delete([info.key for info in store.list(f"{RUNS}{run}/candidates/")])


def is_settled(store: ObjectStore, run: str) -> bool:
    """Return whether a run is over."""
    return store.head(f"{RUNS}{run}/done.json") is not None


def run_objects(store: ObjectStore) -> dict[str, list[ObjectInfo]]:
    """Return the objects of every run by its name, oldest run first."""
    found: dict[str, list[ObjectInfo]] = {}
    for info in store.list(RUNS):
        found.setdefault(info.key.removeprefix(RUNS).partition("/")[0], []).append(info)
    return found


def pending_runs(store: ObjectStore) -> list[str]:
    """Return the runs that have a plan and are not settled, oldest first."""
    names = {run: {info.key.rpartition("/")[2] for info in infos} for run, infos in run_objects(store).items()}
    return [run for run, found in names.items() if "plan.json" in found and "done.json" not in found]


def open_markers(store: ObjectStore, run: str = "") -> list[ObjectInfo]:
    """Return the markers of sweeps under way, or of one run's."""
    return list(store.list(f"{OPEN}{run}"))


def new_marker(run: str) -> str:
    """Return a key for a marker."""
    return f"{OPEN}{run}.{secrets.token_hex(8)}"


def run_of(marker: str) -> str:
    """Return the run of a marker's key."""
    return marker.removeprefix(OPEN).partition(".")[0]


def is_abandoned(store: ObjectStore, marker: str) -> bool:
    """Return whether a marker was not kept fresh for so long that its collector must be dead. False when it is gone."""
    now = store_time(store)
    info = store.head(marker)  # after the time was asked for: see gc_clock
    if info is None:
        return False
    try:
        body = json.loads(store.get(marker))
    except ObjectNotFoundError:
        return False
    return now - info.modified > float(body["abandoned_seconds"])


class Candidates:
    """The candidates of one run, read as they are asked for."""

    def __init__(self, store: ObjectStore, plan: Plan) -> None:
        self._store = store
        self._plan = plan
        self._read: dict[str, bytes] = {}

    def __contains__(self, item: tuple[Kind, bytes]) -> bool:
        kind, digest = item
        name = digest.hex()
        kinds = ("trees", "roots") if kind == "trees" else (kind,)
        for page in self._plan.pages:
            if page.kind in kinds and page.first <= name <= page.last:
                if page.key not in self._read:
                    self._read[page.key] = read_page(self._store, page)
                if find_row(self._read[page.key], ROW_BYTES, digest) is not None:
                    return True
        return False
