"""The engine port on Slurm's commands."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from deepseek_ops.adapters.engines.slurm.commands import SlurmCommands
from deepseek_ops.adapters.engines.slurm.errors import SlurmMissingError, SlurmRefusedError, SlurmUnavailableError
from deepseek_ops.adapters.engines.slurm.reading import (
    COMPLETION_FORMAT,
    HISTORY_FORMAT,
    QUEUE_FORMAT,
    SlurmJob,
    queued,
    remembered,
)
from deepseek_ops.adapters.engines.slurm.script import MARK, STOP_SIGNAL
from deepseek_ops.adapters.engines.slurm.settings import SlurmSettings
from deepseek_ops.adapters.engines.slurm.submitting import submission, variables
from deepseek_ops.core.jobs import EngineJob, EnginePhase, EngineState

log = logging.getLogger(__name__)

TAIL_BYTES = 16 << 10


class SlurmEngine:
    """Jobs of ours on one Slurm cluster, as the user whose commands these are. Holds nothing but its settings.

    **Started once.** ``start`` looks for the id, submits, and looks again: of several jobs of one name the lowest id
    is the job, the others are cancelled by who submitted them and step aside by themselves if they run first (see
    ``script``). Slurm answers each look from one controller that has accepted every job with a lower id, so two starts
    that race cannot both win, however and whenever either side dies. What is left: a second job whose submitter died
    and that waited in the queue until Slurm had forgotten the first (``MinJobAge`` after its end, 300 s by default),
    and a counter of ids that wrapped (after 67 million jobs). Both meet the claim of the attempt in the store.

    **Forgotten** jobs are looked up in Slurm's database, or in its file of completed jobs, where there is one.
    """

    def __init__(self, settings: SlurmSettings | None = None) -> None:
        self._settings = settings or SlurmSettings()
        self._commands = SlurmCommands(self._settings)
        self._history: tuple[str, ...] | None = None

    def start(self, job: EngineJob, *, secrets: Mapping[str, str] | None = None) -> EngineState:
        """Start the job if none of its id is known; return its state either way.

        Raises SlurmRefusedError when Slurm does not take it, and SlurmUnavailableError when it is not known whether it
        has: starting again finds out.
        """
        known = self._find(job.id)
        if known is None:
            number = self._submit(job, secrets or {})
            known = next(iter(self._queue(job.id)), None)
            if known is None:  # accepted, ended and forgotten between two commands; or a cluster that shows us nothing
                return EngineState(id=job.id, phase=EnginePhase.PENDING, handle=str(number))
            if known.number != number:
                log.info("slurm: job %s of %s is withdrawn, %s was first", number, job.id, known.number)
                self._commands.slurm("scancel", str(number))
        return self._told(known)

    def state(self, name: str) -> EngineState | None:
        """Return the job's state, or None when Slurm does not know it. Raises SlurmUnavailableError."""
        job = self._find(name)
        return None if job is None else self._told(job)

    def cancel(self, name: str, *, grace_seconds: float) -> None:
        """Have the job's tasks told by SIGTERM and killed after the grace; a job that waits for machines just goes."""
        for job in self._queue(name):
            if not job.settled:
                self._cancel(job, grace_seconds)

    def retire(self, name: str) -> None:
        """Remove the output of a settled job; Slurm forgets the job itself after its ``MinJobAge``."""
        job = self._find(name)
        if job is not None and job.settled:
            self._commands.run(["rm", "-f", "--", self._output(name)], what="rm")

    def tail(self, name: str) -> str:
        """Return the last lines of what script and command printed; "" where there is none, or no shared folder."""
        try:
            return self._commands.run(["tail", "-c", str(TAIL_BYTES), "--", self._output(name)], what="tail")
        except SlurmRefusedError:  # no such file
            return ""

    def list(self) -> list[EngineState]:
        """Return every job of ours that the queue knows, the newest last."""
        first: dict[str, SlurmJob] = {}
        for job in self._queue():
            if job.id not in first:
                first[job.id] = job
        return [self._meaning(job) for job in first.values()]

    # --- looking ------------------------------------------------------------------------------------------------------

    def _find(self, name: str) -> SlurmJob | None:
        return next(iter(self._queue(name) or self._past(name)), None)

    def _queue(self, name: str = "") -> Sequence[SlurmJob]:
        """Return our jobs, or those of one id, in the order in which Slurm accepted them."""
        only = (f"--name={self._name(name)}",) if name else ()
        printed = self._commands.slurm(
            "squeue", "--noheader", "--me", "--states=all", f"--Format={QUEUE_FORMAT}", *only
        )
        return [job for job in queued(printed) if job.name == self._name(job.id) and name in ("", job.id)]

    def _past(self, name: str) -> Sequence[SlurmJob]:
        """Return the jobs of an id that the queue has forgotten."""
        if not self._settings.history_days:
            return []
        names = {self._name(name): name}
        since = f"--starttime=now-{self._settings.history_days}days"
        database = ("--allocations", f"--name={self._name(name)}", f"--format={HISTORY_FORMAT}", since)
        choices = (database, ("--completion", f"--format={COMPLETION_FORMAT}"))
        for choice in choices if self._history is None else (self._history,):
            try:
                printed = self._commands.slurm("sacct", "--noheader", "--parsable2", *choice)
            except (SlurmRefusedError, SlurmMissingError):
                continue
            self._history = choice
            return remembered(printed, names)
        return []

    def _told(self, job: SlurmJob) -> EngineState:
        return self._meaning(job, self._down(job.nodes) if job.state == "NODE_FAIL" and job.nodes else "")

    def _meaning(self, job: SlurmJob, about_nodes: str = "") -> EngineState:
        return job.engine_state(limited=self._settings.max_minutes is not None, about_nodes=about_nodes)

    def _down(self, nodes: str) -> str:
        """Return why nodes of a job are down, for people; "" when nobody knows."""
        try:
            printed = self._commands.slurm("sinfo", "--noheader", f"--nodes={nodes}", "--Node", "--format=%N %T: %E")
        except (SlurmUnavailableError, SlurmRefusedError, SlurmMissingError):
            return ""
        return "; ".join(sorted({line.strip() for line in printed.splitlines() if "down" in line}))

    # --- acting -------------------------------------------------------------------------------------------------------

    def _submit(self, job: EngineJob, secrets: Mapping[str, str]) -> int:
        folder = self._settings.folder
        self._commands.run(["mkdir", "-p", "-m", "700", "--", folder], what="mkdir")
        arguments = submission(job, self._settings, name=self._name(job.id), output=self._output(job.id))
        printed = self._commands.slurm("sbatch", *arguments, given=variables(job, self._settings, secrets))
        number = int(printed.strip().splitlines()[-1].partition(";")[0])
        log.info("slurm: submitted %s as job %s", job.id, number)
        return number

    def _cancel(self, job: SlurmJob, grace_seconds: float) -> None:
        number = str(job.number)
        if job.state == "PENDING":
            self._commands.slurm("scancel", "--state=PENDING", number)
        try:
            self._commands.slurm(
                "scontrol", "update", f"JobId={number}", f"Comment={MARK}{job.id} stop={grace_seconds:g}"
            )
            self._commands.slurm("scancel", "--batch", f"--signal={STOP_SIGNAL}", number)
        except SlurmRefusedError:
            # It has ended, or its script has not begun, so nothing can be lost: Slurm's own way will do.
            self._commands.slurm("scancel", "--quiet", number)

    def _name(self, name: str) -> str:
        return f"{self._settings.namespace}.{name}"

    def _output(self, name: str) -> str:
        return f"{self._settings.folder}/{self._name(name)}.out"
