"""What the agent of a node watches while the job runs, and when it has the job end."""

from __future__ import annotations

import signal
import time
from typing import Literal

from deepseek_ops.adapters.local_launcher.folder import JobFolder, StopRequest
from deepseek_ops.adapters.remote_launcher.layout import RemoteAttempt
from deepseek_ops.core.jobs import JobCause
from deepseek_ops.jobs.attend_child import SupervisorChild
from deepseek_ops.jobs.leases import AFTER_LEASE_SECONDS, patience
from deepseek_ops.jobs.mirror_folder import FolderMirror
from deepseek_ops.jobs.nodes import NodePlace

POLL_SECONDS = 0.5
FLUSH_SECONDS = 20.0
"""How long the agent tries to send what is left when the job has ended."""
HOLD_SECONDS = 600.0
"""The same for a job without a lease: its result waits for a store that is away."""
PEER_SILENCE_SECONDS = 60.0
PEER_ABSENCE_SECONDS = 600.0
LOOK_SECONDS = 5.0
"""How long a last look at the store is waited for."""
SETTLED_SECONDS = 10.0
"""How long the ranks of this node may go on when the job has ended elsewhere."""
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Watch:
    """The agent's main loop: signals at once, everything else twice a second. It never waits for the store."""

    def __init__(
        self, mirror: FolderMirror, files: JobFolder, record: RemoteAttempt, place: NodePlace, child: SupervisorChild
    ) -> None:
        self._mirror = mirror
        self._files = files
        self._record = record
        self._place = place
        self._child = child
        self._began = time.monotonic()
        self._told_at: float | None = None
        self._over_at: float | None = None
        self._peers: dict[int, tuple[str, float]] = {}

    def run(self) -> str:
        """Return when the supervisor has ended: "" or, if this attempt no longer counts, why."""
        while not self._child.ended():
            superseded = self._superseded(time.monotonic())
            if superseded:
                return superseded
            self._check(time.monotonic())
            arrived = signal.sigtimedwait(_SIGNALS, POLL_SECONDS)
            if arrived is not None and arrived.si_signo != signal.SIGCHLD and self._told_at is None:
                self._told_at = time.monotonic()
                self._mirror.poke()  # the engine may obey a person, who has said why in the store
        self._look_again(time.monotonic())
        return self._superseded(time.monotonic(), at_end=True)

    def deadline(self) -> float:
        """Return until when, on the monotonic clock, the agent may try to tell how the job ended."""
        now, lease = time.monotonic(), self._record.spec.lease_seconds
        if not lease:
            return now + HOLD_SECONDS
        return max(now + FLUSH_SECONDS, self._mirror.renewed + lease + AFTER_LEASE_SECONDS - 5)

    def _look_again(self, ended: float) -> None:
        """Wait for a look at the store from after the end, if it answers: this machine may have stood still for long.

        Then a newer attempt may run by now, may have ended our supervisor, and may even use the same folder.
        """
        self._mirror.poke()
        while self._mirror.contact <= ended and not self._mirror.problem and time.monotonic() < ended + LOOK_SECONDS:
            time.sleep(0.02)

    def _superseded(self, now: float, *, at_end: bool = False) -> str:
        control, attempt = self._mirror.control, self._record.attempt
        if control.newest > attempt:
            return f"attempt {control.newest} has begun"
        if control.has(attempt, "ended.json"):
            self._over_at = self._over_at or now
            if self._place.rank == 0 or (now - self._over_at > SETTLED_SECONDS and not at_end):
                return "the attempt was ended elsewhere"
        return ""

    def _check(self, now: float) -> None:
        if self._told_at is not None and (self._mirror.contact > self._told_at or now - self._told_at > 2.0):
            told = "the engine ended the job's processes: preempted, cancelled or out of time"
            self._end("signal", told, JobCause.PREEMPTED)
            self._child.signal(signal.SIGTERM)  # only to wake it: the request is in the folder
            return
        self._check_lease(now)
        if self._place.count > 1:
            self._check_peers(now)
        if not self._mirror.alive:
            self._end("signal", "its mirror ended: the job can no longer be followed")

    def _check_lease(self, now: float) -> None:
        """End the job so early that its grace and the last words fit into the minute after the lease."""
        spec = self._record.spec
        if not spec.lease_seconds:
            return
        limit = patience(spec.lease_seconds, spec.grace_seconds, last_words=FLUSH_SECONDS)
        if now - self._mirror.renewed <= limit:
            return
        if now - self._mirror.contact > limit / 2:
            away = now - self._mirror.contact
            self._end("signal", f"the store was away for {away:.0f} s, so nobody could renew the lease")
        else:
            self._end("stop", f"lease expired: not renewed for {limit:g} seconds", JobCause.LEASE_EXPIRED)

    def _check_peers(self, now: float) -> None:
        """Have the job end when another node's agent has fallen silent: its machine is gone."""
        control, attempt = self._mirror.control, self._record.attempt
        if now - self._mirror.contact > PEER_SILENCE_SECONDS / 4:
            return  # we cannot see them
        for node in range(self._place.count):
            beat, since = control.newest_beat(attempt, node), now
            known = self._peers.get(node)
            if known is not None and known[0] == beat:
                since = known[1]
            self._peers[node] = (beat, since)
            longest = PEER_SILENCE_SECONDS if beat else PEER_ABSENCE_SECONDS
            gone = control.has(attempt, f"left/{node}")
            if node != self._place.rank and not gone and now - since > longest:
                self._end("signal", f"node {node} was silent for {longest:g} s", JobCause.MACHINE_LOST)

    def _end(self, cause: Literal["stop", "signal"], reason: str, counts_as: JobCause | None = None) -> None:
        if self._files.stop_request(self._record.attempt) is None:
            attempt = self._record.attempt
            request = StopRequest(attempt=attempt, reason=reason, cause=cause, counts_as=counts_as)
            self._mirror.request_stop(request)
