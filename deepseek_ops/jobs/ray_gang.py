"""Where the driver and the nodes of a Ray job meet: one small actor that knows who runs, who has ended, and who must.

It stands beside Ray Train, which restarts workers but has no way to tell a running one anything. Standard library
only: the process of this actor is on the way of every start.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

Order = Literal["", "stop", "save"]
"""What a node is to do: go on, end its command, or (the first node) have the training write a checkpoint."""
SETTLE_SECONDS = 10.0
"""How long the other nodes may take to notice by themselves that one has failed, before they are told to end."""
MAX_WAITING_CHARACTERS = 200_000
"""Output that waits for the driver to print it; what is more is left out here (the job's own log has all of it)."""


@dataclass
class GangView:
    """What the driver sees."""

    instance: int = 0
    """Number of the run: 1, and one more each time Ray Train gathered the nodes anew."""
    running: int = 0
    """Nodes whose command runs."""
    failure: tuple[int, int] | None = None
    """Node and exit status of the first command that did not end with 0."""
    machines: tuple[str, ...] = ()
    """Ray's ids of the machines that the commands run on."""
    output: list[tuple[int, str]] = field(default_factory=list)
    """Node and text, in order, since the last look."""


class Gang:
    """The actor. Every method returns at once; only the newest instance of the nodes is listened to."""

    def __init__(self) -> None:
        self._view = GangView()
        self._nodes: dict[int, str] = {}
        self._saving = False
        self._failed_at = 0.0
        self._stopping = False
        self._waiting = 0

    def begin(self) -> int:
        """Return the number of a new instance: the first node asks for it when all have been gathered."""
        self._view.instance += 1
        self._view.failure = None
        self._nodes.clear()
        return self._view.instance

    def enter(self, instance: int, node: int, machine: str) -> bool:
        """Say that a node's command is about to run on a machine; return whether it may."""
        if self._stopping or instance != self._view.instance:
            return False
        self._nodes[node] = machine
        return True

    def tell(self, instance: int, node: int, text: str) -> Order:
        """Pass a node's output on; return what it is to do."""
        self._say(node, text)
        waited = time.monotonic() - self._failed_at
        if self._stopping or instance != self._view.instance or (self._view.failure and waited > SETTLE_SECONDS):
            return "stop"
        saving, self._saving = self._saving and node == 0, self._saving and node != 0
        return "save" if saving else ""

    def leave(self, instance: int, node: int, text: str, status: int) -> None:
        """Say that a node's command has ended. The first that failed is what the job ended with."""
        self._say(node, text)
        if instance != self._view.instance:
            return
        self._nodes.pop(node, None)
        if status and self._view.failure is None:
            self._view.failure = (node, status)
            self._failed_at = time.monotonic()

    def stop(self) -> None:
        """Have every command end, and let none begin."""
        self._stopping = True

    def save(self) -> None:
        """Have the first node ask the training for a checkpoint."""
        self._saving = True

    def look(self) -> GangView:
        """Return what has happened since the last look."""
        view = self._view
        seen = GangView(
            view.instance, len(self._nodes), view.failure, tuple(sorted(set(self._nodes.values()))), view.output
        )
        view.output, self._waiting = [], 0
        return seen

    def _say(self, node: int, text: str) -> None:
        room = MAX_WAITING_CHARACTERS - self._waiting
        if text and room > 0:
            self._view.output.append((node, text if len(text) <= room else f"{text[:room]}\n[... left out]\n"))
            self._waiting += len(text)
