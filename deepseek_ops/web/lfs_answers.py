"""How the LFS server speaks HTTP: media types, bodies with a limit, errors with a status, a log without secrets."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, JsonValue, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from deepseek_ops.adapters.git_lfs.problems import LfsRequestError, TokenRefusedError
from deepseek_ops.adapters.git_lfs.tokens import RepositoryNameError
from deepseek_ops.core.errors import (
    DeepSeekOpsError,
    LocalDiskError,
    ObjectNotFoundError,
    TransientError,
)

MEDIA_TYPE = "application/vnd.git-lfs+json"
REALM = 'Basic realm="Git LFS"'
RETRY_SECONDS = 5
MAX_CREDENTIAL = 8192

_log = logging.getLogger("deepseek_ops.lfs")
Model = TypeVar("Model", bound=BaseModel)


class LfsJson(JSONResponse):
    """JSON of the LFS protocol."""

    media_type = MEDIA_TYPE


def credential(request: Request) -> str:
    """Return the token or ticket a request carries. Raises TokenRefusedError when it carries none."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    value = value.strip()
    if len(value) > MAX_CREDENTIAL:
        raise TokenRefusedError("token", "is too long to be one")
    if scheme.lower() == "bearer" and value:
        return value
    if scheme.lower() == "basic" and value:
        try:
            password = base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            raise TokenRefusedError("token", "cannot be read") from None
        if password:
            return password
    raise TokenRefusedError("token", "is missing: give it as the password, with any user name")


def check_media_types(request: Request) -> None:
    """Check what the client accepts and sends. Raises LfsRequestError (406, 415)."""
    accepted = request.headers.get("accept", "*/*").lower()
    kinds = {part.partition(";")[0].strip() for part in accepted.split(",")}
    if not kinds & {MEDIA_TYPE, "application/*", "*/*"}:
        raise LfsRequestError(406, f"answers are {MEDIA_TYPE}")
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method == "POST" and sent != MEDIA_TYPE:
        raise LfsRequestError(415, f"requests must be {MEDIA_TYPE}")


async def parsed(request: Request, model: type[Model], limit: int) -> Model:
    """Return the body as ``model``. Raises LfsRequestError: 413 beyond ``limit`` bytes, 422 for what it is not."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise LfsRequestError(413, f"a request may have {limit} bytes")
    try:
        return model.model_validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise LfsRequestError(422, f"{where}: {first['msg']}") from None


def problem_answer(request: Request, error: Exception, documentation_url: str) -> Response:
    """Return the answer for an error, with what a user can do, and without what only an operator should read."""
    status, message, extra, retry_after = _explained(error)
    body: dict[str, JsonValue] = {"message": message, "request_id": request_id(request), **extra}
    if documentation_url:
        body["documentation_url"] = documentation_url
    headers: dict[str, str] = {"Retry-After": str(retry_after)} if retry_after else {}
    if status == 401:
        headers["LFS-Authenticate"] = REALM
    if status >= 500:
        _log.error("request %s failed: %s", request_id(request), error)
    return LfsJson(body, status_code=status, headers=headers)


def _explained(error: Exception) -> tuple[int, str, Mapping[str, JsonValue], int | None]:
    if isinstance(error, LfsRequestError):
        return error.status, error.message, error.extra, error.retry_after
    if isinstance(error, TokenRefusedError):
        return 401, str(error), {}, None
    if isinstance(error, RepositoryNameError | ObjectNotFoundError):
        return 404, "there is no such repository or object for this token", {}, None
    if isinstance(error, LocalDiskError):
        return 507, "the server has no room for this object", {}, None
    if isinstance(error, TransientError):
        return 503, "the object store does not answer; try again", {}, RETRY_SECONDS
    if isinstance(error, ClientDisconnect):
        return 400, "the connection ended early", {}, None
    if isinstance(error, DeepSeekOpsError):
        return 500, "the object store refused the server; its operator finds the reason in the log", {}, None
    return 500, "internal error", {}, None


def request_id(request: Request) -> str:
    """Return the id under which the log knows this request."""
    return str(request.scope.get("lfs_request_id", ""))


Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class RequestLog:
    """ASGI middleware: one line a request with who, what and how it went. No query, no header, no body."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["lfs_request_id"] = secrets.token_hex(8)
        started, seen = time.monotonic(), {"status": 0, "bytes": 0}

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                extra = [(b"x-request-id", scope["lfs_request_id"].encode()), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message.get("headers", []), *extra]
            elif message["type"] == "http.response.body":
                seen["bytes"] += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            _log.info(
                "%s %s %d %d bytes %d ms %s %s",
                scope["method"],
                quote(scope["path"], safe="/"),
                seen["status"],
                seen["bytes"],
                (time.monotonic() - started) * 1000,
                scope.get("lfs_subject", "-"),
                scope["lfs_request_id"],
            )


def name_subject(request: Request, subject: str, token_id: str) -> None:
    """Put into the log line who asks: the name and id of the token, never the token."""
    request.scope["lfs_subject"] = json.dumps(f"{subject}/{token_id}")
