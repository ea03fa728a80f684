"""The ranks of a train job: forked, watched and, when one dies, started again together, as torchrun does.

Why not torch's elastic agent itself: tried with ``start_method="fork"`` and two gloo ranks, it (1) runs four threads
in the process that forks, so a rank can inherit a lock that nobody will ever release; (2) blamed the survivor, which
failed with "Connection reset by peer" ten milliseconds before the agent saw the killed rank, so "try again" (75) and
"do not" (78) cannot be told apart; (3) ends survivors with SIGTERM, which means "checkpoint and stop" here, and gives
them 30 s for it while their collectives can only hang; (4) took 5.6 s from the kill to the new ranks, this group
half a second. The environment variables are torchrun's, so code written for torchrun runs unchanged.

All of this happens in the worker process below the supervisor. It has imported the heavy packages before it forks, so
a restarted rank runs at once. It stays single-threaded, and its ranks die with it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass, field

from deepseek_ops.adapters.local_launcher import processes
from deepseek_ops.adapters.local_launcher.folder import JobFolder, RankGroup
from deepseek_ops.core.jobs import EXIT_RETRY, JobSpec
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.entry import Outcome, OutcomeSlot, call, leave, limit_threads, silent_ending, stop_on_signal
from deepseek_ops.jobs.preload import has_gpu

SETTLE_SECONDS = 0.5
"""How long to wait, after a rank failed by itself, for the others to say what happened to them."""
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM)


@dataclass
class RankRun:
    """One start of all ranks: who runs, and who ended how."""

    running: dict[int, int]
    """Process id -> rank."""
    ended: dict[int, Outcome] = field(default_factory=dict)
    """Rank -> how it ended."""
    restarts: int = 0
    slots: dict[int, OutcomeSlot] = field(default_factory=dict)
    """Rank -> where it says how it ended."""

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.ended.values() if outcome.result is None]

    @property
    def cause(self) -> Outcome:
        """The failure that made the others fail: not the loss of a peer, and the first one there was.

        A killed rank is seen a little after its peers see their connections break, so a second is taken off.
        """
        return min(self.failed, key=lambda outcome: (outcome.peer_lost, outcome.at - outcome.killed))


class RankGroupRunner:
    """Runs ``spec.num_ranks`` ranks until all return, one fails for good, or the restarts are used up."""

    def __init__(self, files: JobFolder, spec: JobSpec, attempt: int) -> None:
        self._files = files
        self._spec = spec
        self._attempt = attempt
        self._stopping = False

    def run(self) -> Outcome:
        """Return the outcome of the job: rank 0's result, or the failure that ended it."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        processes.become_subreaper()  # what a dead rank had started must not run beside its successor
        for restarts in range(self._spec.max_restarts + 1):
            run = self._start(restarts)
            self._watch(run)
            if not run.failed:
                return run.ended[0].evolve(
                    restarts=restarts, stop_seen=any(ending.stop_seen for ending in run.ended.values())
                )
            cause = run.cause.evolve(restarts=restarts)
            if self._stopping or not cause.retry:
                return cause
            if restarts < self._spec.max_restarts:
                self._event("restart", rank=cause.rank, reason=cause.reason, restarts=restarts + 1)
        return cause.evolve(reason=f"{cause.reason}; restarted {restarts} times, max_restarts={restarts}")

    def _start(self, restarts: int) -> RankRun:
        port = _free_port()
        sys.stdout.flush()
        sys.stderr.flush()
        run = RankRun(running={}, restarts=restarts)
        for rank in range(self._spec.num_ranks):
            parent = os.getpid()
            slot = OutcomeSlot()
            pid = os.fork()
            if pid == 0:
                self._be_rank(rank, restarts, port, parent, slot)
            run.running[pid] = rank
            run.slots[rank] = slot
        self._files.write("ranks.json", RankGroup(attempt=self._attempt, restarts=restarts, pids=tuple(run.running)))
        return run

    def _be_rank(self, rank: int, restarts: int, port: int, parent: int, slot: OutcomeSlot) -> None:
        try:
            processes.die_with_parent(parent)
            os.environ.update(rank_environment(self._spec, rank, restarts, port))
            limit_threads(default=1)
            context = JobContext(
                self._spec,
                self._files.path,
                attempt=self._attempt,
                rank=rank,
                world_size=self._spec.num_ranks,
                restarts=restarts,
            )
            stop_on_signal(context)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            ending = call(context)
            slot.write(ending)
            leave(ending.exit_status)
        except BaseException:  # noqa: BLE001  (it ends in the log and in the exit status)
            traceback.print_exc()
        finally:
            leave(EXIT_RETRY)  # no memory for the outcome

    def _watch(self, run: RankRun) -> None:
        """Wait until every rank has ended; the survivors of a failed one cannot go on and are killed."""
        while run.running and not run.failed:
            self._wait(run, 0.5)
        deadline = time.monotonic() + SETTLE_SECONDS
        while run.running and time.monotonic() < deadline and not any(failure.killed for failure in run.failed):
            self._wait(run, 0.05)
        if run.failed:
            processes.kill_descendants()
        for rank in run.running.values():
            run.ended[rank] = Outcome(rank=rank, reason="ended with its peers", peer_lost=True, at=time.time())
            run.slots[rank].take()
        run.running.clear()

    def _wait(self, run: RankRun, seconds: float) -> None:
        arrived = signal.sigtimedwait(_SIGNALS, seconds)
        if arrived is not None and arrived.si_signo == signal.SIGTERM:
            self._stopping = True
            for pid in run.running:  # not reaped yet, so the ids are still theirs
                os.kill(pid, signal.SIGTERM)
        for pid, status in processes.reaped():
            if pid in run.running:
                rank = run.running.pop(pid)
                said = run.slots[rank].take()
                run.ended[rank] = said or silent_ending(status, who=f"rank {rank}", rank=rank, restarts=run.restarts)

    def _event(self, kind: str, **fields: object) -> None:
        self._files.append_event(kind, self._attempt, fields)


def rank_environment(spec: JobSpec, rank: int, restarts: int, port: int) -> dict[str, str]:
    """Return the variables of one rank: torchrun's, and what keeps many ranks of one machine out of each other's way.

    The latter are defaults: what the job's environment sets already stays.
    """
    defaults = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    if not has_gpu():
        defaults["DS_ACCELERATOR"] = "cpu"
    return {
        **{name: value for name, value in defaults.items() if name not in os.environ},
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "ROLE_RANK": str(rank),
        "WORLD_SIZE": str(spec.num_ranks),
        "LOCAL_WORLD_SIZE": str(spec.num_ranks),
        "ROLE_WORLD_SIZE": str(spec.num_ranks),
        "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
        "TORCHELASTIC_MAX_RESTARTS": str(spec.max_restarts),
        "TORCHELASTIC_RUN_ID": spec.name,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
