"""Three-way merge of two versions, file by file: what one side changed since they parted is taken from that side.

Only pages in which the versions differ are read, and no file's bytes: the result names files that are stored already.
A file that both sides changed, in different ways, is a conflict; all of them are found before anything is written.
Where two branches have merged each other both ways, several versions are where they parted (a criss-cross): a side then
counts as unchanged for a file only if it is as in every one of them, so a merge asks rather than guesses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.records import Digest
from deepseek_ops.data.packs import Stored, stored_files
from deepseek_ops.data.pages import Entry
from deepseek_ops.data.trees import Tree

Side = Literal["ours", "theirs"]
Kind = Literal["both added", "both modified", "deleted by us", "deleted by them", "split", "file and folder"]
SHOWN = 20


@dataclass(frozen=True, slots=True)
class Preference:
    """Which side wins where both changed the files that match a glob (``*`` crosses ``/``)."""

    side: Side
    pattern: str


@dataclass(frozen=True, slots=True)
class MergeConflict:
    """One path that both sides changed in different ways."""

    path: str
    kind: Kind
    base: Digest | None
    """SHA-256 of the file where the sides parted; None where it was not there, or they parted in several places."""
    ours: Digest | None
    theirs: Digest | None
    detail: str = ""
    """The two splits, or the file that is in the way of a folder."""

    def __str__(self) -> str:
        more = f" ({self.detail})" if self.detail else ""
        return f"{self.path}: {self.kind}{more}, ours {self.ours or 'absent'}, theirs {self.theirs or 'absent'}"


@dataclass(eq=False)
class MergeConflictError(PermanentError):
    """Two versions changed the same files in different ways; nothing was merged."""

    into: str
    source: str
    ours: Digest
    theirs: Digest
    conflicts: tuple[MergeConflict, ...]

    def __str__(self) -> str:
        lines = [f"{self.source} ({self.theirs}) does not merge into {self.into} ({self.ours}):"]
        lines += [f"  {conflict}" for conflict in self.conflicts[:SHOWN]]
        if len(self.conflicts) > SHOWN:
            lines.append(f"  and {len(self.conflicts) - SHOWN} more files")
        lines.append(
            "Choose a side by glob (--ours 'part1/*', --theirs '*'), or commit to one branch what the file is to be "
            "and merge again."
        )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class MergePlan:
    """What a merge makes of two trees."""

    edits: dict[str, Stored | None]
    """What to change in ours."""
    resolved: tuple[MergeConflict, ...]
    """Conflicts that a preference settled."""
    additive: bool
    """No path was changed by both: what one counts by files is ours + theirs - base."""
    conflicts: tuple[MergeConflict, ...] = ()


@dataclass(slots=True)
class _Merge:
    """The state of one merge: differing files of each tree, and what was decided."""

    bases: list[dict[str, Stored]]
    ours: dict[str, Stored]
    theirs: dict[str, Stored]
    preferences: Sequence[Preference]
    edits: dict[str, Stored | None] = field(default_factory=dict)
    conflicts: list[MergeConflict] = field(default_factory=list)
    resolved: list[MergeConflict] = field(default_factory=list)
    both: bool = False

    def decide(self, path: str) -> None:
        ours, theirs = _entry(self.ours, path), _entry(self.theirs, path)
        bases = {_entry(base, path) for base in self.bases} or {None}
        if ours == theirs:
            self.both |= bases != {ours}
        elif bases == {ours}:
            self.edits[path] = self.theirs.get(path)
        elif bases != {theirs}:
            self._conflict(path, ours, theirs, next(iter(bases)) if len(bases) == 1 else None)

    def _conflict(self, path: str, ours: Entry | None, theirs: Entry | None, base: Entry | None) -> None:
        kind = _kind(ours, theirs, base)
        detail = f"split {ours.split!r} and {theirs.split!r}" if kind == "split" and ours and theirs else ""
        conflict = MergeConflict(path, kind, _hex(base), _hex(ours), _hex(theirs), detail)
        side = preferred(self.preferences, path)
        if side is None:
            self.conflicts.append(conflict)
            return
        self.resolved.append(conflict)
        if side == "theirs":
            self.edits[path] = self.theirs.get(path)

    def check_folders(self) -> None:
        """Find paths of the result that are a file and a folder of others.

        Each version by itself has none, so both paths of such a pair are among those that differ.
        """
        result = {path for path in self.ours if self.edits.get(path, True) is not None}
        result |= {path for path, file in self.edits.items() if file is not None}
        below: dict[str, list[str]] = {}
        for path in sorted(result):
            above = path.rpartition("/")[0]
            while above:
                if above in result:
                    below.setdefault(above, []).append(path)
                above = above.rpartition("/")[0]
        for file, paths in sorted(below.items()):
            self._file_and_folder(file, paths)

    def _file_and_folder(self, file: str, below: list[str]) -> None:
        """Settle it by the preference for the file: the side that wins keeps what it has there, the other loses it."""
        ours, theirs = _hex(_entry(self.ours, file)), _hex(_entry(self.theirs, file))
        base = _hex(_entry(self.bases[0], file)) if len(self.bases) == 1 else None
        conflict = MergeConflict(file, "file and folder", base, ours, theirs, f"beside {below[0]}")
        side = preferred(self.preferences, file)
        if side is None:
            self.conflicts.append(conflict)
            return
        self.resolved.append(conflict)
        winner = self.ours if side == "ours" else self.theirs
        self.edits |= dict.fromkeys(below if file in winner else [file])


def plan_merge(bases: Sequence[Tree], ours: Tree, theirs: Tree, *, preferences: Sequence[Preference] = ()) -> MergePlan:
    """Return what to change in ``ours`` so that it is the merge, and every conflict that no preference settles.

    The first preference that matches a path decides. Without a base every file counts as added. A file whose bytes one
    side changed and whose split the other one did is a conflict too: its new content may belong elsewhere.
    """
    trees = [*bases, ours, theirs]
    shared = set.intersection(*({page.digest for page in tree.pages} for tree in trees))
    *base_files, our_files, their_files = [_files(tree, shared) for tree in trees]
    merge = _Merge(base_files, our_files, their_files, preferences)
    for path in sorted(set().union(our_files, their_files, *base_files)):
        merge.decide(path)
    merge.check_folders()
    additive = len(bases) == 1 and not merge.both and not merge.resolved
    return MergePlan(merge.edits, tuple(merge.resolved), additive, tuple(merge.conflicts))


def preferred(preferences: Sequence[Preference], path: str) -> Side | None:
    """Return the side of the first preference that matches, or None."""
    return next((one.side for one in preferences if fnmatchcase(path, one.pattern)), None)


def merged_splits(
    base: Mapping[str, int], ours: Mapping[str, int], theirs: Mapping[str, int], *, additive: bool
) -> dict[str, int]:
    """Return the records per split of a merge: what both sides added to the base, or nothing where that is unknown."""
    if dict(ours) == dict(theirs) == dict(base):
        return dict(ours)
    if not additive or not ours or not theirs:
        return {}
    names = sorted({*base, *ours, *theirs})
    counts = {name: ours.get(name, 0) + theirs.get(name, 0) - base.get(name, 0) for name in names}
    return counts if all(count >= 0 for count in counts.values()) else {}


def _files(tree: Tree, shared: set[Digest]) -> dict[str, Stored]:
    pages = tree.read(page for page in tree.pages if page.digest not in shared)
    return {file.entry.path: file for page in pages for file in stored_files(page)}


def _entry(files: Mapping[str, Stored], path: str) -> Entry | None:
    file = files.get(path)
    return None if file is None else file.entry


def _hex(entry: Entry | None) -> Digest | None:
    return None if entry is None else entry.digest.hex()


def _kind(ours: Entry | None, theirs: Entry | None, base: Entry | None) -> Kind:
    if ours is None:
        return "deleted by us"
    if theirs is None:
        return "deleted by them"
    if ours.digest == theirs.digest:
        return "split"
    return "both added" if base is None else "both modified"
