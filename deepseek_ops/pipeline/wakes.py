"""How a web request wakes a watcher in another process or on another machine: by a row of the facts database.

A webhook arrives at a web server, the watcher runs in a triggerer; what both have is the facts database. Ringing raises
the revision of one small row per repository, and the watcher reads that row about once a second: a read by primary key,
where asking the Git host as often would cost a request each time. A row outlives both processes, so a ring is heard
after a restart too. Rings carry nothing: what was pushed, the Git host says.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepseek_ops.core.errors import FactConflictError, ObjectExistsError
from deepseek_ops.core.ports import Facts

BELL, DELIVERIES = "git-wake", "git-delivery"
REMEMBERED = 512
"""Deliveries of a repository that are known again. An older one that is replayed wakes the watcher once, no more."""
TRIES = 5


class Wakes:
    """The bells of all repositories, over the facts."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def count(self, repository: str) -> int:
        """Return a number that is another one after every ring; 0 before the first."""
        bell = self._facts.get(BELL, repository)
        return bell.revision if bell is not None else 0

    def ring(self, repository: str, delivery: str) -> bool:
        """Wake the watchers of the repository; False, and nothing happens, for a delivery that was here before.

        The bell comes first and the memory after it: a process that is killed between them rings twice, never not at
        all. Raises FactsUnavailableError.
        """
        if delivery in self._known(repository):
            return False
        self._ring(repository)
        self._remember(repository, delivery)
        return True

    def _ring(self, repository: str) -> None:
        bell = self._facts.get(BELL, repository)
        try:
            if bell is None:
                self._facts.insert(BELL, repository, {})
            else:
                self._facts.update(bell, {})
        except (FactConflictError, ObjectExistsError):
            return  # somebody rang between our read and our write: the watcher looks after both

    def _known(self, repository: str) -> Sequence[str]:
        fact = self._facts.get(DELIVERIES, repository)
        return _listed(fact.body.get("newest")) if fact is not None else []

    def _remember(self, repository: str, delivery: str) -> None:
        for _ in range(TRIES):
            fact = self._facts.get(DELIVERIES, repository)
            try:
                if fact is None:
                    self._facts.insert(DELIVERIES, repository, {"newest": [delivery]})
                else:
                    newest = [*_listed(fact.body.get("newest")), delivery][-REMEMBERED:]
                    self._facts.update(fact, {"newest": [*newest]})
            except (FactConflictError, ObjectExistsError):
                continue
            return


def _listed(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []
