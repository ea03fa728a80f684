"""Merges without a working tree: in a mirror, of commits, and pushed to a branch like everything else.

``git merge-tree --write-tree`` (2.38 and newer) does what ``git merge`` does, renames included. An older git merges
file by file (``read-tree -m`` and ``merge-file``) from the first common ancestor: without renames, otherwise the same.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.adapters.git.command import NETWORK_SECONDS, Git
from deepseek_ops.adapters.git.conflicts import hunks_of, merged_text
from deepseek_ops.adapters.git.errors import explain
from deepseek_ops.adapters.git.identity import date_of, identity
from deepseek_ops.adapters.git.mirror import Mirror
from deepseek_ops.adapters.git.signing import signed_commit
from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.merges import MergeConflict, MergedTree

MAX_SIDE_BYTES = 1 << 20
"""A side of a conflict that is larger is no text to show."""
_STAGE = re.compile(r"(?P<mode>\d{6}) (?P<oid>[0-9a-f]{40,64}) (?P<stage>[123])\t(?P<path>.*)", re.DOTALL)


@dataclass(eq=False)
class UnrelatedHistoriesError(PermanentError):
    """Two commits that share no history were to be merged."""

    repository: str
    ours: str
    theirs: str

    def __str__(self) -> str:
        return (
            f"{self.ours[:12]} and {self.theirs[:12]} of {self.repository} share no history and are not merged; "
            "rebase the branch onto the other one first."
        )


@dataclass(frozen=True, slots=True)
class _Side:
    mode: str
    oid: str


def fetched_for_merge(git: Git, mirror: Mirror, commits: Sequence[str]) -> Git:
    """Return a git with the commits, all their ancestors and trees; contents come when the merge needs them."""
    work = mirror.copy("merge", "blob:none", commits)
    git.require_reachable()
    options = ["--filter=blob:none", "--quiet", "--no-tags", "--no-write-fetch-head", "--end-of-options"]
    status, _, message = work.attempt("fetch", *options, "origin", *commits, seconds=5 * NETWORK_SECONDS)
    if status:
        raise explain(git.address.url, "fetch", message)
    return work


def merge_commits(work: Git, ours: str, theirs: str) -> MergedTree:
    """Return the merge of two commits that ``work`` has. Raises UnrelatedHistoriesError."""
    status, output, _ = work.attempt("merge-base", ours, theirs)
    if status:
        raise UnrelatedHistoriesError(work.address.url, ours, theirs)
    base = output.decode().strip()
    if base == theirs:
        return MergedTree(tree="", base=base, merged=True)
    tree, stages = _merge_tree(work, ours, theirs) if _is_modern(work) else merge_by_file(work, base, ours, theirs)
    conflicts = tuple(_conflict(work, path, sides) for path, sides in sorted(stages.items()))
    return MergedTree(tree=tree, base=base, conflicts=conflicts)


def build_merge(work: Git, tree: str, *, parents: Sequence[str], files: Mapping[str, bytes], message: str) -> str:
    """Return the merge commit of ``tree`` with ``files`` put over it; equal input, equal commit."""
    if files:
        with _index() as index:
            work.run("read-tree", tree, environment=index, seconds=NETWORK_SECONDS)
            lines = [b"100644 %s\t%s\x00" % (_store(work, data), os.fsencode(path)) for path, data in files.items()]
            _update(work, index, lines)
            tree = work.run("write-tree", "--missing-ok", environment=index).decode().strip()
    who = identity(max(date_of(work, parent) for parent in parents) + 1)
    options = [option for parent in parents for option in ("-p", parent)]
    text = message.rstrip("\n") + "\n"
    built = work.run("commit-tree", *options, "-F", "-", tree, data=text.encode(), environment=who)
    return signed_commit(work, built.decode().strip())


def _is_modern(work: Git) -> bool:
    found = re.search(rb"(\d+)\.(\d+)", work.run("version"))
    return found is not None and (int(found[1]), int(found[2])) >= (2, 38)


def _merge_tree(work: Git, ours: str, theirs: str) -> tuple[str, dict[str, dict[str, _Side]]]:
    options = ["--write-tree", "-z", "--no-messages"]
    status, output, message = work.attempt("merge-tree", *options, ours, theirs, seconds=5 * NETWORK_SECONDS)
    if status not in (0, 1):
        raise explain(work.address.url, "merge-tree", message)
    tree, *lines = os.fsdecode(output).split("\x00")
    return tree.strip(), _stages(lines)


def _stages(lines: Sequence[str]) -> dict[str, dict[str, _Side]]:
    found: dict[str, dict[str, _Side]] = {}
    for line in lines:
        if match := _STAGE.fullmatch(line):
            found.setdefault(match["path"], {})[match["stage"]] = _Side(match["mode"], match["oid"])
    return found


def merge_by_file(work: Git, base: str, ours: str, theirs: str) -> tuple[str, dict[str, dict[str, _Side]]]:
    """Return the merged tree and what conflicts, for a git without ``merge-tree --write-tree``."""
    with _index() as index:
        work.run(
            "read-tree", "-i", "-m", "--aggressive", base, ours, theirs, environment=index, seconds=NETWORK_SECONDS
        )
        unmerged = _stages(os.fsdecode(work.run("ls-files", "-u", "-z", environment=index)).split("\x00"))
        lines: list[bytes] = []
        conflicts: dict[str, dict[str, _Side]] = {}
        for path, sides in unmerged.items():
            mode, data, clean = _merge_file(work, sides)
            if not clean:
                conflicts[path] = sides
            removal = b"0 %s\t%s\x00" % (b"0" * 40, os.fsencode(path))
            lines += [removal, b"%s %s\t%s\x00" % (mode.encode(), data, os.fsencode(path))]
        _update(work, index, lines)
        tree = work.run("write-tree", "--missing-ok", environment=index).decode().strip()
    return tree, conflicts


def _merge_file(work: Git, sides: Mapping[str, _Side]) -> tuple[str, bytes, bool]:
    """Return mode, blob and whether the merge is clean; where there is no text to merge, our side stays."""
    mine, other = sides.get("2"), sides.get("3")
    kept = mine or other or sides["1"]
    texts = [_text(work, sides.get(stage)) for stage in "213"]
    if mine is None or other is None or texts[0] is None or texts[2] is None:
        return kept.mode, kept.oid.encode(), False
    status, output = merged_text(work, ours=texts[0], base=texts[1], theirs=texts[2])
    mode = other.mode if "1" in sides and mine.mode == sides["1"].mode else mine.mode
    return mode, _store(work, output), status == 0


def _conflict(work: Git, path: str, sides: Mapping[str, _Side]) -> MergeConflict:
    base, ours, theirs = (_text(work, sides.get(stage)) for stage in "123")
    return MergeConflict(path, base, ours, theirs, hunks_of(work, base, ours, theirs))


def _text(work: Git, side: _Side | None) -> bytes | None:
    if side is None or side.mode not in ("100644", "100755"):
        return None
    if int(work.run("cat-file", "-s", side.oid, seconds=NETWORK_SECONDS)) > MAX_SIDE_BYTES:
        return None
    data = work.run("cat-file", "blob", side.oid, seconds=NETWORK_SECONDS)
    return None if b"\x00" in data else data


def _store(work: Git, data: bytes) -> bytes:
    return work.run("hash-object", "-w", "--stdin", data=data).strip()


def _update(work: Git, index: Mapping[str, str], lines: Sequence[bytes]) -> None:
    work.run("update-index", "--add", "--replace", "-z", "--index-info", data=b"".join(lines), environment=index)


@contextmanager
def _index() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="deepseek-ops-git-") as folder:
        yield {"GIT_INDEX_FILE": str(Path(folder, "index"))}
