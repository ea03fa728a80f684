"""Where the nodes of a training on several machines meet: in the object store, through each node's own folder.

The process that forks the ranks may not talk to a server (see ``rendezvous``), so it writes what it wants to say into
``meet/<attempt>/out`` of the job's folder and reads ``meet/<attempt>/seen``; the folder's mirror carries the files to
the store and brings what all nodes have stored. Every word is one create-only object, so of two nodes that report the
end of a generation the first one counts, and every node reads the same.
"""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import TypeVar

from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher.folder import JobFolder, disk, read_json, write_json
from deepseek_ops.adapters.remote_launcher.layout import Control, JobKeys
from deepseek_ops.core.errors import InvalidRecordError, ObjectExistsError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Record, canonical_json
from deepseek_ops.jobs.entry import Outcome
from deepseek_ops.jobs.nodes import NodePlace
from deepseek_ops.jobs.rendezvous import Failure, Finished, Gathering, Joined, NodePace

MANY_NODES = 8
"""With more nodes than this only node 0 reads how fast the others are: everybody's word to everybody is a square."""
SETTLE_SECONDS = 4.0
"""How long a word takes through two mirrors that look once a second, and a store that is slow once."""
RecordT = TypeVar("RecordT", bound=Record)


class FolderRendezvous:
    """The ``Rendezvous`` of one node, as the process that forks its ranks sees it: files, and nothing else."""

    settle_seconds = SETTLE_SECONDS

    def __init__(self, files: JobFolder, attempt: int, place: NodePlace) -> None:
        self.node = place.rank
        self.num_nodes = place.count
        self.address = own_address(place)
        self._out = files.path / f"meet/{attempt:06d}/out"
        self._seen = files.path / f"meet/{attempt:06d}/seen"

    def poll(self) -> Gathering:
        """Return what has come from the store."""
        failures: list[Failure] = []
        while (failure := _read(self._seen / f"failures/{len(failures):06d}.json", Failure)) is not None:
            failures.append(failure)
        generation = len(failures)
        return Gathering(
            failures=tuple(failures),
            joined=tuple(_read_all(self._seen / f"joined/{generation:06d}", Joined)),
            finished=tuple(_read_all(self._seen / f"finished/{generation:06d}", Finished)),
            paces=tuple(pace for pace in _read_all(self._seen / "paces", NodePace) if pace.node != self.node),
        )

    def join(self, generation: int, port: int) -> None:
        """Say that this node is ready."""
        self._say(f"joined/{generation:06d}/{self.node}.json", Joined(node=self.node, address=self.address, port=port))

    def fail(self, generation: int, failure: Failure) -> None:
        """Report that the generation has failed."""
        self._say(f"failures/{generation:06d}.json", failure)

    def finish(self, generation: int, outcome: Outcome) -> None:
        """Say that all ranks of this node have returned."""
        self._say(f"finished/{generation:06d}/{self.node}.json", Finished(node=self.node, outcome=outcome))

    def share(self, pace: NodePace) -> None:
        """Tell the others how far this node's ranks are."""
        self._say(f"paces/{self.node}.json", pace, again=True)

    def _say(self, name: str, record: Record, *, again: bool = False) -> None:
        path = self._out / name
        if path.exists() and not again:
            return
        with disk(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(path, record.dump())


class MeetingCourier:
    """Carries the words between one node's folder and the store, in the mirror's thread."""

    def __init__(self, files: JobFolder, store: ObjectStore, job: str, *, attempt: int, node: int) -> None:
        self._out = files.path / f"meet/{attempt:06d}/out"
        self._seen = files.path / f"meet/{attempt:06d}/seen"
        self._store = store
        self._keys = JobKeys(job)
        self._attempt = attempt
        self._node = node
        self._sent: set[str] = set()
        self._pace: bytes = b""
        self._pace_number = 0
        self._got: set[str] = set()
        self.busy = False
        """Whether the nodes are meeting right now, so that a quick answer is worth a request."""

    def turn(self, control: Control) -> None:
        """Send what this node has said, fetch what all have said, as far as ``control`` shows it."""
        if not self._out.is_dir():
            return  # nothing was said yet
        for path in sorted(self._out.rglob("[0-9]*.json")):
            name = str(path.relative_to(self._out))
            if name.startswith("paces/"):
                self._send_pace(path)
            elif name not in self._sent:
                self._create(f"meet/{name}", path.read_bytes())
                self._sent.add(name)
        for name in control.below(self._attempt, "meet/"):
            if name not in self._got and self._wants(control, name):
                self._fetch(name)
        self.busy = self._meeting(control)

    def _meeting(self, control: Control) -> bool:
        """Return whether a generation is about to begin or has just ended for some nodes only."""
        generation = len(control.below(self._attempt, "meet/failures/"))
        joined = len(control.below(self._attempt, f"meet/joined/{generation:06d}/"))
        finished = len(control.below(self._attempt, f"meet/finished/{generation:06d}/"))
        nodes = len(control.below(self._attempt, "claims/"))
        return joined < nodes or finished > 0

    def _wants(self, control: Control, name: str) -> bool:
        if not name.startswith("meet/paces/"):
            return True
        nodes = len(control.below(self._attempt, "claims/"))
        return not name.startswith(f"meet/paces/{self._node}/") and (self._node == 0 or nodes <= MANY_NODES)

    def _fetch(self, name: str) -> None:
        body: dict[str, JsonValue] = json.loads(self._store.get(self._keys.of(self._attempt, name)))
        name_here = name.removeprefix("meet/")
        if name_here.startswith("paces/"):
            name_here = f"{name_here.rpartition('/')[0]}.json"
        target = self._seen / name_here
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(target, body)
        self._got.add(name)

    def _send_pace(self, path: Path) -> None:
        data = path.read_bytes()
        if data == self._pace:
            return
        old, self._pace_number = self._pace_name(), self._pace_number + 1
        self._create(self._pace_name(), data)
        if self._pace:
            self._store.delete([self._keys.of(self._attempt, old)])
        self._pace = data

    def _pace_name(self) -> str:
        return f"meet/paces/{self._node}/{self._pace_number:08d}"

    def _create(self, name: str, data: bytes) -> None:
        with contextlib.suppress(ObjectExistsError):  # another node was first, or an answer was lost
            self._store.create(self._keys.of(self._attempt, name), canonical_json(json.loads(data)))


def own_address(place: NodePlace) -> str:
    """Return where the other nodes reach this one: as the engine says, else the address that reaches node 0."""
    if place.rank == 0:
        return place.address
    if place.host:
        return place.host
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((place.address, 9))  # sends nothing: it only chooses the interface
        return str(probe.getsockname()[0])
    return socket.gethostname()


def _read(path: Path, kind: type[RecordT]) -> RecordT | None:
    body = read_json(path)
    if body is None:
        return None
    with contextlib.suppress(InvalidRecordError):
        return kind.load(body)
    return None


def _read_all(folder: Path, kind: type[RecordT]) -> list[RecordT]:
    found = [_read(path, kind) for path in sorted(folder.glob("[0-9]*.json"))]
    return [record for record in found if record is not None]
