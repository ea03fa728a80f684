"""From the kind of a job to its function, and from how the function ended to an exit status.

``KINDS`` names the function of every kind. ``DEEPSEEK_OPS_JOB_KINDS`` replaces some of them for one job, such as
``train=acme.trainer:run`` for a trainer of your own; it travels in ``JobSpec.environment``, so the job's folder shows
which code ran. Whoever may set a job's environment may run code in it anyway.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pydantic import Field, JsonValue

from deepseek_ops.adapters.local_launcher.folder import JOB_VARIABLE, JobFolder, plain
from deepseek_ops.core.errors import (
    InvalidRecordError,
    JobStoppedError,
    MissingDependencyError,
    PermanentError,
    TransientError,
)
from deepseek_ops.core.jobs import EXIT_DO_NOT_RETRY, EXIT_RETRY, JobCause, JobSpec
from deepseek_ops.core.records import Record, canonical_json
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.environment import resolved_environment
from deepseek_ops.jobs.error_texts import is_broken_device, is_out_of_memory, is_peer_loss

KINDS = {
    "prepare": "deepseek_ops.jobs.prepare:run",
    "train": "deepseek_ops.jobs.train:run",
    "evaluate": "deepseek_ops.jobs.evaluate:run",
    "export": "deepseek_ops.jobs.export:run",
    "serve": "deepseek_ops.jobs.serve:run",
}
KINDS_VARIABLE = "DEEPSEEK_OPS_JOB_KINDS"

JobFunction = Callable[[JobContext], dict[str, JsonValue]]


class Outcome(Record):
    """How one process of a job ended, in its own words."""

    result: dict[str, JsonValue] | None = None
    reason: str = ""
    cause: JobCause | None = Field(default=None, description="Of a failure, where it is known.")
    error: str = Field(default="", description="Class of the exception.")
    retry: bool = False
    killed: bool = Field(default=False, description="A signal ended it.")
    hang: bool = Field(default=False, description="It was ended because it got no further.")
    peer_lost: bool = Field(default=False, description="It failed because another rank had gone.")
    stopped: bool = Field(default=False, description="A rule in the job's own code ended it on purpose.")
    stop_seen: bool = Field(default=False, description="The code had been told to stop before it ended.")
    told: str = Field(default="", description="Why the code was told to stop by itself or by a signal.")
    told_cause: JobCause | None = Field(default=None, description="What such an end counts as, where that is known.")
    rank: int = 0
    restarts: int = Field(default=0, ge=0)
    at: float = Field(default=0.0, description="Seconds since the epoch.")

    @property
    def exit_status(self) -> int:
        if self.result is not None:
            return 0
        return EXIT_RETRY if self.retry else EXIT_DO_NOT_RETRY


class BadJobCodeError(PermanentError):
    """The function of a kind cannot be found or breaks its contract."""


def function_of(kind: str) -> JobFunction:
    """Return the function that does jobs of ``kind``. Raises BadJobCodeError, MissingDependencyError."""
    replaced = dict(pair.split("=", 1) for pair in os.environ.get(KINDS_VARIABLE, "").split(",") if "=" in pair)
    target = replaced.get(kind, KINDS[kind])
    module, _, name = target.partition(":")
    try:
        function = getattr(importlib.import_module(module), name or "run")
    except ModuleNotFoundError as error:
        if error.name and module.startswith("deepseek_ops.") and not error.name.startswith("deepseek_ops"):
            raise MissingDependencyError(error.name, "train", f"a job of kind {kind}") from error
        raise BadJobCodeError(f"{kind} jobs are done by {target}: {error}.") from error
    except AttributeError as error:
        raise BadJobCodeError(f"{kind} jobs are done by {target}: {error}.") from error
    if not callable(function):
        raise BadJobCodeError(f"{kind} jobs are done by {target}, which is not a function.")
    return function  # type: ignore[no-any-return]  # what it returns is checked when it has


def call(context: JobContext) -> Outcome:
    """Run the job's code in this process and return how it ended; the traceback of a failure goes to the log."""
    try:
        say_environment(context)
        ending = Outcome(result=_result(function_of(context.spec.kind)(context), context.spec.kind))
    except BaseException as error:  # noqa: BLE001  (nothing is swallowed: it becomes the outcome)
        traceback.print_exc()
        ending = _failure(error, context.spec)
    return ending.evolve(
        rank=context.rank,
        restarts=context.restarts,
        stop_seen=context.stop_seen,
        told=context.told,
        told_cause=context.told_cause,
        at=time.time(),
        result=ending.result,
    )


def say_environment(context: JobContext) -> None:
    """Put what this process runs with into the job's stream, once an attempt."""
    if context.rank == 0 and context.restarts == 0:
        context.event("environment", **resolved_environment().body())


