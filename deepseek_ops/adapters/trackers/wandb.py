"""Runs as Weights & Biases has them, written offline: folders that ``wandb sync`` sends when the team wants it to.

An offline run of W&B is one file that one process writes from the first step to the last; it cannot be gone on with.
A run of ours is told of by many processes, and each may tell everything twice. So what arrives is kept as files that
are named by their content, and the offline run is written from all of them when the run ends: the same content gives
the same run, under an id that follows from our run's key. Its address at W&B is therefore known before it is sent.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.core.errors import MissingDependencyError
from deepseek_ops.core.reporting import (
    MetricPoint,
    RunEnd,
    ServiceRefusedError,
    ServiceUnavailableError,
    TrackedRun,
    TrackerRun,
)

_NAME = "Weights & Biases"
_NOT_IN_PROJECTS = re.compile(r"[^A-Za-z0-9_.-]+")
_WRITING_SECONDS = 600.0
_DIGEST = "deepseek-ops.sha256"
"""File in an offline run: the digest of what it was written from."""
_INHERITED = ("PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH")
"""Variables that the writing process gets: no credential is needed to write offline."""


class WandbTracker:
    """The ``Tracker`` that writes offline runs below ``folder``.

    Args:
        folder: On a disk that every Airflow worker and triggerer sees; created when it is not there.
        entity: Team or user at W&B, for the run's address; empty: the address is the folder.
        host: W&B server, for the address.
        python: Interpreter that has the package ``wandb``.
    """

    name = "wandb"

    def __init__(
        self, folder: Path, *, entity: str = "", host: str = "https://wandb.ai", python: str = sys.executable
    ) -> None:
        self._folder = folder
        self._entity = entity
        self._host = host.rstrip("/")
        self._python = python

    def start(self, run: TrackedRun) -> TrackerRun:
        """Find the run with this key or make it; see the port."""
        run_id = wandb_id(run.key)
        project = _NOT_IN_PROJECTS.sub("-", run.experiment)[:128]
        body: dict[str, JsonValue] = {
            "id": run_id,
            "project": project,
            "entity": self._entity,
            "name": run.name,
            "config": dict(run.params),
            "tags": dict(run.tags),
        }
        self._keep(run_id, "run.json", body)
        where = f"{self._host}/{self._entity}/{project}/runs/{run_id}" if self._entity else self._own(run_id).as_uri()
        return TrackerRun(run_id, where)

    def log(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Keep the points; the same ones again are the same file."""
        rows: list[JsonValue] = [{**asdict(point), "value": repr(point.value)} for point in points]
        name = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        self._keep(run_id, f"points-{name}.json", rows)

    def finish(self, run_id: str, end: RunEnd, tags: Mapping[str, str]) -> None:
        """Write the offline run, in place of the one that an earlier call wrote."""
        self._keep(run_id, "end.json", {"end": end, "tags": dict(tags)})
        self.write(run_id)

    def write(self, run_id: str) -> Path:
        """Write what is known of the run as an offline run of W&B, and return its folder.

        Raises MissingDependencyError, ServiceRefusedError, ServiceUnavailableError.
        """
        own = self._own(run_id)
        target = self._folder / "wandb" / f"offline-run-{self._began(own)}-{run_id}"
        known = self._known(own)
        digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
        if (target / _DIGEST).is_file() and (target / _DIGEST).read_text() == digest:
            return target
        with tempfile.TemporaryDirectory(prefix=f".{run_id}-", dir=self._folder) as scratch:
            request = Path(scratch) / "request.json"
            request.write_text(json.dumps({**known, "folder": scratch}))
            self._run_writer(request, Path(scratch))
            (written,) = (Path(scratch) / "wandb").glob(f"offline-run-*-{run_id}")
            (written / _DIGEST).write_text(digest)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rename(Path(scratch) / "replaced")
            written.rename(target)
        return target

    def _run_writer(self, request: Path, scratch: Path) -> None:
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        homes = {name: str(scratch / name.lower()) for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR")}
        # -P: this folder holds a module of the package's name. As a file, because it needs nothing else of ours.
        command = [self._python, "-P", str(Path(__file__).with_name("wandb_writer.py")), str(request)]
        try:
            done = subprocess.run(
                command,
                env={**environment, **homes, "WANDB_MODE": "offline", "WANDB_SILENT": "true"},
                capture_output=True,
                text=True,
                timeout=_WRITING_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ServiceUnavailableError(_NAME, "offline run", f"not written in {_WRITING_SECONDS:.0f} s") from error
        if "No module named 'wandb'" in done.stderr:
            raise MissingDependencyError("wandb", "wandb", "the Weights & Biases tracker")
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
            raise ServiceRefusedError(_NAME, "offline run", said[0][:500])

    def _known(self, own: Path) -> dict[str, JsonValue]:
        """Return all that was told: the run, its points in order (a step's first value counts), and its end."""
        points: dict[tuple[int, str], tuple[str, int]] = {}
        for path in sorted(own.glob("points-*.json")):
            for row in json.loads(path.read_text()):
                points.setdefault((int(row["step"]), str(row["name"])), (str(row["value"]), int(row["time_ms"])))
        end = own / "end.json"
        ended: JsonValue = json.loads(end.read_text()) if end.is_file() else {"end": "killed", "tags": {}}
        known: dict[str, JsonValue] = json.loads((own / "run.json").read_text())
        known["rows"], known["ended"] = list(_rows(points)), ended
        return known

    def _began(self, own: Path) -> str:
        return datetime.fromtimestamp((own / "began").stat().st_mtime, UTC).strftime("%Y%m%d_%H%M%S")

    def _own(self, run_id: str) -> Path:
        return self._folder.resolve() / "told" / run_id

    def _keep(self, run_id: str, name: str, body: JsonValue) -> None:
        own = self._own(run_id)
        try:
            own.mkdir(parents=True, exist_ok=True)
            if not (own / "began").exists():
                (own / "began").touch()
            with tempfile.NamedTemporaryFile("w", dir=own, prefix=".part-", delete=False) as part:
                part.write(json.dumps(body))
            Path(part.name).replace(own / name)
        except OSError as error:
            raise ServiceUnavailableError(_NAME, str(own / name), error.strerror or str(error)) from error

    def remove(self, run_id: str) -> None:
        """Forget a run that was sent: what was told of it, and its offline run."""
        for folder in [self._own(run_id), *(self._folder / "wandb").glob(f"offline-run-*-{run_id}")]:
            shutil.rmtree(folder, ignore_errors=True)


def wandb_id(key: str) -> str:
    """Return the id of our run at W&B: the same for the same key, so a commit leads to it and it can be sent again."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _rows(points: Mapping[tuple[int, str], tuple[str, int]]) -> Iterator[JsonValue]:
    """Yield one row a step, in ascending order: W&B drops a step that comes after a later one."""
    values: dict[str, JsonValue] = {}
    held: int | None = None
    time_ms = 0
    for (step, name), (value, at) in sorted(points.items()):
        if held is not None and step != held:
            yield {"step": held, "time_ms": time_ms, "values": values}
            values = {}
        held, time_ms, values[name] = step, at, value
    if held is not None:
        yield {"step": held, "time_ms": time_ms, "values": values}
