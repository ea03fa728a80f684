"""The batch API: which objects are here, which may come, and how. Objects are blobs of the store, nothing else.

**What keeps an object.** Only Git knows which commits name an LFS object, so a note under ``refs/lfs/`` claims it for
a repository, and a collection of garbage takes the notes for roots. Two cases:

- *It is here already.* It may be old, named by nobody, and about to be deleted. So the look and the note happen in a
  writer's block (``guard``): a collection either waits for the end of the block and then reads the note, or was seen
  by us, and then ``head`` waits until it has deleted or spared the object. Only then is the client told "no upload".
- *It has just come.* A collection spares what is younger than its grace (days), and the note follows within minutes.
  Only when the object is not young, because the client came back late, is the writer's block needed again. An upload
  that is never verified leaves no note, and is collected when the grace is over.

**Who may read.** The store holds more than one repository's objects. A repository can read what it has claimed; a
claim needs a token that writes. So a token that only reads one repository does not open the others' weights.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from deepseek_ops.adapters.git_lfs.links import Links
from deepseek_ops.adapters.git_lfs.problems import LfsRequestError
from deepseek_ops.adapters.git_lfs.tokens import Grant
from deepseek_ops.core.errors import ObjectExistsError
from deepseek_ops.core.objects import blob_key, lfs_root_key
from deepseek_ops.core.ports import ObjectInfo, ObjectStore
from deepseek_ops.core.records import Digest, Record, canonical_json

WORKERS = 8
_OID = re.compile(r"[0-9a-f]{64}")
YOUNG_SECONDS = 600.0
"""Far below the grace of any collection."""
Guard = Callable[[], AbstractContextManager[ObjectStore]]
"""A writer's block: what its store is seen to hold is not collected before the block's notes are read."""


class WireObject(BaseModel):
    """An object as a client names it. What is wrong with one object is answered for that object alone."""

    model_config = ConfigDict(frozen=True)
    oid: Annotated[str, Field(max_length=200)]
    size: int


class BatchRequest(BaseModel):
    """A batch request; what later versions of the protocol add is ignored."""

    model_config = ConfigDict(frozen=True)
    operation: Annotated[str, Field(max_length=100)]
    objects: tuple[WireObject, ...]
    transfers: tuple[str, ...] | None = None
    hash_algo: str = "sha256"


class ObjectLimits(Record):
    """How much a client may ask for."""

    max_objects: int = Field(default=1000, ge=1, description="Objects in one batch request; git-lfs sends 100.")
    max_object_bytes: int = Field(default=1 << 40, ge=1, description="Size of one object.")


Answer = Callable[[WireObject], dict[str, JsonValue]]


class LfsObjects:
    """Answers batch and verify requests. Safe for use by many threads."""

    def __init__(
        self,
        store: ObjectStore,
        links: Links,
        limits: ObjectLimits,
        *,
        guard: Guard,
        shared_reads: bool = False,
    ) -> None:
        self._store = store
        self._links = links
        self._limits = limits
        self._guard = guard
        self._shared_reads = shared_reads

    def batch(self, grant: Grant, request: BatchRequest, base: str) -> dict[str, JsonValue]:
        """Return the answer; ``base`` is the repository's URL on this server. Raises LfsRequestError."""
        if request.operation not in ("upload", "download"):
            raise LfsRequestError(422, "operation must be upload or download")
        if request.hash_algo != "sha256":
            raise LfsRequestError(409, "objects are named by sha256 here")
        if request.transfers and "basic" not in request.transfers:
            raise LfsRequestError(422, "only the basic transfer is served here")
        if len(request.objects) > self._limits.max_objects:
            raise LfsRequestError(413, f"a batch may name {self._limits.max_objects} objects")
        if request.operation == "upload" and not grant.may_write:
            raise LfsRequestError(403, f"this token may only read {grant.repository}")
        if request.operation == "download" or not request.objects:
            return self._answers(request.objects, lambda wanted: self._download(grant, wanted, base))
        with self._guard() as guarded:
            return self._answers(request.objects, lambda wanted: self._upload(guarded, grant, wanted, base))

    def _answers(self, objects: Sequence[WireObject], answer: Answer) -> dict[str, JsonValue]:
        def one(wanted: WireObject) -> dict[str, JsonValue]:
            named: dict[str, JsonValue] = {"oid": wanted.oid, "size": wanted.size}
            try:
                return {**named, **answer(self._checked(wanted))}
            except LfsRequestError as error:
                return {**named, "error": {"code": error.status, "message": error.message}}

        with ThreadPoolExecutor(WORKERS, thread_name_prefix="lfs") as pool:
            answers: list[JsonValue] = list(pool.map(one, objects))
        return {"transfer": "basic", "objects": answers, "hash_algo": "sha256"}

    def verify(self, repository: str, subject: str, oid: Digest, size: int) -> None:
        """Take note of an upload that is complete. Raises LfsRequestError: 404 when nothing came, 422 for its size."""
        info = self._found(self._store, oid, size)
        if info is not None and info.modified > time.time() - YOUNG_SECONDS:
            self.claim(repository, subject, oid, size)
            return
        with self._guard() as guarded:
            if self._found(guarded, oid, size) is None:
                raise LfsRequestError(404, f"{oid} has not been uploaded")
            self.claim(repository, subject, oid, size)

    def claim(self, repository: str, subject: str, oid: Digest, size: int) -> None:
        """Write the note that the repository has this object; who wrote it first stays on it."""
        note = canonical_json({"oid": oid, "repository": repository, "size": size, "by": subject})
        with suppress(ObjectExistsError):
            self._store.create(lfs_root_key(repository, oid), note)

    def readable(self, repository: str, oid: Digest, size: int) -> None:
        """Check that the repository may read the object and that it is here. Raises LfsRequestError (404, 422)."""
        claimed = self._shared_reads or self._store.head(lfs_root_key(repository, oid)) is not None
        if not claimed or self._found(self._store, oid, size) is None:
            raise LfsRequestError(404, f"{oid} is not here: push it from a clone that has it (git lfs push --all)")

    def _upload(self, guarded: ObjectStore, grant: Grant, wanted: WireObject, base: str) -> dict[str, JsonValue]:
        if wanted.size > self._limits.max_object_bytes:
            raise LfsRequestError(422, f"larger than the {self._limits.max_object_bytes} bytes allowed here")
        if self._found(guarded, wanted.oid, wanted.size) is not None:
            self.claim(grant.repository, grant.subject, wanted.oid, wanted.size)
            return {"authenticated": True}
        return {"authenticated": True, "actions": self._links.upload(grant, base, wanted.oid, wanted.size)}

    def _download(self, grant: Grant, wanted: WireObject, base: str) -> dict[str, JsonValue]:
        self.readable(grant.repository, wanted.oid, wanted.size)
        return {"authenticated": True, "actions": self._links.download(grant, base, wanted.oid, wanted.size)}

    @staticmethod
    def _found(store: ObjectStore, oid: Digest, size: int) -> ObjectInfo | None:
        info = store.head(blob_key(oid))
        if info is not None and info.size != size:
            raise LfsRequestError(422, f"{oid} has {info.size} bytes, not {size}: the pointer is wrong")
        return info

    @staticmethod
    def _checked(wanted: WireObject) -> WireObject:
        if not _OID.fullmatch(wanted.oid):
            raise LfsRequestError(422, "oid must be a SHA-256 in lower-case hex")
        if wanted.size < 0:
            raise LfsRequestError(422, "size must not be negative")
        return wanted
