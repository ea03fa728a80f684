"""What the outside must do for us. Each port promises behaviour, errors included; adapters keep the promise.

Adapters live in ``deepseek_ops.adapters`` and are built by the doors (``airflow``, ``cli``, ``jobs``) only.
Every adapter of a port passes the same contract suite in ``tests/contract``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from deepseek_ops.core.merges import MergeConflict as MergeConflict  # noqa: PLC0414  (the port's own words)
from deepseek_ops.core.merges import MergedTree as MergedTree  # noqa: PLC0414

if TYPE_CHECKING:  # building the records costs 0.3 s of CPU, and git-lfs starts several transfer agents a push
    from pydantic import JsonValue

    from deepseek_ops.core.jobs import EngineJob, EngineState, JobSpec, JobStatus, TrafficPlan, TrafficStats
    from deepseek_ops.core.records import AuditEvent, Digest, FileEntry, FileSet, GitRef


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object."""

    key: str
    size: int
    modified: float = field(default=0.0, compare=False)
    """When it was last written, in Unix seconds by the store's clock; 0 where the store does not say."""


class ObjectStore(Protocol):
    """Write-once bytes under string keys. Adapters: S3, local folder.

    Every method raises StoreUnavailableError when the service is away (after its own short retries) and
    StoreAccessError when it refuses credentials or the bucket is missing. Keys are relative to ``uri``.
    """

    uri: str
    """Such as s3://bucket/prefix or file:///folder; carries no credentials."""

    def create(self, key: str, data: bytes) -> None:
        """Store ``data`` if the key is free. Raises ObjectExistsError when it is taken, whatever it holds.

        Of many concurrent writers exactly one wins. A reader sees all of the bytes or nothing.
        """

    def put_blob(self, key: str, source: bytes | Path) -> None:
        """Store content-addressed bytes: the key contains their digest, so a second write changes only ``modified``.

        It does change that, so what somebody has just stored again never looks old. Large sources go up in parts; a
        reader sees all of the bytes or nothing.
        """

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Return the object, or ``length`` bytes of it from ``start``. Raises ObjectNotFoundError."""

    def download(self, key: str, target: Path) -> None:
        """Write the object to ``target`` (parallel ranges for large ones). Raises ObjectNotFoundError."""

    def head(self, key: str) -> ObjectInfo | None:
        """Return size and key, or None when nothing is stored under the key."""

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with ``prefix`` in ascending key order, after ``start_after``."""

    def delete(self, keys: Sequence[str]) -> None:
        """Remove the objects; a missing one is no error."""


class Blobs(Protocol):
    """The content-addressed space over an ObjectStore, seen from packages that do not know the store's layout."""

    def put(self, data: bytes) -> Digest:
        """Store ``data`` and return its SHA-256."""

    def get(self, digest: Digest) -> bytes:
        """Return verified bytes. Raises ObjectNotFoundError, IntegrityError."""

    def put_folder(self, folder: Path) -> FileSet:
        """Store every file below ``folder`` and return the set, sorted by path; present objects are not sent twice."""

    def fetch_folder(self, files: FileSet, target: Path) -> None:
        """Write the set below ``target`` with every digest verified. Raises IntegrityError, ObjectNotFoundError."""

    def verify(self, entry: FileEntry) -> None:
        """Read the object back and check size and digest. Raises IntegrityError, ObjectNotFoundError."""

    def get_part(self, digest: Digest, *, start: int, length: int) -> bytes:
        """Return a part of the object, which no digest can vouch for: a header, say. Raises ObjectNotFoundError."""

    def size_of(self, digest: Digest) -> int | None:
        """Return the size of the stored object without reading it, or None when there is none."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One stored fact: ``body`` is a record's JSON, ``revision`` grows by one with each update."""

    kind: str
    key: str
    revision: int
    body: dict[str, JsonValue]
    run: str
    created_at: str
    """ISO 8601, UTC."""


class Facts(Protocol):
    """JSON facts by kind and key, with create-only inserts and compare-and-swap updates. Adapters: SQLite, PostgreSQL.

    Every method raises FactsUnavailableError when the database is away.
    """

    def insert(self, kind: str, key: str, body: Mapping[str, JsonValue], *, run: str = "") -> Fact:
        """Store a new fact. Raises ObjectExistsError when the key is taken; exactly one concurrent writer wins."""

    def update(self, fact: Fact, body: Mapping[str, JsonValue]) -> Fact:
        """Replace the body of the fact as it was read. Raises FactConflictError when it has moved on."""

    def get(self, kind: str, key: str) -> Fact | None:
        """Return the fact, or None."""

    def find(self, kind: str, *, prefix: str = "", run: str | None = None, limit: int = 1000) -> list[Fact]:
        """Return facts of a kind, newest first, optionally of one run or with a key prefix."""

    def scan(self) -> Iterator[Fact]:
        """Yield every fact of every kind, by kind and key, in pages; one that is inserted meanwhile may be missed."""

    def append_audit(self, event: AuditEvent) -> int:
        """Append to the hash-chained audit log and return the sequence number."""

    def audit(self, *, subject: str | None = None, limit: int = 1000) -> list[tuple[int, str, AuditEvent]]:
        """Return (sequence, ISO time, event), oldest first."""

    def verify_audit(self) -> int:
        """Return the number of chained events. Raises IntegrityError naming the first sequence that was changed."""


