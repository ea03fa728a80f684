"""One stored file over HTTP: whole and verified, or a range of it; the ETag is the content's SHA-256."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from deepseek_ops.data import DatasetRepository, Stored
from deepseek_ops.data.layout import blob_key
from deepseek_ops.data.pages import LOOSE
from deepseek_ops.data.reading import read_stored, stream_stored
from deepseek_ops.web.markup import FILE_POLICY

CHUNK_BYTES = 4 << 20
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def file_answer(repository: DatasetRepository, file: Stored, request: Request) -> Response:
    """Return the answer to GET or HEAD for a file: 200, 206, 304 or 416.

    Always a download and never a page: what a dataset holds must not run in the reader's browser.
    """
    entry = file.entry
    etag = f'"{entry.digest.hex()}"'
    name = entry.path.rpartition("/")[2]
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "Content-Security-Policy": FILE_POLICY,
        "X-Content-Type-Options": "nosniff",
    }
    if etag in _tags(request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("range", "") if request.headers.get("if-range", etag) == etag else ""
    wanted = _range(asked, entry.size)
    if wanted is None:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{entry.size}"})
    start, stop, status = wanted
    if status == 206:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{entry.size}"
    headers["Content-Length"] = str(stop - start)
    media = "application/octet-stream"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media)
    body = _whole(repository, file) if status == 200 else _part(repository, file, start, stop)
    return StreamingResponse(body, status_code=status, headers=headers, media_type=media)


def _tags(header: str) -> set[str]:
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}


def _range(header: str, size: int) -> tuple[int, int, int] | None:
    """Return start, stop and status; None for a range beyond the end. What is no single range means all of it."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or not (match[1] or match[2]):
        return 0, size, 200
    if not match[1]:
        start, stop = max(size - int(match[2]), 0), size
    else:
        start, stop = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
    if start >= size:
        return None
    return (start, stop, 206) if start < stop else (0, size, 200)


def _whole(repository: DatasetRepository, file: Stored) -> Iterator[bytes]:
    """Yield all bytes, the last chunk only when everything was verified: damage cuts the answer short."""
    held = b""
    for chunk in stream_stored(repository.store, file, chunk_bytes=CHUNK_BYTES):
        if held:
            yield held
        held = chunk
    yield held


def _part(repository: DatasetRepository, file: Stored, start: int, stop: int) -> Iterator[bytes]:
    if file.location != LOOSE:
        yield read_stored(repository.store, file)[start:stop]
        return
    key = blob_key(file.entry.digest.hex())
    for begin in range(start, stop, CHUNK_BYTES):
        yield repository.store.get(key, start=begin, length=min(CHUNK_BYTES, stop - begin))
