"""Finding the checkpoint to go on from, bringing it to every machine, and loading it whatever the number of ranks.

Every machine tells what it has; rank 0 decides, looking in the store as well where another machine may have trained
since; all restore the same one. A machine that lacks files gets them from the store: those of its own ranks, or all of
them when the number of ranks has changed. What does not have the digest it was written with is not used.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pydantic import JsonValue

from deepseek_ops.core.errors import IntegrityError, ObjectNotFoundError
from deepseek_ops.jobs.agreement import Peers, any_rank, told_by_all, told_by_first
from deepseek_ops.jobs.training_shelf import Shelf, Shelved
from deepseek_ops.jobs.training_snapshot import has_frozen
from deepseek_ops.jobs.training_store import StoredCheckpoints
from deepseek_ops.jobs.training_universal import convert, load_universal, needs_universal
from deepseek_ops.training.checkpoints import Candidate, CheckpointName, Life, files_for

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

Choose = Callable[[Sequence[Candidate]], Candidate | None]


@dataclass(frozen=True)
class Machine:
    """This process's place among the machines of the training."""

    leads: bool
    """Whether this is the machine's first rank, which alone changes its disk."""
    num_nodes: int
    ranks: tuple[int, ...]
    """The ranks on this machine."""
    node: int = 0

    @classmethod
    def of(cls, peers: Peers) -> Self:
        """Return this process's place, as torchrun's variables say it."""
        local = int(os.environ.get("LOCAL_RANK", peers.rank))
        size = int(os.environ.get("LOCAL_WORLD_SIZE", peers.world_size))
        first = peers.rank - local
        nodes = max(1, peers.world_size // size)
        return cls(local == 0, nodes, tuple(range(first, first + size)), first // size)


@dataclass(frozen=True)
class Restored:
    """What was loaded."""

    name: CheckpointName
    state: dict[str, JsonValue]
    world_size: int
    """Of the ranks that wrote it."""
    source: str
    """``disk`` or ``store``."""


@dataclass
class _Offer:
    candidate: Candidate
    source: str
    world_size: int


class Restorer:
    """Restores checkpoints on one rank; its methods are called by all of them together.

    ``whole``: every machine needs all files, whatever its ranks; what a machine wrote itself is then not enough.
    """

    def __init__(
        self,
        shelf: Shelf,
        stored: StoredCheckpoints,
        peers: Peers,
        machine: Machine,
        *,
        whole: bool = False,
        working: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._shelf, self._stored, self._peers, self._machine = shelf, stored, peers, machine
        self._whole = whole
        self._working = working
        """What takes as long as a checkpoint is large is done in a block of it: it is no hang while it gets on."""
        self._damaged: set[tuple[CheckpointName, str]] = set()
        """Names and sources that turned out to be wrong: the store may have a good copy of what the disk lost."""
        self.newest_life: Life | None = None
        """The newest life that anybody has heard of, known to rank 0 after ``find``."""

    def restore(self, engine: DeepSpeedEngine, choose: Choose, *, look_in_store: bool) -> Restored | None:
        """Load the checkpoint that ``choose`` prefers, or the next one where it is damaged; None without any.

        Raises what the store raises where it is asked and does not answer.
        """

        def resharded(world_size: int) -> bool:
            return needs_universal(engine, world_size, self._peers.world_size)

        found = self.bring(choose, look_in_store=look_in_store, everything=resharded)
        if found is None:
            return None
        shelved, source = found
        self._load(engine, shelved)
        return Restored(shelved.name, shelved.state(), shelved.world_size, source)

    def bring(
        self, choose: Choose, *, look_in_store: bool, everything: Callable[[int], bool]
    ) -> tuple[Shelved, str] | None:
        """Bring the chosen checkpoint to every machine's disk and return it and where it came from.

        ``everything`` says whether all files of a checkpoint by so many ranks are read here. The next choice is taken
        where one is damaged. Raises what the store raises where it is asked and does not answer.
        """
        while True:
            offer = self._agreed(choose, look_in_store)
            if offer is None:
                return None
            if not any_rank(self._peers, not self._brought_here(offer, everything=everything(offer.world_size))):
                break
            self._damaged.add((offer.candidate.name, offer.source))
            look_in_store = True
        shelved = self._shelf.get(offer.candidate.name)
        if shelved is None:
            raise ObjectNotFoundError(str(self._shelf.path(offer.candidate.name)))
        return shelved, offer.source

    def _agreed(self, choose: Choose, look_in_store: bool) -> _Offer | None:
        own = self._shelf.all() if self._machine.leads else []
        told = told_by_all(self._peers, [_said(one) for one in own] if self._machine.leads else None)
        chosen: JsonValue = None
        if self._peers.rank == 0:
            chosen = self._chosen(choose, [list_ for list_ in told if isinstance(list_, list)], look_in_store)
        heard = told_by_first(self._peers, chosen)
        if not isinstance(heard, dict):
            return None
        name = CheckpointName.parse(str(heard["name"]))
        if name is None:
            return None
        candidate = Candidate(name, heard["healthy"] is True, heard["calm"] is True)
        return _Offer(candidate, str(heard["source"]), int(str(heard["world_size"])))

    def _chosen(self, choose: Choose, told: list[list[JsonValue]], look_in_store: bool) -> JsonValue:
        """Return the choice of rank 0 as JSON; None when there is nothing to choose."""
        offers: dict[CheckpointName, dict[str, JsonValue]] = {}
        if look_in_store:
            for candidate in self._stored.candidates():
                offers[candidate.name] = _as_json(candidate, "store", 0)
        for name, said in self._on_disks(told).items():
            healthy = said["healthy"] is True or offers.get(name, {}).get("healthy") is True
            offers[name] = {**said, "healthy": healthy}
        lives = [name.life for name in offers]
        if look_in_store and (stored := self._stored.newest_life()) is not None:
            lives.append(stored)
        self.newest_life = max(lives, default=None)
        usable = [
            Candidate(name, said["healthy"] is True, said["calm"] is True)
            for name, said in offers.items()
            if (name, said["source"]) not in self._damaged
        ]
        best = choose(usable)
        if best is None:
            return None
        chosen = offers[best.name]
        if chosen["source"] == "store":
            chosen = {**chosen, "world_size": self._stored.read(best.name).world_size}
        return chosen

    def _on_disks(self, told: list[list[JsonValue]]) -> dict[CheckpointName, dict[str, JsonValue]]:
        """Return what all machines have on their disks, in a form they can load."""
        nodes, world = len(told), self._peers.world_size
        if self._whole and nodes > 1:
            return {}
        common: dict[CheckpointName, dict[str, JsonValue]] = {}
        for said in (item for list_ in told for item in list_ if isinstance(item, dict)):
            name = CheckpointName.parse(str(said["name"]))
            complete = said["num_nodes"] == nodes and (nodes == 1 or said["world_size"] == world)
            if name is not None and complete:
                common[name] = said
        names = [{str(item["name"]) for item in list_ if isinstance(item, dict)} for list_ in told]
        return {name: said for name, said in common.items() if all(str(name) in one for one in names)}

    def _brought_here(self, offer: _Offer, *, everything: bool) -> bool:
        """Bring the checkpoint to this machine's disk and return whether every file is what was written.

        Only the machine's first rank looks; the others take its word.
        """
        if not self._machine.leads:
            return True
        with self._working():
            return self._is_here(offer, everything=everything)

    def _is_here(self, offer: _Offer, *, everything: bool) -> bool:
        name = offer.candidate.name
        ranks = None if everything else self._machine.ranks
        shelved = self._fetched(name, ranks) if offer.source == "store" else self._shelf.get(name)
        if shelved is None or shelved.damaged(files_for(shelved.files, ranks)):
            self._shelf.remove(name)
            return False
        return True

    def _fetched(self, name: CheckpointName, ranks: Sequence[int] | None) -> Shelved | None:
        """Return the checkpoint with those of its files that are read here; a fetch that was killed is gone on with."""
        wanted = files_for(self._stored.read(name).files, ranks)
        arriving = self._shelf.arriving(name)
        try:
            self._stored.fetch(wanted, arriving)
        except (IntegrityError, ObjectNotFoundError):
            return None
        self._shelf.seal(name, wanted, building=arriving)
        return self._shelf.get(name)

    def _load(self, engine: DeepSpeedEngine, shelved: Shelved) -> None:
        if needs_universal(engine, shelved.world_size, self._peers.world_size):
            if self._machine.leads:
                with self._working():
                    convert(shelved.folder)
            self._peers.barrier()
            universal = convert(shelved.folder)  # it is there: the machine's first rank has made it
            load_universal(engine, universal)
            self._peers.barrier()
            if self._machine.leads:
                shutil.rmtree(universal)
            return
        engine.load_checkpoint(
            str(self._shelf.folder),
            tag=shelved.folder.name,
            load_module_strict=not has_frozen(engine),
            load_lr_scheduler_states=False,
        )


def agreed_life(peers: Peers, own: Life, known: Iterable[Life | None]) -> Life:
    """Return rank 0's life on every rank: ``own``, or one that comes after all that are ``known``."""
    newest = max((life for life in known if life is not None), default=None)
    life = own if newest is None or newest < own else Life(newest.attempt + 1, 0)
    heard = told_by_first(peers, [life.attempt, life.restart, life.rewind])
    return Life(*(int(str(number)) for number in heard)) if isinstance(heard, list) else life


def _said(one: Shelved) -> JsonValue:
    return {**_as_json(one.candidate, "disk", one.world_size), "num_nodes": one.num_nodes}


def _as_json(candidate: Candidate, source: str, world_size: int) -> dict[str, JsonValue]:
    return {
        "name": str(candidate.name),
        "healthy": candidate.healthy,
        "calm": candidate.calm,
        "source": source,
        "world_size": world_size,
    }
