"""Reconcile what is recorded with what is there."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.jobs import JobPhase
from deepseek_ops.core.ports import Facts, GitRemote, Launcher
from deepseek_ops.core.records import Record
from deepseek_ops.data.gc_history import RetentionPolicy
from deepseek_ops.pipeline.accounts import account_job
from deepseek_ops.pipeline.collection import CollectionOutcome, Witnesses, collect
from deepseek_ops.pipeline.registration import Stores, registry_named
from deepseek_ops.registry import REGISTRY_KIND

Say = Callable[[str], None]


class JobsReport(Record):
    """What housekeeping did with the launcher's jobs."""

    running: int
    settled: int
    retired: int


class RegistriesReport(Record):
    """How much was read back."""

    models: int
    versions: int
    files: int
    num_bytes: int


@dataclass(eq=False)
class RegistryDamagedError(PermanentError):
    """Something registered is missing or changed."""

    problems: tuple[str, ...]

    def __str__(self) -> str:
        shown = "; ".join(self.problems[:5])
        return f"{len(self.problems)} registry objects are damaged: {shown}. Restore them from a copy of the bucket."


def settle_jobs(launcher: Launcher, facts: Facts, *, keep_days: float, run: str, say: Say) -> JobsReport:
    """Account jobs that ended with nobody following, and forget those that settled ``keep_days`` ago.

    Accounting is by attempt, so a job that its task has accounted already costs nothing again.
    """
    retired = settled = running = 0
    limit = datetime.now(UTC) - timedelta(days=keep_days)
    for status in launcher.list():
        if not status.settled:
            running += 1
            continue
        settled += 1
        account_job(facts, status, run=run)
        ended = _ended_at(launcher, status.name)
        if ended is not None and ended < limit:
            launcher.retire(status.name)
            say(f"retired job {status.name}: it {status.phase} at {ended:%Y-%m-%d %H:%M} UTC")
            retired += 1
        elif status.phase is JobPhase.LOST:
            say(f"job {status.name} was lost and nobody tried it again: {status.reason}")
    return JobsReport(running=running, settled=settled, retired=retired)


def verify_registries(stores: Stores, facts: Facts, *, say: Say) -> RegistriesReport:
    """Verify every model's registry. Raises RegistryDamagedError naming what is missing or changed."""
    problems: builtins.list[str] = []
    models = versions = files = size = 0
    for fact in facts.find(REGISTRY_KIND):
        report = registry_named(stores, facts, fact.key).verify(fact.key)
        models += 1
        versions += len(report.versions)
        files += report.num_files
        size += report.num_bytes
        problems += [f"{fact.key} {item.version} {item.path}: {item.problem}" for item in report.problems]
        say(f"{fact.key}: {len(report.versions)} versions, {report.num_files} files, {len(report.problems)} problems")
    if problems:
        raise RegistryDamagedError(tuple(problems))
    return RegistriesReport(models=models, versions=versions, files=files, num_bytes=size)


def tidy_store(
    stores: Stores,
    facts: Facts,
    repositories: Sequence[GitRemote],
    *,
    delete: bool,
    keep_days: float,
    keep_versions: int,
    say: Say,
) -> CollectionOutcome:
    """Say what nothing names any more; with ``delete``, carry out the last plan and make the next. See ``collect``."""
    policy = RetentionPolicy(keep_days=keep_days, keep_versions=keep_versions)
    witnesses = Witnesses(facts=facts, repositories=repositories, stores=stores)
    outcome = collect(stores.at(stores.uri), policy, witnesses, delete=delete, say=say)
    if outcome.swept is not None:
        deleted = {kind: tally.objects for kind, tally in outcome.swept.deleted.items()}
        say(f"collection {outcome.swept.run}: deleted {deleted}, {outcome.swept.spared} are named or stored again")
    if outcome.plan is not None:
        verb = "can go tomorrow" if outcome.plan.run else "could go"
        say(f"{outcome.plan.num_objects} objects ({outcome.plan.num_bytes} bytes) {verb}")
        for note in (*outcome.plan.notes, *outcome.plan.problems):
            say(note)
    return outcome


def _ended_at(launcher: Launcher, name: str) -> datetime | None:
    events = launcher.events(name)
    return datetime.fromisoformat(str(events[-1]["time"])) if events else None
