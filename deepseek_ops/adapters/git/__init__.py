"""The Git adapter: any host over https, ssh or file, through the git program and no clone.

Decisions that bind the rest: refs are read with one request; contents and trees come through a small blobless mirror
that may be deleted at any time; writing is always a real push with leases, so two writers never lose each other's work;
everything a repository says (names, paths, messages) is hostile until checked here.
"""

from __future__ import annotations

from deepseek_ops.adapters.git.errors import (
    CheckoutTargetError,
    GitBinaryMissingError,
    GitCommandError,
    RepositoryAddressError,
    TagConflictError,
    UnsafePathError,
    UnsafeTreeError,
)
from deepseek_ops.adapters.git.journal import Clone, open_clone
from deepseek_ops.adapters.git.merging import UnrelatedHistoriesError
from deepseek_ops.adapters.git.repository import GitRepository, open_git
from deepseek_ops.adapters.git.signing import SigningError

__all__ = [
    "CheckoutTargetError",
    "Clone",
    "GitBinaryMissingError",
    "GitCommandError",
    "GitRepository",
    "RepositoryAddressError",
    "SigningError",
    "TagConflictError",
    "UnrelatedHistoriesError",
    "UnsafePathError",
    "UnsafeTreeError",
    "open_clone",
    "open_git",
]
