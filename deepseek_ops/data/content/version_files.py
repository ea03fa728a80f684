"""Files of a stored version as open files, one after the other: packed ones many a request, large ones through disk."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Generator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from deepseek_ops.data.content.rows import format_of
from deepseek_ops.data.packs import Stored, plan_reads, read_packed, stored_files
from deepseek_ops.data.pages import LOOSE
from deepseek_ops.data.reading import stream_stored
from deepseek_ops.data.repository import DatasetRepository

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
_SPLITS |= {"test": "test", "eval": "test"}


def split_of(path: str, declared: str = "") -> str:
    """Return the split of a file: as declared, else the last part of its path that names one, else empty."""
    if declared:
        return declared
    parts = re.split(r"[/._-]", path.lower())
    return next((_SPLITS[part] for part in reversed(parts) if part in _SPLITS), "")


def files_at(repository: DatasetRepository, version: str, paths: Collection[str]) -> list[Stored]:
    """Return the files of a version with these paths, sorted by path; only their pages are read."""
    tree = repository.tree(version)
    wanted = set(paths)
    pages = tree.read(tree.holding(wanted))
    files = chain.from_iterable(stored_files(page) for page in pages)
    return sorted(file for file in files if file.entry.path in wanted)


def open_files(
    repository: DatasetRepository, files: Collection[Stored], scratch: Path
) -> Generator[tuple[Stored, BinaryIO], None, None]:
    """Yield each file whose format we know with its bytes, seekable; each is closed before the next one is read.

    Memory holds one request of at most 16 MiB; a file that lies in no pack goes through ``scratch``.
    """
    known = [file for file in files if format_of(file.entry.path)]
    for read in plan_reads(known):
        for file, content in read_packed(repository.store, read):
            yield file, io.BytesIO(content)
    for file in known:
        if file.location == LOOSE:
            with TemporaryFile(dir=scratch) as copy:
                for chunk in stream_stored(repository.store, file):
                    copy.write(chunk)
                copy.seek(0)
                yield file, copy
