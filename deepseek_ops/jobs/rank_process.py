"""One rank of a training: a forked process with torchrun's variables, watched through memory it shares."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Collection
from dataclasses import dataclass
from typing import NoReturn

from deepseek_ops.adapters.local_launcher import processes
from deepseek_ops.adapters.local_launcher.folder import JobFolder
from deepseek_ops.core.jobs import EXIT_RETRY, JobSpec
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.entry import OutcomeSlot, call, leave, limit_threads, stop_on_signal
from deepseek_ops.jobs.preload import has_gpu
from deepseek_ops.jobs.progress import ProgressPage
from deepseek_ops.jobs.stacks import StackSlot


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank stands among all ranks of one generation."""

    local_rank: int
    generation: int
    port: int
    address: str = "127.0.0.1"
    """Of node 0, where the ranks meet."""
    node: int = 0

    def rank(self, spec: JobSpec) -> int:
        """Return its number among the ranks of all nodes."""
        return self.node * spec.num_ranks + self.local_rank


@dataclass(frozen=True, slots=True)
class RankProcess:
    """A rank that was started, and where it says how far it is and how it ended."""

    rank: int
    pid: int
    outcome: OutcomeSlot
    page: ProgressPage
    stack: StackSlot


def start_rank(
    files: JobFolder, spec: JobSpec, attempt: int, place: Place, *, signals: Collection[signal.Signals]
) -> RankProcess:
    """Fork one rank and return it. ``signals`` are blocked in this process; the rank gets them."""
    outcome, page, stack = OutcomeSlot(), ProgressPage(), StackSlot()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            processes.die_with_parent(parent)
            stack.arm(parent)
            os.environ.update(rank_environment(spec, place))
            limit_threads(default=1)
            _run(files, spec, attempt, place, outcome, page, signals)
        except BaseException:  # noqa: BLE001  (it ends in the log and in the exit status)
            traceback.print_exc()
        finally:
            leave(EXIT_RETRY)  # no memory for the outcome
    return RankProcess(place.rank(spec), pid, outcome, page, stack)


def _run(
    files: JobFolder,
    spec: JobSpec,
    attempt: int,
    place: Place,
    outcome: OutcomeSlot,
    page: ProgressPage,
    signals: Collection[signal.Signals],
) -> NoReturn:
    context = JobContext(
        spec,
        files.path,
        attempt=attempt,
        rank=place.rank(spec),
        world_size=spec.num_ranks * spec.num_nodes,
        restarts=place.generation,
        page=page,
    )
    stop_on_signal(context)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    ending = call(context)
    outcome.write(ending)
    leave(ending.exit_status)


def rank_environment(spec: JobSpec, place: Place) -> dict[str, str]:
    """Return the variables of one rank: torchrun's, and what keeps many ranks of one machine out of each other's way.

    The latter are defaults: what the job's environment sets already stays.
    """
    defaults = {"OMP_NUM_THREADS": "1"}
    if place.address == "127.0.0.1":
        defaults["GLOO_SOCKET_IFNAME"] = "lo"
    if not has_gpu():
        defaults["DS_ACCELERATOR"] = "cpu"
    rank, world = str(place.rank(spec)), str(spec.num_ranks * spec.num_nodes)
    return {
        **{name: value for name, value in defaults.items() if name not in os.environ},
        "RANK": rank,
        "LOCAL_RANK": str(place.local_rank),
        "GROUP_RANK": str(place.node),
        "ROLE_RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": str(spec.num_ranks),
        "ROLE_WORLD_SIZE": world,
        "GROUP_WORLD_SIZE": str(spec.num_nodes),
        "MASTER_ADDR": place.address,
        "MASTER_PORT": str(place.port),
        "TORCHELASTIC_RESTART_COUNT": str(place.generation),
        "TORCHELASTIC_MAX_RESTARTS": str(spec.max_restarts),
        "TORCHELASTIC_RUN_ID": spec.name,
        # Every start has a port, and so a store, of its own. An agent's store that this process was started with is
        # somebody else's: its addresses would be those of dead ranks.
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }
