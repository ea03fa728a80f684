"""Keys that several packages must agree on: the content-addressed space of datasets, models and Git LFS."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_ops.core.records import Digest


def blob_key(digest: Digest) -> str:
    """Return the key of a blob. It is the layout of ``.git/lfs/objects``: an LFS object id names one of our objects."""
    return f"objects/sha256/{digest[:2]}/{digest[2:4]}/{digest}"


def lfs_root_key(repository: str, digest: Digest) -> str:
    """Return the key of the note that a Git repository has pushed this LFS object.

    Only Git knows which commits name an LFS object. The note keeps the object from being collected until somebody who
    has looked into the repository says that nothing there names it any more.
    """
    return f"refs/lfs/{repository}/{digest}"


LFS_ROOTS = "refs/lfs/"
"""Prefix of these notes."""
