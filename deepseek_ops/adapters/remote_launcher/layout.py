"""Where a job of the remote launcher lives in the object store, and what its small objects say.

::

    job-names/<name>                      the job exists; first to come, last to go
    jobs/<name>/control/                  everything that is looked at again and again: one listing shows all of it
      attempts/NNNNNN.json                create-only: the number is the fencing token, the loser finds the winner's
      NNNNNN/engine.json                  the engine has been asked to start the attempt, and said so
      NNNNNN/lease/<key>                  a renewal: a key that was not there before; the agent removes older ones
      NNNNNN/stop.json                    why the attempt has to end
      NNNNNN/requests/NNNNNN.json         what people asked of the attempt; the numbers go on over all attempts
      NNNNNN/claim.json                   which run of the engine's job may run the attempt: an engine that repeats
      NNNNNN/claims/<node>                a job by itself finds both taken
      NNNNNN/beats/<node>/<counter>       what the node's agent saw last; the one before is removed
      NNNNNN/left/<node>                  the node's agent has sent everything and ends
      NNNNNN/meet/...                     where the nodes agree on who starts the ranks when, see ``jobs/meeting.py``
      NNNNNN/ended.json                   how the attempt ended; create-only, so of two stories the first one counts
    jobs/<name>/results/NNNNNN.json       what the attempt returned; stored before ``ended.json``
    jobs/<name>/log/, jobs/<name>/events/ shared streams of all nodes and attempts, see ``shared_log``

Nothing here is ever overwritten, so every reader sees whole objects, and a store needs create-only puts only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import Field, JsonValue

from deepseek_ops.core.jobs import JobSpec, JobStatus
from deepseek_ops.core.ports import ObjectInfo, ObjectStore
from deepseek_ops.core.records import Name, Record

NAMES = "job-names/"
STARTED = "engine.json"
"""That the engine was asked to start an attempt and said so, below the attempt."""


class RemoteAttempt(Record):
    """One attempt of a job, as it was decided."""

    spec: JobSpec
    attempt: int = Field(ge=1)
    engine_id: Name = Field(description="The engine's job for this attempt.")
    life: str = Field(description="Random, one for all attempts of a job: a retired job's name may be used again.")
    device_seconds: float = Field(default=0.0, ge=0, description="Spent by the attempts before this one.")


class Started(Record):
    """What the engine answered when it was asked to start an attempt."""

    engine_id: Name
    handle: str = ""
    url: str = ""


class RemoteStop(Record):
    """Why an attempt has to end, in the words of who wants it."""

    reason: str = Field(min_length=1)


class RemoteResult(Record):
    """What a succeeded attempt returned, stored before its end: whoever finds it writes the end if nobody has."""

    status: JobStatus
    result: dict[str, JsonValue]


class Claim(Record):
    """Which run of the engine's job has the attempt."""

    instance: str


class Beat(Record):
    """What a node's agent saw last."""

    node: int = Field(ge=0)
    step: int | None = None
    restarts: int = Field(default=0, ge=0)
    wall_seconds: float = Field(default=0.0, ge=0)
    stopping: str = Field(default="", description="Why it is ending the job; empty while it is not.")


@dataclass(frozen=True, slots=True)
class JobKeys:
    """The keys of one job."""

    name: str

    @property
    def root(self) -> str:
        return f"jobs/{self.name}/"

    @property
    def control(self) -> str:
        return f"{self.root}control/"

    @property
    def log(self) -> str:
        return f"{self.root}log/"

    @property
    def events(self) -> str:
        return f"{self.root}events/"

    @property
    def results(self) -> str:
        return f"{self.root}results/"

    def attempt(self, number: int) -> str:
        return f"{self.control}attempts/{number:06d}.json"

    def of(self, attempt: int, what: str) -> str:
        """Return the key of ``what`` (``stop.json``, ``claims/3``) of an attempt."""
        return f"{self.control}{attempt:06d}/{what}"

    def result(self, attempt: int) -> str:
        return f"{self.results}{attempt:06d}.json"


@dataclass(frozen=True, slots=True)
class Control:
    """What one listing of a job's ``control/`` shows."""

    attempts: tuple[int, ...] = ()
    files: Mapping[int, Mapping[str, ObjectInfo]] = field(default_factory=dict)
    """Attempt -> name below it -> object."""
    created: Mapping[int, ObjectInfo] = field(default_factory=dict)
    """Attempt -> the object that decided it."""

    @property
    def newest(self) -> int:
        """The newest attempt; 0 before the first."""
        return self.attempts[-1] if self.attempts else 0

    def has(self, attempt: int, what: str) -> bool:
        return what in self.files.get(attempt, {})

    def below(self, attempt: int, folder: str) -> list[str]:
        """Return the names in a folder of an attempt (``lease/``), sorted."""
        return sorted(name for name in self.files.get(attempt, {}) if name.startswith(folder))

    def requests(self, attempt: int) -> dict[int, str]:
        """Return number -> name of what people asked of an attempt."""
        return {int(name[-11:-5]): name for name in self.below(attempt, "requests/")}

    @property
    def last_request(self) -> int:
        """Return the highest number of a request of any attempt; 0 before the first."""
        return max((number for attempt in self.files for number in self.requests(attempt)), default=0)

    def newest_beat(self, attempt: int, node: int) -> str:
        """Return the name of a node's last beat, or "" before the first."""
        beats = self.below(attempt, f"beats/{node}/")
        return beats[-1] if beats else ""


def read_control(store: ObjectStore, keys: JobKeys) -> Control:
    """Return what there is to know of a job, by one listing (a thousand objects a request; there are dozens)."""
    created: dict[int, ObjectInfo] = {}
    files: dict[int, dict[str, ObjectInfo]] = {}
    for info in store.list(keys.control):
        folder, _, rest = info.key.removeprefix(keys.control).partition("/")
        if folder == "attempts":
            created[int(rest.removesuffix(".json"))] = info
        else:
            files.setdefault(int(folder), {})[rest] = info
    return Control(tuple(sorted(created)), files, created)
