"""Tokens of the LFS server over HTTP, for people who are known already: issue, list, revoke.

The application does not know who may ask: ``authorise("read")`` and ``authorise("write")`` return the dependencies that
say so and give the person's name, which becomes the token's subject.
"""

# No postponed annotations here: FastAPI reads them, and they name what only exists inside the builder.
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deepseek_ops.adapters.git_lfs.problems import LfsRequestError, TokenRefusedError
from deepseek_ops.adapters.git_lfs.tokens import (
    MAX_DAYS,
    Access,
    Grant,
    RepositoryNameError,
    TokenBook,
    UnknownTokenError,
)
from deepseek_ops.core.errors import DeepSeekOpsError, TransientError
from deepseek_ops.web.lfs_answers import Model, RequestLog, parsed

MAX_BODY_BYTES = 10_000
Person = Callable[..., object]
"""A dependency that returns the name of who asks, or refuses."""


class TokenRequest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    repository: Annotated[str, Field(max_length=600)]
    days: Annotated[float, Field(gt=0, le=MAX_DAYS)] = 90


class RevocationRequest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    reason: Annotated[str, Field(max_length=1000)] = ""


def token_app(book: Callable[[], TokenBook], authorise: Callable[[Access], Person]) -> FastAPI:
    """Return the application. Its answers hold a token once, when it is made, and must not be kept by a cache."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(RequestLog)
    app.add_exception_handler(DeepSeekOpsError, _problem)
    reader, writer = authorise("read"), authorise("write")

    def issue(access: Access, asked: TokenRequest, person: str) -> Response:
        token, grant = book().issue(asked.repository, access, person, days=asked.days)
        return _answer({"token": token, **_row(grant)}, 201)

    @app.post("/read")
    async def issue_reading(request: Request, person: Annotated[str, Depends(reader)]) -> Response:
        return await run_in_threadpool(issue, "read", await _asked(request, TokenRequest), person)

    @app.post("/write")
    async def issue_writing(request: Request, person: Annotated[str, Depends(writer)]) -> Response:
        return await run_in_threadpool(issue, "write", await _asked(request, TokenRequest), person)

    @app.get("/")
    async def issued(_person: Annotated[str, Depends(reader)]) -> Response:
        found = await run_in_threadpool(lambda: book().issued())
        return _answer({"tokens": [{**_row(grant), "revoked": revoked} for grant, revoked in found]}, 200)

    @app.post("/{token_id}/revoke")
    async def revoke(token_id: str, request: Request, person: Annotated[str, Depends(writer)]) -> Response:
        asked = await _asked(request, RevocationRequest)
        await run_in_threadpool(lambda: book().revoke(token_id, by=person, reason=asked.reason))
        return _answer({"id": token_id, "revoked": True}, 200)

    return app


async def _asked(request: Request, model: type[Model]) -> Model:
    # A page of another site can send a form with the person's cookie, but not this type.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "requests must be application/json")
    return await parsed(request, model, MAX_BODY_BYTES)


def _problem(_request: Request, error: Exception) -> Response:
    if isinstance(error, LfsRequestError):
        return _answer({"detail": error.message}, error.status)
    if isinstance(error, UnknownTokenError):
        return _answer({"detail": str(error)}, 404)
    if isinstance(error, TokenRefusedError | RepositoryNameError):
        return _answer({"detail": str(error)}, 422)
    if isinstance(error, TransientError):
        return _answer({"detail": "the object store does not answer; try again"}, 503)
    return _answer({"detail": "the LFS server is not set up; its operator finds the reason in the log"}, 500)


def _row(grant: Grant) -> dict[str, JsonValue]:
    return {
        "id": grant.id,
        "repository": grant.repository,
        "access": grant.access,
        "subject": grant.subject,
        "expires": grant.expires,
    }


def _answer(body: dict[str, JsonValue], status: int) -> Response:
    return JSONResponse(body, status_code=status, headers={"Cache-Control": "no-store"})
