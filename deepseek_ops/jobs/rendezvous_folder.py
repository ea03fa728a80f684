"""Nodes that meet in a folder they share: several on one machine, or on a file system that all of them mount.

::

    0/joined-1.json      node 1 is ready for generation 0        0/finished-1.json    its ranks have all returned
    0/failed.json        how generation 0 ended; whoever makes this file first has decided
    pace-1.json          how far the ranks of node 1 are; replaced again and again

Every file but the last kind is made whole by a hard link, so of two writers one wins, on NFS as well.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from deepseek_ops.adapters.local_launcher.folder import JobFolder, disk, write_json
from deepseek_ops.core.records import Record
from deepseek_ops.jobs.entry import Outcome
from deepseek_ops.jobs.rendezvous import Failure, Finished, Gathering, Joined, NodePace

RecordT = TypeVar("RecordT", bound=Record)


class SharedFolderRendezvous:
    """The meeting of an attempt's nodes in ``folder``, which no other attempt uses. Raises JobFolderError.

    Args:
        folder: Shared by the nodes; made where it is missing.
        node: Number of this node.
        num_nodes: How many there are.
        address: Where the other nodes reach this one.
        settle_seconds: How long a file takes to be seen by the others; seconds on network file systems that cache.
    """

    def __init__(
        self, folder: Path, *, node: int, num_nodes: int, address: str = "127.0.0.1", settle_seconds: float = 2.0
    ) -> None:
        self.node = node
        self.num_nodes = num_nodes
        self.address = address
        self.settle_seconds = settle_seconds
        self._folder = folder
        self._failures: tuple[Failure, ...] = ()

    def poll(self) -> Gathering:
        """Return what the files say."""
        while (failure := self._read(self._path("failed"), Failure)) is not None:
            self._failures = (*self._failures, failure)
        nodes = range(self.num_nodes)
        joined = [self._read(self._path(f"joined-{node}"), Joined) for node in nodes]
        finished = [self._read(self._path(f"finished-{node}"), Finished) for node in nodes]
        paces = [self._read(self._folder / f"pace-{node}.json", NodePace) for node in nodes if node != self.node]
        return Gathering(
            failures=self._failures,
            joined=tuple(filter(None, joined)),
            finished=tuple(filter(None, finished)),
            paces=tuple(filter(None, paces)),
        )

    def join(self, generation: int, port: int) -> None:
        """Make this node's file of the generation."""
        self._create(generation, f"joined-{self.node}", Joined(node=self.node, address=self.address, port=port))

    def fail(self, generation: int, failure: Failure) -> None:
        """Make the file that ends the generation, unless there is one."""
        self._create(generation, "failed", failure)

    def finish(self, generation: int, outcome: Outcome) -> None:
        """Make this node's last file."""
        self._create(generation, f"finished-{self.node}", Finished(node=self.node, outcome=outcome))

    def share(self, pace: NodePace) -> None:
        """Replace this node's file."""
        with disk(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(self._folder / f"pace-{self.node}.json", pace.dump())

    def _path(self, name: str) -> Path:
        return self._folder / str(len(self._failures)) / f"{name}.json"

    def _create(self, generation: int, name: str, record: Record) -> None:
        folder = self._folder / str(generation)
        with disk(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = folder / f".{name}.{self.node}.{os.getpid()}"
            write_json(part, record.dump())
            try:
                os.link(part, folder / f"{name}.json")
            except FileExistsError:
                return  # made before, by us or by a faster node
            finally:
                part.unlink(missing_ok=True)

    def _read(self, path: Path, kind: type[RecordT]) -> RecordT | None:
        return JobFolder(path.parent).read(path.name, kind)
