"""Writes the files of a commit to a folder, and nothing anywhere else.

Not ``git archive`` and not a work tree: both obey files inside the commit (``export-ignore``, ``export-subst``, filter
and end-of-line attributes), and a model repository's bytes are what was committed. The tree is read with plumbing, each
path is checked here, and links are made last, so that no file is ever written through one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deepseek_ops.adapters.git.command import Git
from deepseek_ops.adapters.git.errors import CheckoutTargetError, GitCommandError, UnsafeTreeError

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One file or link of a commit."""

    mode: str
    oid: str
    path: str

    @property
    def is_link(self) -> bool:
        return self.mode == "120000"


def tree_entries(git: Git, commit: str) -> list[TreeEntry]:
    """Return files and links of a commit (submodules are other repositories and left out)."""
    listing = git.run("ls-tree", "-r", "-z", "--full-tree", "--end-of-options", commit)
    entries = []
    for line in listing.split(b"\x00"):
        if line:
            head, _, path = line.partition(b"\t")
            mode, kind, oid = head.decode().split(" ")
            if kind == "blob":
                entries.append(TreeEntry(mode, oid, os.fsdecode(path)))
    return entries


def export_tree(git: Git, commit: str, target: Path) -> None:
    """Write the commit's files below ``target``: all of them or, after a crash, none.

    A target that already holds every one of them is left as it is. Raises UnsafeTreeError, CheckoutTargetError.
    """
    entries = tree_entries(git, commit)
    for entry in entries:
        if problem := path_problem(entry.path):
            raise UnsafeTreeError(git.address.url, commit, entry.path, problem)
    if target.exists() and any(target.iterdir()):
        _require_equal(entries, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        _write(git, commit, entries, staged)
        staged.chmod(0o755)
        staged.rename(target)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def path_problem(path: str) -> str:
    """Return why a path must not be in a commit, or nothing."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\x00" in path:
        return "is not a plain relative path"
    # On file systems that fold case or cut trailing dots, these names are Git's own folder too.
    if any(part.rstrip(". ").casefold() in (".git", "git~1") for part in parts):
        return "would be a Git repository of its own"
    return ""


def _write(git: Git, commit: str, entries: Sequence[TreeEntry], root: Path) -> None:
    files = [entry for entry in entries if not entry.is_link]
    links = [entry for entry in entries if entry.is_link]
    with git.stream("cat-file", "--batch") as process:
        for entry in files:
            place = root / entry.path
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("xb") as sink:
                    _copy_object(git, process, entry.oid, sink)
            except (FileExistsError, NotADirectoryError):
                raise UnsafeTreeError(git.address.url, commit, entry.path, "is in the tree twice") from None
            place.chmod(0o755 if entry.mode == "100755" else 0o644)
        for entry in links:
            place = root / entry.path
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(os.fsdecode(_read_object(git, process, entry.oid)))
            except (OSError, ValueError):
                raise UnsafeTreeError(git.address.url, commit, entry.path, "is not a link that can be made") from None
    # Only the finished tree tells where a link that passes through other links ends.
    inside = root.resolve()
    for entry in links:
        if not _ends_inside(root / entry.path, inside):
            raise UnsafeTreeError(git.address.url, commit, entry.path, "is a link that leaves the repository")


def _ends_inside(link: Path, root: Path) -> bool:
    try:
        return link.resolve(strict=False).is_relative_to(root)
    except (OSError, RuntimeError):  # a circle of links
        return False


def _header(git: Git, process: subprocess.Popen[bytes], oid: str) -> tuple[IO[bytes], int]:
    if process.stdin is None or process.stdout is None:
        raise GitCommandError(git.address.url, "cat-file", "it was started without pipes")
    try:
        process.stdin.write(f"{oid}\n".encode())
        process.stdin.flush()
        answer = process.stdout.readline().decode().split(" ")
    except BrokenPipeError:
        answer = []
    if len(answer) != 3:
        raise GitCommandError(git.address.url, "cat-file", f"object {oid} could not be read")
    return process.stdout, int(answer[2])


def _copy_object(git: Git, process: subprocess.Popen[bytes], oid: str, sink: IO[bytes]) -> None:
    source, left = _header(git, process, oid)
    while left:
        piece = source.read(min(left, _CHUNK))
        if not piece:
            raise GitCommandError(git.address.url, "cat-file", f"object {oid} was cut")
        sink.write(piece)
        left -= len(piece)
    source.read(1)


def _read_object(git: Git, process: subprocess.Popen[bytes], oid: str) -> bytes:
    source, size = _header(git, process, oid)
    return source.read(size + 1)[:size]


def _require_equal(entries: Sequence[TreeEntry], target: Path) -> None:
    """Raise CheckoutTargetError unless every file of the commit is in ``target`` as committed.

    Other files do not matter: a job that ran there has left byte code and outputs.
    """
    for entry in entries:
        place = target / entry.path
        if entry.is_link:
            same = place.is_symlink() and entry.oid == _blob_id(os.fsencode(place.readlink()), entry.oid)
        else:
            same = place.is_file() and not place.is_symlink() and entry.oid == _blob_id(place.read_bytes(), entry.oid)
        if not same:
            raise CheckoutTargetError(str(target), entry.path)


def _blob_id(data: bytes, like: str) -> str:
    algorithm = "sha256" if len(like) == 64 else "sha1"
    return hashlib.new(algorithm, b"blob %d\x00" % len(data) + data, usedforsecurity=False).hexdigest()
