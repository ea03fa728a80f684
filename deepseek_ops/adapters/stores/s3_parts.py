"""Uploads of large files that go on where a killed process was.

The parts of an S3 multipart upload stay on the server until it is completed or aborted. The next try lists the open
uploads of its key, keeps the parts whose checksum is that of the same part of its own file, and sends the others. Who
tries and when does not matter: equal bytes are cut into equal parts, and two who work on one upload, or finish it
before the other, store the same object. An upload nobody went on with is aborted after some days.
"""

from __future__ import annotations

import hashlib
import time
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from deepseek_ops.adapters.stores.disk import read_source
from deepseek_ops.adapters.stores.failures import code_of
from deepseek_ops.adapters.stores.keys import NamedDigestCheck
from deepseek_ops.adapters.stores.s3_requests import S3Requests, parsed_xml
from deepseek_ops.core.errors import IntegrityError, StoreAccessError, StoreUnavailableError

if TYPE_CHECKING:
    import httpx

STALE_SECONDS = 7 * 24 * 3600.0
"""An upload this old is nobody's any more."""
UPLOAD_TRIES = 3
JOINABLE = 3
"""So many open uploads of a key are looked at for parts."""


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """A multipart upload that was neither completed nor aborted."""

    path: str
    upload: str
    began: float
    """Unix seconds, by the server's clock."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part the server has."""

    size: int
    etag: str
    sha256: str
    """Base64; empty where the server does not say."""


class UploadGoneError(Exception):
    """The upload was completed or aborted by somebody else; never leaves this module."""


