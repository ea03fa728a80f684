"""What Slurm says of its jobs, and what it means: rows of ``squeue`` and ``sacct`` become states of an engine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from deepseek_ops.adapters.engines.slurm.script import MARK
from deepseek_ops.core.jobs import EnginePhase, EngineState, JobCause

_WIDTHS = {"JobID": 20, "Name": 220, "State": 24, "exit_code": 12, "Reason": 80, "NodeList": 600, "Comment": 300}
QUEUE_FORMAT = ",".join(f"{name}:{width}" for name, width in _WIDTHS.items())
"""For ``squeue --Format``: columns of fixed width, because values may hold any separator."""
HISTORY_FORMAT = "JobIDRaw,JobName,State,ExitCode"
COMPLETION_FORMAT = "jobid,jobname,state,exitcode"

_PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_ENDED = {"COMPLETED", "FAILED", "OUT_OF_MEMORY"}
_TAKEN = {"PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"}
_LIMIT = {"TIMEOUT", "DEADLINE"}
_CAUSES = {
    "OUT_OF_MEMORY": JobCause.OUT_OF_MEMORY,
    "PREEMPTED": JobCause.PREEMPTED,
    "REVOKED": JobCause.PREEMPTED,
    "NODE_FAIL": JobCause.MACHINE_LOST,
    "BOOT_FAIL": JobCause.MACHINE_LOST,
}
_SETTLED = _ENDED | _TAKEN | _LIMIT | {"CANCELLED"}
_COMMENT = re.compile(re.escape(MARK) + r"(\S+)(?: stop=([0-9.]+))?")


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """One job as Slurm shows it."""

    number: int
    name: str
    """In Slurm."""
    id: str
    """Ours."""
    state: str
    exit_code: int | None = None
    """As a shell has it: 128 + signal for a killed script."""
    reason: str = ""
    nodes: str = ""
    stopping: bool = False
    """Somebody has asked for its end."""

    @property
    def settled(self) -> bool:
        return self.state in _SETTLED

    def engine_state(self, *, limited: bool, about_nodes: str = "") -> EngineState:
        """Return what it means.

        Args:
            limited: Jobs are cut to the longest one the partition takes, so that running out of time is no failure.
            about_nodes: What is known of nodes of it that are down.
        """
        return EngineState(
            id=self.id,
            phase=self._phase(limited=limited),
            handle=str(self.number),
            reason=self._words(about_nodes),
            cause=None if self.stopping else _CAUSES.get(self.state),
            exit_status=self.exit_code if self.settled else None,
        )

    def _phase(self, *, limited: bool) -> EnginePhase:
        if self.state in _PENDING:
            return EnginePhase.PENDING
        if not self.settled:  # also what a newer Slurm may call a job: one too few is better than one too many
            return EnginePhase.RUNNING
        if self.state in _TAKEN or (self.state in _LIMIT and limited):
            return EnginePhase.PREEMPTED
        if self.state == "CANCELLED" or self.stopping:
            return EnginePhase.CANCELLED
        return EnginePhase.ENDED

    def _words(self, about_nodes: str) -> str:
        if self.state in ("COMPLETED", "RUNNING"):
            return ""
        words = self.state
        if self.reason not in ("", "None", "(null)", "NonZeroExitCode"):
            words += f": {self.reason}"
        if self.settled and self.exit_code and self.state == "FAILED":
            words += f" with exit status {self.exit_code}"
        return words + (f" ({about_nodes})" if about_nodes else "")


def queued(printed: str) -> list[SlurmJob]:
    """Return our jobs among the lines of ``squeue``, in the order of their ids; others are left out."""
    return sorted(filter(None, map(_queued, printed.splitlines())), key=lambda job: job.number)


def _queued(line: str) -> SlurmJob | None:
    fields, start = {}, 0
    for name, width in _WIDTHS.items():
        fields[name] = line[start : start + width].strip()
        start += width
    comment = _COMMENT.fullmatch(fields["Comment"])
    if comment is None or not fields["JobID"].isdigit():
        return None
    status = fields["exit_code"]
    return SlurmJob(
        number=int(fields["JobID"]),
        name=fields["Name"],
        id=comment[1],
        state=_state(fields["State"]),
        exit_code=_of_wait(int(status)) if status.isdigit() else None,
        reason=fields["Reason"],
        nodes=fields["NodeList"],
        stopping=comment[2] is not None,
    )


def remembered(printed: str, names: dict[str, str]) -> list[SlurmJob]:
    """Return the jobs among the lines of ``sacct`` whose Slurm name is in ``names`` (-> our id), by their ids."""
    return sorted(_remembered(printed.splitlines(), names), key=lambda job: job.number)


def _remembered(lines: Iterable[str], names: dict[str, str]) -> Iterable[SlurmJob]:
    for line in lines:
        number, name, state, status = (line.split("|") + [""] * 4)[:4]
        if not number.isdigit() or name not in names:
            continue
        code, _, signal = status.partition(":")
        known = int(code or 0) or (128 + int(signal) if signal.isdigit() and int(signal) else 0)
        yield SlurmJob(int(number), name, names[name], _state(state), known)


def _state(text: str) -> str:
    """Return the bare state of ``CANCELLED by 1000`` or ``CANCELLED+``."""
    return re.split(r"[ +]", text, maxsplit=1)[0]


def _of_wait(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
