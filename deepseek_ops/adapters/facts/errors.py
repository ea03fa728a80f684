"""What can go wrong with the facts database, and the map from driver errors to ours."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import exc

from deepseek_ops.core.errors import DeepSeekOpsError, FactsUnavailableError, PermanentError


@dataclass(eq=False)
class FactsDsnError(PermanentError):
    """A DSN that names no database we can use."""

    dsn: str
    problem: str

    def __str__(self) -> str:
        return (
            f"facts DSN {self.dsn!r}: {self.problem}; write sqlite:////folder/facts.db "
            "or postgresql+psycopg://user:password@host/database."
        )


@dataclass(eq=False)
class FactsAccessError(PermanentError):
    """The database refuses us, or the file cannot be opened."""

    dsn: str
    problem: str

    def __str__(self) -> str:
        return f"facts database {self.dsn} refuses access: {self.problem}. Check user, password, rights and path."


@dataclass(eq=False)
class FactsSchemaError(PermanentError):
    """The tables are not those of this release."""

    dsn: str
    found: str
    expected: str

    def __str__(self) -> str:
        if not self.found:
            return f"facts database {self.dsn} has no schema, expected {self.expected}; open it once with migrate=True."
        return (
            f"facts database {self.dsn} has schema {self.found}, expected {self.expected}; "
            "upgrade it (open with migrate=True), or install the newer deepseek-ops that wrote it."
        )


@dataclass(eq=False)
class FactsDiskFullError(PermanentError):
    """The database has no room left; nothing of the write was kept."""

    dsn: str
    problem: str

    def __str__(self) -> str:
        return f"facts database {self.dsn} is out of space: {self.problem}. Free some and try again; nothing was lost."


@dataclass(eq=False)
class FactsCorruptError(PermanentError):
    """The file or a table is damaged."""

    dsn: str
    problem: str

    def __str__(self) -> str:
        return (
            f"facts database {self.dsn} is damaged: {self.problem}. Move it aside, restore a backup or start an empty "
            "one, then run `deepseek-ops registry rebuild`."
        )


_Kind = type[FactsDiskFullError | FactsCorruptError | FactsAccessError]
_SQLITE: dict[str, _Kind] = {
    "SQLITE_FULL": FactsDiskFullError,
    "SQLITE_CORRUPT": FactsCorruptError,
    "SQLITE_NOTADB": FactsCorruptError,
    "SQLITE_CANTOPEN": FactsAccessError,
    "SQLITE_READONLY": FactsAccessError,
    "SQLITE_PERM": FactsAccessError,
    "SQLITE_AUTH": FactsAccessError,
}
_POSTGRES: dict[str, _Kind] = {  # SQLSTATE or its class (first two characters)
    "53100": FactsDiskFullError,
    "XX001": FactsCorruptError,
    "XX002": FactsCorruptError,
    "58030": FactsCorruptError,
    "28": FactsAccessError,
    "3D": FactsAccessError,
    "3F": FactsAccessError,
    "42501": FactsAccessError,
    "25006": FactsAccessError,
}
# libpq gives no SQLSTATE for a refused connection. These parts of its messages are stable across versions; a server
# that speaks another language ends in "not available", which is retried and then says the same thing.
_REFUSED = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied")


def translate(error: exc.SQLAlchemyError, dsn: str, secret: str = "") -> DeepSeekOpsError | None:
    """Return our error for a driver's error, or None when it is a bug of ours and should surface as it is.

    ``secret`` is cut out of the driver's message, should it appear there.
    """
    original = error.orig if isinstance(error, exc.DBAPIError) else None
    problem = str(original or error).strip().splitlines()[0] if str(original or error).strip() else type(error).__name__
    problem = (problem.replace(secret, "***") if secret else problem).rstrip(".")
    if isinstance(error, exc.TimeoutError):
        return FactsUnavailableError(dsn, "every connection of the pool is busy")
    if name := getattr(original, "sqlite_errorname", ""):
        kind = next((kind for code, kind in _SQLITE.items() if name.startswith(code)), None)
    else:
        kind = _postgres_kind(original, problem)
    if kind is not None:
        return kind(dsn, problem)
    if isinstance(error, exc.OperationalError | exc.InterfaceError):
        return FactsUnavailableError(dsn, problem)
    return None


def _postgres_kind(original: BaseException | None, problem: str) -> _Kind | None:
    state: str = getattr(original, "sqlstate", None) or ""
    if kind := _POSTGRES.get(state) or _POSTGRES.get(state[:2]):
        return kind
    if not state and any(part in problem for part in _REFUSED):
        return FactsAccessError
    return None
