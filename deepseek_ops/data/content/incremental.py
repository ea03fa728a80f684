"""What incremental training reads: the files that came or changed since a version it was trained on."""

from __future__ import annotations

from pydantic import Field

from deepseek_ops.core.records import Digest, Record
from deepseek_ops.data.repository import DatasetRepository


class Since(Record):
    """The files of a version that an older one did not have, or had otherwise."""

    since: Digest
    version: Digest
    paths: tuple[str, ...] = Field(description="Sorted.")
    removed: int = Field(ge=0, description="Files of the older version that are gone.")


def since(repository: DatasetRepository, old: str, new: str = "") -> Since:
    """Return what was added or modified from one version to another, by default to the newest of the same dataset.

    Parts that both share are not read. Raises VersionNotFoundError, IntegrityError.
    """
    before = repository.resolve(old)
    version = repository.resolve(new or repository.load(before).name)
    changed = repository.diff(before, version)
    paths = tuple(sorted([*changed.added, *changed.modified]))
    return Since(since=before, version=version, paths=paths, removed=len(changed.removed))
