"""The texts of a repository that may hold records: messages of commits and tags, and notes.

One ``git log`` finds the commits that mention a ``Manifest``, so the cost is that of walking commits, not of reading
files: 10,000 commits take a fraction of a second. It works the same in a plain clone of a developer and in our mirror,
which holds commits and tags only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.adapters.git.address import Address
from deepseek_ops.adapters.git.command import NETWORK_SECONDS, Credentials, Git
from deepseek_ops.adapters.git.errors import explain
from deepseek_ops.adapters.git.mirror import Mirror
from deepseek_ops.adapters.git.notes import read_notes
from deepseek_ops.adapters.git.refs import list_refs
from deepseek_ops.core.errors import GitAccessError, RefNotFoundError
from deepseek_ops.core.ports import NOTES_REF, RecordText

MARK = "Manifest:"
"""What every record says, an experiment's and a release's."""
MAX_TEXT_BYTES = 1 << 20
_SCP = re.compile(r"^[^/@\s]+@[^/:\s]+:")
_TAG_FIELDS = "%(refname)%00%(objecttype)%00%(*objectname)%00%(taggerdate:unix)%00%(taggername)%00%(contents)%00"


@dataclass(frozen=True, slots=True)
class Gaps:
    """What a clone leaves out of its origin."""

    shallow: bool
    """Older commits."""
    branches: tuple[str, ...]
    """The only branches that it has; empty: it has all."""
    no_tags: bool

    @property
    def remedy(self) -> str:
        """The command that fetches what is left out; empty where nothing is."""
        if not (self.shallow or self.branches or self.no_tags):
            return ""
        return f"git fetch {'--unshallow ' if self.shallow else ''}--tags origin '+refs/heads/*:refs/remotes/origin/*'"

    def __str__(self) -> str:
        told = ["has no older commits"] if self.shallow else []
        told += [f"has no other branch than {', '.join(self.branches)}"] if self.branches else []
        told += ["fetches no tags"] if self.no_tags else []
        return ", ".join(told)


class Clone:
    """The records in a local clone, bare or not. Nothing is written to it, and no network is used."""

    def __init__(self, git: Git, folder: Path, database: Path) -> None:
        self.url = str(folder)
        self.database = str(database)
        """The repository itself, which git can be pointed at: ``.git``, or the folder of a bare one."""
        self._git = git
        self._folder = folder

    def record_texts(self, refs: Sequence[str] = ()) -> Iterator[RecordText]:
        """Yield what the port's ``record_texts`` yields; without ``refs`` the remote branches count, too."""
        yield from record_texts(self._git, [self.commit(ref) for ref in refs] or ["--branches", "--tags", "--remotes"])

    def notes(self, ref: str = NOTES_REF) -> dict[str, str]:
        """Return commit -> note; notes come to a clone only when they are fetched (``git fetch origin 'REF:REF'``)."""
        tip = _commit_of(self._git, ref)
        return read_notes(self._git, tip) if tip else {}

    def misses_notes(self) -> bool:
        """Return whether the clone has a remote, and no notes of ours."""
        remotes = self._git.run("for-each-ref", "--count=1", "--format=%(refname)", "refs/remotes")
        return bool(remotes.strip()) and not _commit_of(self._git, NOTES_REF)

    def gaps(self) -> Gaps:
        """Return what of its origin the clone was told not to have; records may be there."""
        shallow = self._git.run("rev-parse", "--is-shallow-repository").strip() == b"true"
        specs = self._settings("remote.origin.fetch")
        branches = tuple(spec.lstrip("+").partition(":")[0].removeprefix("refs/heads/") for spec in specs)
        whole = not specs or any(branch in ("*", "refs/*") for branch in branches)
        return Gaps(shallow, () if whole else branches, self._settings("remote.origin.tagOpt") == ["--no-tags"])

    def read_file(self, path: str, *, max_bytes: int = 1_000_000) -> bytes | None:
        """Return a file of the commit that is checked out; None where there is none, or none of that size."""
        status, output, _ = self._git.attempt("cat-file", "-s", "--end-of-options", f"HEAD:{path}")
        if status or int(output) > max_bytes:
            return None
        status, output, _ = self._git.attempt("cat-file", "blob", "--end-of-options", f"HEAD:{path}")
        return None if status else output

    def _settings(self, name: str) -> list[str]:
        return self._git.attempt("config", "--get-all", name)[1].decode(errors="replace").split()

    def origin(self) -> str:
        """Return the URL of the remote ``origin``. Raises RefNotFoundError where there is none."""
        status, output, _ = self._git.attempt("config", "--get", "remote.origin.url")
        url = output.decode(errors="replace").strip()
        if status or not url:
            raise RefNotFoundError(self.url, "the remote origin")
        is_path = "://" not in url and not _SCP.match(url)
        return str((self._folder / Path(url).expanduser()).resolve()) if is_path else url

    def reachable(self, refs: Sequence[str]) -> list[str]:
        """Return the ids of all commits that the refs reach."""
        return self._git.run("rev-list", *(self.commit(ref) for ref in refs), "--", seconds=300).decode().split()

    def commit(self, ref: str) -> str:
        """Return the commit of a branch (local, or of ``origin``), tag or id. Raises RefNotFoundError."""
        for name in (ref, f"refs/heads/{ref}", f"refs/remotes/origin/{ref}"):
            if found := _commit_of(self._git, name):
                return found
        raise RefNotFoundError(self.url, ref)


