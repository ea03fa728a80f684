"""What a model repository must not push: raw weights, pointers to nothing, a pipeline file that cannot run.

The same checks run before a commit, on what is staged, and before a push, on what the remote does not have yet.
Whatever needs a network only warns when the network is away: a hook must not stop work on a train.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepseek_ops.adapters.git_lfs.config import lfs_storage, store_of
from deepseek_ops.adapters.git_lfs.fetching import WeightNotPushedError, object_path
from deepseek_ops.adapters.git_lfs.pointer import MAX_POINTER_BYTES, LfsPointer, LfsPointerError, parse_pointer
from deepseek_ops.adapters.git_lfs.worktree_git import git, try_git
from deepseek_ops.core.config import InvalidPipelineError, load_pipeline
from deepseek_ops.core.errors import ConfigError, DeepSeekOpsError, ObjectNotFoundError
from deepseek_ops.core.objects import blob_key
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.data import read_pointer
from deepseek_ops.data.layout import commit_key
from deepseek_ops.pipeline.runs import PIPELINE_FILE

MAX_BINARY_BYTES = 1 << 20
DATASET_SUFFIX = ".dataset.yaml"
_SNIFFED_BYTES = 8000
"""As Git does: a file with a NUL in so many bytes is binary."""


@dataclass
class Findings:
    """What was found: problems refuse the commit or push, warnings do not."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Blob:
    oid: str
    size: int
    path: str


def check_commit(folder: Path) -> Findings:
    """Return what is wrong with the staged files."""
    listed = git(folder, "diff", "--cached", "--raw", "-z", "--no-abbrev", "--no-renames", "--diff-filter=AM")
    parts = listed.decode(errors="surrogateescape").split("\x00")
    pairs = [
        (head.split(" ")[3], path)
        for head, path in zip(parts[::2], parts[1::2], strict=False)
        if head.split(" ")[1].startswith("100")
    ]
    findings = Findings()
    blobs = _sized(folder, pairs)
    findings.problems += _raw_weights(folder, blobs)
    for blob in blobs:
        if blob.path == PIPELINE_FILE:
            findings.problems += _pipeline_problems(_content(folder, blob.oid), PIPELINE_FILE)
        elif blob.path.endswith(DATASET_SUFFIX):
            findings.problems += _pointer_problems(_content(folder, blob.oid), blob.path)
    return findings


def check_push(folder: Path, remote: str, updates: Iterable[str], open_store: Callable[[str], ObjectStore]) -> Findings:
    """Return what is wrong with what is about to be pushed.

    Args:
        folder: The work tree.
        remote: Name of the remote: what its branches hold here is not looked at again.
        updates: Lines of ``<local ref> <local id> <remote ref> <remote id>``, as Git gives them to the hook.
        open_store: Opens the stores that dataset pointers name.
    """
    findings = Findings()
    tips, known = _pushed(folder, updates)
    if tips:
        pointers: dict[str, LfsPointer] = {}
        findings.problems += _raw_weights(folder, _new_blobs(folder, remote, tips, known), pointers)
        _check_pointers(folder, pointers, findings, open_store)
    for tip in tips:
        _check_tip(folder, tip, findings, open_store)
    return findings


