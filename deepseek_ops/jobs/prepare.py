"""The prepare job: raw objects in, a committed dataset version with token shards out.

Payload::

    code         FileSet of the model repository
    callable     "module:function", or empty: the raw data is what a callable would have written
    raw          DatasetVersion of the raw dataset, or a FileSet
    dataset      name of the version to make
    split        {name: share}
    parameters   keyword arguments of the callable
    tokenizer    folder of the repository with a ready tokenizer, or empty
    checks       ``data.checks`` of the pipeline file
    evaluation   [{name, fields, path} or {name, fields, dataset: DatasetVersion, pattern}]
    limits       {memory_bytes, cpu_seconds, file_bytes, open_files, processes}

Result: ``{"dataset": DatasetVersion, "report": {...}, "gate": {...}}``. Equal code and raw objects give equal bytes,
hence the same version: nothing in the folder depends on time, chance or paths. The version's lineage names the Python
files of the repository, not the whole of it, so that a push which leaves the data alone finds the version there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import cached_property
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.core.config import DataChecks
from deepseek_ops.core.records import DatasetVersion, Digest, FileSet
from deepseek_ops.data import DatasetRepository, VersionNotFoundError
from deepseek_ops.data.content import DataGateError
from deepseek_ops.data.content.contamination import Item
from deepseek_ops.data.content.profile import stored_profiles
from deepseek_ops.data.content.rows import Row, read_rows
from deepseek_ops.data.content.verdict import evaluation_items
from deepseek_ops.data.content.version_files import open_files
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.prepare_documents import Prepared, write_dataset
from deepseek_ops.jobs.prepare_process import call
from deepseek_ops.jobs.training_data import fetched_once, local_files

AUTHOR = "deepseek-ops <prepare@deepseek-ops.invalid>"
BRANCH = "main"


def run(context: JobContext) -> dict[str, JsonValue]:
    """Return the committed dataset version, a report of what is in it, and the gate's verdict.

    Raises:
        PrepareFailedError: The callable raised; the message ends with its traceback.
        PrepareMemoryError, PrepareKilledError: It used too much memory, or its process was killed.
        DataGateError: A check of the pipeline file blocks; no version was made.
        MissingDocumentsError, MissingTokenizerError, EmptyDatasetError: It wrote something else than the contract says.
    """
    return _Preparation(context).run()


class _Preparation:
    def __init__(self, context: JobContext) -> None:
        self._context = context
        payload = context.payload
        self._code = FileSet.load(_object(payload["code"]))
        self._raw = _raw_of(_object(payload["raw"]))
        self._target, self._name = str(payload["callable"]), str(payload["dataset"])
        self._parameters = _object(payload.get("parameters"))
        self._tokenizer = str(payload.get("tokenizer") or "")
        self._shares = {str(key): float(str(value)) for key, value in _object(payload["split"]).items()}
        self._checks = DataChecks.model_validate(_object(payload.get("checks")))
        self._scratch, self._folder = context.work / "scratch", context.work / "dataset"

    def run(self) -> dict[str, JsonValue]:
        for leftover in (self._scratch, self._folder):
            shutil.rmtree(leftover, ignore_errors=True)
        source = self._raw_folder
        if self._target:
            self._call()
            source = self._scratch / "out"
        prepared = self._written(source)
        counts = prepared.report["documents_by_split"]
        version = self._commit(prepared, {name: int(str(count)) for name, count in _object(counts).items()})
        self._context.event("committed", dataset=self._name, version=version.version, **prepared.report)
        gate = prepared.content.dump()
        return {"dataset": version.dump(), "report": {**prepared.report, **_verdict(prepared)}, "gate": gate}

    @cached_property
    def _datasets(self) -> DatasetRepository:
        return DatasetRepository(self._context.store)

    @cached_property
    def _code_folder(self) -> Path:
        return local_files(self._context, self._code, "code")

    @cached_property
    def _raw_folder(self) -> Path:
        raw = self._raw
        if isinstance(raw, FileSet):
            return local_files(self._context, raw, "raw")
        folder = self._context.work / f"raw-{raw.version[:16]}"
        return fetched_once(folder, lambda target: self._datasets.checkout(raw.version, target))

    def _call(self) -> None:
        limits = {name: None if value is None else int(str(value)) for name, value in _object(
            self._context.payload.get("limits")).items()}  # fmt: skip
        limits.setdefault("cpu_seconds", int(self._context.spec.timeout_seconds))
        limits.setdefault("open_files", 4096)
        call(
            self._context,
            {
                "target": self._target,
                "raw": str(self._raw_folder),
                "code": str(self._code_folder),
                "scratch": str(self._scratch),
                "parameters": self._parameters,
                "limits": limits,
                "parent": os.getpid(),
            },
        )
        self._context.event("prepared", seconds=None, callable=self._target)

    def _written(self, source: Path) -> Prepared:
        try:
            prepared = write_dataset(
                source,
                self._folder,
                self._shares,
                dataset=self._name,
                tokenizer_folder=self._code_folder / self._tokenizer if self._tokenizer else None,
                checks=self._checks,
                items=self._items(),
                before=self._profiles_before(),
            )
        except DataGateError as error:
            self._context.event("gate", **error.report.dump())
            raise
        self._context.event("gate", **prepared.content.dump())
        return prepared

    def _items(self) -> Iterator[Item]:
        sets = self._context.payload.get("evaluation")
        for one in sets if isinstance(sets, list) else []:
            body = _object(one)
            listed = body.get("fields")
            fields = tuple(map(str, listed)) if isinstance(listed, list) else ()
            yield from evaluation_items(str(body["name"]), self._evaluation_rows(body), fields)

    def _evaluation_rows(self, body: Mapping[str, JsonValue]) -> Iterator[Row]:
        if "path" in body:
            path = str(body["path"])
            with (self._code_folder / path).open("rb") as file:
                yield from read_rows(path, file)
            return
        version = DatasetVersion.load(_object(body["dataset"])).version
        files = self._datasets.files(version, (str(body.get("pattern") or "*"),))
        with closing(open_files(self._datasets, files, self._context.work)) as opened:
            for stored, source in opened:
                yield from read_rows(stored.entry.path, source)

    def _profiles_before(self) -> dict[str, JsonValue]:
        if self._checks.quality.max_drift is None:
            return {}
        try:
            return stored_profiles(self._datasets, self._datasets.resolve(f"{self._name}@{BRANCH}"))
        except VersionNotFoundError:
            return {}

    def _commit(self, prepared: Prepared, splits: Mapping[str, int]) -> DatasetVersion:
        lineage: dict[str, JsonValue] = {
            "callable": self._target,
            "code": _sources(self._code, self._tokenizer).fingerprint,
            "parameters": self._parameters,
            "raw": _identity(self._raw),
            "split": dict(self._shares),
            "gate": _gate_in_lineage(prepared),
        }
        return DatasetRepository.open(self._context.store).commit(
            self._folder,
            name=self._name,
            message=f"Prepare {self._name}",
            author=AUTHOR,
            lineage=lineage,
            splits=splits,
            branch=BRANCH,
        )


def _verdict(prepared: Prepared) -> dict[str, JsonValue]:
    return {"verdict": prepared.content.verdict, "findings": len(prepared.content.findings)}


def _gate_in_lineage(prepared: Prepared) -> dict[str, JsonValue]:
    """Return the verdict on the data itself: what it is beside another version is not its own."""
    return prepared.own.summary()


def _raw_of(body: Mapping[str, JsonValue]) -> DatasetVersion | FileSet:
    return DatasetVersion.load(body) if "version" in body else FileSet.load(body)


def _identity(raw: DatasetVersion | FileSet) -> JsonValue:
    if isinstance(raw, FileSet):
        return raw.fingerprint
    version: Digest = raw.version
    return {"dataset": raw.name, "version": version}


def _sources(code: FileSet, tokenizer: str) -> FileSet:
    """Return the files that decide the data: a new learning rate or README must not make a new dataset version."""
    return FileSet(
        files=tuple(
            entry
            for entry in code.files
            if entry.path.endswith(".py") or (tokenizer and entry.path.startswith(f"{tokenizer.rstrip('/')}/"))
        )
    )


def _object(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}
