"""How the nodes of one training act as one: they start their ranks together, and the first failure ends them all.

A training's life is a row of *generations*: one start of all ranks on all nodes each. A generation ends by its first
failure, whichever node reports it, or when all ranks of all nodes have returned. The failures are a log to which every
generation adds at most one entry; its length is the number of the newest generation, and the number of restarts. So
every node that reads the log knows the same: how often there was a restart, why, and whether there may be another.

A node's part, in the order of calls (``RankGroupRunner`` plays it)::

    join(g, port)              the node is there; at node 0's port its ranks will meet
    poll()                     until all nodes have joined: start the ranks
    fail(g, outcome, ...)      a rank failed here;        or   finish(g, outcome): all ranks here have returned
    poll()                     until the generation has ended one way or the other

Every call may be made twice. ``poll`` is asked twice a second, and in between the ranks' ends have to be seen, so
none of the calls may block for longer than a local file takes; a call may take effect later than it returns. One that
finds no room on the disk raises NoSpaceForJobError, and is made again for as long as nodes wait for each other. They
are made in the process that forks the ranks: an implementation starts no thread in it and opens nothing that a rank
must not inherit. One that talks to a server leaves that to another process.

A node that is started again within an attempt finds that it has joined already, with another port: the ranks of its
predecessor are dead, so it ends that generation and joins the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pydantic import Field

from deepseek_ops.core.errors import TransientError
from deepseek_ops.core.records import Record
from deepseek_ops.jobs.entry import Outcome


@dataclass(eq=False)
class NoRoomToMeetError(TransientError):
    """A node could not tell the others what they wait for, for as long as they do: its disk is full."""

    node: int
    seconds: float
    problem: str

    def __str__(self) -> str:
        return f"node {self.node} could not tell the other nodes how it is, in {self.seconds:g} s: {self.problem}"


class Joined(Record):
    """A node that is ready to start its ranks."""

    node: int = Field(ge=0)
    address: str = Field(description="Of the node, for its peers.")
    port: int = Field(ge=0, description="Free there; of node 0 it becomes MASTER_PORT. Tells a node's starts apart.")


class Failure(Record):
    """How a generation ended that did not succeed."""

    node: int = Field(ge=0, description="Who reported it first.")
    outcome: Outcome
    final: bool = Field(description="No other generation follows: the outcome is the job's.")


class Finished(Record):
    """A node whose ranks have all returned."""

    node: int = Field(ge=0)
    outcome: Outcome = Field(description="Its first rank's; node 0's is the job's result.")


class RankPace(Record):
    """How far a rank is and how fast, for its peers to compare with."""

    rank: int = Field(ge=0)
    step: int = Field(ge=0)
    phase: str
    busy_seconds: float | None = Field(default=None, description="Median of its newest steps.")
    beats: int = Field(default=0, ge=0, description="How often it has said anything.")


class NodePace(Record):
    """The ranks of one node."""

    node: int = Field(ge=0)
    ranks: tuple[RankPace, ...] = ()


class Gathering(Record):
    """What the nodes have told each other. ``joined`` and ``finished`` are those of the newest generation."""

    failures: tuple[Failure, ...] = Field(default=(), description="One for each generation that has ended, in order.")
    joined: tuple[Joined, ...] = ()
    finished: tuple[Finished, ...] = ()
    paces: tuple[NodePace, ...] = Field(default=(), description="Of the other nodes, as last told.")

    @property
    def generation(self) -> int:
        """Number of the newest generation: how often the ranks were started before it."""
        return len(self.failures)

    @property
    def settled(self) -> bool:
        """Whether the last failure was final: there is no newest generation."""
        return bool(self.failures) and self.failures[-1].final


class Rendezvous(Protocol):
    """Where the nodes of one attempt of a training meet. Every attempt has its own."""

    @property
    def node(self) -> int:
        """Number of this node, 0 to ``num_nodes`` - 1."""

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""

    @property
    def address(self) -> str:
        """Where the other nodes reach this one: an IP address or a name."""

    @property
    def settle_seconds(self) -> float:
        """How long another node's word may take to get here.

        A node whose ranks only lost their peers waits so long for the node that knows why.
        """

    def poll(self) -> Gathering:
        """Return what is known now."""

    def join(self, generation: int, port: int) -> None:
        """Say that this node is ready for the generation, with a port that is free on it.

        Does nothing when it is not the newest generation, or when the node has joined it before.
        """

    def fail(self, generation: int, failure: Failure) -> None:
        """Report that the generation has failed. The first report of all nodes counts; later ones do nothing."""

    def finish(self, generation: int, outcome: Outcome) -> None:
        """Say that all ranks of this node have returned from the generation; nothing when it is not the newest."""

    def share(self, pace: NodePace) -> None:
        """Tell the others how far this node's ranks are; now and then, and it may get lost."""


class LocalRendezvous:
    """The one node of a training that has one: it agrees with itself at once."""

    node = 0
    num_nodes = 1
    address = "127.0.0.1"
    settle_seconds = 0.0

    def __init__(self) -> None:
        self._known = Gathering()

    def poll(self) -> Gathering:
        """Return what was said."""
        return self._known

    def join(self, generation: int, port: int) -> None:
        """Meet nobody."""
        if generation == self._known.generation:
            self._known = self._known.evolve(joined=(Joined(node=0, address=self.address, port=port),))

    def fail(self, generation: int, failure: Failure) -> None:
        """End the generation."""
        if generation == self._known.generation:
            self._known = Gathering(failures=(*self._known.failures, failure))

    def finish(self, generation: int, outcome: Outcome) -> None:
        """End the training."""
        if generation == self._known.generation:
            self._known = self._known.evolve(finished=(Finished(node=0, outcome=outcome),))

    def share(self, pace: NodePace) -> None:
        """Tell nobody."""
