"""Git notes: texts about commits, written without touching the commits or any branch.

A notes ref is one line of commits that everybody appends to. Writing is: read the ref, add to what is there, push with
a lease on what was read; who loses the race does it again on top of the winner's, so no note is lost. The objects are
built in the mirror's ``history.git``, from which the other refs are pushed, too: notes and tags can go out together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from deepseek_ops.adapters.git.command import NETWORK_SECONDS, Git
from deepseek_ops.adapters.git.identity import date_of, identity
from deepseek_ops.core.ports import NewNote

_SCRATCH = "refs/notes/scratch"
"""``git notes`` writes through a local ref; this one means nothing outside a call."""

Edit = Callable[[str], str]
"""The note as it is ("" for none) -> as it shall be; "" removes it."""


def with_block(text: str) -> Edit:
    """Return the edit that adds a block of text after the others, unless the note has it."""
    block = text.strip("\n")

    def add(note: str) -> str:
        there = note.strip("\n")
        if f"\n\n{block}\n\n" in f"\n\n{there}\n\n":
            return note
        return f"{there}\n\n{block}\n".lstrip("\n")

    return add


def edits_of(notes: Iterable[NewNote]) -> list[tuple[str, Edit]]:
    """Return (commit, edit) of notes to add."""
    return [(note.commit, with_block(note.text)) for note in notes]


def noted(work: Git, current: str, edits: Iterable[tuple[str, Edit]]) -> str:
    """Return the notes commit with ``edits`` on top of ``current`` ("" for no notes yet); ``current`` if all is there.

    ``work`` has the commits that the notes are about. Called while the mirror is locked.
    """
    made = current
    for commit, edit in edits:
        made = _edited(work, made, commit, edit)
    return made


def fetch_notes(work: Git, commit: str) -> None:
    """Fetch a notes commit with its texts; nothing is fetched twice."""
    options = ["--no-filter", "--quiet", "--no-tags", "--no-write-fetch-head", "--end-of-options"]
    work.run("fetch", *options, "origin", commit, seconds=NETWORK_SECONDS)


def read_notes(work: Git, commit: str) -> dict[str, str]:
    """Return commit -> note of a notes commit; a path that is no commit id is somebody else's and left out."""
    listed = work.run("ls-tree", "-r", "-z", "--full-tree", "--end-of-options", commit)
    blobs: list[tuple[str, str]] = []
    for line in listed.split(b"\x00"):
        about, _, path = line.decode(errors="replace").partition("\t")
        name = path.replace("/", "")
        if len(name) in (40, 64) and not set(name) - set("0123456789abcdef"):
            blobs.append((name, about.split(" ")[2]))
    return dict(zip((name for name, _ in blobs), _texts(work, [oid for _, oid in blobs]), strict=True))


def _edited(work: Git, current: str, commit: str, edit: Edit) -> str:
    where = f"--ref={_SCRATCH}"
    if current:
        work.run("update-ref", _SCRATCH, current)
    else:
        work.run("update-ref", "-d", _SCRATCH)
    status, shown, _ = work.attempt("notes", where, "show", commit)
    before = shown.decode(errors="replace") if status == 0 else ""
    after = edit(before)
    if after == before:
        return current
    who = identity(date_of(work, current or commit) + 1)
    if after:
        work.run("notes", where, "add", "-f", "-F", "-", commit, data=after.encode(), environment=who)
    else:
        work.run("notes", where, "remove", commit, environment=who)
    return work.run("rev-parse", _SCRATCH).decode().strip()


def _texts(work: Git, oids: list[str]) -> list[str]:
    if not oids:
        return []
    output = work.run("cat-file", "--batch=%(objectsize)", data="\n".join(oids).encode() + b"\n", seconds=900)
    texts: list[str] = []
    at = 0
    while at < len(output):
        end = output.index(b"\n", at)
        size = int(output[at:end])
        texts.append(output[end + 1 : end + 1 + size].decode(errors="replace"))
        at = end + 1 + size + 1
    return texts