class PartedUpload:
    """One file on its way to one key."""

    def __init__(
        self, requests: S3Requests, path: str, source: Path, size: int, part_bytes: int, parallel: int
    ) -> None:
        self._requests = requests
        self._path = path
        self._source = source
        self._size = size
        self._part_bytes = part_bytes
        self._parallel = parallel

    def run(self) -> None:
        """Store the file. Raises IntegrityError when it no longer has the digest in its key."""
        for _ in range(UPLOAD_TRIES):
            upload, present = self._joined() or (self._begin(), {})
            try:
                etags = self._send(upload, present)
                self._complete(upload, etags)
            except UploadGoneError:
                if self._stored():  # by somebody who had the same bytes
                    return
            except IntegrityError:
                abort(self._requests, OpenUpload(self._path, upload, 0.0))  # its parts are of another file
                raise
            else:
                return
        raise StoreUnavailableError(self._requests.uri, f"the upload of {self._path} was aborted by somebody, again")

    def _joined(self) -> tuple[str, dict[int, Part]] | None:
        """Return the newest open upload of this key whose parts are cut as ours are, after aborting stale ones."""
        mine = [upload for upload in open_uploads(self._requests, self._path) if upload.path == self._path]
        oldest = time.time() - STALE_SECONDS
        for upload in mine:
            if upload.began < oldest:
                abort(self._requests, upload)
        young = sorted((upload for upload in mine if upload.began >= oldest), key=lambda found: -found.began)
        for upload in young[:JOINABLE]:
            try:
                parts = self._parts(upload.upload)
            except UploadGoneError:
                continue
            if all(part.size == self._part_size(number) for number, part in parts.items()):
                return upload.upload, parts
        return None

    def _part_size(self, number: int) -> int:
        return max(min(self._part_bytes, self._size - (number - 1) * self._part_bytes), 0)

    def _begin(self) -> str:
        answer = self._answer("POST", {"uploads": ""}, headers={"x-amz-checksum-algorithm": "SHA256"})
        upload = _text(parsed_xml(answer, self._requests.uri), "UploadId")
        if not upload:
            raise StoreUnavailableError(self._requests.uri, "the server began an upload without naming it")
        return upload

    def _parts(self, upload: str) -> dict[int, Part]:
        found: dict[int, Part] = {}
        marker = "0"
        while True:
            answer = self._answer("GET", {"uploadId": upload, "part-number-marker": marker})
            page = parsed_xml(answer, self._requests.uri)
            for part in page.iterfind("{*}Part"):
                etag = _text(part, "ETag").strip('"')
                found[int(_text(part, "PartNumber"))] = Part(
                    int(_text(part, "Size")), etag, _text(part, "ChecksumSHA256")
                )
            marker = _text(page, "NextPartNumberMarker")
            if _text(page, "IsTruncated") != "true" or not marker:
                return found

    def _send(self, upload: str, present: Mapping[int, Part]) -> list[tuple[str, str]]:
        """Send what is missing; return ETag and checksum of every part in order."""
        check = NamedDigestCheck(self._path)
        done: list[tuple[str, str]] = []
        waiting: deque[Future[tuple[str, str]]] = deque()
        pool = ThreadPoolExecutor(self._parallel, thread_name_prefix="parts")
        try:
            for number, data in enumerate(read_source(self._source, self._part_bytes), start=1):
                waiting.append(pool.submit(self._part, upload, number, data, present.get(number)))
                check.update(data)
                if len(waiting) >= self._parallel:
                    done.append(waiting.popleft().result())
            done.extend(future.result() for future in waiting)
        finally:
            pool.shutdown(cancel_futures=True)
        check.finish()
        return done

    def _part(self, upload: str, number: int, data: bytes, present: Part | None) -> tuple[str, str]:
        checksum = b64encode(hashlib.sha256(data).digest()).decode()
        if present is not None and _same(present, data, checksum):
            return present.etag, checksum
        answer = self._answer("PUT", {"partNumber": str(number), "uploadId": upload}, body=data)
        return answer.headers.get("etag", "").strip('"'), checksum

    def _complete(self, upload: str, parts: list[tuple[str, str]]) -> None:
        rows = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{escape(etag)}&quot;</ETag>"
            f"<ChecksumSHA256>{checksum}</ChecksumSHA256></Part>"
            for number, (etag, checksum) in enumerate(parts, start=1)
        )
        body = f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()
        answer = self._answer("POST", {"uploadId": upload}, body=body)
        stored = _text(parsed_xml(answer, self._requests.uri), "ChecksumSHA256").partition("-")[0]
        if stored and stored != _composite(parts):
            self._requests.send("DELETE", self._path, {})
            raise StoreUnavailableError(self._requests.uri, f"{self._path} was put together from other parts than ours")

    def _answer(
        self, method: str, query: Mapping[str, str], *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        answer = self._requests.send(method, self._path, query, body, headers)
        code = code_of(answer.text)
        if code in ("NoSuchUpload", "InvalidPart"):
            raise UploadGoneError
        if not answer.is_success or code:
            raise StoreAccessError(self._requests.uri, f"HTTP {answer.status_code} {code}".rstrip())
        return answer

    def _stored(self) -> bool:
        answer = self._requests.send("HEAD", self._path, {})
        return answer.is_success and answer.headers.get("content-length") == str(self._size)


def open_uploads(requests: S3Requests, prefix: str) -> Iterator[OpenUpload]:
    """Yield the open uploads of keys that start with ``prefix``; none where the server has no such list."""
    markers: dict[str, str] = {}
    while True:
        answer = requests.send("GET", "", {"uploads": "", "prefix": prefix, **markers})
        if not answer.is_success:
            return
        page = parsed_xml(answer, requests.uri)
        for row in page.iterfind("{*}Upload"):
            began = datetime.fromisoformat(_text(row, "Initiated"))
            yield OpenUpload(_text(row, "Key"), _text(row, "UploadId"), began.timestamp())
        key, upload = _text(page, "NextKeyMarker"), _text(page, "NextUploadIdMarker")
        if _text(page, "IsTruncated") != "true" or not key:
            return
        markers = {"key-marker": key, "upload-id-marker": upload}


def abort(requests: S3Requests, upload: OpenUpload) -> None:
    """Drop an upload with its parts; one that is gone is no error."""
    requests.send("DELETE", upload.path, {"uploadId": upload.upload})


def _same(part: Part, data: bytes, checksum: str) -> bool:
    if part.sha256:
        return part.sha256 == checksum
    return part.etag == hashlib.md5(data, usedforsecurity=False).hexdigest()


def _composite(parts: list[tuple[str, str]]) -> str:
    return b64encode(hashlib.sha256(b"".join(b64decode(checksum) for _, checksum in parts)).digest()).decode()


def _text(element: ET.Element, name: str) -> str:
    return element.findtext(f"{{*}}{name}") or ""
