"""Dataset versions: manifests, packs, snapshots, splits and checks over an ObjectStore.

``DatasetRepository`` is what most callers need; ``StoreBlobs`` stores sets of files that are no dataset (models,
checkpoints) in the same content-addressed space. ``layout`` says where everything lies, ``pages`` why comparing two
versions of a large dataset is cheap, ``committing`` why nothing is lost when writers race or die.
"""

from deepseek_ops.data.blobs import StoreBlobs
from deepseek_ops.data.branching import BranchExistsError, BranchNotFoundError, MergeResult, OtherDatasetError
from deepseek_ops.data.cache import CACHE_SIZE_VARIABLE, CACHE_VARIABLE, ObjectCache
from deepseek_ops.data.checkout import NothingSelectedError, TargetNotEmptyError, VerifyReport
from deepseek_ops.data.committing import BranchContendedError, BranchMovedError
from deepseek_ops.data.folders import ChangedWhileReadError, UnsafeTargetError, UnstorableFileError
from deepseek_ops.data.guard import (
    DatasetChangedError,
    DatasetMismatchError,
    require_pointed,
    require_unchanged,
    require_version,
    verify_folder,
)
from deepseek_ops.data.history import LogEntry
from deepseek_ops.data.layout import UnknownFormatError, UnsafeStoreError, blob_key
from deepseek_ops.data.materialise import Materialised, NoSuchSplitError, materialise
from deepseek_ops.data.merge import MergeConflict, MergeConflictError, Preference
from deepseek_ops.data.naming import InvalidNameError, VersionNotFoundError
from deepseek_ops.data.packs import Stored
from deepseek_ops.data.pointer import DatasetPointer, pointer_path, pointer_text, read_pointer
from deepseek_ops.data.reading import NoSuchFileError
from deepseek_ops.data.refs import TagMovedError
from deepseek_ops.data.repository import DatasetRepository
from deepseek_ops.data.snapshot import EmptyDatasetError
from deepseek_ops.data.split import SplitWeightsError, assign_split
from deepseek_ops.data.switching import Switched, UncommittedChangesError, recover, switch
from deepseek_ops.data.trees import DatasetDiff
from deepseek_ops.data.worktree import NotAWorktreeError, Status, Worktree, WorktreeBusyError, WorktreeRecord
from deepseek_ops.data.worktree_commit import Committed, NoBranchError, commit_worktree

__all__ = [
    "CACHE_SIZE_VARIABLE",
    "CACHE_VARIABLE",
    "BranchContendedError",
    "BranchExistsError",
    "BranchMovedError",
    "BranchNotFoundError",
    "ChangedWhileReadError",
    "Committed",
    "DatasetChangedError",
    "DatasetDiff",
    "DatasetMismatchError",
    "DatasetPointer",
    "DatasetRepository",
    "EmptyDatasetError",
    "InvalidNameError",
    "LogEntry",
    "Materialised",
    "MergeConflict",
    "MergeConflictError",
    "MergeResult",
    "NoBranchError",
    "NoSuchFileError",
    "NoSuchSplitError",
    "NotAWorktreeError",
    "NothingSelectedError",
    "ObjectCache",
    "OtherDatasetError",
    "Preference",
    "SplitWeightsError",
    "Status",
    "StoreBlobs",
    "Stored",
    "Switched",
    "TagMovedError",
    "TargetNotEmptyError",
    "UncommittedChangesError",
    "UnknownFormatError",
    "UnsafeStoreError",
    "UnsafeTargetError",
    "UnstorableFileError",
    "VerifyReport",
    "VersionNotFoundError",
    "Worktree",
    "WorktreeBusyError",
    "WorktreeRecord",
    "assign_split",
    "blob_key",
    "commit_worktree",
    "materialise",
    "pointer_path",
    "pointer_text",
    "read_pointer",
    "recover",
    "require_pointed",
    "require_unchanged",
    "require_version",
    "switch",
    "verify_folder",
]
