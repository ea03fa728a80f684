"""Whose turn it is to write a run: jobs of one plan share its place in the store, and only the newest one writes there.

A job's attempts are told apart by its folder. Nothing tells one job of a plan from another of another name, or on
another engine, so each attempt takes a turn first, by a create-only key::

    runs/<plan>/turns/000001.json      the first attempt of the first job       000002.json      whoever came after it

Whoever finds a later turn than its own is not current any more: it trains on and declares nothing. The number of the
turn also names the attempt's checkpoints, which are then no other job's. Ranks that are started again keep the turn of
their attempt. An attempt that comes late, after a newer one of its own job, takes none.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher.errors import NoSpaceForJobError
from deepseek_ops.adapters.local_launcher.folder import read_json, write_json
from deepseek_ops.core.errors import DeepSeekOpsError, ObjectExistsError
from deepseek_ops.core.records import canonical_json

if TYPE_CHECKING:
    from deepseek_ops.core.ports import ObjectStore
    from deepseek_ops.jobs.agreement import Peers
    from deepseek_ops.jobs.context import JobContext

_NONE = 0
"""The turn of an attempt that is too late to write anything."""
_log = logging.getLogger(__name__)


def take_turn(context: JobContext, run_prefix: str, peers: Peers) -> int:
    """Return the number of this attempt's turn, the same on every rank; from now on ``context.is_current`` knows it.

    Every rank calls it, before anything of the run is read to go on from. Raises what the store raises; 0 where a
    newer attempt of the same job has had a turn.
    """
    prefix = f"{run_prefix}/turns/"
    own = _taken(context, prefix) if peers.rank == 0 else _NONE
    turn = peers.from_first(own)
    context.fence(turn, lambda: _is_newest(context.store, prefix, turn))
    return turn


def name_of_job(context: JobContext) -> str:
    """Return what tells a job from every other, one that has had its name before included; the same for its attempts.

    An engine's folder is named after the job's life; in a folder of this machine, which all attempts share, a token is
    laid down.
    """
    name, folder = context.spec.name, context.folder.name
    if folder.startswith(f"{name}-"):
        return folder.rpartition("-")[0]  # without the number of the node
    path = context.work / "job.json"
    token = (read_json(path) or {}).get("token")
    if not isinstance(token, str):
        token = secrets.token_hex(8)
        try:
            write_json(path, {"token": token})
        except NoSpaceForJobError as error:
            _log.warning("this job is not told from an older one of its name: %s", error)
    return f"{name}.{token}"


def _taken(context: JobContext, prefix: str) -> int:
    own: dict[str, JsonValue] = {"job": name_of_job(context), "attempt": context.attempt}
    while True:
        turns = list(_turns(context.store, prefix))
        for number, body in turns:
            if body == own:
                return number
            if body["job"] == own["job"] and int(str(body["attempt"])) > context.attempt:
                return _NONE
        number = max([context.attempt, *(number + 1 for number, _ in turns)])
        try:
            context.store.create(f"{prefix}{number:06d}.json", canonical_json(own))
        except ObjectExistsError:
            continue  # somebody was faster, or an answer of ours was lost: look again
        return number


def _turns(store: ObjectStore, prefix: str) -> Iterator[tuple[int, dict[str, JsonValue]]]:
    for info in store.list(prefix):
        yield int(info.key[len(prefix) : -len(".json")]), json.loads(store.get(info.key))


def _is_newest(store: ObjectStore, prefix: str, turn: int) -> bool:
    """Return whether nobody took a turn since; a store that is away takes no declaration either."""
    try:
        return next(iter(store.list(prefix, start_after=f"{prefix}{turn:06d}.json", limit=1)), None) is None
    except DeepSeekOpsError as error:
        _log.warning("whether another job trains the same plan cannot be seen: %s", error)
        return True
