"""The prepare job: raw objects in, a committed dataset version with token shards out.

Payload: ``{"code": FileSet, "callable": "module:function", "raw": FileSet, "dataset": name, "split": {name: share},
"parameters": {}}``. Result: ``{"dataset": DatasetVersion, "report": {...}}``. Equal code and raw objects give equal
bytes, hence the same version: nothing in the folder depends on time, chance or paths. The version's lineage names the
Python files of the repository, not the whole of it, so that a push which leaves the data alone finds the version there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import JsonValue

from deepseek_ops.core.errors import JobStoppedError, PermanentError, TransientError
from deepseek_ops.core.records import DatasetVersion, FileSet
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.prepare_documents import write_dataset
from deepseek_ops.jobs.training_data import local_files

_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT")
"""Variables that the child gets from us. Everything else, keys and endpoints above all, stays behind."""
_LOG_LINES = 20
_POLL_SECONDS = 0.1
AUTHOR = "deepseek-ops <prepare@deepseek-ops.invalid>"


@dataclass(eq=False)
class PrepareFailedError(PermanentError):
    """The model repository's callable raised, or broke its contract."""

    target: str
    status: int
    log: str

    def __str__(self) -> str:
        return f"{self.target} ended with status {self.status}; its last lines:\n{self.log}"


@dataclass(eq=False)
class PrepareKilledError(TransientError):
    """The callable's process was killed: out of memory, or by the machine."""

    target: str
    signal_name: str

    def __str__(self) -> str:
        return f"{self.target} was killed by {self.signal_name}; give the job more memory, or read its input in parts."


def run(context: JobContext) -> dict[str, JsonValue]:
    """Return the committed dataset version and a report of what is in it.

    Raises:
        PrepareFailedError: The callable raised; the message ends with its traceback.
        PrepareKilledError: Its process was killed.
        InvalidDocumentError, MissingTokenizerError, EmptyDatasetError: It wrote something else than the contract says.
    """
    payload = context.payload
    code = FileSet.load(_object(payload["code"]))
    raw = FileSet.load(_object(payload["raw"]))
    parameters = _object(payload.get("parameters"))
    target, name = str(payload["callable"]), str(payload["dataset"])
    shares = {str(key): float(str(value)) for key, value in _object(payload["split"]).items()}

    scratch = context.work / "scratch"
    for leftover in (scratch, context.work / "dataset"):
        shutil.rmtree(leftover, ignore_errors=True)
    _call(context, target, local_files(context, code, "code"), local_files(context, raw, "raw"), scratch, parameters)
    context.event("prepared", seconds=None, callable=target)
    report = write_dataset(scratch / "out", context.work / "dataset", shares)
    version = _commit(
        context,
        name,
        splits={split: int(str(count)) for split, count in _object(report["documents_by_split"]).items()},
        lineage={
            "callable": target,
            "code": _sources(code).fingerprint,
            "parameters": parameters,
            "raw": raw.fingerprint,
            "split": dict(shares),
        },
    )
    context.event("committed", dataset=name, version=version.version, **report)
    return {"dataset": version.dump(), "report": report}


def _commit(
    context: JobContext, name: str, *, splits: Mapping[str, int], lineage: Mapping[str, JsonValue]
) -> DatasetVersion:
    from deepseek_ops.data import DatasetRepository

    return DatasetRepository.open(context.store).commit(
        context.work / "dataset",
        name=name,
        message=f"Prepare {name}",
        author=AUTHOR,
        lineage=dict(lineage),
        splits=splits,
        branch="main",
    )


def _sources(code: FileSet) -> FileSet:
    """Return the Python files of the repository: a new learning rate or README must not make a new dataset version."""
    return FileSet(files=tuple(entry for entry in code.files if entry.path.endswith(".py")))


def _call(
    context: JobContext, target: str, code: Path, raw: Path, scratch: Path, parameters: Mapping[str, JsonValue]
) -> None:
    """Run the callable in a process of its own with ``scratch`` as its working directory."""
    scratch.mkdir(parents=True)
    command = [
        *(sys.executable, "-B", "-m", "deepseek_ops.jobs.prepare_child", target),
        *(str(raw), str(scratch / "out"), json.dumps(dict(parameters), sort_keys=True)),
        *(str(context.spec.timeout_seconds), str(os.getpid())),
    ]
    log = context.work / "prepare.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            cwd=scratch,
            env=_environment(code, scratch),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = _wait(context, child)
        finally:
            _kill(child)
    with log.open(encoding="utf-8", errors="replace") as lines:
        tail = _forward(lines)
    if status == 0:
        return
    if status < 0 and -status != signal.SIGXCPU:
        raise PrepareKilledError(target, signal.Signals(-status).name)
    raise PrepareFailedError(target, status, tail)


def _environment(code: Path, scratch: Path) -> dict[str, str]:
    """Return the child's variables: none of ours that could hold a secret; hashes and threads fixed."""
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {
        **passed,
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "PYTHONPATH": str(code),
        "PYTHONHASHSEED": "0",
        "PYTHONNOUSERSITE": "1",
        "PYTHONUTF8": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }


def _wait(context: JobContext, child: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + context.spec.timeout_seconds
    while (status := child.poll()) is None:
        if context.stop_requested:
            raise JobStoppedError(context.spec.name, context.stop_reason)
        if time.monotonic() > deadline:
            raise JobStoppedError(context.spec.name, f"prepare took more than {context.spec.timeout_seconds:.0f} s")
        time.sleep(_POLL_SECONDS)
    return status


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child's whole process group: what it started may not outlive it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _forward(lines: IO[str]) -> str:
    """Copy the child's output into the job's log and return its last lines."""
    last: deque[str] = deque(maxlen=_LOG_LINES)
    for line in lines:
        sys.stdout.write(line)
        last.append(line)
    return "".join(last).strip()


def _object(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}
