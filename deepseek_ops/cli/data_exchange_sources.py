"""What ``data import`` can read, by name."""

from __future__ import annotations

import configparser
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.errors import ConfigError, IntegrityError
from deepseek_ops.core.ports import ObjectStore, Progress
from deepseek_ops.core.records import DatasetVersion
from deepseek_ops.data import DatasetRepository
from deepseek_ops.data.blobs import hash_file
from deepseek_ops.data.exchange import (
    DvcObjects,
    DvcSource,
    Limits,
    Origin,
    archive_members,
    commit_arriving,
    folder_files,
    import_dvc,
    import_dvc_history,
    prefix_files,
    revisions_of,
)
from deepseek_ops.data.exchange.dvc_import import LINEAGE
from deepseek_ops.data.snapshot import SplitOf


@dataclass(frozen=True, slots=True)
class Import:
    """One call of ``data import``."""

    repository: DatasetRepository
    source: str
    origin: Origin
    split_of: SplitOf
    remotes: tuple[str, ...]
    history: bool
    sha256: str
    case_sensitive: bool
    scratch: Path
    progress: Progress | None

    def noted(self, **facts: JsonValue) -> Origin:
        """Return the origin with what is known about the source in its lineage; no path of this machine is."""
        return replace(self.origin, lineage={LINEAGE: dict(facts)})


def guess_source(source: str) -> str:
    """Return the format of a source: a prefix, a .dvc file, a folder, or else an archive."""
    if "://" in source:
        return "archive" if source.endswith((".tar", ".tgz", ".gz", ".zst", ".bz2", ".zip")) else "prefix"
    path = Path(source)
    if path.suffix == ".dvc":
        return "dvc"
    return "folder" if path.is_dir() else "archive"


def import_from(job: Import, kind: str) -> list[DatasetVersion]:
    """Make the version, or with a history the versions, and return them."""
    readers: dict[str, Callable[[Import], list[DatasetVersion]]] = {
        "dvc": _dvc,
        "archive": _archive,
        "folder": _folder,
        "hf": _hugging_face,
        "prefix": _prefix,
    }
    return readers[kind](job)


def _folder(job: Import) -> list[DatasetVersion]:
    made = job.repository.commit(
        Path(job.source),
        name=job.origin.name,
        message=job.origin.message,
        author=job.origin.author,
        branch=job.origin.branch,
        split_of=job.split_of,
    )
    return [made]


def _hugging_face(job: Import) -> list[DatasetVersion]:
    files = folder_files(Path(job.source), split_of=job.split_of, case_sensitive=job.case_sensitive)
    origin = job.noted(kind="hugging-face-folder")
    return [commit_arriving(job.repository, files, origin, source=job.source, progress=job.progress)]


def _prefix(job: Import) -> list[DatasetVersion]:
    source = open_store(job.source)
    files = prefix_files(source, split_of=job.split_of, case_sensitive=job.case_sensitive)
    origin = job.noted(kind="prefix", uri=source.uri)
    return [commit_arriving(job.repository, files, origin, source=source.uri, progress=job.progress)]


def _archive(job: Import) -> list[DatasetVersion]:
    path = _fetched(job)
    digest, _ = hash_file(path)
    if job.sha256 and digest != job.sha256:
        raise IntegrityError(job.source, job.sha256, digest)
    files = archive_members(path, limits=Limits(), case_sensitive=job.case_sensitive, split_of=job.split_of)
    origin = job.noted(kind="archive", file=path.name, sha256=digest)
    made = commit_arriving(job.repository, files, origin, source=path.name, sequential=True, progress=job.progress)
    return [made]


def _fetched(job: Import) -> Path:
    if "://" not in job.source:
        return Path(job.source)
    prefix, _, name = job.source.rpartition("/")
    target = job.scratch / name
    open_store(prefix).download(name, target)
    return target


def _dvc(job: Import) -> list[DatasetVersion]:
    path = Path(job.source)
    objects = DvcObjects([open_store(uri) for uri in job.remotes] or dvc_stores(path))
    source = DvcSource(objects, path.name, job.split_of, job.case_sensitive)
    if job.history:
        return import_dvc_history(job.repository, source, revisions_of(path), job.origin, progress=job.progress)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), 0, "", f"cannot be read ({error}).", "Give the path of a .dvc file.") from None
    return [import_dvc(job.repository, source, text, job.origin, progress=job.progress)]


def dvc_stores(dvc_file: Path) -> list[ObjectStore]:
    """Return the cache and the default remote of the DVC repository that a .dvc file lies in.

    Raises ConfigError when there is none, or its remote is of a kind that no store here speaks.
    """
    root = next((folder for folder in dvc_file.resolve().parents if (folder / ".dvc").is_dir()), None)
    if root is None:
        raise ConfigError(str(dvc_file), 0, "", "lies in no DVC repository.", "Name its cache or remote with --remote.")
    config = configparser.ConfigParser()
    for name in ("config", "config.local"):
        config.read(root / ".dvc" / name, encoding="utf-8")
    cache = config.get("cache", "dir", fallback="cache")
    stores = [open_store(str((root / ".dvc" / cache).resolve()))]
    remote = config.get("core", "remote", fallback="")
    if remote:
        url = config.get(f"'remote \"{remote}\"'", "url", fallback="")
        stores.append(open_store(url if "://" in url else str((root / ".dvc" / url).resolve())))
    return stores