@dataclass(frozen=True, slots=True)
class NewCommit:
    """A commit to make on top of a branch: files to add or replace, and the message.

    With an empty ``branch`` no branch moves: the commit is held by the tags of the same publish.
    """

    branch: str
    parent: str
    message: str
    files: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class NewTag:
    """An annotated tag to make. ``target`` may be a commit id, or empty for the commit made in the same publish."""

    name: str
    target: str
    message: str


NOTES_REF = "refs/notes/deepseek-ops"
"""Where the notes of this product are."""


@dataclass(frozen=True, slots=True)
class NewNote:
    """A block of text to add to the Git note of a commit; a note that has the block already stays as it is."""

    commit: str
    text: str
    ref: str = NOTES_REF


@dataclass(frozen=True, slots=True)
class RecordText:
    """A text in Git that may hold records: the message of a commit or of an annotated tag, or a note."""

    kind: Literal["commit", "tag", "note"]
    commit: str
    """The commit that the text is of, or is about."""
    text: str
    time: int = 0
    """When it was written, in Unix seconds; for a note, when its commit was, 0 if that is gone."""
    author: str = ""
    name: str = ""
    """Of a tag, without ``refs/tags/``."""
    parents: tuple[str, ...] = ()
    """Of the commit; empty for a tag."""


class GitRemote(Protocol):
    """One model repository on any Git host. Adapters: git over https, ssh, file.

    Every method raises GitUnreachableError, GitAccessError or RefNotFoundError.
    """

    url: str
    """Without credentials."""

    def refs(self, patterns: Sequence[str] = ("refs/heads/*", "refs/tags/*")) -> dict[str, str]:
        """Return full ref name -> commit id (annotated tags peeled) for refs that match one of the globs."""

    def default_branch(self) -> str | None:
        """Return the full name of the branch that a clone begins with; None where there is no such branch."""

    def resolve(self, ref: str) -> GitRef:
        """Return the branch, tag or full ref name resolved to its commit."""

    def describe(self, commit: str) -> dict[str, str]:
        """Return ``tree``, ``patch_id``, ``author``, ``subject`` of a commit."""

    def read_file(self, commit: str, path: str, *, max_bytes: int = 1_000_000) -> bytes:
        """Return one file of a commit. Raises RefNotFoundError, and GitAccessError beyond ``max_bytes``."""

    def changed_paths(self, old: str | None, new: str) -> list[str]:
        """Return the paths that differ between two commits; all paths of ``new`` when ``old`` is None."""

    def small_texts(self, *, max_bytes: int = 4096, history: bool = True) -> Iterator[bytes]:
        """Yield what every ref (``refs/*``) reaches: commits and annotated tags as Git stores them, and the contents of
        files below ``max_bytes``, each once; only of the refs' own commits without ``history``. Large files are not
        fetched where the server can leave them out."""

    def merge_base(self, one: str, other: str) -> str | None:
        """Return the best common ancestor of two commits, or None when they share no history."""

    def checkout(self, commit: str, target: Path) -> None:
        """Write the files of a commit below ``target`` (no history, nothing outside ``target``)."""

    def publish(
        self,
        *,
        commit: NewCommit | None = None,
        tags: Sequence[NewTag] = (),
        delete: Sequence[str] = (),
        notes: Sequence[NewNote] = (),
        before: Callable[[Mapping[str, str]], None] | None = None,
    ) -> dict[str, str]:
        """Push a commit, tags and notes in one atomic push with leases and return name -> object id.

        ``before`` is called with what will be returned when it is known and nothing was pushed yet, perhaps repeatedly.
        Publishing equal tags and notes again returns the ids that are there; notes that others write meanwhile are
        merged. Raises StaleRefError when a branch or tag moved, and GitAccessError when a rule of the host refuses.
        """

    def record_texts(self, refs: Sequence[str] = ()) -> Iterator[RecordText]:
        """Yield every text that mentions a ``Manifest``, newest commit first, then tags, then notes.

        ``refs`` (full names or commits) limit the commits to what those reach; tags and notes come all.
        """

    def notes(self, ref: str = NOTES_REF) -> dict[str, str]:
        """Return commit -> note; empty when nobody has written one."""

    def reachable(self, commits: Sequence[str], *, without: Sequence[str] = ()) -> list[str]:
        """Return the ids of all commits that ``commits`` reach and ``without`` do not, newest first."""

    def merge(self, ours: str, theirs: str) -> MergedTree:
        """Return the merge of two commits without moving anything. Raises RefNotFoundError without common history."""

    def publish_merge(
        self, branch: str, merged: MergedTree, *, parents: Sequence[str], files: Mapping[str, bytes], message: str
    ) -> str:
        """Push the merge commit of ``merged``, with ``files`` put over it, to a branch and return its id.

        The branch is new, stands at the first parent, or at this very commit. Raises StaleRefError otherwise.
        """


