"""The ranks of a train job on one node: forked, watched and, when one dies or hangs, started again, on all nodes.

Why not torch's elastic agent itself: tried with ``start_method="fork"`` and two gloo ranks, it (1) runs four threads
in the process that forks, so a rank can inherit a lock that nobody will ever release; (2) blamed the survivor, which
failed with "Connection reset by peer" ten milliseconds before the agent saw the killed rank, so "try again" (75) and
"do not" (78) cannot be told apart; (3) ends survivors with SIGTERM, which means "checkpoint and stop" here, and gives
them 30 s for it while their collectives can only hang; (4) took 5.6 s from the kill to the new ranks, this group
half a second; (5) keeps one store over all restarts, in which new gloo ranks find the addresses of the dead ones, so
that with torch 2.13 the first restarts fail (``benchmarks/rank_restart.py`` measures both). The environment variables
are torchrun's, so code written for torchrun runs unchanged.

All of this happens in the worker process below the supervisor. It has imported the heavy packages before it forks, so
a restarted rank runs at once. It stays single-threaded, and its ranks die with it. Several nodes agree on when to start
and on how it ended through a ``Rendezvous``; one node agrees with itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from deepseek_ops.adapters.local_launcher import processes
from deepseek_ops.adapters.local_launcher.errors import NoSpaceForJobError
from deepseek_ops.adapters.local_launcher.folder import JobFolder, RankGroup, disk
from deepseek_ops.core.errors import DeepSeekOpsError, TransientError
from deepseek_ops.core.jobs import JobCause, JobSpec
from deepseek_ops.jobs.entry import Outcome, silent_ending
from deepseek_ops.jobs.memory_kills import MemoryKills
from deepseek_ops.jobs.rank_process import Place, RankProcess, start_rank
from deepseek_ops.jobs.rank_watch import STACKS, RankWatch
from deepseek_ops.jobs.rendezvous import (
    Failure,
    Finished,
    Gathering,
    LocalRendezvous,
    NoRoomToMeetError,
    Rendezvous,
)

SETTLE_SECONDS = 0.5
"""How long to wait, after a rank failed by itself, for the others to say what happened to them."""
MEET_SECONDS = 600.0
"""How long the nodes wait for one that does not come, or that does not say that it has finished."""
TELL_SECONDS = 0.5
"""How long a node that finds no room for a word to the others waits before it tries again."""
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM)


@dataclass
class RankRun:
    """One start of this node's ranks: who runs, and who ended how."""

    running: dict[int, int]
    """Process id -> rank."""
    ended: dict[int, Outcome] = field(default_factory=dict)
    """Rank -> how it ended."""
    restarts: int = 0
    ranks: dict[int, RankProcess] = field(default_factory=dict)
    hang: Outcome | None = None
    """Set when its ranks got no further."""
    elsewhere: bool = False
    """Whether another node has ended this start."""
    kills: MemoryKills = field(default_factory=MemoryKills)

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.ended.values() if outcome.result is None]

    @property
    def over(self) -> bool:
        """Whether the ranks that still run have nothing left to run for."""
        return bool(self.failed) or self.hang is not None or self.elsewhere

    @property
    def cause(self) -> Outcome:
        """The failure that made the others fail: not the loss of a peer, and the first one there was.

        A killed rank is seen a little after its peers see their connections break, so a second is taken off.
        """
        if self.hang is not None:
            return self.hang
        return min(self.failed, key=lambda outcome: (outcome.peer_lost, outcome.at - outcome.killed))

    @property
    def outcome(self) -> Outcome:
        """What this node's first rank returned."""
        return first_of(self.ended).evolve(restarts=self.restarts)


def first_of(ended: Mapping[int, Outcome]) -> Outcome:
    """Return the outcome of the first rank or node, which also knows what any other had been told."""
    first = ended[min(ended)]
    told = next((outcome for outcome in ended.values() if outcome.told_cause is not None), first)
    seen = any(outcome.stop_seen for outcome in ended.values())
    return first.evolve(stop_seen=seen, told=told.told, told_cause=told.told_cause)


