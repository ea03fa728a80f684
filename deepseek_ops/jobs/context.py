"""What the code of a job is given: its input, its folder, and the way to say what happens.

Every kind of job is one function ``run(context: JobContext) -> dict[str, JsonValue]``. What it returns is the job's
result. It may be called again with the same ``work`` folder after a rank, a machine or a whole attempt was lost, so it
looks there (or in the store) for what it finished before. What it raises decides whether the job is tried again:

====================================================  ==========================================
PermanentError                                        78: do not try again, reason = the error
TransientError, MemoryError, killed by a signal       75: try again
any other exception                                   78, reason = last line of the traceback
====================================================  ==========================================
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher.errors import NoSpaceForJobError
from deepseek_ops.adapters.local_launcher.folder import JobFolder
from deepseek_ops.core.errors import InvalidRecordError
from deepseek_ops.core.jobs import JobCause, JobRequest, JobSpec
from deepseek_ops.jobs.progress import Phase, ProgressPage
from deepseek_ops.jobs.working import Working

if TYPE_CHECKING:
    from deepseek_ops.core.ports import Blobs, ObjectStore


HELD_EVENTS = 10_000
"""Events kept in memory while the disk is full; beyond that the oldest go."""
_log = logging.getLogger(__name__)


class Payload(dict[str, JsonValue]):
    """The input of a job; a part that it lacks is named."""

    def __init__(self, spec: JobSpec) -> None:
        super().__init__(spec.payload)
        self._of = f"payload of the {spec.kind} job {spec.name}"

    def __missing__(self, key: str) -> JsonValue:
        """Raise InvalidRecordError: without the part the job cannot be done."""
        raise InvalidRecordError(self._of, f"it has no {key!r}")


class JobContext:
    """One process of one attempt of a job. Tests build it on a ``tmp_path``; the supervisor builds the real one.

    Args:
        spec: The job.
        folder: The job's folder; created if it is not there.
        attempt: Fencing token; grows each time a lost, failed or stopped job is submitted again.
        rank: Number of this process among ``world_size``; 0 for every kind but ``train``.
        restarts: How often the ranks of this attempt were restarted before this call.
        store: Object store to use instead of the one that the environment names.
        page: Where this process says how far it is; the process that forked it watches it.
    """

    def __init__(
        self,
        spec: JobSpec,
        folder: Path,
        *,
        attempt: int = 1,
        rank: int = 0,
        world_size: int = 1,
        restarts: int = 0,
        store: ObjectStore | None = None,
        page: ProgressPage | None = None,
    ) -> None:
        self.spec = spec
        self.folder = folder
        self.attempt = attempt
        self.rank = rank
        self.world_size = world_size
        self.restarts = restarts
        self.stop_seen = False
        """Whether the job's code has been told to stop. One that returns without having asked has finished."""
        self.turn = attempt
        """Number of this attempt among those of all jobs that write the same run."""
        self._still_ours: Callable[[], bool] = lambda: True
        self._told = ""
        self.told_cause: JobCause | None = None
        self._files = JobFolder(folder)
        self._store = store
        self._page = page or ProgressPage()
        self._held: deque[tuple[str, dict[str, object]]] = deque(maxlen=HELD_EVENTS)
        self._writing = threading.Lock()
        self.work.mkdir(mode=0o700, parents=True, exist_ok=True)

    @cached_property
    def payload(self) -> dict[str, JsonValue]:
        """The input of the job: a JSON object that its kind defines. A missing part raises InvalidRecordError."""
        return Payload(self.spec)

    @property
    def work(self) -> Path:
        """Scratch folder of the job, shared by its ranks and kept over restarts and attempts: resume reads it."""
        return self._files.work

    @cached_property
    def store(self) -> ObjectStore:
        """The object store that the job's environment names."""
        if self._store is not None:
            return self._store
        from deepseek_ops.adapters.stores import store_from_environment

        return store_from_environment(os.environ)

    @cached_property
    def blobs(self) -> Blobs:
        """The content-addressed space of ``store``."""
        from deepseek_ops.data.gc_blobs import GuardedBlobs

        return GuardedBlobs(self.store, holder=f"job {self.spec.name}")

    def event(self, kind: str, /, **fields: object) -> None:
        """Append one event to the job's stream. Any rank may; numbers that JSON lacks become strings ("NaN").

        On a disk that is full it is kept in memory and follows later: to say something must end no training.
        """
        with self._writing:
            self._held.append((kind, {**fields, "rank": self.rank}))
            try:
                while self._held:
                    self._files.append_event(self._held[0][0], self.attempt, self._held[0][1])
                    self._held.popleft()
            except NoSpaceForJobError as error:
                if len(self._held) == 1:
                    _log.warning("events wait in memory: %s", error)

    def report(self, *, step: int, **metrics: float) -> None:
        """Append the metrics of a step to the job's stream. Does nothing on other ranks than 0."""
        if self.rank == 0:
            self.event("metric", step=step, **metrics)

    def progress(self, step: int, phase: Phase = "step", *, busy_seconds: float | None = None) -> None:
        """Say that ``step`` steps are done and what comes now; a microsecond, for every rank and every step.

        A rank that falls silent for much longer than its steps take is taken for hung: see ``progress`` (the module)
        for what to call when, and ``hang`` for how long each phase may be silent. ``busy_seconds`` is this rank's own
        work in the step, without waiting for others: slow ranks are found by it. A job that never calls this is
        never judged.
        """
        self._page.beat(step, phase, busy_seconds)

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Be at something else in this block, at the same step; nothing where nothing was ever said."""
        before = self._page.pulse
        if before is not None:
            self._page.beat(before.step, phase)
        try:
            yield
        finally:
            if before is not None:
                self._page.beat(before.step, before.phase)

    def working(self) -> Working:
        """Return a block in which this process may be as long as it gets on, whatever the patience of its phase.

        For work of its own only: one that waits for its peers in it, and spins, would never be found to hang.
        """
        return Working(self._page)

    @property
    def stop_requested(self) -> bool:
        """Whether the job has to checkpoint and return now; cheap enough to ask every step.

        Ranks may see it at different steps: a loop that communicates agrees on it first (an all-reduced flag).
        """
        requested = bool(self.stop_reason)
        self.stop_seen = self.stop_seen or requested
        return requested

    @property
    def stop_reason(self) -> str:
        """Why the job has to stop; empty while it may go on."""
        request = self._files.stop_request(self.attempt)
        return self._told if request is None else request.reason

    def request_stop(self, reason: str, cause: JobCause | None = None) -> None:
        """Have this process's code stop, for a reason that holds where the job's folder names none.

        ``cause`` is what the end counts as, where it is known; a later signal does not make it unknown.
        """
        if self.told_cause is None:
            self._told, self.told_cause = reason, cause

    @property
    def told(self) -> str:
        """Why this process was told to stop; empty where nobody has told it."""
        return self._told

    def requests(self, after: int) -> list[JobRequest]:
        """Return what people asked of the job since request number ``after``, in order; cheap enough for every step."""
        return self._files.requests(after)

    @property
    def is_current(self) -> bool:
        """Whether this attempt is still the newest: ask before writing where a newer one may have written."""
        newest = self._files.attempt()
        return (newest is None or newest.attempt == self.attempt) and self._still_ours()

    def fence(self, turn: int, still_ours: Callable[[], bool]) -> None:
        """Have ``is_current`` ask ``still_ours`` as well, which others than attempts of this job may end."""
        self.turn = max(self.attempt, turn)
        self._still_ours = still_ours
