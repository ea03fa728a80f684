"""The code of a result in a folder, from the store: what is left when no repository has the commit any more."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.pipeline.lineage_evidence import code_files
from deepseek_ops.pipeline.lineage_sources import Sources
from deepseek_ops.pipeline.lineage_targets import find_subject


@dataclass(eq=False)
class CodeGoneError(PermanentError):
    """A result whose code was never kept in the store."""

    target: str
    commit: str
    repository: str

    def __str__(self) -> str:
        return (
            f"the store holds no copy of the code of {self.target!r}; "
            f"check out commit {self.commit[:12] or '(not known)'} of {self.repository or 'its repository'} instead."
        )


@dataclass(eq=False)
class FolderTakenError(PermanentError):
    """Something is where the code is to be written."""

    folder: str

    def __str__(self) -> str:
        return f"{self.folder} is not a new or empty folder; choose another one."


def restore_code(sources: Sources, target: str, folder: Path) -> dict[str, JsonValue]:
    """Write the files of the commit below ``folder`` and return what they are.

    Weights that were pushed with Git LFS come along: they are objects of the same store. Every file is verified.
    The folder is new or empty before, and complete afterwards or not there. Raises UnknownTargetError, CodeGoneError,
    FolderTakenError, IntegrityError, ObjectNotFoundError.
    """
    subject = find_subject(sources, target)
    manifest, evidence = subject.manifest, subject.evidence
    if evidence is None or manifest is None:
        source = manifest.source if manifest else None
        raise CodeGoneError(target, source.commit if source else "", source.repository if source else "")
    files = code_files(sources.stores.blobs, evidence)
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise FolderTakenError(str(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        sources.stores.blobs.fetch_folder(files, Path(scratch) / "code")
        (Path(scratch) / "code").rename(folder)
    return {
        "run": subject.run,
        "repository": manifest.source.repository,
        "commit": manifest.source.commit,
        "tree": manifest.tree,
        "code": evidence.code,
        "files": len(files.files),
        "bytes": files.num_bytes,
        "target": str(folder),
    }
