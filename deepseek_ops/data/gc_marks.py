"""What is reached: the versions that stay, their pages, packs and objects, and every blob that somebody names.

A version stays whole when it is the head of a branch, one of its newest, tagged, pinned, named anywhere, where two
branches parted (merges need it), or younger than the grace. Of any other version the commit record stays, as history,
and the content goes. The logs of branches and tags are never touched.

Damage stops a collection: where a page of a version that must be whole is missing, nobody knows what it named.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain

from deepseek_ops.core.errors import IntegrityError, ObjectNotFoundError, PermanentError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import digest_of
from deepseek_ops.data.gc_digests import DigestSet
from deepseek_ops.data.gc_history import Commit, RetentionPolicy, ancestors, branch_logs, where_branches_parted
from deepseek_ops.data.gc_names import Names
from deepseek_ops.data.gc_runs import kind_of
from deepseek_ops.data.gc_waste import PackUse
from deepseek_ops.data.layout import commit_key, tree_key
from deepseek_ops.data.pages import LOOSE, Page, decode_page, decode_tree
from deepseek_ops.data.parallel import in_order
from deepseek_ops.data.refs import TAGS

WORKERS = 8


@dataclass(eq=False)
class DamagedVersionError(PermanentError):
    """A version that must be whole is not."""

    version: str
    key: str
    problem: str

    def __str__(self) -> str:
        return (
            f"version {self.version} is damaged ({self.key}: {self.problem}), so what it needs is not known "
            "and nothing is deleted; restore that object, or find out with `deepseek-ops data verify` what is lost."
        )


@dataclass
class Marks:
    """What stays."""

    commits: DigestSet = field(default_factory=DigestSet)
    trees: DigestSet = field(default_factory=DigestSet)
    """Pages and root pages."""
    packs: DigestSet = field(default_factory=DigestSet)
    objects: DigestSet = field(default_factory=DigestSet)
    kept_versions: int = 0
    dropped: dict[bytes, bytes] = field(default_factory=dict)
    """Root page -> one version whose content goes with it, or went before."""
    problems: list[str] = field(default_factory=list)
    pack_use: PackUse = field(default_factory=PackUse)

    def keeps(self, kind: str, digest: bytes) -> bool:
        """Return whether the object is reached."""
        kept = {"commits": self.commits, "packs": self.packs, "objects": self.objects}.get(kind, self.trees)
        return digest in kept


def mark(store: ObjectStore, policy: RetentionPolicy, names: Names, now: float) -> Marks:
    """Return what is reached; ``names`` holds what everybody else names. Raises DamagedVersionError, IntegrityError."""
    marks = Marks()
    for digest in chain(names.leaves, names.names):
        marks.objects.add(digest)
    logs, tags = branch_logs(store), _tags(store)
    commits, young = _read_commits(store, now - policy.grace_seconds)
    must = tags | {log.head for log in logs if log.head}
    named = {digest for digest in commits if digest in names.names}.union(*(log.kept(policy, now) for log in logs))
    whole = must | named | young | (where_branches_parted(commits, logs) & commits.keys())
    records = ancestors(commits, whole.union(*(log.versions for log in logs)))
    if not names.complete:
        whole, records = whole | commits.keys(), set(commits)
    for digest in records:
        marks.commits.add(digest)
    for digest in sorted(whole):
        if digest in commits:
            care = _Care.HEAD if digest in must else _Care.NAMED if digest in named else _Care.NONE
            _walk(store, marks, digest, commits[digest].tree, care)
        elif digest in must:
            raise DamagedVersionError(digest.hex(), commit_key(digest.hex()), "missing")
    marks.kept_versions = len(whole & commits.keys())
    unreached = ((commit.tree, digest) for digest, commit in commits.items() if commit.tree not in marks.trees)
    marks.dropped = dict(unreached)
    oldest_young = now - policy.grace_seconds
    young_pages = (
        page[1]
        for info in store.list("trees/")
        if (info.modified > oldest_young or not info.modified) and (page := kind_of(info.key)) is not None
    )
    keep_what_they_name(store, marks, (digest for digest in young_pages if digest not in marks.trees))
    return marks


def keep_what_they_name(store: ObjectStore, marks: Marks, pages: Iterable[bytes]) -> None:
    """Mark what pages need that nothing reaches and that stay, because somebody has stored them lately.

    A page that is there is whole, always: a writer that finds it does not store it again, and one that does may find
    the old bytes kept (a store may skip what has the same size). So what a page names goes after the page.
    """
    for digest in pages:
        found = _page(store, digest.hex())
        if isinstance(found, Page):
            _mark_page(marks, found)
        elif digest in marks.dropped:
            _walk(store, marks, marks.dropped.pop(digest), digest, _Care.NONE)


class _Care(IntEnum):
    """What it means that part of a version is missing."""

    NONE = 0
    """A writer that was killed, or that will notice."""
    NAMED = 1
    """Retention dropped it, before it was named or when less was kept, if its root page is missing; else damage."""
    HEAD = 2
    """Damage."""


def _walk(store: ObjectStore, marks: Marks, version: bytes, tree: bytes, care: _Care) -> None:
    """Mark what a version's tree reaches; pages that are marked already are not read again."""
    if tree in marks.trees:
        return
    try:
        pages = decode_tree(store.get(tree_key(tree.hex())), tree.hex())
    except (ObjectNotFoundError, IntegrityError) as error:
        if care is _Care.HEAD or isinstance(error, IntegrityError):
            raise DamagedVersionError(version.hex(), tree_key(tree.hex()), str(error)) from error
        marks.problems.append(f"version {version.hex()} has no content any more")
        return
    digests = [page.digest for page in pages if bytes.fromhex(page.digest) not in marks.trees]
    for digest, page in zip(digests, in_order(lambda one: _page(store, one), digests, WORKERS), strict=True):
        if isinstance(page, Page):
            _mark_page(marks, page)
            marks.trees.add(bytes.fromhex(digest))
        elif care is _Care.NONE:
            marks.problems.append(f"version {version.hex()} is not whole: {page}")
        else:
            raise DamagedVersionError(version.hex(), tree_key(digest), page)
    marks.trees.add(tree)


