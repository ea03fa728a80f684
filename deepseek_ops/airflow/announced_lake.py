"""A data lake as it was announced: what came since, or is still on its way, is not there to be read."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_ops.airflow.triggers.uploads import DataArrival
from deepseek_ops.core.errors import PermanentError

if TYPE_CHECKING:
    from deepseek_ops.core.ports import ObjectInfo, ObjectStore


@dataclass(eq=False)
class ChangedSinceAnnouncedError(PermanentError):
    """An upload is not what its announcement says."""

    uri: str
    announced: str
    found: str

    def __str__(self) -> str:
        return (
            f"{self.uri} was announced with listing {self.announced[:12]} and has {self.found[:12]} now: somebody "
            "writes to a complete upload. Nothing is ingested; what is there now is announced when it has settled."
        )


@dataclass(eq=False)
class UnknownPartitionError(PermanentError):
    """A run has a partition that no announcement names."""

    partition: str

    def __str__(self) -> str:
        return f"no upload was announced as partition {self.partition!r}; start the run without a partition key."


class AnnouncedLake:
    """The ObjectStore of one announced upload, and of the folders that were ingested before it. Read only.

    The listing that is handed out is the one that is checked: whoever reads it to its end has read what was announced.
    """

    def __init__(self, lake: ObjectStore, arrival: DataArrival, earlier: Collection[str]) -> None:
        self.uri = lake.uri
        self._lake = lake
        self._arrival = arrival
        self._earlier = tuple(sorted(folder for folder in earlier if not folder.startswith(arrival.prefix)))
        self._sizes: dict[str, int] = {}

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        """Yield the objects in key order. Raises ChangedSinceAnnouncedError at the end of the upload's own ones."""
        seen, size_of = hashlib.sha256(), self._sizes
        for info in self._lake.list(prefix, start_after=start_after, limit=limit):
            if info.key.startswith(self._arrival.prefix):
                seen.update(f"{info.key}\x00{info.size}\n".encode())
                size_of[info.key] = info.size
                yield info
            elif info.key.startswith(self._earlier) and self._earlier:
                yield info
        if not prefix and not start_after and limit is None and seen.hexdigest() != self._arrival.digest:
            uri = f"{self.uri}/{self._arrival.prefix}"
            raise ChangedSinceAnnouncedError(uri, self._arrival.digest, seen.hexdigest())

    def download(self, key: str, target: Path) -> None:
        """Write the object to ``target``. Raises ChangedSinceAnnouncedError when it is not as long as it was listed."""
        self._lake.download(key, target)
        size = target.stat().st_size
        if size != self._sizes.get(key, size):
            raise ChangedSinceAnnouncedError(f"{self.uri}/{key}", f"{self._sizes[key]} bytes", f"{size} bytes")

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Return the object, or a range of it."""
        return self._lake.get(key, start=start, length=length)

    def head(self, key: str) -> ObjectInfo | None:
        """Return size and key, or None."""
        return self._lake.head(key)

    def create(self, key: str, data: bytes) -> None:
        """Refuse: a lake is somebody else's."""
        raise PermissionError(f"{self.uri}/{key}: a lake is only read")

    def put_blob(self, key: str, source: bytes | Path) -> None:
        """Refuse: a lake is somebody else's."""
        raise PermissionError(f"{self.uri}/{key}: a lake is only read")

    def delete(self, keys: Collection[str]) -> None:
        """Refuse: a lake is somebody else's."""
        raise PermissionError(f"{self.uri}: a lake is only read")
