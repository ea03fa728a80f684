"""Machines whose sends take a number of ticks of one clock: who sends what, and when it is whole, without real time."""

from __future__ import annotations

import random
import threading
from pathlib import Path

from fixtures_checkpoint_store import Desk, MovingStore, until

from deepseek_ops.training.checkpoints import CheckpointName, Life

INTERVAL = 10
"""Ticks from one checkpoint to the next."""


class Clock:
    """Ticks that somebody counts."""

    def __init__(self) -> None:
        self._ticked = threading.Condition()
        self.now = 0
        self.over = False

    def tick(self) -> None:
        """Let a tick go by."""
        with self._ticked:
            self.now += 1
            self._ticked.notify_all()

    def end(self) -> None:
        """Let nobody wait any more."""
        with self._ticked:
            self.over = True
            self._ticked.notify_all()

    def wait(self, due: int) -> None:
        """Wait until a tick."""
        with self._ticked:
            self._ticked.wait_for(lambda: self.over or self.now >= due)


class TickedStore(MovingStore):
    """One machine's way to the store: each of its parts takes between ``quick`` and ``slow`` ticks to get there."""

    def __init__(self, folder: Path, clock: Clock, node: int, ticks: tuple[int, int]) -> None:
        super().__init__(folder)
        self._clock, self._ticks, self._random = clock, ticks, random.Random(node)  # noqa: S311  (repeatable)
        self._due = 0

    @property
    def waits(self) -> bool:
        """Whether something is on its way and not to arrive before the next tick."""
        return self._due > self._clock.now

    def create(self, key: str, data: bytes) -> None:
        """Store, after its ticks where it is a machine's part."""
        if "/node-" in key:
            self._due = self._clock.now + self._random.randint(*self._ticks)
            self._clock.wait(self._due)
        super().create(key, data)


class March:
    """Machines that take a checkpoint together every ``INTERVAL`` ticks and send what they send."""

    def __init__(self, folder: Path, nodes: int, *, ticks: tuple[int, int] = (12, 30)) -> None:
        self.clock = Clock()
        self.stores = [TickedStore(folder / "store", self.clock, node, ticks) for node in range(nodes)]
        self.desks = [Desk(folder, self.stores[node], node=node, num_nodes=nodes) for node in range(nodes)]

    def go(self, checkpoints: int, *, agreed: bool = True) -> None:
        """Take so many checkpoints; where nothing is ``agreed`` every machine sends what is its newest."""
        for number in range(1, checkpoints + 1):
            self.save(10 * number, agreed=agreed)
            until(self.is_quiet, within=60.0)
            for _ in range(INTERVAL):
                self.clock.tick()
                until(self.is_quiet, within=60.0)

    def save(self, step: int, *, agreed: bool = True, must: bool = False, without: tuple[int, ...] = ()) -> None:
        """Take a checkpoint as ``Checkpoints.save`` does; ``without``: machines that fail to write it."""
        chosen = must or not agreed or any(desk.uploads.wants_another() for desk in self.desks)
        for node, desk in enumerate(self.desks):
            if chosen and agreed:
                desk.uploads.expect(_name(step))
            if node in without:
                continue
            name = desk.make(step)
            if chosen:
                desk.uploads.offer(name)
            desk.shelf.prune()

    def end(self) -> None:
        """Let everything be sent, and end the threads."""
        self.clock.end()
        for desk in self.desks:
            desk.uploads.drain(20.0)
        for desk in self.desks:
            desk.uploads.end()

    def whole(self) -> list[int]:
        """Return the numbers of the checkpoints that became whole, in order."""
        steps = [fields["step"] for kind, fields in self.desks[0].said if kind == "checkpoint_uploaded"]
        return [int(str(step)) // 10 for step in steps]

    def is_quiet(self) -> bool:
        """Return whether every machine waits for the clock or has nothing to do."""
        for desk, store in zip(self.desks, self.stores, strict=True):
            if not store.waits and (desk.uploads._busy or desk.uploads._work()):
                return False
        first = self.desks[0]
        if self.stores[0].waits:
            return True  # it declares nothing while it sends
        opened = list(first.uploads._open)
        return not any(first.stored.parts(name, num_nodes=len(self.desks)) for name in opened)


def _name(step: int) -> CheckpointName:
    return CheckpointName(Life(1, 0), step)