def _page(store: ObjectStore, digest: str) -> Page | str:
    """Return a page, or what is wrong with it."""
    try:
        return decode_page(store.get(tree_key(digest)), digest)
    except (ObjectNotFoundError, IntegrityError) as error:
        return str(error)


def _mark_page(marks: Marks, page: Page) -> None:
    for entry, location in zip(page.entries, page.locations, strict=True):
        if location == LOOSE:
            marks.objects.add(entry.digest)
    marks.pack_use.add(zip(page.entries, page.locations, strict=True))
    for pack in {location.pack for location in page.locations} - {LOOSE.pack}:
        marks.packs.add(pack)


def _read_commits(store: ObjectStore, oldest_young: float) -> tuple[dict[bytes, Commit], set[bytes]]:
    """Return every commit of the store, and which of them are younger than the grace.

    The logs were read before: what a log names is here.
    """
    infos = [info for info in store.list("commits/") if kind_of(info.key)]
    commits: dict[bytes, Commit] = {}
    for info, data in zip(infos, in_order(lambda one: _get(store, one.key), infos, WORKERS), strict=True):
        digest = info.key.rpartition("/")[2]
        if not data:
            continue
        if (actual := digest_of(data)) != digest:
            raise IntegrityError(f"{store.uri}/{info.key}", digest, actual)
        body = json.loads(data)
        parents = tuple(bytes.fromhex(parent) for parent in body.get("parents", ()))
        commits[bytes.fromhex(digest)] = Commit(bytes.fromhex(body["tree"]), parents)
    young = {bytes.fromhex(info.key[-64:]) for info in infos if info.modified > oldest_young or not info.modified}
    return commits, young & commits.keys()


def _get(store: ObjectStore, key: str) -> bytes:
    try:
        return store.get(key)
    except ObjectNotFoundError:
        return b""


def _tags(store: ObjectStore) -> set[bytes]:
    keys = (info.key for info in store.list(TAGS))
    return {bytes.fromhex(json.loads(data)["version"]) for data in in_order(store.get, keys, WORKERS)}
