"""What the registry holds, read from the store alone: it answers without any database."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deepseek_ops.core.errors import IntegrityError, InvalidRecordError, ObjectNotFoundError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest, FileEntry, ModelVersion, SemVer, digest_of
from deepseek_ops.registry.aliases import head
from deepseek_ops.registry.bundle import Bundle, parse_bundle
from deepseek_ops.registry.errors import InvalidBundleError, VersionNotFoundError
from deepseek_ops.registry.layout import bundle_key, claimed_versions, folder_key, plain_version

_WORKERS = 8
_RANGE_BYTES = 16 << 20


def read_bundle(store: ObjectStore, version: str, *, digest: Digest | None = None) -> Bundle:
    """Return a committed bundle, and with ``digest`` only that one.

    Raises VersionNotFoundError, and IntegrityError when bundle.json is not what was committed.
    """
    number = plain_version(version)
    key = bundle_key(number)
    try:
        data = store.get(key)
    except ObjectNotFoundError as error:
        raise VersionNotFoundError(store.uri, f"v{number}", tuple(committed_versions(store))) from error
    if digest is not None and digest_of(data) != digest:
        raise IntegrityError(f"{store.uri}/{key}", digest, digest_of(data))
    return parse_bundle(data, where=f"{store.uri}/{key}")


def committed_versions(store: ObjectStore) -> list[SemVer]:
    """Return the numbers of the visible versions, lowest first."""
    claimed = claimed_versions(store)
    with ThreadPoolExecutor(_WORKERS) as pool:
        present = pool.map(lambda version: store.head(bundle_key(version)) is not None, claimed)
        return [version for version, there in zip(claimed, present, strict=True) if there]


def versions(store: ObjectStore, name: str | None = None) -> list[ModelVersion]:
    """Return the visible versions, of one model or of all, newest first. Raises IntegrityError for a damaged one."""
    numbers = committed_versions(store)
    with ThreadPoolExecutor(_WORKERS) as pool:
        found = [bundle.model_version() for bundle in pool.map(lambda one: read_bundle(store, one), numbers)]
    return [version for version in reversed(found) if name in (None, version.name)]


def resolve(store: ObjectStore, name: str, selector: str) -> ModelVersion:
    """Return the version that a number (``1.2.0``, ``v1.2.0``) or an alias (``champion``) names now.

    Raises VersionNotFoundError, and IntegrityError when the alias' bundle is not the one it was set to.
    """
    try:
        number, digest = plain_version(selector), None
    except InvalidRecordError:
        entry = head(store, name, selector)
        if entry is None:
            known = tuple(committed_versions(store))
            raise VersionNotFoundError(store.uri, f"alias {selector!r} of {name}", known) from None
        number, digest = entry.version, entry.bundle
    bundle = read_bundle(store, number, digest=digest)
    if bundle.name != name:
        raise InvalidBundleError("name", name, f"v{number} of {store.uri} is a version of {bundle.name}")
    return bundle.model_version()


def fetch(store: ObjectStore, bundle: Bundle, form: str, target: Path) -> None:
    """Write one format's files below ``target``, each verified, from the bundle's own folder.

    Needs no other store: a bundle that was copied elsewhere is enough. Raises IntegrityError, ObjectNotFoundError.
    """
    folder = f"{folder_key(bundle.version)}{form}/"

    def download(entry: FileEntry) -> None:
        path = target / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        store.download(folder + entry.path, path)
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != entry.digest:
            path.unlink()
            raise IntegrityError(f"{store.uri}/{folder}{entry.path}", entry.digest, actual)

    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(download, bundle.files_of(form).files))


def stored_digest(store: ObjectStore, key: str, size: int) -> Digest:
    """Return the SHA-256 of an object's ``size`` bytes, read in ranges: memory stays small for any model."""
    seen = hashlib.sha256()
    for start in range(0, size, _RANGE_BYTES):
        seen.update(store.get(key, start=start, length=min(_RANGE_BYTES, size - start)))
    return seen.hexdigest()
