"""Transfers through the LFS server: streams in, ranges out, a bounded amount of memory each."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import TimeoutError as SilenceError

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from deepseek_ops.adapters.git_lfs.links import Operation, Ticket
from deepseek_ops.adapters.git_lfs.problems import LfsRequestError, TokenRefusedError
from deepseek_ops.adapters.git_lfs.receiving import WRONG_CONTENT
from deepseek_ops.core.errors import StoreUnavailableError
from deepseek_ops.core.objects import blob_key
from deepseek_ops.web.lfs import LfsService
from deepseek_ops.web.lfs_answers import credential, name_subject

PART_BYTES = 1 << 20
READ_BYTES = 4 << 20
SILENCE_SECONDS = 60.0
"""A client that sends nothing for so long has gone, whatever its connection says."""
BUSY_SECONDS = 5

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Transfers:
    """Uploads and downloads of objects by ticket."""

    def __init__(self, service: Callable[[], LfsService]) -> None:
        self._service = service
        self._uploads = 0  # only the event loop's thread counts

    async def ticket(self, request: Request, operation: Operation, repository: str, oid: str) -> Ticket:
        """Return the ticket of a request. Raises TokenRefusedError, LfsRequestError (403)."""
        opened = await run_in_threadpool(self._service)
        ticket = opened.tickets.read(credential(request), operation, repository, oid)
        name_subject(request, ticket.subject, ticket.token)
        if await run_in_threadpool(opened.tokens.revoked, ticket.token):
            raise TokenRefusedError("link", "comes from a token that was revoked")
        return ticket

    async def upload(self, repository: str, oid: str, request: Request) -> Response:
        """Store the body under its digest and note that the repository has it."""
        ticket = await self.ticket(request, "upload", repository, oid)
        opened = self._service()
        announced = request.headers.get("content-length")
        if announced is not None and announced != str(ticket.size):
            raise LfsRequestError(WRONG_CONTENT, f"{announced} bytes are announced, the object has {ticket.size}")
        if self._uploads >= opened.settings.max_uploads:
            raise LfsRequestError(429, "too many uploads at once", retry_after=BUSY_SECONDS)
        self._uploads += 1
        try:
            chunks = blocking(request.stream(), asyncio.get_running_loop())
            await run_in_threadpool(opened.receiver.receive, ticket.oid, ticket.size, chunks)
        finally:
            self._uploads -= 1
        await run_in_threadpool(opened.objects.verify, ticket.repository, ticket.subject, ticket.oid, ticket.size)
        return Response(status_code=200)

    async def download(self, repository: str, oid: str, request: Request) -> Response:
        """Return the object, or the range of it that a resumed download asks for."""
        ticket = await self.ticket(request, "download", repository, oid)
        opened = self._service()
        await run_in_threadpool(opened.objects.readable, ticket.repository, ticket.oid, ticket.size)
        start, stop, partial = wanted_range(request.headers.get("range", ""), ticket.size)
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{ticket.oid}"', "Content-Length": str(stop - start)}
        if partial:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{ticket.size}"
        status = 206 if partial else 200
        media = "application/octet-stream"
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers, media_type=media)
        return StreamingResponse(self._read(ticket, start, stop), status_code=status, headers=headers, media_type=media)

    async def _read(self, ticket: Ticket, start: int, stop: int) -> AsyncIterator[bytes]:
        store, key = self._service().store, blob_key(ticket.oid)
        while start < stop:
            length = min(READ_BYTES, stop - start)
            data = await run_in_threadpool(store.get, key, start=start, length=length)
            if len(data) != length:  # the connection ends before its announced length, so the client notices
                raise StoreUnavailableError(store.uri, f"{key} ended early")
            yield data
            start += length


def wanted_range(header: str, size: int) -> tuple[int, int, bool]:
    """Return start, stop and whether it is a part. Raises LfsRequestError (416) for a range beyond the end.

    What is no single range is ignored, as HTTP wants it: the answer is then the whole object.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or not (match[1] or match[2]):
        return 0, size, False
    if not match[1]:
        start, stop = max(size - int(match[2]), 0), size
    else:
        start, stop = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
    if match[1] and match[2] and int(match[2]) < int(match[1]):
        return 0, size, False
    if start >= size:
        raise LfsRequestError(416, f"the object has {size} bytes")
    return start, stop, True


def blocking(stream: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> Iterator[bytes]:
    """Yield a request's body in a thread, about a MiB at a time; reading waits for the consumer.

    Raises LfsRequestError (408) after ``SILENCE_SECONDS`` without a byte.
    """

    async def part() -> bytes:
        chunks: list[bytes] = []
        size = 0
        async for chunk in stream:
            chunks.append(chunk)
            size += len(chunk)
            if size >= PART_BYTES:
                break
        return b"".join(chunks)

    while True:
        waiting = asyncio.run_coroutine_threadsafe(part(), loop)
        try:
            data = waiting.result(timeout=SILENCE_SECONDS)
        except SilenceError:
            waiting.cancel()
            raise LfsRequestError(408, f"nothing came for {SILENCE_SECONDS:g} seconds") from None
        if not data:
            return
        yield data
