"""How an agent finds out what to run, and that nobody else runs it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from deepseek_ops.adapters.remote_launcher.layout import Claim, JobKeys, RemoteAttempt, read_control
from deepseek_ops.core.errors import ObjectExistsError, PermanentError, StoreUnavailableError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import canonical_json
from deepseek_ops.jobs.nodes import NodePlace

PATIENCE_SECONDS = 300.0
"""How long an agent waits for a store that is away when it begins."""
_PAUSE_SECONDS = 2.0
T = TypeVar("T")


@dataclass(eq=False)
class NodeTakenError(PermanentError):
    """The attempt is over, or somebody else runs it: this process was started once too often."""

    job: str
    attempt: int
    problem: str

    def __str__(self) -> str:
        return f"attempt {self.attempt} of job {self.job} is not run here: {self.problem}; submit the job again."


def read_attempt(store: ObjectStore, keys: JobKeys, attempt: int) -> RemoteAttempt:
    """Return the attempt. Raises NodeTakenError when it is over or a newer one exists, ObjectNotFoundError.

    A stop that was asked for meanwhile is no reason to stay away: somebody has to say that it was obeyed.
    """
    control = patiently(lambda: read_control(store, keys))
    if control.newest > attempt:
        raise NodeTakenError(keys.name, attempt, f"attempt {control.newest} has begun")
    if control.has(attempt, "ended.json"):
        raise NodeTakenError(keys.name, attempt, "it has ended")
    return RemoteAttempt.load(json.loads(patiently(lambda: store.get(keys.attempt(attempt)))))


def claim_node(store: ObjectStore, keys: JobKeys, attempt: int, place: NodePlace) -> None:
    """Take this node of the attempt for this process. Raises NodeTakenError.

    All nodes belong to one run of the engine's job: of two runs, the one whose node comes first has the attempt, so
    halves of both never meet.
    """
    whole = keys.of(attempt, "claim.json")
    ours = Claim(instance=place.instance)
    if _stored(store, whole, canonical_json(ours.dump())) != canonical_json(ours.dump()):
        raise NodeTakenError(keys.name, attempt, f"another run of the engine's job has it, not {place.instance!r}")
    mine = secrets.token_hex(8).encode()
    if _stored(store, keys.of(attempt, f"claims/{place.rank}"), mine) != mine:
        raise NodeTakenError(keys.name, attempt, f"its node {place.rank} was claimed before")


def patiently(ask: Callable[[], T], *, seconds: float = PATIENCE_SECONDS) -> T:
    """Return what ``ask`` returns, asking again while the store is away. Raises StoreUnavailableError in the end."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except StoreUnavailableError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_SECONDS)


def _stored(store: ObjectStore, key: str, data: bytes) -> bytes:
    """Store ``data`` unless the key is taken; return what is stored there."""

    def ask() -> bytes:
        try:
            store.create(key, data)
        except ObjectExistsError:
            return store.get(key)
        return data

    return patiently(ask)
