"""The job that exports a model to one format, with held-out texts to compare it on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.core.records import DatasetVersion, FileSet
from deepseek_ops.data import DatasetRepository
from deepseek_ops.pipeline.once import job_name
from deepseek_ops.pipeline.runs import RunPlan

SAMPLE_FILE = "documents/test.jsonl"
SAMPLE_ITEMS = 8
SAMPLE_CHARACTERS = 1200


def sample_texts(datasets: DatasetRepository, dataset: DatasetVersion) -> list[str]:
    """Return the first held-out texts of the version, cut to a bounded length; the same for every format."""
    texts = []
    with tempfile.TemporaryDirectory(prefix="deepseek-ops-sample-") as folder:
        target = Path(folder) / "files"
        datasets.checkout(dataset.version, target, patterns=(SAMPLE_FILE,))
        with (target / SAMPLE_FILE).open(encoding="utf-8") as lines:
            for line, _ in zip(lines, range(SAMPLE_ITEMS), strict=False):
                texts.append(str(json.loads(line)["text"])[:SAMPLE_CHARACTERS])
    return texts


def export_job(run: RunPlan, *, model: FileSet, format_name: str, texts: Sequence[str]) -> JobSpec:
    """Return the job that exports ``model`` and compares the export with it on ``texts``."""
    payload: dict[str, JsonValue] = {
        "model": model.dump(),
        "format": format_name,
        "options": {},
        "sample": {"texts": list(texts)},
    }
    return JobSpec(
        name=job_name("export", payload, environment=run.manifest.environment),
        kind="export",
        payload=payload,
        max_restarts=0,
        timeout_seconds=3600,
        lease_seconds=180,
    )
