"""What can go wrong, in two families: another try can help (transient), or it cannot (permanent).

An error's fields are the facts; ``str`` says what is wrong, with which value, and what to do. One retry policy
(``airflow/retry.py``) turns the family into behaviour, so an error decides here, once, whether a task is retried.
Errors that only one package raises live in that package and derive from these.
"""

from __future__ import annotations

from dataclasses import dataclass


class DeepSeekOpsError(Exception):
    """Base of every error of ours."""


class PermanentError(DeepSeekOpsError):
    """Trying again gives the same error: a person has to change something."""


class TransientError(DeepSeekOpsError):
    """Trying again can help: a service was away, a race was lost, a machine died."""


@dataclass(eq=False)
class InvalidRecordError(PermanentError):
    """JSON that is not the record it should be."""

    record: str
    problem: str

    def __str__(self) -> str:
        return f"not a valid {self.record}: {self.problem}."


@dataclass(eq=False)
class ConfigError(PermanentError):
    """A value in a file that people write is wrong."""

    file: str
    line: int
    key: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (where, self.key, f"{self.problem} {self.remedy}".rstrip()) if part)


@dataclass(eq=False)
class MissingDependencyError(PermanentError):
    """An optional package is not installed."""

    package: str
    extra: str
    needed_for: str

    def __str__(self) -> str:
        return f"{self.needed_for} needs {self.package}; install deepseek-ops[{self.extra}]."


@dataclass(eq=False)
class ObjectExistsError(PermanentError):
    """A create-only key is taken. For a writer in a race this means: somebody else won; look and rebase."""

    uri: str

    def __str__(self) -> str:
        return f"{self.uri} exists already; read it and decide again."


@dataclass(eq=False)
class ObjectNotFoundError(PermanentError):
    """Nothing is stored under the key."""

    uri: str

    def __str__(self) -> str:
        return f"{self.uri} does not exist; check the name, and that the store's URI is the right one."


@dataclass(eq=False)
class IntegrityError(PermanentError):
    """Bytes do not have the digest that names them."""

    what: str
    expected: str
    actual: str

    def __str__(self) -> str:
        return f"{self.what} has digest {self.actual}, expected {self.expected}: it was changed or cut; restore it."


@dataclass(eq=False)
class StoreUnavailableError(TransientError):
    """The object store does not answer, or answers with a server error."""

    uri: str
    problem: str

    def __str__(self) -> str:
        return f"object store {self.uri} is not available: {self.problem}. Check that it runs, and the endpoint."


@dataclass(eq=False)
class StoreAccessError(PermanentError):
    """The object store refuses the credentials or the bucket does not exist."""

    uri: str
    problem: str

    def __str__(self) -> str:
        return f"object store {self.uri} refuses access: {self.problem}. Check the keys, the bucket and its rights."


@dataclass(eq=False)
class LocalDiskError(PermanentError):
    """This machine's disk refuses a file: full, over quota, read-only, missing or not ours."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"this machine's disk refuses {self.path}: {self.problem}. Give it space and rights, or move it."


@dataclass(eq=False)
class FactConflictError(TransientError):
    """A fact was changed by somebody else since it was read."""

    kind: str
    key: str

    def __str__(self) -> str:
        return f"fact {self.kind}/{self.key} was written by another process first; read it again."


@dataclass(eq=False)
class FactsUnavailableError(TransientError):
    """The database of facts does not answer."""

    dsn: str
    problem: str

    def __str__(self) -> str:
        return f"facts database {self.dsn} is not available: {self.problem}."


@dataclass(eq=False)
class GitUnreachableError(TransientError):
    """The repository's host does not answer."""

    repository: str
    problem: str

    def __str__(self) -> str:
        return f"Git repository {self.repository} cannot be reached: {self.problem}. Check the URL and the network."


@dataclass(eq=False)
class GitAccessError(PermanentError):
    """The repository does not exist or the credentials are refused."""

    repository: str
    problem: str

    def __str__(self) -> str:
        return f"Git repository {self.repository} refuses access: {self.problem}. Check the URL and the connection."


@dataclass(eq=False)
class RefNotFoundError(PermanentError):
    """A branch, tag, commit or file does not exist in the repository."""

    repository: str
    ref: str

    def __str__(self) -> str:
        return f"{self.ref} does not exist in {self.repository}; push it, or correct the name."


@dataclass(eq=False)
class StaleRefError(TransientError):
    """A push was refused because the ref moved: fetch, rebuild, push again; never force."""

    repository: str
    ref: str

    def __str__(self) -> str:
        return f"{self.ref} of {self.repository} moved while it was being written; it will be read and written again."


@dataclass(eq=False)
class JobFailedError(PermanentError):
    """A job ended with an error that another try would repeat (exit status 78 or a user's exception)."""

    job: str
    reason: str
    logs: str

    def __str__(self) -> str:
        return f"job {self.job} failed: {self.reason} (log: {self.logs})"


@dataclass(eq=False)
class JobLostError(TransientError):
    """A job ended without a result: killed, out of memory, machine gone (exit status 75 or a signal)."""

    job: str
    reason: str
    logs: str

    def __str__(self) -> str:
        return (
            f"job {self.job} was lost: {self.reason}; the next try resumes from its last checkpoint (log: {self.logs})"
        )


@dataclass(eq=False)
class JobPreemptedError(JobLostError):
    """The engine took the job's machines away: nothing is wrong with it, and it goes on as soon as there are others."""


@dataclass(eq=False)
class JobStoppedError(PermanentError):
    """Somebody, or a rule, stopped the job on purpose."""

    job: str
    reason: str

    def __str__(self) -> str:
        return f"job {self.job} was stopped: {self.reason}."
