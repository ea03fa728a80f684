"""A prepare job without a launcher: code with a small tokenizer, raw files, and the job's own function."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import JsonValue

from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.core.records import DatasetVersion
from deepseek_ops.data import DatasetRepository, StoreBlobs
from deepseek_ops.jobs.context import JobContext

END = "<end>"


def save_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer without merges: every byte is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: at for at, char in enumerate([*alphabet, END])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))


@dataclass
class Kitchen:
    """Where preparation happens."""

    root: Path
    store: LocalStore

    @property
    def datasets(self) -> DatasetRepository:
        return DatasetRepository.open(self.store)

    @property
    def code(self) -> Path:
        return self.root / "code"

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    def write_raw(self, name: str, documents: list[dict[str, JsonValue]]) -> None:
        """Write documents as a raw file."""
        (self.raw / name).write_text("".join(json.dumps(one) + "\n" for one in documents))

    def context(self, code: str, **changes: JsonValue) -> JobContext:
        """Return the context of a job that runs ``prepare`` of this code."""
        (self.code / "mine.py").write_text(code)
        blobs = StoreBlobs(self.store)
        raw = self.datasets.commit(self.raw, name="corpus-raw", message="m", author="a")
        payload: dict[str, JsonValue] = {
            "code": blobs.put_folder(self.code).dump(),
            "callable": "mine:prepare",
            "raw": raw.dump(),
            "dataset": "corpus",
            "split": {"train": 0.8, "val": 0.1, "test": 0.1},
            "parameters": {},
            "tokenizer": "tokenizer",
            **changes,
        }
        spec = JobSpec(name="prepare", kind="prepare", payload=payload, timeout_seconds=120)
        return JobContext(spec, self.root / "job", store=self.store)

    def prepare(self, code: str, **changes: JsonValue) -> dict[str, JsonValue]:
        """Run the job and return its result."""
        from deepseek_ops.jobs.prepare import run

        return run(self.context(code, **changes))

    def version(self, result: Mapping[str, JsonValue]) -> DatasetVersion:
        """Return the version of a result."""
        body = result["dataset"]
        assert isinstance(body, dict)
        return DatasetVersion.load(body)

    def documents(self, result: Mapping[str, JsonValue], split: str) -> list[dict[str, JsonValue]]:
        """Return the documents of a split of a result's version."""
        version = self.version(result).version
        paths = self.datasets.paths(version, patterns=(f"documents/{split}*.jsonl",))
        found = [self.datasets.read_file(version, path) for path in paths]
        return [json.loads(line) for part in found for line in part.splitlines()]


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    """An empty kitchen with a tokenizer."""
    save_tokenizer(tmp_path / "code" / "tokenizer")
    (tmp_path / "raw").mkdir()
    return Kitchen(tmp_path, LocalStore(tmp_path / "store"))
