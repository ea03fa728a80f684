"""Where the guardian's ledger is kept: a file beside the checkpoints, and an object for each entry in the run's store.

Rank 0 reads and writes it. The file is replaced as a whole before the next step begins; the objects follow in the
background, because a store that is away must not hold the training up, and a machine that takes the run over has only
them. Entries are numbered and create-only, so writing twice changes nothing.
"""

from __future__ import annotations

import json
import logging
import threading
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher.errors import NoSpaceForJobError
from deepseek_ops.adapters.local_launcher.folder import read_json, write_json
from deepseek_ops.core.errors import DeepSeekOpsError, ObjectExistsError
from deepseek_ops.core.records import canonical_json
from deepseek_ops.jobs.training_turn import name_of_job
from deepseek_ops.training.guardian_ledger import Entry, Ledger

if TYPE_CHECKING:
    from deepseek_ops.jobs.context import JobContext

FINISH_SECONDS = 60.0
_log = logging.getLogger(__name__)


class LedgerFile:
    """The ledger of one run. On other ranks than 0 it is empty and writes nothing."""

    def __init__(self, context: JobContext, run_prefix: str) -> None:
        self._context = context
        self._prefix = f"{run_prefix}/guardian"
        self._path = context.work / "guardian.json"
        self._stored: set[int] = set()
        self._sender: threading.Thread | None = None
        self._lock = threading.Lock()
        bodies: list[JsonValue] = []
        job = ""
        if context.rank == 0:
            job = name_of_job(context)  # its requests are numbered from 1, as those of every job of the run
            kept = (read_json(self._path) or {}).get("entries")
            bodies = [*(kept if isinstance(kept, list) else []), *self._in_store()]
        self.ledger = Ledger.load(bodies, job_attempt=context.attempt, requests_of=job)

    def add(self, entries: list[Entry]) -> None:
        """Append entries and make them durable on this machine; the store follows, alone where the disk is full."""
        if self._context.rank != 0 or not entries:
            return
        for entry in entries:
            self.ledger.add(entry)
        try:
            write_json(self._path, {"entries": self.ledger.dump()})
        except NoSpaceForJobError as error:
            _log.warning("the guardian's ledger goes to the store only: %s", error)
        self.send()

    def send(self) -> None:
        """Send what the store does not have, in the background; called again, it tries again."""
        if self._context.rank != 0 or (self._sender is not None and self._sender.is_alive()):
            return
        if any(entry.number not in self._stored for entry in self.ledger.entries):
            self._sender = threading.Thread(target=self._send, name="guardian-ledger", daemon=True)
            self._sender.start()

    def settle(self) -> None:
        """Send what the store does not have, and return when it does. Raises what the store raises."""
        with self._lock:
            for entry in list(self.ledger.entries):
                if entry.number in self._stored or not self._context.is_current:
                    continue
                try:
                    self._context.store.create(self._key(entry.number), canonical_json(entry.dump()))
                except ObjectExistsError:
                    _log.debug("entry %d of the guardian is stored already", entry.number)
                self._stored.add(entry.number)

    def finish(self) -> None:
        """Send what is left and wait for it, for a minute at most: this machine's file has it all."""
        self.send()
        if self._sender is not None:
            self._sender.join(FINISH_SECONDS)

    def _send(self) -> None:
        try:
            self.settle()
        except DeepSeekOpsError as error:
            _log.warning("entries of the guardian are not stored yet: %s", error)

    def _in_store(self) -> list[JsonValue]:
        """Return the stored entries; none while the store does not answer, and this machine's file goes on alone."""
        try:
            keys = [item.key for item in self._context.store.list(f"{self._prefix}/")]
            bodies: list[JsonValue] = [json.loads(self._context.store.get(key)) for key in keys]
        except DeepSeekOpsError as error:
            _log.warning("the guardian's entries in the store cannot be read: %s", error)
            return []
        self._stored = {int(str(body["number"])) for body in bodies if isinstance(body, dict)}
        return bodies

    def _key(self, number: int) -> str:
        return f"{self._prefix}/{number:06d}.json"
