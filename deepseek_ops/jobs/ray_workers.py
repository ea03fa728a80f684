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
from collections.abc import Callable, Mapping
from typing import IO, TypedDict

from pydantic import JsonValue

from deepseek_ops.adapters.engines.ray.engine import NEEDED_VARIABLE, SECRETS_VARIABLE
from deepseek_ops.adapters.engines.ray.sealing import KEY_VARIABLE, unseal
from deepseek_ops.core.errors import DeepSeekOpsError, PermanentError
from deepseek_ops.core.jobs import EXIT_DO_NOT_RETRY, EXIT_RETRY, EngineJob
from deepseek_ops.jobs.nodes import ADDRESS_VARIABLE, COUNT_VARIABLE, INSTANCE_VARIABLE, RANK_VARIABLE
from deepseek_ops.jobs.ray_gang import Gang

TELL_SECONDS = 0.5
MAX_TOLD_CHARACTERS = 16_000
GUARD = "deepseek_ops.jobs.ray_guard"
_OWN_VARIABLES = (KEY_VARIABLE, f"{KEY_VARIABLE}_FILE", SECRETS_VARIABLE, NEEDED_VARIABLE)


class NodeTask(TypedDict):
    """What ``run_node`` is given; plain values, because Ray shows what it carries to whoever looks."""

    job: dict[str, JsonValue]
    sealed: str
    needed: list[str]
    gang: object
    submission: str


class Place(TypedDict):
    """What the first node tells the others."""

    instance: int
    address: str


class MissingVariablesError(PermanentError):
    """A node lacks what the connection says it provides."""


def run_node(task: NodeTask) -> int:
    """Return the exit status of the job's command on this machine. Ray Train calls it in the worker."""
    import ray
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    context = ray.train.get_context()
    rank, count = context.get_world_rank(), context.get_world_size()
    line = GangLine(task["gang"], rank)
    first: Place | None = None
    if rank == 0:
        first = {"instance": line.begin(), "address": ray.util.get_node_ip_address()}
    place: Place = broadcast_from_rank_zero(first)
    line.instance = place["instance"]
    if not line.enter():
        return EXIT_RETRY
    job = EngineJob.load(task["job"])
    try:
        environment = node_environment(job, task, os.environ)
    except DeepSeekOpsError as error:
        line.leave(f"{error}\n", EXIT_DO_NOT_RETRY)
        return EXIT_DO_NOT_RETRY
    environment |= {
        RANK_VARIABLE: str(rank),
        COUNT_VARIABLE: str(count),
        ADDRESS_VARIABLE: place["address"],
        "DEEPSEEK_OPS_NODE_HOST": ray.util.get_node_ip_address(),
        INSTANCE_VARIABLE: f"{task['submission']}.{place['instance']}",
    }
    return GuardedCommand(job, environment).run(line)


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
        return bool(self._get(self._method(Gang.enter)(self.instance, self._node)))

    def tell(self, text: str) -> bool:
        """Return whether the command has to end."""
        import ray

        try:
            return bool(self._get(self._method(Gang.tell)(self.instance, self._node, text), timeout=30))
        except ray.exceptions.GetTimeoutError:
            return False  # a busy head; what was said may come late
        except ray.exceptions.RayActorError:
            return True

    def leave(self, text: str, status: int) -> None:
        self._get(self._method(Gang.leave)(self.instance, self._node, text, status))

    def _method(self, method: Callable[..., object]) -> Callable[..., object]:
        return getattr(self._gang, method.__name__).remote  # type: ignore[no-any-return]  # an actor has no types


class GuardedCommand:
    """The job's command on this machine, below a guard that ends it when this worker ends."""

    def __init__(self, job: EngineJob, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", GUARD, f"{job.grace_seconds:g}", "--", *job.command]
        self._guard = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(environment)
        )
        self._text: list[str] = []
        self._reader = threading.Thread(target=self._read, args=[self._guard.stdout], name="output", daemon=True)
        self._reader.start()

    def run(self, line: GangLine) -> int:
        """Return the exit status, after telling the gang all that was printed."""
        told = False
        while self._guard.poll() is None:
            time.sleep(TELL_SECONDS)
            if line.tell(self._take()) and not told:
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
