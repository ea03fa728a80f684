"""Pins: versions and files that stay although nothing names them, for as long as somebody needs them.

A run that reads a version, or that has digests in its hands and in no record yet, pins them. A pin ends by itself when
it is not renewed; a collection treats what a living pin names as referenced.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from deepseek_ops.core.errors import ObjectNotFoundError, TransientError
from deepseek_ops.core.objects import blob_key
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest, canonical_json
from deepseek_ops.data.gc_clock import SLACK, store_time
from deepseek_ops.data.gc_guard import PINS, writing
from deepseek_ops.data.gc_leases import DEFAULT_TIMES, PIN_SECONDS, GuardTimes
from deepseek_ops.data.gc_whole import VersionGoneError, missing_parts


@dataclass(eq=False)
class PinLapsedError(TransientError):
    """A pin was renewed too late: what it kept may have been collected."""

    holder: str
    seconds: float

    def __str__(self) -> str:
        return f"the pin of {self.holder} was not renewed within {self.seconds:.0f} s; pin again, which checks."


@dataclass
class Pin:
    """One pin. ``renew`` well within ``seconds``; ``release`` when done."""

    store: ObjectStore
    key: str
    holder: str
    seconds: float
    data: bytes = field(repr=False)
    last: float
    """When it was last renewed, by the store's clock."""

    def renew(self) -> None:
        """Keep the pin for another ``seconds``. Raises PinLapsedError when it had ended already."""
        self.store.put_blob(self.key, self.data)
        info = self.store.head(self.key)
        late = info is None or info.modified > self.last + self.seconds * (1 - SLACK)
        if late or info is None:
            raise PinLapsedError(self.holder, self.seconds)
        self.last = info.modified

    def release(self) -> None:
        """End the pin; doing it twice is no error."""
        self.store.delete([self.key])


def pin(
    store: ObjectStore,
    version: Digest = "",
    *,
    holder: str,
    seconds: float = PIN_SECONDS,
    digests: Sequence[Digest] = (),
    times: GuardTimes = DEFAULT_TIMES,
) -> Pin:
    """Keep a version (and files, by digest) for ``seconds``, and return the pin that can be renewed.

    Raises VersionGoneError when part of it is not there: a version that retention has dropped cannot be brought back.
    """
    key = f"{PINS}{secrets.token_hex(12)}"
    versions: list[JsonValue] = [version] if version else []
    data = canonical_json({"holder": holder, "seconds": seconds, "versions": versions, "digests": list(digests)})
    with writing(store, holder=holder, times=times) as guarded:
        guarded.create(key, data)
        # Only now, and through the guard: from here on every sweep reads the pin, or is waited for.
        missing = missing_parts(guarded, version) if version else ()
        missing += tuple(blob_key(one) for one in digests if guarded.head(blob_key(one)) is None)
        info = guarded.head(key)
        if missing or info is None:
            guarded.delete([key])
            raise VersionGoneError(store.uri, missing or (key,))
    return Pin(store, key, holder, seconds, data, info.modified)


def pinned(store: ObjectStore) -> Iterator[tuple[list[Digest], list[Digest]]]:
    """Yield versions and digests of every pin that has not ended."""
    now = store_time(store)
    for info in store.list(PINS):
        try:
            body = json.loads(store.get(info.key))
        except ObjectNotFoundError:
            continue
        if now - info.modified <= float(body["seconds"]) * (1 + SLACK):
            yield list(body.get("versions", ())), list(body.get("digests", ()))


def remove_ended(store: ObjectStore) -> int:
    """Remove pins that ended at least their own length ago; return how many."""
    now = store_time(store)
    ended = []
    for info in store.list(PINS):
        try:
            body = json.loads(store.get(info.key))
        except ObjectNotFoundError:
            continue
        if now - info.modified > 2 * float(body["seconds"]):
            ended.append(info.key)
    store.delete(ended)
    return len(ended)
