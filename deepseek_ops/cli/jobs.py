"""``deepseek-ops run|status|logs|stop|checkpoint-now|rewind``: jobs on any engine, without Airflow."""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import JsonValue

from deepseek_ops.cli.data_options import print_json, read_text
from deepseek_ops.cli.jobs_wait import POLL_SECONDS, RequestNotDoneError, answer, ended
from deepseek_ops.cli.launcher_options import At, opened_launcher
from deepseek_ops.cli.top import Watched, look, print_view
from deepseek_ops.core.errors import ConfigError, JobFailedError, JobLostError, JobStoppedError
from deepseek_ops.core.jobs import JobPhase, JobSpec, JobStatus
from deepseek_ops.core.ports import Launcher

Job = Annotated[str, typer.Argument(help="Name of the job, or a beginning that only it has.")]
Wait = Annotated[bool, typer.Option("--wait", help="Until the training has answered; status 1 if it was not done.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Stay until the job ends.")]


def run(
    file: Annotated[Path, typer.Argument(help="A JobSpec as JSON, such as the spec.json of an earlier job.")],
    at: At = "",
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Stay to its end, its log on stderr; else it has no lease."),
    ] = False,
) -> None:
    """Start a job, or find the one of its name; print its status as JSON on stdout, after its end with --follow.

    Without --follow nobody renews a lease, so the job is started without one: it runs until it ends or is stopped.
    """
    launcher = opened_launcher(at, fresh=True)
    spec = _spec(file)
    if spec.lease_seconds and not follow:
        typer.echo(f"started without its lease of {spec.lease_seconds:g} s: nobody here renews it", err=True)
        spec = spec.evolve(lease_seconds=0.0)
    status = launcher.submit(spec, secrets=_store_variables())
    if follow:
        status = _follow(launcher, status.name, err=True)
    print_json(status.dump())
    if follow:
        _raise_unless_succeeded(status)


def status(
    job: Annotated[str, typer.Argument(help="Name of the job, or its beginning; all jobs without one.")] = "",
    at: At = "",
    table: Annotated[bool, typer.Option("--table", help="For people, instead of JSON.")] = False,
) -> None:
    """Show a job, or all of them."""
    launcher = opened_launcher(at)
    if job:
        print_json(found(launcher, job).dump())
        return
    if table:
        watched: dict[str, Watched] = {}
        look(launcher, watched, everything=True)
        print_view(watched)
        return
    print_json([one.dump() for one in launcher.list()])


def logs(
    job: Job,
    at: At = "",
    follow: Follow = False,
    events: Annotated[bool, typer.Option("--events", help="The job's events, one JSON object a line.")] = False,
) -> None:
    """Print what a job has logged, or its events."""
    launcher = opened_launcher(at)
    name = found(launcher, job).name
    if follow:
        _follow(launcher, name, events=events)
    else:
        _say_new(launcher, name, 0, events=events)


def stop(
    job: Annotated[
        str | None, typer.Argument(help="Name of the job; without one, what `demo --keep` left up is ended.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; it is in the job's status.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended; status 1 if it failed.")] = False,
    at: At = "",
    root: Annotated[Path, typer.Option(help="Without a job: folder of the demo.")] = Path(".deepseek-ops/demo"),
) -> None:
    """Let a job checkpoint and end. Without a job: end what `demo --keep` left up."""
    if job is None:
        from deepseek_ops.cli.demo import stop as stop_demo

        stop_demo(root)
        return
    _require_name(job)
    launcher = opened_launcher(at)
    name = found(launcher, job).name
    launcher.stop(name, reason or f"stopped by {_who()}")
    status = (ended(launcher, name) if wait else None) or found(launcher, name)
    print_json(status.dump())
    if wait and status.phase is not JobPhase.STOPPED:
        _raise_unless_succeeded(status)


