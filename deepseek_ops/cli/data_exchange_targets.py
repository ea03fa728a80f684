"""What ``data export`` can write, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from pydantic import JsonValue

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.adapters.stores.uris import StoreUri
from deepseek_ops.core.errors import ConfigError, DeepSeekOpsError
from deepseek_ops.core.ports import Progress
from deepseek_ops.core.records import DatasetVersion
from deepseek_ops.data import DatasetRepository, Stored
from deepseek_ops.data.checkout import write_folder
from deepseek_ops.data.exchange import (
    archive_format,
    export_dvc,
    export_prefix,
    manifest_format,
    stored_in_order,
    write_archive,
    write_manifest,
)
from deepseek_ops.data.exchange.archives import ArchiveFormat, write_whole
from deepseek_ops.data.exchange.hugging_face import CARD, dataset_card
from deepseek_ops.data.exchange.manifest import ManifestFormat

Body = dict[str, JsonValue]
MAX_COPY_BYTES = 5 << 30
"""One server-side copy of S3 takes no more."""


@dataclass(frozen=True, slots=True)
class Export:
    """One call of ``data export``."""

    repository: DatasetRepository
    version: DatasetVersion
    store_uri: str
    target: str
    patterns: tuple[str, ...]
    split: str
    dvc_file: Path | None

    def files(self) -> Iterator[Stored]:
        """Yield what is to be written, in path order."""
        tree = self.repository.tree(self.version.version)
        return stored_in_order(tree, self.patterns, split=self.split)

    @property
    def path(self) -> Path:
        """The target as a path of this machine. Raises ConfigError."""
        if "://" in self.target:
            raise ConfigError(self.target, 0, "", "is a URI.", "This format is written to a file or folder here.")
        return Path(self.target)


def guess_target(target: str) -> str:
    """Return the format that a target's name asks for: an archive, a table, a prefix, or else a folder."""
    if "://" in target:
        return "prefix"
    path = Path(target)
    return archive_format(path) or manifest_format(path) or "folder"


def export_to(job: Export, kind: str, progress: Progress | None) -> Body:
    """Write the version and return what was done. Raises errors of the formats."""
    writers: dict[str, Callable[[Export, Progress | None], Body]] = {
        "dvc": _dvc,
        "folder": _folder,
        "hf": _hugging_face,
        "prefix": _prefix,
        **{kind: _archive(kind) for kind in get_args(ArchiveFormat)},
        **{kind: _table(kind) for kind in get_args(ManifestFormat)},
    }
    return writers[kind](job, progress)


def _archive(kind: ArchiveFormat) -> Callable[[Export, Progress | None], Body]:
    return lambda job, _: asdict(write_archive(job.repository.store, job.files(), job.path, kind))


def _table(kind: ManifestFormat) -> Callable[[Export, Progress | None], Body]:
    return lambda job, _: asdict(write_manifest(job.files(), job.path, kind))


def _folder(job: Export, progress: Progress | None) -> Body:
    write_folder(job.repository.store, job.files(), job.path, progress=progress)
    return {"path": str(job.path)}


def _hugging_face(job: Export, progress: Progress | None) -> Body:
    files = list(job.files())
    write_folder(job.repository.store, files, job.path, progress=progress)
    card = dataset_card(job.version, [file.entry for file in files])
    if card is not None:
        write_whole(job.path / CARD, lambda file: _write(file.write, card))
    return {"path": str(job.path), "card": card is not None}


def _write(write: Callable[[bytes], int], text: str) -> None:
    write(text.encode())


def _prefix(job: Export, progress: Progress | None) -> Body:
    return asdict(export_prefix(job.repository.store, job.files(), open_store(job.target), progress=progress))


def _dvc(job: Export, progress: Progress | None) -> Body:
    if job.patterns or job.split:
        raise ConfigError("--pattern/--split", 0, "", "a DVC folder is a whole version.", "Leave them out.")
    version = job.version
    place = job.dvc_file or Path(f"{version.name}.dvc")
    remote = job.target if "://" in job.target else str(Path(job.target).absolute())
    done = export_dvc(
        job.repository.store,
        job.repository.tree(version.version),
        open_store(remote),
        path=place.name.removesuffix(".dvc"),
        dataset=version.name,
        version=version.version,
        copy=server_side_copy(job.store_uri, remote),
        progress=progress,
    )
    write_replacing(place, done.text)
    body = asdict(done)
    del body["text"]
    return {"dvc_file": str(place), "remote": job.target, **body}


def write_replacing(path: Path, text: str) -> None:
    """Write a small text file; a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def server_side_copy(source: str, target: str) -> Callable[[str, str], bool] | None:
    """Return what copies between two prefixes of one bucket within the server; None where that cannot be.

    A folder of this machine gives its files to a store of this machine without a scratch file in between.
    """
    here, there = StoreUri.parse(_uri(source)), StoreUri.parse(target)
    if here.kind == "file":
        sink = open_store(target)

        def put(key: str, other: str) -> bool:
            sink.put_blob(other, here.folder / key)
            return True

        return put
    if there.kind != "s3" or here.bucket != there.bucket:
        return None
    return _bucket_copy(here, there)


def _bucket_copy(here: StoreUri, there: StoreUri) -> Callable[[str, str], bool]:
    import os

    import obstore

    from deepseek_ops.adapters.stores.opening import CREDENTIAL_VARIABLES
    from deepseek_ops.adapters.stores.s3_client import connect

    client = connect(
        here, {name: os.environ[name] for name in CREDENTIAL_VARIABLES if name in os.environ}, with_prefix=False
    )
    source = open_store(str(here))

    def copy(key: str, other: str) -> bool:
        info = source.head(key)
        if info is None or info.size > MAX_COPY_BYTES:
            return False
        try:
            obstore.copy(client, _below(here.prefix, key), _below(there.prefix, other))
        except (obstore.exceptions.BaseError, DeepSeekOpsError):
            return False  # a server without copy: the bytes are sent instead
        return True

    return copy


def _below(prefix: str, key: str) -> str:
    return f"{prefix}/{key}" if prefix else key


def _uri(text: str) -> str:
    return text if "://" in text else str(Path(text).absolute())
