"""From raw objects in a data lake to a prepared, versioned dataset."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.core.config import PipelineFile
from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.core.ports import Blobs, ObjectStore
from deepseek_ops.core.records import DatasetVersion, FileSet
from deepseek_ops.pipeline.once import job_name
from deepseek_ops.pipeline.registration import Stores
from deepseek_ops.pipeline.runs import PIPELINE_FILE, RunPlan, code_of

MARKERS = ("_READY", "_SUCCESS", "manifest.json")
"""Objects that announce an upload and are no data."""


@dataclass(eq=False)
class MissingDatasetError(PermanentError):
    """Nothing to train on."""

    uri: str

    def __str__(self) -> str:
        return f"no raw data below {self.uri}: upload the corpus there, or correct data.raw in deepseek.yaml."


def raw_of(
    config: PipelineFile, run: RunPlan, stores: Stores, *, progress: Callable[[str], None] = lambda _line: None
) -> FileSet:
    """Return the run's raw data as a set of blobs: objects of the lake, or files of the commit itself.

    Raises MissingDatasetError when there are none.
    """
    raw = config.data.raw or ""
    if "://" in raw:
        return ingest_raw(stores.at(raw), stores.blobs, progress=progress)
    prefix = f"{raw.strip('/')}/"
    files = [entry for entry in code_of(stores.blobs, run).files if raw and entry.path.startswith(prefix)]
    if not files:
        raise MissingDatasetError(raw or "(data.raw is not set)")
    return FileSet(files=tuple(entry.evolve(path=entry.path.removeprefix(prefix)) for entry in files))


def ingest_raw(lake: ObjectStore, blobs: Blobs, *, progress: Callable[[str], None] = lambda _line: None) -> FileSet:
    """Copy every object of ``lake`` into the content-addressed space and return the set.

    The set's fingerprint identifies the raw data: objects that change in the lake afterwards change nothing here.
    Raises MissingDatasetError when there is none.
    """
    names = [
        item.key
        for item in lake.list("")
        if item.size and not item.key.endswith("/") and item.key.rpartition("/")[2] not in MARKERS
    ]
    if not names:
        raise MissingDatasetError(lake.uri)
    with tempfile.TemporaryDirectory(prefix="deepseek-ops-raw-") as folder:
        root = Path(folder)

        def fetch(key: str) -> None:
            target = root / key
            if not target.resolve().is_relative_to(root.resolve()):
                raise MissingDatasetError(f"{lake.uri}/{key} (its key leaves the prefix)")
            target.parent.mkdir(parents=True, exist_ok=True)
            lake.download(key, target)

        with ThreadPoolExecutor(8) as pool:
            for number, _ in enumerate(pool.map(fetch, names), start=1):
                if number % 1000 == 0 or number == len(names):
                    progress(f"fetched {number} of {len(names)} raw objects")
        return blobs.put_folder(root)


def prepare_job(config: PipelineFile, run: RunPlan, blobs: Blobs, raw: FileSet) -> JobSpec:
    """Return the job that runs the model repository's ``prepare`` on the raw set and commits the version it makes.

    The job gets the commit's files without those that preparation cannot mean: another seed in the pipeline file, a
    result or a pointer that we committed, or a page of text gives the same data.
    """
    files = tuple(entry for entry in code_of(blobs, run).files if not _is_no_code(entry.path))
    payload: dict[str, JsonValue] = {
        "code": FileSet(files=files).dump(),
        "callable": config.data.prepare or "",
        "raw": raw.dump(),
        "dataset": config.data.dataset,
        "split": config.data.split.model_dump(),
        "parameters": {},
    }
    return JobSpec(
        name=job_name("prepare", payload, environment=run.manifest.environment),
        kind="prepare",
        payload=payload,
        max_restarts=0,
        timeout_seconds=6 * 3600,
        lease_seconds=120,
    )


def _is_no_code(path: str) -> bool:
    written_by_us = path.startswith("experiments/") or (path.startswith("data/") and path.endswith(".dataset.yaml"))
    return path == PIPELINE_FILE or written_by_us or path.endswith(".md")


def prepared(result: dict[str, JsonValue]) -> DatasetVersion:
    """Return the version a prepare job made."""
    version = result["dataset"]
    return DatasetVersion.load(version if isinstance(version, dict) else {})