def checkpoint_now(job: Job, at: At = "", wait: Wait = False) -> None:
    """Let a running training write a checkpoint after its current step."""
    _ask(opened_launcher(at), job, "checkpoint", wait=wait)


def rewind(
    job: Job,
    to: Annotated[
        int | None,
        typer.Option("--to", min=0, help="Newest healthy checkpoint up to this past step."),
    ] = None,
    at: At = "",
    wait: Wait = False,
) -> None:
    """Let a running training go back to a healthy checkpoint, the newest one by default; it leaves out what came since.

    Refused for a step that the training has not reached yet.
    """
    _ask(opened_launcher(at), job, "rewind", step=to, wait=wait)


def _ask(
    launcher: Launcher, job: str, verb: Literal["checkpoint", "rewind"], *, step: int | None = None, wait: bool
) -> None:
    """Ask, and print the request, with the event that says it was done when that was waited for."""
    status = found(launcher, job)
    name = status.name
    if step is not None and not status.settled and status.step is not None and step > status.step:
        raise RequestNotDoneError(name, verb, f"step {step} is still to come: the training is at step {status.step}")
    before = len(launcher.events(name)) if wait else 0
    number = launcher.ask(name, verb, step=step, by=_who())
    done = answer(launcher, name, number, verb, after=before) if wait else None
    print_json({"job": name, "request": number, **({} if done is None else {"outcome": dict(done)})})


def found(launcher: Launcher, job: str) -> JobStatus:
    """Return the status of the job of this name, or of the only one whose name begins so. Raises ConfigError."""
    _require_name(job)
    known = launcher.status(job)
    if known is not None:
        return known
    matches = [one for one in launcher.list() if one.name.startswith(job)]
    if len(matches) == 1:
        return matches[0]
    names = ", ".join(one.name for one in matches[:5]) or "none"
    raise ConfigError(
        "", 0, "job", f"{job!r} names {len(matches)} jobs: {names}.", "See `deepseek-ops status --table`."
    )


def _require_name(job: str) -> None:
    if not job.strip():
        raise ConfigError("", 0, "job", "the name is empty.", "See `deepseek-ops status --table`.")


def _follow(launcher: Launcher, name: str, *, events: bool = False, err: bool = False) -> JobStatus:
    """Print what is new until the job has settled, and renew its lease: whoever looks wants it."""
    at = 0
    while True:
        status = found(launcher, name)
        at = _say_new(launcher, name, at, events=events, err=err)
        if status.settled:
            return status
        launcher.renew(name)
        time.sleep(POLL_SECONDS)


def _say_new(launcher: Launcher, name: str, at: int, *, events: bool, err: bool = False) -> int:
    """Print what there is from ``at`` on, however many calls it takes, and return where it ended."""
    while True:
        if events:
            rows = launcher.events(name, at)
            text, end = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), at + len(rows)
        else:
            text, end = launcher.logs(name, at)
        if end == at:
            return at
        typer.echo(text, nl=False, err=err)
        at = end


def _spec(file: Path) -> JobSpec:
    try:
        body: JsonValue = json.loads(read_text(file))
    except ValueError as error:
        raise ConfigError(str(file), 0, "", f"it is not JSON: {error}.", "Write a JobSpec.") from error
    return JobSpec.load(body if isinstance(body, dict) else {})


def _store_variables() -> dict[str, str]:
    """Return the variables of the store that this shell has: the job reads its data there."""
    from deepseek_ops.adapters.stores import STORE_VARIABLE, store_environment

    uri = os.environ.get(STORE_VARIABLE, "")
    return store_environment(uri) if uri else {}


def _raise_unless_succeeded(status: JobStatus) -> None:
    if status.phase is JobPhase.FAILED:
        raise JobFailedError(status.name, status.reason, status.log)
    if status.phase is JobPhase.STOPPED:
        raise JobStoppedError(status.name, status.reason)
    if status.phase is JobPhase.LOST:
        raise JobLostError(status.name, status.reason, status.log)


def _who() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"
