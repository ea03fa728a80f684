"""One machine's part in a Ray job: Ray Train runs ``run_node`` in one worker on each, and it runs the job's command.

The worker is one for each machine, not for each rank. The command (``jobs attend``) forks the ranks from a process
with the imports made, and the nodes meet through the store as on any engine; so a killed rank costs a fork, and only
a lost machine costs a restart by Ray, whose price is three interpreters and their imports. Ray's own process group is
not set up: ``DataParallelTrainer``, of which ``TorchTrainer`` is the variant with a group, leaves the group to the
ranks and torch out of the worker (3 CPU-seconds in each of three processes before the first line of ours).
"""

from __future__ import annotations

import codecs
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TypedDict

from pydantic import JsonValue

from deepseek_ops.adapters.engines.ray.engine import JOB_VARIABLE, NEEDED_VARIABLE, SECRETS_VARIABLE
from deepseek_ops.adapters.engines.ray.sealing import KEY_VARIABLE, unseal
from deepseek_ops.adapters.stores import store_from_environment
from deepseek_ops.core.errors import DeepSeekOpsError, PermanentError
from deepseek_ops.core.jobs import EXIT_DO_NOT_RETRY, EXIT_RETRY, EngineJob
from deepseek_ops.jobs.nodes import ADDRESS_VARIABLE, COUNT_VARIABLE, HOST_VARIABLE, INSTANCE_VARIABLE, RANK_VARIABLE
from deepseek_ops.jobs.ray_again import ask_for_checkpoint, attended_job, begin_again, with_attempt
from deepseek_ops.jobs.ray_gang import Gang, Order

TELL_SECONDS = 0.5
MAX_TOLD_CHARACTERS = 16_000
GUARD = "deepseek_ops.jobs.ray_guard"
_OWN_VARIABLES = (KEY_VARIABLE, f"{KEY_VARIABLE}_FILE", JOB_VARIABLE, SECRETS_VARIABLE, NEEDED_VARIABLE)


class NodeTask(TypedDict):
    """What ``run_node`` is given; plain values, because Ray shows what it carries to whoever looks."""

    job: dict[str, JsonValue]
    sealed: str
    needed: list[str]
    gang: object


class Place(TypedDict):
    """What the first node tells the others."""

    instance: int
    address: str
    attempt: int
    """Of the job in the store: 0 = the job needs no machines any more, -1 = as the command says."""


class MissingVariablesError(PermanentError):
    """A node lacks what the connection says it provides."""


def run_node(task: NodeTask) -> int:
    """Return the exit status of the job's command on this machine. Ray Train calls it in the worker."""
    import ray
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    context = ray.train.get_context()
    job = EngineJob.load(task["job"])
    rank, count = context.get_world_rank(), usable_nodes(context.get_world_size(), job.num_nodes)
    line = GangLine(task["gang"], rank)
    environment, problem = _environment_or_problem(job, task)
    place = broadcast_from_rank_zero(_gathered(job, count, line, environment) if rank == 0 else None)
    line.instance = place["instance"]
    if rank >= count or not line.enter():
        return 0
    if problem or place["attempt"] == 0:
        status = EXIT_DO_NOT_RETRY if problem else EXIT_RETRY
        line.leave(f"{problem or 'the job needs these machines no more'}\n", status)
        return status
    environment |= {
        RANK_VARIABLE: str(rank),
        COUNT_VARIABLE: str(count),
        ADDRESS_VARIABLE: place["address"],
        HOST_VARIABLE: ray.util.get_node_ip_address(),
        INSTANCE_VARIABLE: f"{job.id}.{place['instance']}",
    }
    command = job.command if place["attempt"] < 0 else with_attempt(job.command, place["attempt"])
    guarded = GuardedCommand(command, job.grace_seconds, environment)
    return guarded.run(line, _saver(job, environment), job.timeout_seconds)


def usable_nodes(available: int, wanted: int) -> int:
    """Return how many of the gathered machines to use: the most, up to ``available``, that divide ``wanted``.

    A batch that divides over the wanted machines then divides over these, with more accumulation; one that divides
    over 4 need not over 3. What is left over waits as a spare.
    """
    return next((count for count in range(min(available, wanted), 0, -1) if wanted % count == 0), 0)


