"""What can go wrong in the registry."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ops.core.errors import PermanentError, TransientError


@dataclass(eq=False)
class VersionNotFoundError(PermanentError):
    """No committed version of that number, or no alias of that name."""

    registry: str
    version: str
    known: tuple[str, ...] = ()

    def __str__(self) -> str:
        known = f"it has {', '.join(self.known[:10])}" if self.known else "it has no versions"
        return f"registry {self.registry} has no {self.version}; {known}."


@dataclass(eq=False)
class InvalidBundleError(PermanentError):
    """Parts that do not make one model version."""

    field: str
    value: str
    problem: str

    def __str__(self) -> str:
        return f"cannot register: {self.field}={self.value}: {self.problem}."


@dataclass(eq=False)
class VersionRaceError(TransientError):
    """Other registrars took every number that was tried."""

    registry: str
    tries: int

    def __str__(self) -> str:
        return f"registry {self.registry}: {self.tries} version numbers in a row were taken by others; try again."


@dataclass(eq=False)
class AliasMovedError(TransientError):
    """Somebody moved the alias since it was read: look at what serves now and decide again."""

    alias: str
    wanted: str
    expected: str
    found: str

    def __str__(self) -> str:
        return (
            f"alias {self.alias} was moved by somebody else: it names {self.found or 'nothing'}, "
            f"not {self.expected or 'nothing'} as expected; {self.wanted} was not set. Read it again and decide."
        )
