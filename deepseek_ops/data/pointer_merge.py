"""What Git is to do when two branches changed a dataset's pointer file: merge the versions they name.

For ``.gitattributes``: ``data/*.dataset.yaml merge=dataset-pointer``, and in Git's configuration
``merge.dataset-pointer.driver = deepseek-ops data merge-pointer %O %A %B``. The merged version is kept by a branch of
the dataset that is named after both, so that nothing collects it before the merge commit is pushed; doing the same
merge again finds it. Where the versions do not merge, or the store cannot be reached, the file is left with both sides
and the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from deepseek_ops.core.errors import ConfigError, DeepSeekOpsError
from deepseek_ops.data.branching import BranchExistsError
from deepseek_ops.data.history import History
from deepseek_ops.data.pointer import DatasetPointer, pointer_text, read_pointer
from deepseek_ops.data.repository import DatasetRepository


@dataclass(frozen=True, slots=True)
class PointerMerge:
    """The text for the pointer file, and why it is a conflict; empty when it is none."""

    text: str
    problem: str = ""


def merge_pointers(
    base: str, ours: str, theirs: str, *, open_repository: Callable[[str], DatasetRepository], author: str
) -> PointerMerge:
    """Return the merge of three texts of one pointer file; an empty ``base`` is a file that both sides added."""
    if theirs == base or ours == theirs:
        return PointerMerge(ours)
    if ours == base:
        return PointerMerge(theirs)
    try:
        mine, other = read_pointer(ours, file="ours"), read_pointer(theirs, file="theirs")
    except ConfigError as error:
        return _conflict(ours, theirs, str(error))
    if (mine.name, mine.store) != (other.name, other.store):
        return _conflict(ours, theirs, "the sides name different datasets or stores")
    if mine.version == other.version:
        return PointerMerge(ours)
    try:
        return PointerMerge(pointer_text(_merged(open_repository(mine.store), mine, other, author)))
    except DeepSeekOpsError as error:
        return _conflict(ours, theirs, str(error))


def _merged(repository: DatasetRepository, ours: DatasetPointer, theirs: DatasetPointer, author: str) -> DatasetPointer:
    history = History(repository.store)
    if history.is_ancestor(ours.version, theirs.version):
        return theirs
    if history.is_ancestor(theirs.version, ours.version):
        return ours
    branch = f"merge-{ours.version[:16]}-{theirs.version[:16]}"
    with suppress(BranchExistsError):  # the same merge, done before
        repository.branch(ours.name, branch, ours.version)
    result = repository.merge(ours.name, theirs.version, into=branch, author=author)
    return DatasetPointer.of(result.version, ours.store)


def _conflict(ours: str, theirs: str, problem: str) -> PointerMerge:
    reason = "".join(f"# {line}\n" for line in problem.splitlines())
    return PointerMerge(f"{reason}<<<<<<< ours\n{ours}=======\n{theirs}>>>>>>> theirs\n", problem)