def _gathered(job: EngineJob, count: int, line: GangLine, environment: Mapping[str, str]) -> Place:
    """Return what the first node decides for all.

    A gathering after the first, or of fewer machines than the attempt was made for, needs another attempt.
    """
    import ray

    instance, attempt = line.begin(), -1
    attended = attended_job(job.command)
    if attended and (instance > 1 or count != job.num_nodes):
        attempt = begin_again(store_from_environment(environment), attended, job.id, count)
    return {"instance": instance, "address": ray.util.get_node_ip_address(), "attempt": attempt}


def _environment_or_problem(job: EngineJob, task: NodeTask) -> tuple[dict[str, str], str]:
    try:
        return node_environment(job, task, os.environ), ""
    except DeepSeekOpsError as error:
        return {}, str(error)


def _saver(job: EngineJob, environment: Mapping[str, str]) -> Callable[[], None]:
    """Return what has the training save what it has: a machine will be taken away."""
    attended = attended_job(job.command)

    def save() -> None:
        if attended:
            ask_for_checkpoint(store_from_environment(environment), attended)

    return save


def node_environment(job: EngineJob, task: NodeTask, own: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the command: this node's, the job's, and its secrets, which are opened here.

    Raises SealBrokenError, and MissingVariablesError where the node lacks a variable that it should have by itself.
    """
    missing = [name for name in task["needed"] if name not in own]
    if missing:
        raise MissingVariablesError(
            f"this node's Ray was started without {', '.join(missing)}, which the connection says the cluster provides."
        )
    secrets = unseal(task["sealed"], own, job=job.id) if task["sealed"] else {}
    kept = {name: value for name, value in own.items() if name not in _OWN_VARIABLES and not name.startswith("RAY_")}
    return {**kept, **job.environment, **secrets}


class GangLine:
    """A node's line to the gang. A gang that is gone means that the job is over."""

    def __init__(self, gang: object, node: int) -> None:
        import ray

        self._gang = gang
        self._node = node
        self._get = ray.get
        self.instance = 0

    def begin(self) -> int:
        return int(self._get(self._method(Gang.begin)()))

    def enter(self) -> bool:
        import ray

        machine = ray.get_runtime_context().get_node_id()
        return bool(self._get(self._method(Gang.enter)(self.instance, self._node, machine)))

    def tell(self, text: str) -> Order:
        """Return what this node is to do."""
        import ray

        try:
            order: Order = self._get(self._method(Gang.tell)(self.instance, self._node, text), timeout=30)
        except ray.exceptions.GetTimeoutError:
            return ""  # a busy head; what was said may come late
        except ray.exceptions.RayActorError:
            return "stop"
        return order

    def leave(self, text: str, status: int) -> None:
        self._get(self._method(Gang.leave)(self.instance, self._node, text, status))

    def _method(self, method: Callable[..., object]) -> Callable[..., object]:
        return getattr(self._gang, method.__name__).remote  # type: ignore[no-any-return]  # an actor has no types


class GuardedCommand:
    """The job's command on this machine, below a guard that ends it when this worker ends."""

    def __init__(self, command: Sequence[str], grace_seconds: float, environment: Mapping[str, str]) -> None:
        guarded = [sys.executable, "-m", GUARD, f"{grace_seconds:g}", "--", *command]
        self._guard = subprocess.Popen(
            guarded, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(environment)
        )
        self._text: list[str] = []
        self._reader = threading.Thread(target=self._read, args=[self._guard.stdout], name="output", daemon=True)
        self._reader.start()

    def run(self, line: GangLine, save: Callable[[], None], timeout_seconds: float) -> int:
        """Return the exit status, after telling the gang all that was printed."""
        told, deadline = False, time.monotonic() + timeout_seconds
        while self._guard.poll() is None:
            time.sleep(TELL_SECONDS)
            order = line.tell(self._take())
            if order == "save":
                save()
            elif (order == "stop" or time.monotonic() > deadline) and not told:
                told = True
                self._guard.terminate()
        self._reader.join(timeout=5)
        status = self._guard.returncode
        status = status if status >= 0 else EXIT_RETRY  # somebody killed the guard: the command died with it
        line.leave(self._take(), status)
        return status

    def _read(self, output: IO[bytes]) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while piece := os.read(output.fileno(), 65536):
            self._text.append(decoder.decode(piece))

    def _take(self) -> str:
        """Return what was printed since the last time, cut in the middle where it is too much."""
        taken, self._text = self._text, []
        text = "".join(taken)
        if len(text) <= MAX_TOLD_CHARACTERS:
            return text
        half = MAX_TOLD_CHARACTERS // 2
        return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
