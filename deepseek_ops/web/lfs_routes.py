"""Routes of the Git LFS API: batch, verify, locks, and transfers through the server.

A repository's address is ``<server>/team/model``; the form a client guesses from a remote
(``<server>/team/model.git/info/lfs``) means the same. Every route asks for a token of this repository or for a ticket.
"""

# No postponed annotations here: FastAPI reads them, and they name what only exists inside the builders.
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from deepseek_ops.adapters.git_lfs.batch import BatchRequest, WireObject
from deepseek_ops.adapters.git_lfs.problems import LfsRequestError
from deepseek_ops.adapters.git_lfs.tokens import Grant, repository_name
from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.web.lfs import Authorise, LfsService
from deepseek_ops.web.lfs_answers import (
    LfsJson,
    RequestLog,
    check_media_types,
    name_subject,
    parsed,
    problem_answer,
)
from deepseek_ops.web.lfs_transfers import Transfers

IdQuery = Annotated[str, Query(alias="id")]
Service = Callable[[], LfsService]
DOCUMENTATION = "https://github.com/git-lfs/git-lfs/tree/main/docs/api"


class LockRequest(BaseModel):
    model_config = ConfigDict(frozen=True)
    path: Annotated[str, Field(max_length=10_000)]


class VerifyLocksRequest(BaseModel):
    model_config = ConfigDict(frozen=True)
    cursor: str | None = None
    limit: int | None = None


class UnlockRequest(BaseModel):
    model_config = ConfigDict(frozen=True)
    force: bool | None = None


def build(service: Service, authorise: Callable[[LfsService], Authorise]) -> FastAPI:
    """Return the application. It serves no description of itself: that would be a route without a token."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, default_response_class=LfsJson)
    app.add_middleware(RequestLog)
    _answer_problems(app, service)

    async def allowed(repository: str, request: Request) -> Grant:
        opened = await run_in_threadpool(service)
        grant = await run_in_threadpool(authorise(opened), request)
        name_subject(request, grant.subject, grant.id)
        if repository_name(repository) != grant.repository:
            raise LfsRequestError(404, "there is no such repository for this token")
        check_media_types(request)
        return grant

    async def writer(grant: Annotated[Grant, Depends(allowed)]) -> Grant:
        if not grant.may_write:
            raise LfsRequestError(403, f"this token may only read {grant.repository}")
        return grant

    _add_batch(app, service, allowed)
    _add_lock_changes(app, service, writer)
    _add_lock_lists(app, service, allowed, writer)
    _add_transfers(app, service)
    return app


def _answer_problems(app: FastAPI, service: Service) -> None:
    def ours(request: Request, error: Exception) -> Response:
        try:
            where = service().settings.documentation_url
        except DeepSeekOpsError:
            where = DOCUMENTATION
        return problem_answer(request, error, where)

    def http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return ours(request, LfsRequestError(status, HTTPStatus(status).phrase))

    def invalid(request: Request, _error: Exception) -> Response:
        return ours(request, LfsRequestError(422, "a parameter has the wrong type"))

    for kind in (DeepSeekOpsError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


def base_url(request: Request, settings_url: str, repository: str) -> str:
    """Return the repository's address as this client knows it, or below the configured one."""
    own = f"{request.url.scheme}://{request.url.netloc}{request.scope.get('root_path', '')}"
    return f"{(settings_url or own).rstrip('/')}/{repository}"


def _add_batch(app: FastAPI, service: Service, allowed: Callable[..., object]) -> None:
    @app.post("/{repository:path}/objects/batch")
    async def batch(request: Request, grant: Annotated[Grant, Depends(allowed)]) -> Response:
        opened = service()
        asked = await parsed(request, BatchRequest, opened.settings.max_body_bytes)
        base = base_url(request, opened.settings.public_url, grant.repository)
        return LfsJson(await run_in_threadpool(opened.objects.batch, grant, asked, base))


def _add_lock_changes(app: FastAPI, service: Service, writer: Callable[..., object]) -> None:
    @app.post("/{repository:path}/locks")
    async def lock(request: Request, grant: Annotated[Grant, Depends(writer)]) -> Response:
        opened = service()
        asked = await parsed(request, LockRequest, opened.settings.max_body_bytes)
        made = await run_in_threadpool(opened.locks.create, grant.repository, asked.path, grant.subject)
        return LfsJson({"lock": made.public()}, status_code=201)

    @app.post("/{repository:path}/locks/{lock_id}/unlock")
    async def unlock(lock_id: str, request: Request, grant: Annotated[Grant, Depends(writer)]) -> Response:
        opened = service()
        asked = await parsed(request, UnlockRequest, opened.settings.max_body_bytes)

        def release() -> JsonValue:
            freed = opened.locks.release(grant.repository, lock_id, grant.subject, force=bool(asked.force))
            return {"lock": freed.public()}

        return LfsJson(await run_in_threadpool(release))


def _add_lock_lists(
    app: FastAPI, service: Service, allowed: Callable[..., object], writer: Callable[..., object]
) -> None:
    @app.get("/{repository:path}/locks")
    async def locks(
        grant: Annotated[Grant, Depends(allowed)],
        path: str = "",
        lock_id: IdQuery = "",
        cursor: str = "",
        limit: int = 0,
    ) -> Response:
        def find() -> dict[str, JsonValue]:
            page = service().locks.find(grant.repository, path=path, lock_id=lock_id, cursor=cursor, limit=limit)
            return {"locks": [lock.public() for lock in page.locks], **_next(page.next_cursor)}

        return LfsJson(await run_in_threadpool(find))

    @app.post("/{repository:path}/locks/verify")
    async def verify_locks(request: Request, grant: Annotated[Grant, Depends(writer)]) -> Response:
        opened = service()
        asked = await parsed(request, VerifyLocksRequest, opened.settings.max_body_bytes)

        def find() -> dict[str, JsonValue]:
            page = opened.locks.find(grant.repository, cursor=asked.cursor or "", limit=asked.limit or 0)
            ours: list[JsonValue] = [lock.public() for lock in page.locks if lock.owner == grant.subject]
            theirs: list[JsonValue] = [lock.public() for lock in page.locks if lock.owner != grant.subject]
            return {"ours": ours, "theirs": theirs, **_next(page.next_cursor)}

        return LfsJson(await run_in_threadpool(find))


def _next(cursor: str) -> dict[str, JsonValue]:
    return {"next_cursor": cursor} if cursor else {}


def _add_transfers(app: FastAPI, service: Service) -> None:
    transfers = Transfers(service)

    @app.put("/{repository:path}/objects/{oid}")
    async def upload(repository: str, oid: str, request: Request) -> Response:
        return await transfers.upload(repository_name(repository), oid, request)

    @app.api_route("/{repository:path}/objects/{oid}", methods=["GET", "HEAD"])
    async def download(repository: str, oid: str, request: Request) -> Response:
        return await transfers.download(repository_name(repository), oid, request)

    @app.post("/{repository:path}/objects/{oid}/verify")
    async def verify(repository: str, oid: str, request: Request) -> Response:
        opened = await run_in_threadpool(service)
        ticket = await transfers.ticket(request, "verify", repository_name(repository), oid)
        check_media_types(request)
        asked = await parsed(request, WireObject, opened.settings.max_body_bytes)
        if (asked.oid, asked.size) != (ticket.oid, ticket.size):
            raise LfsRequestError(422, "oid and size are not those of the upload")
        await run_in_threadpool(opened.objects.verify, ticket.repository, ticket.subject, ticket.oid, ticket.size)
        return LfsJson({})
