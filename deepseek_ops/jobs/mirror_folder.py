"""The folder of a job on one machine, kept equal to the job in the object store by a thread beside the job.

The job's own processes know their folder only, as on a single machine. This carries up what they write (log, events,
how far they are, what they tell the other nodes) and down what others want of them (stop, requests, lease, a newer
attempt). The ranks never wait for it: while the store is away everything goes on, nothing is lost but time, and what
has gathered in the folder goes up when the store is back.

::

    mirror = FolderMirror(files, store, "train-7", attempt=2, node=1)
    mirror.start()
    ...                                          # the job runs and uses its folder
    mirror.finish(within=20)                     # everything is sent, or the time is over
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from contextlib import suppress

from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher.folder import Attempt, JobFolder, StopRequest, write_json
from deepseek_ops.adapters.local_launcher.reading import status_of
from deepseek_ops.adapters.remote_launcher.layout import Beat, Control, JobKeys, RemoteStop, read_control
from deepseek_ops.adapters.remote_launcher.shared_log import SharedLog
from deepseek_ops.core.errors import DeepSeekOpsError, ObjectExistsError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Record, canonical_json
from deepseek_ops.jobs.meeting import MeetingCourier
from deepseek_ops.jobs.mirror_streams import SLOWEST_SECONDS, StreamUpload

PACE_VARIABLE = "DEEPSEEK_OPS_MIRROR_SECONDS"
PACE_SECONDS = 1.0
"""Between two looks at the store; a stop takes at most so long to arrive."""
_RETRY_SECONDS = 5.0
_TIDY_SECONDS = 30.0
_log = logging.getLogger(__name__)


class FolderMirror:
    """Keeps one folder and the store equal, from ``start`` to ``finish``.

    Args:
        files: The job's folder on this machine; it exists.
        store: Used by the mirror's thread only.
        job: The job's name.
        attempt: The attempt that runs in the folder.
        node: Number of this node; node 0 looks after what all share (old renewals, long streams).
        label: What begins each line of this node's log; None = nothing on node 0, ``[node k] `` on the others.
        pace_seconds: Between two looks; None = ``DEEPSEEK_OPS_MIRROR_SECONDS``, else PACE_SECONDS.
    """

    def __init__(
        self,
        files: JobFolder,
        store: ObjectStore,
        job: str,
        *,
        attempt: int,
        node: int = 0,
        label: str | None = None,
        pace_seconds: float | None = None,
    ) -> None:
        self._files = files
        self._store = store
        self._keys = JobKeys(job)
        self._attempt = attempt
        self._node = node
        self._pace = float(os.environ.get(PACE_VARIABLE, PACE_SECONDS)) if pace_seconds is None else pace_seconds
        label = (f"[node {node}] " if node else "") if label is None else label
        self._log = SharedLog(store, self._keys.log)
        self._events = SharedLog(store, self._keys.events, lines=True)
        self._uploads = (
            StreamUpload(files.log, files.path / "sent-log", self._log, lines=False, node=node, label=label),
            StreamUpload(files.events, files.path / "sent-events", self._events, lines=True, node=node, label=label),
        )
        self._meeting = MeetingCourier(files, store, job, attempt=attempt, node=node)
        self._tidied = 0.0
        self._leases: set[str] = set()
        self._asked: set[int] = set()
        self._beat: Beat | None = None
        self._beat_number = 0
        self._beat_at = 0.0
        self._began = time.monotonic()
        self._wake = threading.Event()
        self._finishing = threading.Event()
        self._finished = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self.control = Control()
        """What the store showed last."""
        self.contact = self._began
        """When the store was asked last for what it answered, on the monotonic clock."""
        self.renewed = self._began
        """When the lease was seen to be renewed last, on the monotonic clock."""
        self.problem = ""
        """Why the store does not answer; empty while it does."""

    def start(self) -> None:
        """Start the thread. A process that forks must have done so before."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs: it ends only when it is told to finish, or by an error of our own."""
        return self._thread.is_alive()

    def poke(self) -> None:
        """Look at the store now instead of at the next turn."""
        self._wake.set()

    def finish(self, within: float) -> bool:
        """Send what is left, at most for ``within`` seconds, and end the thread; return whether all was sent."""
        self._finishing.set()
        self._wake.set()
        return self._finished.wait(within)

    def request_stop(self, request: StopRequest) -> None:
        """Have the job end, for a reason that arose on this machine, unless it has one already."""
        with self._writing:
            self._files.request_stop(request)

    def _run(self) -> None:
        while True:
            self._wake.clear()
            finishing = self._finishing.is_set()
            try:
                sent = self._turn(last=finishing)
            except (DeepSeekOpsError, OSError, ValueError) as error:  # the store, or the disk: both may come back
                if not self.problem:
                    _log.warning("the job goes on without its store: %s", error)
                self.problem = str(error)
                sent = False
            else:
                self.problem = ""
            if finishing and sent:
                self._finished.set()
                return
            self._wake.wait(self._pause(finishing=finishing))

    def _pause(self, *, finishing: bool) -> float:
        if self.problem:
            return min(_RETRY_SECONDS, 2 * self._pace)
        if finishing:
            return 0.0
        return self._pace / 4 if self._meeting.busy else self._pace

    def _turn(self, *, last: bool) -> bool:
        """Look once and send what is new; return whether nothing is left to send."""
        asked = time.monotonic()
        self.control = read_control(self._store, self._keys)
        self.contact = asked
        self._fetch(self.control)
        # The log first: what an event tells can be looked up in the log that is there.
        sent = [upload.turn(self._pace, last=last) for upload in self._uploads]
        self._tell_beat(last=last)
        self._meeting.turn(self.control)
        if self._node == 0 and self.contact - self._tidied > _TIDY_SECONDS:
            self._tidied = self.contact
            self._tidy(self.control)
        return all(sent)

    def _fetch(self, control: Control) -> None:
        """Bring what others want into the folder."""
        if control.newest > self._attempt:
            with self._writing:  # the supervisor and the ranks find out that they are no longer wanted
                self._files.write("attempt.json", Attempt(attempt=control.newest))
        if control.has(self._attempt, "stop.json") and self._files.stop_request(self._attempt) is None:
            stop = RemoteStop.load(self._get(self._keys.of(self._attempt, "stop.json")))
            self.request_stop(StopRequest(attempt=self._attempt, reason=stop.reason))
        renewals = set(control.below(self._attempt, "lease/"))
        if renewals - self._leases:
            self.renewed = time.monotonic()
            self._files.lease.touch(mode=0o600)
        self._leases = renewals
        for number, name in sorted(control.requests(self._attempt).items()):
            if number not in self._asked:
                folder = self._files.path / "requests"
                folder.mkdir(mode=0o700, exist_ok=True)
                write_json(folder / f"{number:06d}.json", self._get(self._keys.of(self._attempt, name)))
                self._asked.add(number)

    def _tell_beat(self, *, last: bool) -> None:
        """Store how far the job is when that has changed, and now and then when it has not."""
        now = time.monotonic()
        pace = min(SLOWEST_SECONDS, max(self._pace, (now - self._began) / 100))
        if not last and now - self._beat_at < pace:
            return
        beat = self._seen()
        if self._beat is not None and now - self._beat_at < SLOWEST_SECONDS:
            quiet = beat.evolve(wall_seconds=self._beat.wall_seconds)
            if quiet == self._beat and not last:
                return
        before, self._beat_number = self._beat_key(), self._beat_number + 1
        self._create(f"beats/{self._node}/{self._beat_number:08d}", beat)
        if self._beat is not None:
            self._store.delete([before])
        self._beat, self._beat_at = beat, now

    def _seen(self) -> Beat:
        status = status_of(self._files, self._keys.name)
        stop = self._files.stop_request(self._attempt)
        if status is None:
            return Beat(node=self._node)
        return Beat(
            node=self._node,
            step=status.step,
            restarts=status.restarts,
            wall_seconds=round(status.wall_seconds, 3),
            stopping=stop.reason if stop is not None else "",
        )

    def _beat_key(self) -> str:
        return self._keys.of(self._attempt, f"beats/{self._node}/{self._beat_number:08d}")

    def _tidy(self, control: Control) -> None:
        """Remove renewals that a newer one has replaced; store long streams as few objects as well."""
        old = control.below(self._attempt, "lease/")[:-1]
        if old:
            self._store.delete([self._keys.of(self._attempt, name) for name in old])
        self._log.condense()
        self._events.condense()

    def _create(self, what: str, record: Record) -> None:
        with suppress(ObjectExistsError):  # by ourselves, in a request whose answer was lost
            self._store.create(self._keys.of(self._attempt, what), canonical_json(record.dump()))

    def _get(self, key: str) -> dict[str, JsonValue]:
        body: dict[str, JsonValue] = json.loads(self._store.get(key))
        return body
