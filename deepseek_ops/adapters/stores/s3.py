"""Objects in an S3 bucket, or in anything that speaks S3.

obstore does the everyday requests; every upload carries a SHA-256 that the server checks. Files above
``SINGLE_PUT_BYTES`` go up in parts that a next try finds again (``s3_parts``), which needs keys to sign with: where
only the machine's own role is known, an upload that was cut short begins anew.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from obstore.exceptions import AlreadyExistsError

from deepseek_ops.adapters.stores.clients import CONNECT_SECONDS, READ_SECONDS
from deepseek_ops.adapters.stores.failures import status_of
from deepseek_ops.adapters.stores.pace import jittered
from deepseek_ops.adapters.stores.remote import AGAIN_SECONDS, MAX_PARTS, PARALLEL_PARTS, PART_BYTES, RemoteStore
from deepseek_ops.adapters.stores.s3_client import connect, signing_place
from deepseek_ops.adapters.stores.s3_parts import PartedUpload, abort, open_uploads
from deepseek_ops.adapters.stores.s3_requests import S3Requests, parsed_xml
from deepseek_ops.adapters.stores.uris import StoreUri
from deepseek_ops.core.errors import StoreAccessError, StoreUnavailableError

DELETE_TRIES = 3
_TRY_AGAIN = ("InternalError", "SlowDown", "ServiceUnavailable", "OperationAborted")
_NAMED_KEYS = 3
"""So many refused keys are spelt out in an error."""


class S3Store(RemoteStore):
    """An ObjectStore on one bucket and prefix. Safe for use by many threads."""

    def __init__(self, uri: StoreUri, credentials: Mapping[str, str]) -> None:
        super().__init__(str(uri), connect(uri, credentials))
        self._prefix = f"{uri.prefix}/" if uri.prefix else ""
        place = signing_place(uri, credentials)
        self._requests = (
            S3Requests(self.uri, place, self._pace, connect_seconds=CONNECT_SECONDS, read_seconds=READ_SECONDS)
            if place
            else None
        )

    def _in_flight(self, error: AlreadyExistsError) -> bool:
        return status_of(str(error)) == 409

    def _put_in_parts(self, key: str, source: Path, size: int) -> None:
        if self._requests is None:
            super()._put_in_parts(key, source, size)
            return
        part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
        PartedUpload(self._requests, self._prefix + key, source, size, part_bytes, PARALLEL_PARTS).run()

    def drop_unfinished(self, older_than: float) -> int:
        """Abort the multipart uploads below this prefix that began so many seconds ago; return how many."""
        if self._requests is None:
            return 0
        oldest = time.time() - older_than
        stale = [upload for upload in open_uploads(self._requests, self._prefix) if upload.began <= oldest]
        for upload in stale:
            abort(self._requests, upload)
        return len(stale)

    def _delete_batch(self, paths: Sequence[str]) -> None:
        if self._requests is None:
            super()._delete_batch(paths)
            return
        refused: dict[str, str] = {}
        for attempt in range(DELETE_TRIES):
            if attempt:
                time.sleep(jittered(AGAIN_SECONDS, attempt))
            refused = self._refused(self._requests, paths)
            if any(code not in _TRY_AGAIN for code in refused.values()):
                break
            paths = list(refused)
            if not paths:
                return
        raise self._not_deleted(refused)

    def _refused(self, requests: S3Requests, paths: Sequence[str]) -> dict[str, str]:
        """Send one deletion; return key -> code of what was not deleted."""
        rows = "".join(f"<Object><Key>{escape(self._prefix + path)}</Key></Object>" for path in paths)
        body = f"<Delete><Quiet>true</Quiet>{rows}</Delete>".encode()
        answer = requests.send("POST", "", {"delete": ""}, body)
        if not answer.is_success:
            raise StoreAccessError(self.uri, f"deleting: HTTP {answer.status_code}")
        failed = parsed_xml(answer, self.uri).iterfind("{*}Error")
        codes = {row.findtext("{*}Key") or "": row.findtext("{*}Code") or "unknown" for row in failed}
        return {key.removeprefix(self._prefix): code for key, code in codes.items() if code != "NoSuchKey"}

    def _not_deleted(self, refused: Mapping[str, str]) -> StoreAccessError | StoreUnavailableError:
        named = ", ".join(f"{key} ({code})" for key, code in list(refused.items())[:_NAMED_KEYS])
        more = f" and {len(refused) - _NAMED_KEYS} more" if len(refused) > _NAMED_KEYS else ""
        problem = f"{len(refused)} objects were not deleted: {named}{more}"
        transient = all(code in _TRY_AGAIN for code in refused.values())
        return StoreUnavailableError(self.uri, problem) if transient else StoreAccessError(self.uri, problem)
