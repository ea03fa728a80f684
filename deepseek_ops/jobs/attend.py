"""``python -m deepseek_ops.jobs attend --job NAME --attempt N``: what an engine runs on every machine of a job.

The agent knows which attempt it is for and finds everything else in the store. It claims its node (an engine that
starts a job again by itself finds the claim taken), makes the job's folder on this machine, and runs the same
supervisor in it that runs jobs on a single machine. While that works, the agent mirrors the folder (``mirror_folder``)
and watches what the supervisor cannot see: the lease in the store, a newer attempt, the other nodes, the engine's
SIGTERM. At the end it sends what is left, and node 0 writes how the attempt ended.

What ends a job early, and as what:

=====================================  =========================================================================
``stop.json`` in the store             STOPPED, with the reason
lease not renewed                      STOPPED; early enough that all is over 60 s after the lease
store away for as long as the lease    LOST: nobody can say whether the job is still wanted, and a job that went on
                                       unseen could meet its own successor; its folder keeps the last checkpoint
SIGTERM, another node gone             LOST: the machine is taken away; another attempt resumes
newer attempt, ended by others         at once and without a word: whatever it would say no longer counts
=====================================  =========================================================================
"""

from __future__ import annotations

import importlib
import os
import signal
import time

from deepseek_ops.adapters.local_launcher import processes
from deepseek_ops.adapters.local_launcher.reading import status_of
from deepseek_ops.adapters.remote_launcher.layout import JobKeys, RemoteAttempt
from deepseek_ops.adapters.stores import store_from_environment
from deepseek_ops.core.jobs import EXIT_DO_NOT_RETRY, EXIT_RETRY, JobPhase, JobStatus
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.jobs.attend_child import SupervisorChild
from deepseek_ops.jobs.attend_claim import claim_node, read_attempt
from deepseek_ops.jobs.attend_end import AttemptEnd
from deepseek_ops.jobs.attend_folder import prepare_folder, remove_folder, scratch_folder
from deepseek_ops.jobs.attend_watch import Watch
from deepseek_ops.jobs.entry import BadJobCodeError
from deepseek_ops.jobs.mirror_folder import FolderMirror
from deepseek_ops.jobs.nodes import NodePlace, node_place
from deepseek_ops.jobs.supervise import GroupRunner

LATE_SECONDS = 4.0
SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def attend(job: str, attempt: int, *, run_ranks: GroupRunner | None = None, place: NodePlace | None = None) -> int:
    """Run one node of an attempt to its end; return the exit status: 0, 75 (try again) or 78 (do not).

    Args:
        job: The job's name.
        attempt: Its attempt.
        run_ranks: Runs the ranks of this node, in place of forked processes: a worker group of the engine's own.
        place: Which node this is; None = as the engine's variables say.

    Raises:
        BadPlaceError: The engine's variables do not say which node this is.
        StoreUriError: The environment names no store.
    """
    here = node_place(os.environ) if place is None else place
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    processes.become_subreaper()
    child = SupervisorChild(run_ranks or _ranks_of(here))
    try:
        return _attend(store_from_environment(os.environ), JobKeys(job), attempt, here, child)
    finally:
        child.close()


def _attend(store: ObjectStore, keys: JobKeys, attempt: int, place: NodePlace, child: SupervisorChild) -> int:
    began = time.time()
    record = read_attempt(store, keys, attempt)
    claim_node(store, keys, attempt, place)
    _say(f"attempt {attempt} of {keys.name} on node {place.rank} of {place.count}")
    files = prepare_folder(scratch_folder(), store, record, place)
    mirror = FolderMirror(files, store, keys.name, attempt=attempt, node=place.rank)
    mirror.start()
    watch = Watch(mirror, files, record, place, child)
    child.begin(files.path)
    superseded = watch.run()
    child.close()
    if superseded:
        _say(f"gave way: {superseded}")
        return EXIT_DO_NOT_RETRY
    deadline = watch.deadline()
    # Whatever a request to the store may hang in: its default action ends this process, and nothing is left of the job.
    signal.setitimer(signal.ITIMER_REAL, max(1.0, deadline - time.monotonic() + LATE_SECONDS))
    end = AttemptEnd(store, keys, record, place, mirror, deadline=deadline)
    status = status_of(files, keys.name)
    if status is None or not status.settled or status.attempt != attempt:
        status = _lost(record, child.ending, time.time() - began)
    told = end.tell(files, status)
    _say(f"{told.phase}: {told.reason}" if told.reason else str(told.phase))
    if told.phase is JobPhase.SUCCEEDED:
        remove_folder(files)
    return _exit_status(told.phase)


def _lost(record: RemoteAttempt, ending: str, wall_seconds: float) -> JobStatus:
    reason = f"its supervisor ended without a word ({ending})"
    return JobStatus(
        name=record.spec.name,
        phase=JobPhase.LOST,
        reason=reason,
        attempt=record.attempt,
        wall_seconds=max(0.0, wall_seconds),
    )


def runner_of(target: str) -> GroupRunner | None:
    """Return the function that ``module:function`` names, or None for "". Raises BadJobCodeError."""
    if not target:
        return None
    module, _, name = target.partition(":")
    try:
        runner: GroupRunner = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise BadJobCodeError(f"--runner {target}: {error}.") from error
    return runner


def _ranks_of(place: NodePlace) -> GroupRunner | None:
    """Return what runs this node's ranks: None = the group of a single machine."""
    if place.count == 1:
        return None
    from deepseek_ops.jobs.attend_ranks import run_with_peers

    return run_with_peers(place)


def _exit_status(phase: JobPhase) -> int:
    return {JobPhase.LOST: EXIT_RETRY, JobPhase.FAILED: EXIT_DO_NOT_RETRY}.get(phase, 0)


def _say(line: str) -> None:
    """Write to what the engine keeps of our output: for people, when nothing has come to the store."""
    print(line, flush=True)  # noqa: T201
