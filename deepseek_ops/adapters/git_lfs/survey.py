"""What lies in a repository's history: large files that belong into Git LFS, and the digest of what each ref holds."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from deepseek_ops.adapters.git_lfs.pointer import MAX_POINTER_BYTES, LfsPointerError, parse_pointer
from deepseek_ops.adapters.git_lfs.worktree_git import WorkTreeGitError, git

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class LargeKind:
    """Large files of one kind, over the whole history."""

    pattern: str
    """What would be tracked: ``*.pt``, or the path of a file without a suffix."""
    num_versions: int
    num_bytes: int
    largest: tuple[tuple[str, int], ...]
    """At most five paths with the size of their largest version."""


def large_kinds(folder: Path, min_bytes: int, suffixes: Sequence[str] = ()) -> list[LargeKind]:
    """Return the kinds of files with a version of at least ``min_bytes`` on any branch or tag, most bytes first.

    ``suffixes`` (``.pt``) limits the search. All versions of a kind count: a suffix moves as a whole.
    """
    versions: dict[str, dict[str, tuple[str, int]]] = {}
    for oid, path, size in _history_blobs(folder):
        suffix = PurePosixPath(path).suffix
        if size > MAX_POINTER_BYTES and (not suffixes or suffix in suffixes):
            versions.setdefault(f"*{suffix}" if suffix else f"/{path}", {})[oid] = (path, size)
    kinds = []
    for pattern, found in versions.items():
        if max(size for _, size in found.values()) >= min_bytes:
            largest: dict[str, int] = {}
            for path, size in found.values():
                largest[path] = max(size, largest.get(path, 0))
            shown = sorted(largest.items(), key=lambda item: (-item[1], item[0]))[:5]
            kinds.append(LargeKind(pattern, len(found), sum(size for _, size in found.values()), tuple(shown)))
    return sorted(kinds, key=lambda kind: -kind.num_bytes)


def all_refs(folder: Path) -> dict[str, str]:
    """Return every branch and tag with its commit; a tag's commit, not the tag object."""
    listed = git(folder, "for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", "refs/heads", "refs/tags")
    rows = (line.split(" ") for line in listed.decode(errors="surrogateescape").splitlines())
    return {row[0]: row[2] or row[1] for row in rows}


def content_digests(folder: Path, refs: Iterable[str], *, without: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """Return ref -> path -> SHA-256 of the content, where a Git LFS pointer counts as what it points to.

    Every blob is read once. Paths in ``without`` are left out; links and modes count as content.
    """
    trees: dict[str, list[tuple[str, str, str]]] = {}
    for ref in refs:
        listed = git(folder, "ls-tree", "-r", "-z", "--full-tree", ref).decode(errors="surrogateescape")
        trees[ref] = []
        for line in filter(None, listed.split("\x00")):
            head, _, path = line.partition("\t")
            mode, _, oid = head.split(" ")
            if path not in without:
                trees[ref].append((path, mode, oid))
    blobs = {oid for entries in trees.values() for _, mode, oid in entries if mode != "160000"}
    digests = dict(_digests(folder, sorted(blobs)))
    return {
        ref: {path: f"{mode} {digests.get(oid, oid)}" for path, mode, oid in entries} for ref, entries in trees.items()
    }


def _history_blobs(folder: Path) -> Iterator[tuple[str, str, int]]:
    listed = git(folder, "rev-list", "--objects", "--branches", "--tags").decode(errors="surrogateescape")
    pairs = [(oid, path) for oid, _, path in (line.partition(" ") for line in listed.splitlines()) if path]
    asked = "".join(f"{oid}\n" for oid, _ in pairs).encode()
    answers = git(folder, "cat-file", "--batch-check=%(objecttype) %(objectsize)", data=asked).decode().splitlines()
    for (oid, path), answer in zip(pairs, answers, strict=True):
        kind, _, size = answer.partition(" ")
        if kind == "blob":
            yield oid, path, int(size)


def _digests(folder: Path, oids: Sequence[str]) -> Iterator[tuple[str, str]]:
    with _batch(folder) as (requests, answers):
        for oid in oids:
            requests.write(f"{oid}\n".encode())
            requests.flush()
            header = answers.readline().split(b" ")
            if len(header) != 3:
                raise WorkTreeGitError(str(folder), "cat-file", f"object {oid} could not be read")
            yield oid, _digest(answers, int(header[2]), oid)
            answers.read(1)


def _digest(answers: IO[bytes], size: int, oid: str) -> str:
    if size <= MAX_POINTER_BYTES:
        data = answers.read(size)
        try:
            pointer = parse_pointer(data, file=oid)
        except LfsPointerError:
            pointer = None
        return pointer.oid if pointer else hashlib.sha256(data).hexdigest()
    digest = hashlib.sha256()
    while size:
        data = answers.read(min(size, _CHUNK))
        if not data:
            raise WorkTreeGitError("", "cat-file", f"object {oid} was cut")
        digest.update(data)
        size -= len(data)
    return digest.hexdigest()


@contextmanager
def _batch(folder: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    with subprocess.Popen(
        ["git", "cat-file", "--batch"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise WorkTreeGitError(str(folder), "cat-file", "it was started without pipes")
        try:
            yield process.stdin, process.stdout
        finally:
            process.stdin.close()
            process.kill()
