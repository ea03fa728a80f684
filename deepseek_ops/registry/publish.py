"""From a run to a committed version: claim a number, copy the files, write bundle.json last.

Each step is create-only and finds what an earlier try left, so a process may be killed anywhere:

1. ``versions/v<n>.json`` claims the number and holds the whole bundle to be published. The claim decides what is
   published: a second try of the same run goes on with the first one's bundle, even if it exported anew meanwhile.
2. ``identities/<digest>.json`` says which number the run got; of two tries at once, the second follows the first.
3. The files go to ``v<n>/``.
4. ``v<n>/bundle.json`` makes the version visible.

A number is never given out twice. One that was claimed and not committed stays unused unless its run is tried again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deepseek_ops.core.errors import IntegrityError, ObjectExistsError, ObjectNotFoundError
from deepseek_ops.core.ports import Blobs, ObjectStore
from deepseek_ops.core.records import (
    Checkpoint,
    Digest,
    Evaluation,
    ExportedModel,
    FileEntry,
    FileSet,
    RunManifest,
    SemVer,
    canonical_json,
    digest_of,
)
from deepseek_ops.registry.bundle import (
    CARD,
    Bundle,
    all_metrics,
    checked_evaluations,
    complete_exports,
    identity_of,
    parse_bundle,
)
from deepseek_ops.registry.card import model_card
from deepseek_ops.registry.errors import VersionRaceError
from deepseek_ops.registry.layout import (
    Bump,
    bundle_key,
    claim_key,
    claimed_versions,
    folder_key,
    identity_key,
    next_version,
)
from deepseek_ops.registry.weights import summarise_model

_TRIES = 50
_WORKERS = 4


def publish(
    store: ObjectStore,
    blobs: Blobs,
    *,
    manifest: RunManifest,
    checkpoint: Checkpoint,
    exports: Sequence[ExportedModel],
    evaluations: Sequence[Evaluation],
    metrics: Mapping[str, float],
    bump: Bump,
) -> Bundle:
    """Return the committed bundle of this run: the one that exists, or a new one with the next number.

    Raises InvalidBundleError, VersionRaceError; ObjectNotFoundError and IntegrityError for a file that ``blobs`` lacks.
    """
    exports = complete_exports(checkpoint, exports)
    evaluations = checked_evaluations(checkpoint, evaluations)
    identity = identity_of(manifest, checkpoint)
    version = _known_version(store, identity)
    if version is None:
        version = _claim(
            store,
            blobs,
            Bundle(
                name=manifest.name,
                version="0.0.0",
                manifest=manifest,
                checkpoint=checkpoint,
                exports=exports,
                evaluations=evaluations,
                metrics=all_metrics(checkpoint, evaluations, metrics),
                weights=summarise_model(blobs, checkpoint.model),
                card=FileEntry(path=CARD, size=0, digest=digest_of(b"")),
            ),
            bump,
        )
        version = _bind(store, identity, version)
    key = claim_key(version)
    bundle = parse_bundle(store.get(key), where=f"{store.uri}/{key}")
    if store.head(bundle_key(version)) is None:
        _copy_files(store, blobs, bundle)
    _commit(store, bundle)
    return bundle


def _known_version(store: ObjectStore, identity: Digest) -> SemVer | None:
    try:
        return str(json.loads(store.get(identity_key(identity)))["version"])
    except ObjectNotFoundError:
        return None


def _claim(store: ObjectStore, blobs: Blobs, draft: Bundle, bump: Bump) -> SemVer:
    """Return the number that is ours now; the draft, numbered and with its card, stands in the claim."""
    for _ in range(_TRIES):
        version = next_version(claimed_versions(store), bump)
        card = model_card(
            version=version,
            manifest=draft.manifest,
            checkpoint=draft.checkpoint,
            exports=draft.exports,
            evaluations=draft.evaluations,
            weights=draft.weights,
        ).encode()
        entry = FileEntry(path=CARD, size=len(card), digest=blobs.put(card))
        try:
            store.create(claim_key(version), draft.evolve(version=version, card=entry).stored())
        except ObjectExistsError:
            continue
        return version
    raise VersionRaceError(store.uri, _TRIES)


def _bind(store: ObjectStore, identity: Digest, version: SemVer) -> SemVer:
    """Return the run's number: ours, or that of another try of the same run that was faster."""
    try:
        store.create(identity_key(identity), canonical_json({"version": version}))
    except ObjectExistsError:
        return _known_version(store, identity) or version
    return version


def _copy_files(store: ObjectStore, blobs: Blobs, bundle: Bundle) -> None:
    """Copy what is not there yet. A key below the version's folder only ever gets the bytes its claim names."""
    folder = folder_key(bundle.version)
    present = {info.key: info.size for info in store.list(folder)}

    def copy(entry: FileEntry) -> None:
        # One file at a time on this machine's disk: a model may be larger than what is free.
        with tempfile.TemporaryDirectory(prefix="deepseek-ops-registry-") as scratch:
            blobs.fetch_folder(FileSet(files=(entry,)), Path(scratch))
            store.put_blob(folder + entry.path, Path(scratch) / entry.path)

    missing = [entry for entry in bundle.files if present.get(folder + entry.path) != entry.size]
    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(copy, missing))


def _commit(store: ObjectStore, bundle: Bundle) -> None:
    key, data = bundle_key(bundle.version), bundle.stored()
    try:
        store.create(key, data)
    except ObjectExistsError:
        if (actual := digest_of(store.get(key))) != digest_of(data):
            raise IntegrityError(f"{store.uri}/{key}", digest_of(data), actual) from None