class Launcher(Protocol):
    """Runs jobs outside the caller's process. Adapters: local process tree; scale-out engines."""

    def submit(self, job: JobSpec, *, secrets: Mapping[str, str] | None = None) -> JobStatus:
        """Start the job if no job of its name is running or has succeeded; return its status either way.

        A lost, failed or stopped job of the same name is started again with ``attempt`` + 1.
        ``secrets`` become environment variables of the job and are written nowhere.
        """

    def status(self, name: str) -> JobStatus | None:
        """Return the job's status, or None when no job of that name was ever submitted here."""

    def result(self, name: str) -> dict[str, JsonValue]:
        """Return what a succeeded job returned. Raises JobLostError or JobFailedError otherwise."""

    def renew(self, name: str) -> None:
        """Renew the job's lease: somebody still wants it."""

    def stop(self, name: str, reason: str) -> None:
        """Ask the job to checkpoint and end, kill it after its grace; returns at once. Settled jobs are left alone."""

    def ask(self, name: str, verb: Literal["checkpoint", "rewind"], *, step: int | None = None, by: str = "") -> int:
        """Ask a running training for a checkpoint, or to go back to a healthy one; return the request's number."""

    def logs(self, name: str, offset: int = 0) -> tuple[str, int]:
        """Return what the job logged from byte ``offset`` on, and the offset to go on from."""

    def events(self, name: str, after: int = 0) -> list[dict[str, JsonValue]]:
        """Return the job's events (JSON lines: restarts, alerts, metrics) after the first ``after``."""

    def retire(self, name: str) -> None:
        """Forget a settled job: its log, events and scratch files. A job that is not known is no error."""

    def page(self, name: str) -> str:
        """Return the address of the job in the engine's own interface; empty where it has none, or not yet."""

    def prewarm(self) -> None:
        """Get ready for jobs that will come soon; returns at once, and may do nothing."""

    def list(self) -> list[JobStatus]:
        """Return every job this launcher knows."""


class Engine(Protocol):
    """A scheduler of machines below the launcher that keeps its jobs in the store. Adapters: Ray, Slurm, Kubernetes,
    SageMaker.

    It decides where a command runs and no more: attempts, leases, results, logs and events live in the store.
    """

    def start(self, job: EngineJob, *, secrets: Mapping[str, str] | None = None) -> EngineState:
        """Start the job if none of its id is known, running or ended; return its state either way.

        ``secrets`` become environment variables of the command; they are in no argument list, log or description.
        """

    def state(self, name: str) -> EngineState | None:
        """Return the job's state, or None when the engine does not know it (never started, or forgotten)."""

    def cancel(self, name: str, *, grace_seconds: float) -> None:
        """Send SIGTERM to the job's processes, SIGKILL after the grace; returns at once. Unknown ids are no error."""

    def retire(self, name: str) -> None:
        """Forget a settled job where the engine keeps something of it. Unknown ids are no error."""

    def tail(self, name: str) -> str:
        """Return the last lines of what the engine itself has of the job's output: the job may never have begun."""

    def list(self) -> list[EngineState]:
        """Return every job of ours that the engine knows."""


class TrafficGateway(Protocol):
    """Splits the requests of an endpoint over versions without dropping any. Adapters: Envoy (local)."""

    def apply(self, plan: TrafficPlan) -> str:
        """Make the plan effective and return its revision; equal plans return equal revisions and change nothing."""

    def observed(self, endpoint: str) -> TrafficPlan | None:
        """Read back the plan that is effective, or None before the first apply."""

    def stats(self, endpoint: str) -> dict[str, TrafficStats]:
        """Return counters per version."""

    def url(self, endpoint: str) -> str:
        """Return the base URL clients use."""


Progress = Callable[[str, float | None], None]
"""Called with a line for people and, where known, the fraction done (0..1)."""
