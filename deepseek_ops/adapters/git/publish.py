"""Builds commits and tags and pushes them: one atomic push, guarded by leases, never forced.

Ids are reproducible: a fixed identity, and dates derived from the parent (commit) or the target (tag) instead of a
clock. A retry after a lost answer builds the same objects, finds them on the server, and is done.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepseek_ops.adapters.git.command import NETWORK_SECONDS, Git
from deepseek_ops.adapters.git.errors import LostRaceError, TagConflictError, UnsafePathError, explain, problem_line
from deepseek_ops.adapters.git.export import path_problem
from deepseek_ops.adapters.git.identity import EMAIL, NAME, date_of, identity
from deepseek_ops.adapters.git.mirror import Mirror
from deepseek_ops.adapters.git.notes import Edit, edits_of, fetch_notes, noted
from deepseek_ops.adapters.git.refs import RemoteRef, list_refs
from deepseek_ops.adapters.git.signing import signature, signed_commit, without_signature
from deepseek_ops.core.errors import DeepSeekOpsError, GitAccessError, RefNotFoundError, StaleRefError
from deepseek_ops.core.ports import NewCommit, NewNote, NewTag

_MOVED = re.compile(
    r"stale info|fetch first|non-fast-forward|already exists|cannot lock ref|failed to update ref|incorrect old value"
    r"|reference already exists|failed to lock",
)


@dataclass(slots=True)
class _Push:
    """What one push changes: ``updates`` maps a full ref to (expected object or "", new object or "")."""

    updates: dict[str, tuple[str, str]] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)


def publish(
    git: Git,
    mirror: Mirror,
    *,
    commit: NewCommit | None,
    tags: Sequence[NewTag],
    delete: Sequence[str],
    notes: Sequence[NewNote] = (),
    before: Callable[[Mapping[str, str]], None] | None = None,
) -> dict[str, str]:
    """Push a commit, tags, deletions and notes together and return name as given -> object id; "" for a deleted one.

    ``before`` hears of these ids when all is built and before the server does.
    """
    branches = [full_name(commit.branch, "heads")] if commit and commit.branch else []
    wanted = [*branches, *(full_name(tag.name, "tags") for tag in tags), *delete]
    wanted += sorted({note.ref for note in notes})
    for name in wanted:
        require_ref_name(git, name)
    there = list_refs(git, wanted)
    push = _Push()
    work = mirror.history(_tips_to_know(git, commit, tags, there))
    made = ""
    if commit:
        made = _plan_commit(git, mirror, commit, there.get(branches[0]) if branches else None, push)
    for tag in tags:
        _plan_tag(git, mirror, tag, tag.target or made, there.get(full_name(tag.name, "tags")), push)
    for name in delete:
        push.ids[name] = ""
        if name in there:
            push.updates[name] = (there[name].oid, "")
    for name in sorted({note.ref for note in notes}):
        _plan_notes(mirror, name, edits_of(note for note in notes if note.ref == name), there.get(name), push)
    if before is not None:
        before(push.ids)
    if push.updates:
        _send(git, work, push.updates)
    return push.ids


def annotate(git: Git, mirror: Mirror, ref: str, edits: Sequence[tuple[str, Edit]]) -> str:
    """Push edits of the notes of commits and return the notes commit. Raises StaleRefError when others were faster."""
    require_ref_name(git, ref)
    push = _Push()
    _plan_notes(mirror, ref, edits, list_refs(git, [ref]).get(ref), push)
    if push.updates:
        _send(git, mirror.history([commit for commit, _ in edits]), push.updates)
    return push.ids[ref]


def publish_merge(git: Git, work: Git, branch: str, *, made: str, parent: str) -> None:
    """Push a merge commit that ``work`` has to a branch that is new, at ``parent``, or there already."""
    name = full_name(branch, "heads")
    require_ref_name(git, name)
    current = list_refs(git, [name]).get(name)
    if current and current.oid == made:
        return
    if current and current.oid != parent:
        raise StaleRefError(git.address.url, name)
    _send(git, work, {name: (parent if current else "", made)})


def _tips_to_know(
    git: Git, commit: NewCommit | None, tags: Sequence[NewTag], there: Mapping[str, RemoteRef]
) -> list[str]:
    """Return the commits git must know the server to have, or it would send (and first fetch) what is there already.

    The tip of the branch is enough for a commit on top of it. For a new branch, and for a tag on an older commit, any
    branch may be the one that holds it: commits without trees are cheap, so all tips are known then.
    """
    starts = {commit.parent} if commit and commit.parent else set()
    starts |= {tag.target for tag in tags if tag.target}
    if starts <= {ref.oid for name, ref in there.items() if name.startswith("refs/heads/")}:
        return sorted(starts)
    return sorted({ref.commit for name, ref in list_refs(git, ["refs/heads/"]).items() if name != "HEAD"})


def full_name(name: str, kind: str) -> str:
    """Return ``refs/<kind>/<name>``; a full name stays as it is."""
    return name if name.startswith("refs/") else f"refs/{kind}/{name}"


def require_ref_name(git: Git, name: str) -> None:
    """Raise RefNotFoundError unless ``name`` is a full ref name that Git accepts."""
    status, _, _ = git.attempt("check-ref-format", name) if name.startswith("refs/") else (1, b"", "")
    if status:
        raise RefNotFoundError(git.address.url, repr(name))


def _plan_commit(git: Git, mirror: Mirror, commit: NewCommit, current: RemoteRef | None, push: _Push) -> str:
    work = mirror.history([commit.parent] if commit.parent else [])
    made = _build_commit(work, commit)
    push.ids[commit.branch] = made
    if not commit.branch:
        return made  # only a tag will hold it
    if current and current.oid == made:
        return made  # an earlier try got through
    if current and current.oid != commit.parent:
        raise StaleRefError(git.address.url, full_name(commit.branch, "heads"))
    push.updates[full_name(commit.branch, "heads")] = (commit.parent if current else "", made)
    return made


def _build_commit(work: Git, commit: NewCommit) -> str:
    seconds = 0
    for path in commit.files:
        if problem := path_problem(path):
            raise UnsafePathError(path, problem)
    with tempfile.TemporaryDirectory(prefix="deepseek-ops-git-") as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        if commit.parent:
            seconds = date_of(work, commit.parent) + 1
            work.run("read-tree", commit.parent, environment=index, seconds=NETWORK_SECONDS)
        lines = []
        for path, data in sorted(commit.files.items()):
            blob = work.run("hash-object", "-w", "--stdin", data=data).decode().strip()
            lines.append(b"100644 %s\t%s\x00" % (blob.encode(), os.fsencode(path)))
        work.run("update-index", "--add", "--replace", "-z", "--index-info", data=b"".join(lines), environment=index)
        tree = work.run("write-tree", "--missing-ok", environment=index).decode().strip()
    parents = ["-p", commit.parent] if commit.parent else []
    message = commit.message.rstrip("\n") + "\n"
    built = work.run("commit-tree", *parents, "-F", "-", tree, data=message.encode(), environment=identity(seconds))
    return signed_commit(work, built.decode().strip())


def _plan_tag(git: Git, mirror: Mirror, tag: NewTag, target: str, current: RemoteRef | None, push: _Push) -> None:
    if not target:
        raise RefNotFoundError(git.address.url, f"the target of tag {tag.name}")
    made_here = target in push.ids.values()
    work = mirror.history([] if made_here else [target])
    short = tag.name.removeprefix("refs/tags/")
    message = tag.message.rstrip("\n") + "\n"
    head = f"object {target}\ntype commit\ntag {short}\n"
    content = f"{head}tagger {NAME} <{EMAIL}> {date_of(work, target)} +0000\n\n{message}"
    content += signature(git, content.encode())
    made = work.run("mktag", data=content.encode()).decode().strip()
    push.ids[tag.name] = made
    if current is None:
        push.updates[full_name(tag.name, "tags")] = ("", made)
    elif current.oid != made:
        if current.oid == current.commit or not _says(mirror, current.oid, head, message):
            raise TagConflictError(git.address.url, short, current.oid)
        push.ids[tag.name] = current.oid  # the same statement, tagged by somebody else or at another time


def _plan_notes(
    mirror: Mirror, name: str, edits: Sequence[tuple[str, Edit]], current: RemoteRef | None, push: _Push
) -> None:
    made_here = set(push.ids.values())
    work = mirror.history(sorted({commit for commit, _ in edits} - made_here))
    before = current.oid if current else ""
    if before:
        fetch_notes(work, before)
    push.ids[name] = noted(work, before, edits)
    if push.ids[name] != before:
        push.updates[name] = (before, push.ids[name])


def _says(mirror: Mirror, tag: str, head: str, message: str) -> bool:
    there = mirror.tag_content(tag)
    return there.startswith(head) and without_signature(there.partition("\n\n")[2]) == message


def _send(git: Git, work: Git, updates: Mapping[str, tuple[str, str]]) -> None:
    leases = [f"--force-with-lease={name}:{expected}" for name, (expected, _) in updates.items()]
    specs = [f"{new}:{name}" for name, (_, new) in updates.items()]
    options = ["--atomic", "--porcelain", "--no-verify", "--no-thin", "--no-signed", "--recurse-submodules=no"]
    git.require_reachable()
    status, output, message = work.attempt(
        "push", *options, *leases, "--end-of-options", "origin", *specs, seconds=NETWORK_SECONDS
    )
    if status:
        raise _refusal(git, output.decode(errors="replace"), message)


def _refusal(git: Git, porcelain: str, message: str) -> DeepSeekOpsError:
    refused = [line for line in porcelain.splitlines() if line.startswith("!")]
    causes = [line for line in refused if "atomic push failed" not in line and "atomic transaction failed" not in line]
    for line in causes:
        _, _, rest = line.partition("\t")
        names, _, reason = rest.partition("\t")
        ref = names.rpartition(":")[2]
        if _MOVED.search(reason):
            return LostRaceError(git.address.url, ref)
        # "remote rejected": a rule of the host. Its own words are on the lines the remote printed.
        told = [text for text in message.splitlines() if text.startswith("remote:") and text.strip() != "remote:"]
        return GitAccessError(
            git.address.url, f"{ref} {reason}; {problem_line(told[0]) if told else 'no reason given'}"
        )
    if refused:
        return LostRaceError(git.address.url, refused[0].partition("\t")[2].partition("\t")[0].rpartition(":")[2])
    return explain(git.address.url, "push", message)