def open_clone(folder: Path) -> Clone:
    """Return the clone that ``folder`` is, or lies in. Raises GitAccessError where there is none."""
    address = Address(f"file://{folder.resolve()}", "file")
    plain = Git(address, Credentials())
    status, output, _ = plain.attempt("-C", str(folder.resolve()), "rev-parse", "--path-format=absolute", "--git-dir")
    if status:
        raise GitAccessError(str(folder), "this is no Git repository, or one of another user")
    database = Path(output.decode().rstrip("\n"))
    return Clone(plain.at(database), folder.resolve(), database)


def fetched(git: Git, mirror: Mirror) -> Git:
    """Return a git with every branch, tag and note of the remote; file contents and trees of commits stay there."""
    there = list_refs(git, ["refs/heads/", "refs/tags/"])
    work = mirror.copy("records", "tree:0", [ref.commit for ref in there.values()])
    quiet = ["--quiet", "--no-tags", "--no-write-fetch-head", "--prune"]
    for filtered, *refspecs in (
        ("--filter=tree:0", "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"),
        ("--no-filter", "+refs/notes/deepseek-ops*:refs/notes/deepseek-ops*"),
    ):
        options = [*quiet, filtered, "--end-of-options", "origin", *refspecs]
        status, _, message = work.attempt("fetch", *options, seconds=5 * NETWORK_SECONDS)
        if status:
            raise explain(git.address.url, "fetch", message)
    return work


def record_texts(git: Git, reach: Sequence[str]) -> Iterator[RecordText]:
    """Yield the texts with a record: commits that ``reach`` reaches, newest first, then all tags, then all notes."""
    yield from _commits(git, reach)
    yield from _tags(git)
    tip = _commit_of(git, NOTES_REF)
    notes = {commit: text for commit, text in (read_notes(git, tip) if tip else {}).items() if MARK in text}
    about = described(git, list(notes))
    for commit, text in notes.items():
        known = about.get(commit)  # not where a rebase dropped the commit and the server collected it
        yield RecordText(
            "note",
            commit,
            text[:MAX_TEXT_BYTES],
            known.time if known else 0,
            known.author if known else "",
            parents=known.parents if known else (),
        )


def described(git: Git, commits: Sequence[str]) -> dict[str, RecordText]:
    """Return the message of each commit that is here, in one call; tags and notes name commits, people want dates."""
    if not commits:
        return {}
    known = git.run("rev-list", "--no-walk", "--ignore-missing", "--missing=print", "--stdin", data=_lines(commits))
    there = [line for line in known.decode().split("\n") if line and not line.startswith("?")]
    if not there:
        return {}
    options = ["--no-walk=unsorted", "-z", "--no-show-signature", "--format=%H %ct %P%n%an%n%B", "--stdin"]
    output = git.run("log", *options, data=_lines(there), seconds=300)
    return {text.commit: text for text in _parsed(output)}


def _lines(commits: Sequence[str]) -> bytes:
    return "".join(f"{commit}\n" for commit in commits).encode()


def _commits(git: Git, reach: Sequence[str]) -> Iterator[RecordText]:
    options = ["-z", "--no-show-signature", "--date-order", "-F", f"--grep={MARK}", "--format=%H %ct %P%n%an%n%B"]
    status, output, message = git.attempt("log", *options, *reach, "--", seconds=300)
    if status and "does not have any commits" not in message:
        raise explain(git.address.url, "log", message)
    yield from _parsed(output)


def _parsed(output: bytes) -> Iterator[RecordText]:
    for part in output.split(b"\x00"):
        head, _, rest = part.decode(errors="replace").partition("\n")
        author, _, text = rest.partition("\n")
        ids = head.split(" ")
        if len(ids) > 1:
            yield RecordText(
                "commit", ids[0], text[:MAX_TEXT_BYTES], int(ids[1]), author, parents=tuple(filter(None, ids[2:]))
            )


def _tags(git: Git) -> Iterator[RecordText]:
    output = git.run("for-each-ref", f"--format={_TAG_FIELDS}", "refs/tags", seconds=300)
    fields = output.decode(errors="replace").split("\x00")
    for at in range(0, len(fields) - 6, 6):
        name, kind, commit, time, author, text = fields[at : at + 6]
        if kind == "tag" and MARK in text:
            short = name.lstrip("\n").removeprefix("refs/tags/")
            yield RecordText("tag", commit, text[:MAX_TEXT_BYTES], int(time or 0), author, short)


def _commit_of(git: Git, name: str) -> str:
    status, output, _ = git.attempt("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    return output.decode().strip() if status == 0 else ""
