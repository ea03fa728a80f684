"""What the tests of collections share: stores that age at will, folders to commit, and short protocol times."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import DatasetVersion
from deepseek_ops.data import DatasetRepository
from deepseek_ops.data.gc_history import RetentionPolicy
from deepseek_ops.data.gc_leases import GuardTimes
from deepseek_ops.data.gc_names import Names
from deepseek_ops.data.gc_plan import CollectionPlan, plan_collection
from deepseek_ops.data.gc_sweep import SweepReport, SweepTimes, sweep

NOTHING_KEPT = RetentionPolicy(keep_days=0, keep_versions=1, grace_days=0, settle_days=0)
"""Only heads and names stay, and everything is old at once."""
QUICK = SweepTimes(marker_seconds=2, abandoned_seconds=4, patience_seconds=20, poll_seconds=0.02)
QUICK_WRITER = GuardTimes(lease_seconds=2, wait_seconds=20, poll_seconds=0.02)


def nothing_else_names() -> Names:
    """Everybody was asked, and nobody names anything."""
    return Names(asked_facts=True, asked_git=True)


def naming(*digests: str) -> Names:
    """Everybody was asked, and these are named."""
    names = nothing_else_names()
    names.add_json(list(digests))
    return names


def fill(folder: Path, seed: int, *, files: int = 5, large: bool = True) -> Path:
    """Fill a folder with small files and a large one, all made from the seed."""
    numbers = random.Random(seed)  # noqa: S311
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(files):
        (folder / f"{index}.bin").write_bytes(numbers.randbytes(300))
    if large:
        (folder / "large.bin").write_bytes(numbers.randbytes((1 << 20) + 7))
    return folder


def commit(store: ObjectStore, folder: Path, *, name: str = "corpus", branch: str = "main") -> DatasetVersion:
    return DatasetRepository(store).commit(folder, name=name, message="m", author="a", branch=branch)


def age(store: LocalStore, days: float, *, prefix: str = "") -> None:
    """Make everything stored so far look ``days`` older."""
    for info in list(store.list(prefix)):
        then = info.modified - days * 24 * 3600
        os.utime(store.folder / info.key, (then, then))


def collect(
    store: ObjectStore, policy: RetentionPolicy = NOTHING_KEPT, names: Names | None = None
) -> tuple[CollectionPlan, SweepReport]:
    """Plan and sweep at once."""
    time.sleep(0.01)  # so that nothing is as young as the plan
    plan = plan_collection(store, policy, lambda: names or nothing_else_names(), write=True)
    if not plan.run:
        return plan, SweepReport(run="")
    return plan, sweep(store, policy, plan.run, lambda: names or nothing_else_names(), times=QUICK)


def content(store: ObjectStore) -> set[str]:
    """Return the keys of all content-addressed objects."""
    return {info.key for prefix in ("objects/", "packs/", "trees/", "commits/") for info in store.list(prefix)}


def is_whole(store: ObjectStore, version: str) -> bool:
    return DatasetRepository(store).verify(version).problems == ()
