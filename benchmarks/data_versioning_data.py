"""Data for ``data_versioning.py``: many small files, some large ones, and the change of one file in a hundred."""

from __future__ import annotations

import os
import random
from pathlib import Path

BLOCK_BYTES = 1 << 20
LONG_AGO = 1_700_000_000
PER_FOLDER = 200


def make(folder: Path, *, files: int, file_bytes: int, large: int, large_bytes: int) -> None:
    """Write the data set: every file differs from every other, none compresses."""
    numbers = random.Random(1)  # noqa: S311
    block = numbers.randbytes(BLOCK_BYTES)
    for number in range(files):
        path = folder / small_name(number)
        if number % PER_FOLDER == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_content(block, number, file_bytes))
    for number in range(large):
        with (folder / f"large{number}.bin").open("wb") as file:
            for part in range(0, large_bytes, BLOCK_BYTES):
                file.write(_content(block, (number << 32) + part, min(BLOCK_BYTES, large_bytes - part)))
    _age(folder)


def change(folder: Path, *, files: int, file_bytes: int, share: int = 100) -> int:
    """Give every ``share``-th small file other bytes and return how many that were."""
    numbers = random.Random(2)  # noqa: S311
    changed = range(0, files, share)
    for number in changed:
        (folder / small_name(number)).write_bytes(numbers.randbytes(file_bytes))
    _age(folder)
    return len(changed)


def small_name(number: int) -> str:
    return f"part{number // PER_FOLDER:05}/{number:08}.bin"


def sizes(folder: Path) -> list[tuple[str, int]]:
    """Return (relative path, size) of every file, sorted."""
    found: list[tuple[str, int]] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        base = Path(root).relative_to(folder).as_posix()
        prefix = "" if base == "." else f"{base}/"
        found += [(prefix + name, (Path(root) / name).stat().st_size) for name in names]
    return sorted(found)


def _content(block: bytes, number: int, size: int) -> bytes:
    head = number.to_bytes(8, "big")[: min(8, size)]
    at = (number * 7919) % (BLOCK_BYTES // 2)
    body = block[at : at + size - len(head)]
    return head + body + block[: size - len(head) - len(body)]


def _age(folder: Path) -> None:
    """Let every file look old: no stat cache of any tool trusts what is as young as its scan."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            if path.stat().st_mtime > LONG_AGO + 1000:
                shift = random.Random(path.stat().st_ino).randrange(1000)  # noqa: S311
                os.utime(path, (LONG_AGO + shift, LONG_AGO + shift))
