"""Which environments go, and how: whole, and never under a job's feet."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from deepseek_ops.adapters.local_launcher.environment_use import unused


def orphans(envs: Path, named: Collection[str]) -> list[Path]:
    """Return the folders that no published entry names: builds that run now, and what killed builders left."""
    return [folder for folder in sorted(envs.iterdir()) if folder.name not in named]


def too_many(sizes: Mapping[str, int], limit: int) -> list[str]:
    """Return the entries that have to go for the rest to fit; ``sizes`` is in order of use, the newest always stays."""
    over = sum(sizes.values()) - limit
    going = []
    for entry in list(sizes)[:-1]:
        if over <= 0:
            break
        going.append(entry)
        over -= sizes[entry]
    return going


def remove(folder: Path, *, unless_used: bool = False, first: Path | None = None) -> bool:
    """Remove the folder, after the file ``first`` that names it, and return whether it was done."""
    with unused(folder) as free:
        if unless_used and not free:
            return False
        if first is not None:
            first.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    return True


def size_of(folder: Path) -> int:
    """Return the bytes on disk of all files below the folder; what links point to does not count."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))
