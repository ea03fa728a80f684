"""How the end of an attempt gets into the store: everything it wrote first, then what it came to."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import TypeVar

from deepseek_ops.adapters.local_launcher.folder import JobFolder, read_json
from deepseek_ops.adapters.remote_launcher.layout import JobKeys, RemoteAttempt, RemoteResult
from deepseek_ops.core.errors import DeepSeekOpsError, ObjectExistsError, StoreUnavailableError
from deepseek_ops.core.jobs import JobPhase, JobStatus
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Record, canonical_json
from deepseek_ops.jobs.mirror_folder import FolderMirror
from deepseek_ops.jobs.nodes import NodePlace

PEERS_SECONDS = 15.0
"""How long node 0 waits for the last words of the others before it says that the job has ended."""
_PAUSE_SECONDS = 1.0
RecordT = TypeVar("RecordT", bound=Record)


class AttemptEnd:
    """The last thing an agent does. ``deadline`` is on the monotonic clock."""

    def __init__(
        self,
        store: ObjectStore,
        keys: JobKeys,
        record: RemoteAttempt,
        place: NodePlace,
        mirror: FolderMirror,
        *,
        deadline: float,
    ) -> None:
        self._store = store
        self._keys = keys
        self._record = record
        self._place = place
        self._mirror = mirror
        self._deadline = deadline

    def tell(self, files: JobFolder, status: JobStatus) -> JobStatus:
        """Return the attempt's status as it is stored, by node 0; on other nodes this node's own.

        The result goes first, so that it is found however soon this process is killed. An end that somebody else has
        stored meanwhile stays: a newer attempt may stand on it.
        """
        status = self._whole(status)
        result = read_json(files.path / "result.json") if status.phase is JobPhase.SUCCEEDED else None
        if self._place.rank == 0 and result is not None:
            self._keep(self._keys.result(self._record.attempt), RemoteResult(status=status, result=result))
        sent = self._mirror.finish(max(0.0, self._deadline - time.monotonic()))
        if self._place.rank:
            self._keep(self._keys.of(self._record.attempt, f"left/{self._place.rank}"), status)
            return status
        if sent and self._place.count > 1:
            self._wait_for_peers()
        return self._keep(self._keys.of(self._record.attempt, "ended.json"), status)

    def _whole(self, status: JobStatus) -> JobStatus:
        """Return the status of this node's supervisor as that of the job on all its nodes."""
        spec = self._record.spec
        spent = status.wall_seconds * spec.num_ranks * self._place.count
        return status.evolve(
            device_seconds=self._record.device_seconds + spent,
            pid=None,
            log=f"{self._store.uri}/{self._keys.log}",
        )

    def _wait_for_peers(self) -> None:
        """Wait for the other nodes to have sent what they logged; a node whose machine is gone never says so."""
        deadline = min(self._deadline, time.monotonic() + PEERS_SECONDS)
        prefix = self._keys.of(self._record.attempt, "left/")
        while time.monotonic() < deadline:
            with suppress(StoreUnavailableError):
                if len(list(self._store.list(prefix))) >= self._place.count - 1:
                    return
            time.sleep(_PAUSE_SECONDS / 2)

    def _keep(self, key: str, record: RecordT) -> RecordT:
        """Store the record unless one is there; return the stored one. Gives up at the deadline, with a word."""
        while True:
            try:
                self._store.create(key, canonical_json(record.dump()))
            except ObjectExistsError:
                return type(record).load(json.loads(self._store.get(key)))
            except DeepSeekOpsError as error:
                if time.monotonic() > self._deadline:
                    print(f"{key} was not stored: {error}", flush=True)  # noqa: T201  (the engine keeps our output)
                    return record
                time.sleep(_PAUSE_SECONDS)
            else:
                return record