def _pushed(folder: Path, updates: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the pushed commits, and those the remote has that are here as well."""
    tips: list[str] = []
    known: list[str] = []
    for line in updates:
        parts = line.split()
        if len(parts) == 4 and parts[1].strip("0"):
            tips.append(parts[1])
            if parts[3].strip("0") and try_git(folder, "cat-file", "-e", parts[3])[0] == 0:
                known.append(parts[3])
    return sorted(set(tips)), known


def _new_blobs(folder: Path, remote: str, tips: Sequence[str], known: Sequence[str]) -> list[_Blob]:
    wanted = "".join(f"{one}\n" for one in [*tips, *(f"^{commit}" for commit in known)]).encode()
    listed = git(folder, "rev-list", "--objects", "--not", f"--remotes={remote}", "--stdin", data=wanted)
    pairs = [line.partition(" ")[::2] for line in listed.decode(errors="surrogateescape").splitlines()]
    return _sized(folder, [(oid, path) for oid, path in pairs if path])


def _sized(folder: Path, pairs: Sequence[tuple[str, str]]) -> list[_Blob]:
    asked = "".join(f"{oid}\n" for oid, _ in pairs).encode()
    answers = git(folder, "cat-file", "--batch-check", data=asked).decode().splitlines() if pairs else []
    found = []
    for (oid, path), answer in zip(pairs, answers, strict=True):
        parts = answer.split(" ")
        if len(parts) == 3 and parts[1] == "blob":
            found.append(_Blob(oid, int(parts[2]), path))
    return found


def _raw_weights(folder: Path, blobs: Sequence[_Blob], pointers: dict[str, LfsPointer] | None = None) -> Iterator[str]:
    """Yield a line for each blob that belongs into Git LFS and is not there; note the pointers (path -> pointer)."""
    tracked = _lfs_paths(folder, [blob.path for blob in blobs])
    small = _contents(folder, [blob.oid for blob in blobs if blob.path in tracked and blob.size <= MAX_POINTER_BYTES])
    for blob in blobs:
        if blob.size and blob.path in tracked:
            try:
                pointer = parse_pointer(small.get(blob.oid, b""), file=blob.path)
            except LfsPointerError as error:
                yield str(error)
                continue
            if pointer is None:
                remedy = "install git-lfs, then `git add --renormalize` it; `deepseek-ops lfs migrate` mends commits"
                problem = f"{blob.size:,} bytes are in Git itself although .gitattributes gives it to Git LFS"
                yield f"{blob.path}: {problem}; {remedy}."
            elif pointers is not None:
                pointers[blob.path] = pointer
        elif blob.size > MAX_BINARY_BYTES and b"\x00" in _content(folder, blob.oid)[:_SNIFFED_BYTES]:
            remedy = "`git lfs track` its kind, then `git rm --cached` and `git add` it again"
            yield f"{blob.path}: a binary of {blob.size:,} bytes does not belong into Git; {remedy}."


def _check_pointers(
    folder: Path, pointers: dict[str, LfsPointer], findings: Findings, open_store: Callable[[str], ObjectStore]
) -> None:
    """Refuse pointers whose objects are neither here nor in the store.

    git-lfs would see that too, unless it was told that objects may be missing here, as it must be where pointers to
    registered files are pushed.
    """
    storage = lfs_storage(folder)
    missing = {path: one for path, one in pointers.items() if not object_path(storage, one.oid).is_file()}
    if not missing:
        return
    try:
        store = open_store(store_of(folder))
        found = {path: store.head(blob_key(one.oid)) for path, one in missing.items()}
    except DeepSeekOpsError as error:
        findings.warnings.append(f"{len(missing)} weights that are not here were not looked for in the store: {error}")
        return
    findings.problems += [
        str(WeightNotPushedError(path, missing[path].oid, store.uri)) for path, info in found.items() if info is None
    ]


def _contents(folder: Path, oids: Sequence[str]) -> dict[str, bytes]:
    """Return the content of small blobs, read by one git."""
    found: dict[str, bytes] = {}
    data = git(folder, "cat-file", "--batch", data="".join(f"{oid}\n" for oid in oids).encode()) if oids else b""
    while data:
        head, _, data = data.partition(b"\n")
        oid, _, size = head.decode().split(" ")
        found[oid], data = data[: int(size)], data[int(size) + 1 :]
    return found


def _lfs_paths(folder: Path, paths: Sequence[str]) -> set[str]:
    asked = "".join(f"{path}\x00" for path in sorted(set(paths))).encode(errors="surrogateescape")
    answer = git(folder, "check-attr", "--stdin", "-z", "filter", data=asked) if asked else b""
    fields = answer.decode(errors="surrogateescape").split("\x00")
    return {path for path, value in zip(fields[::3], fields[2::3], strict=False) if value == "lfs"}


def _check_tip(folder: Path, tip: str, findings: Findings, open_store: Callable[[str], ObjectStore]) -> None:
    kind = git(folder, "rev-parse", "--verify", "--quiet", f"{tip}^{{}}").decode().strip()
    if git(folder, "cat-file", "-t", kind).strip() != b"commit":
        return
    listed = git(folder, "ls-tree", "-r", "-z", "--full-tree", kind).decode(errors="surrogateescape")
    for line in filter(None, listed.split("\x00")):
        head, _, path = line.partition("\t")
        where = f"{path} at {kind[:12]}"
        if path == PIPELINE_FILE:
            findings.problems += _pipeline_problems(_content(folder, head.split(" ")[2]), where)
        elif path.endswith(DATASET_SUFFIX):
            _check_dataset(_content(folder, head.split(" ")[2]), where, findings, open_store)


def _content(folder: Path, oid: str) -> bytes:
    return git(folder, "cat-file", "blob", oid)


def _pipeline_problems(text: bytes, where: str) -> list[str]:
    try:
        load_pipeline(text, file=where)
    except InvalidPipelineError as error:
        return str(error).splitlines()
    return []


def _pointer_problems(text: bytes, where: str) -> list[str]:
    try:
        read_pointer(text.decode(errors="replace"), file=where)
    except ConfigError as error:
        return [str(error)]
    return []


def _check_dataset(text: bytes, where: str, findings: Findings, open_store: Callable[[str], ObjectStore]) -> None:
    if problems := _pointer_problems(text, where):
        findings.problems += problems
        return
    pointer = read_pointer(text.decode(), file=where)
    try:
        there = open_store(pointer.store).head(commit_key(pointer.version)) is not None
    except ObjectNotFoundError:
        there = False
    except DeepSeekOpsError as error:
        findings.warnings.append(f"{where}: version {pointer.version[:12]} was not looked for: {error}")
        return
    if not there:
        findings.problems.append(
            f"{where}: {pointer.store} has no version {pointer.version[:12]} of {pointer.name}; commit the data there "
            "first (`deepseek-ops data commit`), or take the pointer from another commit."
        )