def silent_ending(
    wait_status: int, *, who: str, rank: int = 0, restarts: int = 0, starved: bool | None = None
) -> Outcome:
    """Return the outcome of a process that ended without saying why: killed, or by an exit of its own.

    ``starved`` says whether the kernel killed a process of the job for want of memory while it ran; None = nobody
    knows. Only a SIGKILL can have been that, and only one that was not ours.
    """
    code = os.waitstatus_to_exitcode(wait_status)
    cause = None
    if code < 0:
        words = ""
        if -code == signal.SIGKILL and starved is not False:
            words, cause = (" (out of memory)", JobCause.OUT_OF_MEMORY) if starved else (" (out of memory?)", None)
        reason, retry = f"{who} was killed by {signal.Signals(-code).name}{words}", True
    else:
        reason, retry = f"{who} ended with status {code} and no result", code == EXIT_RETRY
    return Outcome(
        reason=reason, cause=cause, retry=retry, killed=code < 0, rank=rank, restarts=restarts, at=time.time()
    )


class OutcomeSlot:
    """Where a process leaves its outcome for the one that forked it: memory, so that a full disk cannot swallow it."""

    def __init__(self) -> None:
        self._memory = os.memfd_create("outcome", os.MFD_CLOEXEC)

    def write(self, outcome: Outcome) -> None:
        """Leave the outcome; called once, by the forked process."""
        os.pwrite(self._memory, canonical_json(outcome.dump()), 0)

    def take(self) -> Outcome | None:
        """Return the outcome and give the memory back; None when the process ended without a word."""
        said = os.pread(self._memory, os.fstat(self._memory).st_size, 0)
        os.close(self._memory)
        try:
            return Outcome.load(json.loads(said))
        except (ValueError, InvalidRecordError):
            return None


def prepare_process(files: JobFolder, spec: JobSpec) -> None:
    """Give this process the surroundings of a job: working directory, module path, line-wise logs, memory limit."""
    os.environ[JOB_VARIABLE] = str(files.path)
    for entry in reversed(os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if entry and entry not in sys.path:  # a process forked from the warm host did not read it at its start
            sys.path.insert(1, entry)
    files.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chdir(files.work)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with contextlib.suppress(OSError):  # when memory runs out, the job goes before its supervisor and its neighbours
        Path("/proc/self/oom_score_adj").write_text("500")
    if spec.memory_bytes is not None:
        limit = _address_space() + spec.memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def limit_threads(*, default: int) -> None:
    """Make torch use as many threads as OMP_NUM_THREADS says, or ``default``; it may have been imported with another.

    The warm host imports torch with one thread, because only a process with one thread may fork.
    """
    wanted = int(os.environ.setdefault("OMP_NUM_THREADS", str(default)))
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


def stop_on_signal(context: JobContext) -> None:
    """Make SIGTERM a request to stop: the process stays, and its code checkpoints when it asks its context."""

    def told(number: int, _frame: FrameType | None) -> None:
        context.request_stop(signal.Signals(number).name)

    signal.signal(signal.SIGTERM, told)


def leave(status: int) -> NoReturn:
    """End this forked process: the exit handlers of the process it was forked from are not its business."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = status or EXIT_DO_NOT_RETRY
    os._exit(status)


def _result(value: object, kind: str) -> dict[str, JsonValue]:
    if not isinstance(value, dict):
        raise BadJobCodeError(f"run() of kind {kind} returned a {type(value).__name__}, not a dict.")
    return {str(key): plain(item) for key, item in value.items()}


def _failure(error: BaseException, spec: JobSpec) -> Outcome:
    name = type(error).__name__
    if isinstance(error, JobStoppedError):
        return Outcome(reason=error.reason, error=name, stopped=True)
    if isinstance(error, PermanentError):
        return Outcome(reason=str(error), error=name)
    if isinstance(error, TransientError):
        return Outcome(reason=str(error), error=name, retry=True)
    if is_out_of_memory(error):
        limit = f" (memory_bytes={spec.memory_bytes})" if spec.memory_bytes else ""
        reason = f"out of memory{limit}: {_last_line(error)}"
        return Outcome(reason=reason, cause=JobCause.OUT_OF_MEMORY, error=name, retry=True)
    if isinstance(error, KeyboardInterrupt):
        return Outcome(reason="interrupted", error=name, retry=True)
    if isinstance(error, SystemExit):
        return Outcome(reason=f"the job's code called exit({error.code!r})", error=name, retry=error.code == EXIT_RETRY)
    if is_broken_device(error):
        return Outcome(reason=_last_line(error), cause=JobCause.MACHINE_LOST, error=name, retry=True)
    peer_lost = is_peer_loss(error)
    return Outcome(reason=_last_line(error), error=name, retry=peer_lost, peer_lost=peer_lost)


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()[:2000]


def _address_space() -> int:
    """Return the bytes of address space this process has already: the limit is on what the job adds to it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
