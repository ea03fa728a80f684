"""``python -m deepseek_ops.jobs``: what a launcher starts on a training machine.

``supervise FOLDER``   run the newest attempt of a job in the background, see ``supervise``
``host FOLDER``        keep the heavy imports warm for supervisors to be forked from, see ``host``
``attend --job NAME``  be one machine of a job whose state is in the object store, see ``attend``
``KIND FILE``          run one job here and now, also under torchrun; FILE holds the payload or a whole JobSpec
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from deepseek_ops.adapters.local_launcher.environment_use import hold_own_environment
from deepseek_ops.adapters.local_launcher.folder import JobFolder, disk
from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.jobs import EXIT_DO_NOT_RETRY, JobSpec
from deepseek_ops.core.records import canonical_json, digest_of
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.entry import KINDS, call, stop_on_signal
from deepseek_ops.jobs.supervise import supervisor_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, 75 (try again) or 78 (do not); one line on stderr says why."""
    options = _parser().parse_args(arguments)
    hold_own_environment()
    try:
        if options.command == "supervise":
            return start_detached(JobFolder(options.folder.resolve()), lock=options.lock_fd)
        if options.command == "host":
            from deepseek_ops.jobs.host import start_host

            return start_host(options.folder.resolve())
        if options.command == "attend":
            from deepseek_ops.jobs.attend import attend, runner_of

            return attend(options.job, options.attempt, run_ranks=runner_of(options.runner))
        return run_here(options.command, options.file, options.folder)
    except DeepSeekOpsError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return EXIT_DO_NOT_RETRY


def start_detached(files: JobFolder, *, lock: int | None) -> int:
    """Start the supervisor of the newest attempt in a session of its own; return once its folder names it.

    ``lock`` is the job's lock, inherited from a launcher: it is held until others can see that the attempt runs, even
    when that launcher has been killed meanwhile.
    """
    if lock is None:
        with files.locked() as own:
            return start_detached(files, lock=os.dup(own))
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        os.close(lock)
        return 0 if os.read(reading, 1) else EXIT_DO_NOT_RETRY
    os.close(reading)
    os.setsid()

    def started() -> None:
        os.write(writing, b"1")
        os.close(writing)
        os.close(lock)

    supervisor_of(files).run(started)
    return 0


def run_here(kind: str, file: Path, folder: Path) -> int:
    """Run one job in this process, as one rank of those torchrun started, or as the only one."""
    with disk(file):
        body = json.loads(file.read_bytes())
    if str(body.get("schema", "")).startswith("JobSpec/"):
        spec = JobSpec.load(body)
    else:
        spec = JobSpec.model_validate({"name": digest_of(canonical_json(body))[:16], "kind": kind, "payload": body})
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    context = JobContext(spec, folder.resolve(), rank=rank, world_size=world, restarts=restarts)
    stop_on_signal(context)
    ending = call(context)
    if ending.result is None:
        context.event("failed", reason=ending.reason, error=ending.error, exit_status=ending.exit_status)
    elif rank == 0:
        print(json.dumps(ending.result))  # noqa: T201
    return ending.exit_status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deepseek_ops.jobs", description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    supervise = commands.add_parser("supervise", help="run the newest attempt of a job in the background")
    supervise.add_argument("folder", type=Path)
    supervise.add_argument("--lock-fd", type=int, default=None, help="inherited file descriptor of the job's lock")
    host = commands.add_parser("host", help="keep the heavy imports warm")
    host.add_argument("folder", type=Path)
    attend = commands.add_parser("attend", help="be one machine of a job whose state is in the object store")
    attend.add_argument("--job", required=True, help="name of the job")
    attend.add_argument("--attempt", required=True, type=int, help="which attempt of it")
    attend.add_argument("--runner", default="", help="module:function that runs the ranks; default: forked processes")
    for kind in KINDS:
        command = commands.add_parser(kind, help=f"run one {kind} job here and now")
        command.add_argument("file", type=Path)
        command.add_argument("--folder", type=Path, default=Path(), help="folder of the job (default: this one)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