class RankGroupRunner:
    """Runs this node's ranks until those of all nodes return, one fails for good, or the restarts are used up.

    Args:
        files: This node's folder of the job.
        spec: The job; ``num_nodes`` nodes run it.
        attempt: Fencing token of the attempt, the same on all nodes.
        rendezvous: Where the nodes meet; not needed for one.
        meet_seconds: How long to wait for other nodes.
    """

    def __init__(
        self,
        files: JobFolder,
        spec: JobSpec,
        attempt: int,
        rendezvous: Rendezvous | None = None,
        *,
        meet_seconds: float = MEET_SECONDS,
    ) -> None:
        self._files = files
        self._spec = spec
        self._attempt = attempt
        self._meeting: Rendezvous = rendezvous or LocalRendezvous()
        self._meet_seconds = meet_seconds
        self._stopping = False
        self._noted = 0

    def run(self) -> Outcome:
        """Return the outcome of the job: rank 0's result, or the failure that ended it, the same on every node."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        processes.become_subreaper()  # what a dead rank had started must not run beside its successor
        try:
            return self._generations()
        except DeepSeekOpsError as error:
            processes.kill_descendants()
            return Outcome(reason=str(error), error=type(error).__name__, retry=isinstance(error, TransientError))

    def _generations(self) -> Outcome:
        self._noted = self._meeting.poll().generation
        while True:
            known = self._meet()
            if known.settled:
                return known.failures[-1].outcome.evolve(restarts=known.generation - 1)
            run = self._start(known)
            self._watch(run)
            known = self._end(run)
            if known.generation == run.restarts:
                ended = known.finished or (Finished(node=0, outcome=run.outcome),)
                return first_of({there.node: there.outcome for there in ended}).evolve(restarts=run.restarts)

    def _meet(self) -> Gathering:
        """Return when every node is ready for the newest generation, or when there will be none."""
        joined, port, deadline = -1, 0, 0.0
        while True:
            known = self._meeting.poll()
            self._note(known)
            if known.settled:
                return known
            own = next((there for there in known.joined if there.node == self._meeting.node), None)
            if own is not None and (joined != known.generation or own.port != port):
                # A predecessor of ours joined it, and its ranks have died with it.
                self._fail(known, self._no_meeting("was started again"))
            elif joined != known.generation:
                joined, port = known.generation, _free_port(self._meeting.address)
                deadline = time.monotonic() + self._meet_seconds
                self._tell(partial(self._meeting.join, joined, port))
                continue
            elif len(known.joined) == self._meeting.num_nodes:
                return known
            elif self._stopping or time.monotonic() > deadline:
                waited = f"was told to stop while it waited for others, {len(known.joined)} were there"
                late = f"waited {self._meet_seconds:g} s for the others, {len(known.joined)} were there"
                self._fail(known, self._no_meeting(waited if self._stopping else late), final=True)
            self._pause(0.1)

    def _no_meeting(self, problem: str) -> Outcome:
        reason = f"node {self._meeting.node} of {self._meeting.num_nodes} {problem}"
        return Outcome(reason=reason, retry=True, stop_seen=self._stopping, at=time.time())

    def _start(self, known: Gathering) -> RankRun:
        sys.stdout.flush()
        sys.stderr.flush()
        first = next(joined for joined in known.joined if joined.node == 0)
        run = RankRun(running={}, restarts=known.generation)
        for local_rank in range(self._spec.num_ranks):
            place = Place(local_rank, known.generation, first.port, first.address, self._meeting.node)
            process = start_rank(self._files, self._spec, self._attempt, place, signals=_SIGNALS)
            run.running[process.pid] = process.rank
            run.ranks[process.rank] = process
        group = RankGroup(attempt=self._attempt, restarts=run.restarts, pids=tuple(run.running))
        with self._full_disk_allowed():
            self._files.write("ranks.json", group)
        return run

    def _watch(self, run: RankRun) -> None:
        """Wait until every rank has ended; the survivors of a failed one cannot go on and are killed."""
        watch = RankWatch(self._spec, self._meeting.node, list(run.ranks.values()), self._say)
        while run.running and not run.over:
            self._wait(run, 0.5)
            self._look(run, watch)
        deadline = time.monotonic() + SETTLE_SECONDS
        while run.running and not self._is_settled(run) and time.monotonic() < deadline:
            self._wait(run, 0.05)
        if run.over:
            processes.kill_descendants()
        for rank in run.running.values():
            run.ended[rank] = Outcome(rank=rank, reason="ended with its peers", peer_lost=True, at=time.time())
            run.ranks[rank].outcome.take()
        run.running.clear()
        for process in run.ranks.values():
            process.stack.close()

    def _is_settled(self, run: RankRun) -> bool:
        return run.hang is not None or run.elsewhere or any(failure.killed for failure in run.failed)

    def _look(self, run: RankRun, watch: RankWatch) -> None:
        """See whether the ranks go on, here and elsewhere; a hang is put on record before anybody is killed."""
        known = self._meeting.poll()
        run.elsewhere = known.generation > run.restarts
        stopped_there = run.elsewhere and known.failures[run.restarts].outcome.hang
        hang = None
        if run.running and not run.over and not self._stopping:
            hang = watch.look(run.running, known.paces)
        if hang is not None or stopped_there:
            name = f"attempt{self._attempt}-start{run.restarts}"
            stacks = watch.dump(run.running, name, self._keep_stack)
            run.hang = watch.judge(hang, stacks) if hang is not None else None
        if self._meeting.num_nodes > 1 and (pace := watch.pace()) is not None:
            with self._full_disk_allowed():
                self._meeting.share(pace)

    def _keep_stack(self, name: str, text: str) -> str:
        """Write a dump and return its path below the job's folder; "" where the disk refuses it."""
        path = Path(STACKS) / name
        try:
            with disk(self._files.path / path):
                (self._files.path / STACKS).mkdir(mode=0o700, exist_ok=True)
                (self._files.path / path).write_text(text + "\n")
        except DeepSeekOpsError as error:
            print(error, flush=True)  # noqa: T201  (the job's log)
            return ""
        return str(path)

    def _wait(self, run: RankRun, seconds: float) -> None:
        if self._pause(seconds):
            for pid in run.running:  # not reaped yet, so the ids are still theirs
                os.kill(pid, signal.SIGTERM)
        for pid, status in processes.reaped():
            if pid in run.running:
                rank = run.running.pop(pid)
                said = run.ranks[rank].outcome.take()
                run.ended[rank] = said or silent_ending(
                    status, who=f"rank {rank}", rank=rank, restarts=run.restarts, starved=run.kills.seen()
                )

    def _pause(self, seconds: float) -> bool:
        """Wait for a signal, at most so long; return whether it says that the job has to stop."""
        arrived = signal.sigtimedwait(_SIGNALS, seconds)
        told = arrived is not None and arrived.si_signo == signal.SIGTERM
        self._stopping = self._stopping or told
        return told

    def _end(self, run: RankRun) -> Gathering:
        """Return what is known once the generation has ended on every node, after telling them how it ended here."""
        known = self._meeting.poll()
        if run.over and not run.elsewhere:
            if run.cause.peer_lost:  # whoever knows why is asked first
                known = self._until(lambda now: now.generation > run.restarts, self._meeting.settle_seconds)
            if known.generation == run.restarts:
                self._fail(known, run.cause)
        elif not run.elsewhere:
            self._tell(partial(self._meeting.finish, run.restarts, run.outcome))
        # Other nodes may work for as long as they like, but once node 0 has the result they have nothing left to do.
        patience = self._meet_seconds if self._meeting.node == 0 and not run.over else float("inf")
        return self._until(lambda now: self._has_ended(now, run.restarts), patience)

    def _has_ended(self, known: Gathering, generation: int) -> bool:
        return known.generation > generation or len(known.finished) == self._meeting.num_nodes

    def _until(self, condition: Callable[[Gathering], bool], seconds: float) -> Gathering:
        deadline = time.monotonic() + seconds
        while not condition(known := self._meeting.poll()) and time.monotonic() < deadline:
            self._pause(0.1)
        return known

    def _fail(self, known: Gathering, cause: Outcome, *, final: bool = False) -> None:
        """Report the end of the newest generation. Deaths and hangs have a budget of ``max_restarts`` each.

        Ranks that ran out of memory would do so again: the next attempt can have smaller batches, a restart cannot.
        """
        spent = sum(failure.outcome.hang == cause.hang for failure in known.failures)
        used_up = spent >= self._spec.max_restarts
        if used_up and cause.retry and not self._stopping and not final:
            cause = cause.evolve(reason=f"{cause.reason}; restarted {spent} times, max_restarts={spent}")
        starved = cause.cause is JobCause.OUT_OF_MEMORY
        final = final or self._stopping or not cause.retry or used_up or starved
        failure = Failure(node=self._meeting.node, outcome=cause, final=final)
        self._tell(partial(self._meeting.fail, known.generation, failure))

    def _tell(self, say: Callable[[], None]) -> None:
        """Say something that the other nodes wait for; on a full disk again, for as long as they wait.

        Raises NoRoomToMeetError then, and when the job has to stop.
        """
        deadline = time.monotonic() + self._meet_seconds
        while True:
            try:
                return say()
            except NoSpaceForJobError as error:
                if self._stopping or time.monotonic() > deadline:
                    raise NoRoomToMeetError(self._meeting.node, self._meet_seconds, str(error)) from error
            self._pause(TELL_SECONDS)

    def _note(self, known: Gathering) -> None:
        """Put the restarts that this node brought about into its stream; the others' are in theirs."""
        for number in range(self._noted, known.generation):
            failure = known.failures[number]
            cause = failure.outcome
            if failure.node == self._meeting.node and not failure.final:
                self._say("restart", rank=cause.rank, reason=cause.reason, restarts=number + 1, hang=cause.hang)
        self._noted = known.generation

    @contextlib.contextmanager
    def _full_disk_allowed(self) -> Iterator[None]:
        """Go on where what only informs others cannot be written: a full disk must not end a training."""
        try:
            yield
        except NoSpaceForJobError as error:
            with contextlib.suppress(OSError):  # the log may lie on the same disk
                print(error, flush=True)  # noqa: T201  (the job's log)

    def _say(self, kind: str, **fields: object) -> None:
        try:
            self._files.append_event(kind, self._attempt, fields)
        except DeepSeekOpsError as error:
            print(error, flush=True)  # noqa: T201  (the job's log: a full disk must not end a training)


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1" if address == "127.0.0.1" else "", 0))
        return int(probe.getsockname()[1])
