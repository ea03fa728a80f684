"""The records of a file: JSON lines, Parquet, text. One at a time, with the place each came from.

``.jsonl`` and ``.ndjson`` (also ``.gz``, ``.zst``) hold one JSON value a line, ``.parquet`` one row each, ``.txt`` and
``.md`` one line each, or one document. Other files hold no records that we know.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from pydantic import JsonValue

from deepseek_ops.data.content.extras import require

Format = Literal["json", "parquet", "text"]
TextUnit = Literal["line", "document"]
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
_PACKED = (".gz", ".zst")
MAX_LINE_BYTES = 64 << 20
_PARQUET_ROWS = 1024
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """One record, or why there is none at this place."""

    file: str
    row: int
    """From 1: the line, or the row of a Parquet file."""
    value: JsonValue
    problem: str = ""


def format_of(path: str) -> Format | None:
    """Return the format a file's name says, or None."""
    name = PurePosixPath(path)
    return _SUFFIXES.get(PurePosixPath(name.stem).suffix if name.suffix in _PACKED else name.suffix)


def read_rows(path: str, source: BinaryIO, *, text_unit: TextUnit = "line") -> Iterator[Row]:
    """Yield the records of an open file (Parquet needs it seekable); nothing for a format that we do not know.

    A line that is no JSON, no UTF-8, or longer than 64 MiB becomes a row with a problem, and reading goes on.
    """
    kind = format_of(path)
    if kind == "parquet":
        yield from _parquet(path, source)
        return
    plain = _unpacked(path, source)
    if kind == "json":
        yield from _json_lines(path, plain)
    elif kind == "text" and text_unit == "line":
        yield from (_text(path, number, line) for number, line in _lines(plain))
    elif kind == "text":
        yield _text(path, 1, plain.read(MAX_LINE_BYTES + 1))


def rows_below(folder: Path, *, text_unit: TextUnit = "line") -> Iterator[Row]:
    """Yield the records of every file below a folder, in the order of their paths."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if format_of(name) and path.is_file():
            with path.open("rb") as source:
                yield from read_rows(name, source, text_unit=text_unit)


def text_of(value: JsonValue, fields: Sequence[str] = ()) -> str:
    """Return the text of a record: the named fields, or ``text``, or every text in it except an ``id``."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return "" if value is None else json.dumps(value, ensure_ascii=False)
    if fields:
        return "\n".join(part for name in fields for part in _texts(value.get(name)))
    if isinstance(value.get("text"), str):
        return str(value["text"])
    return "\n".join(part for name, item in value.items() if name != "id" for part in _texts(item))


def _texts(value: JsonValue) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)


def _unpacked(path: str, source: BinaryIO) -> BinaryIO:
    if path.endswith(".gz"):
        return gzip.open(source, "rb")  # type: ignore[return-value]
    if path.endswith(".zst"):
        import zstandard

        return zstandard.ZstdDecompressor().stream_reader(source, read_size=_READ_BYTES)
    return source


def _lines(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) without line ends; what follows 64 MiB of one line is left out and the line too long."""
    reader: BinaryIO = source if hasattr(source, "peek") else io.BufferedReader(source, _READ_BYTES)  # type: ignore[type-var]
    number = 0
    while line := reader.readline(MAX_LINE_BYTES + 1):
        number += 1
        rest = line
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = reader.readline(MAX_LINE_BYTES + 1)
        yield number, line.rstrip(b"\r\n") if len(line) <= MAX_LINE_BYTES else line


def _json_lines(path: str, source: BinaryIO) -> Iterator[Row]:
    for number, line in _lines(source):
        if not line.strip():
            continue
        if len(line) > MAX_LINE_BYTES:
            yield Row(path, number, None, f"the line is longer than {MAX_LINE_BYTES >> 20} MiB")
            continue
        try:
            yield Row(path, number, json.loads(line))
        except UnicodeDecodeError as error:
            yield Row(path, number, None, f"not JSON in UTF-8: byte 0x{line[error.start]:02x} at {error.start}")
        except (ValueError, RecursionError) as error:
            yield Row(path, number, None, f"not JSON in UTF-8: {error}")


def _text(path: str, number: int, line: bytes) -> Row:
    if len(line) > MAX_LINE_BYTES:
        return Row(path, number, None, f"the text is longer than {MAX_LINE_BYTES >> 20} MiB")
    try:
        return Row(path, number, line.decode())
    except UnicodeDecodeError as error:
        return Row(path, number, None, f"not UTF-8: byte 0x{line[error.start]:02x} at {error.start}")


def _parquet(path: str, source: BinaryIO) -> Iterator[Row]:
    require("pyarrow", f"reading {path}")
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    number = 0
    try:
        with closing(pq.ParquetFile(source)) as table:
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(path, number, _plain(value))
    except (pa.ArrowException, OSError) as error:
        yield Row(path, number + 1, None, f"no Parquet: {str(error).splitlines()[0][:200]}")


def _plain(value: object) -> JsonValue:
    """Return the value as JSON: bytes as hex, dates and decimals as text."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.hex() if isinstance(value, bytes) else str(value)
