"""A version's list of files as a table that other tools read: Parquet, JSON Lines or CSV. Never its identity."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Literal

from deepseek_ops.core.errors import MissingDependencyError
from deepseek_ops.data.exchange.archives import WrittenFile, write_whole
from deepseek_ops.data.packs import Stored

ManifestFormat = Literal["parquet", "jsonl", "csv"]
COLUMNS = ("path", "size", "sha256", "split")
ROW_GROUP = 64_000
Row = tuple[str, int, str, str]


def manifest_format(path: Path) -> ManifestFormat | None:
    """Return the format a file name asks for, or None."""
    suffixes: dict[str, ManifestFormat] = {".parquet": "parquet", ".jsonl": "jsonl", ".csv": "csv"}
    return suffixes.get(path.suffix.lower())


def write_manifest(files: Iterable[Stored], target: Path, kind: ManifestFormat) -> WrittenFile:
    """Write path, size, SHA-256 and split of each file, a row group at a time; the file appears complete or not at all.

    Raises TargetTakenError, LocalDiskError, MissingDependencyError (Parquet without pyarrow).
    """
    count = 0

    def rows() -> Iterator[Row]:
        nonlocal count
        for file in files:
            count += 1
            yield file.entry.path, file.entry.size, file.entry.digest.hex(), file.entry.split

    write = {"parquet": _parquet, "jsonl": _jsonl, "csv": _csv}[kind]
    digest, size = write_whole(target, lambda file: write(file, rows()))
    return WrittenFile(str(target), count, size, digest)


def _jsonl(target: IO[bytes], rows: Iterator[Row]) -> None:
    for row in rows:
        target.write(json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False).encode() + b"\n")


def _csv(target: IO[bytes], rows: Iterator[Row]) -> None:
    text = io.TextIOWrapper(target, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    text.flush()
    text.detach()


def _parquet(target: IO[bytes], rows: Iterator[Row]) -> None:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError:
        raise MissingDependencyError("pyarrow", "data", "a Parquet manifest") from None
    types = (pa.string(), pa.int64(), pa.string(), pa.dictionary(pa.int32(), pa.string()))
    schema = pa.schema(list(zip(COLUMNS, types, strict=True)))
    with parquet.ParquetWriter(target, schema, compression="zstd") as writer:
        while group := list(islice(rows, ROW_GROUP)):
            columns = [
                pa.array(column, type=kind) for column, kind in zip(zip(*group, strict=True), types, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
