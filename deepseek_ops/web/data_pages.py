"""Datasets to look at: read-only pages and a JSON API over one store.

Every route asks ``authorise`` first. Nothing here writes, pages hold no script, and whatever a dataset or a person put
into names and records is text. ``/api/...`` gives as JSON what the pages show.
"""

# No postponed annotations here: FastAPI reads them, and they name what only exists inside the builder.
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from importlib.resources import files as package_files
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from deepseek_ops.core.errors import DeepSeekOpsError, ObjectNotFoundError, TransientError
from deepseek_ops.data import DatasetRepository, NoSuchFileError, NothingSelectedError, Stored, VersionNotFoundError
from deepseek_ops.data.trees import DatasetDiff
from deepseek_ops.web import data_html, data_html_files, data_views
from deepseek_ops.web.data_download import file_answer
from deepseek_ops.web.markup import PAGE_POLICY, Html

HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-store",
}
MAX_FILES = 5000
HISTORY = 50
_MISSING = (VersionNotFoundError, NoSuchFileError, NothingSelectedError, ObjectNotFoundError)


def data_app(
    repository: DatasetRepository | Callable[[], DatasetRepository], *, authorise: Callable[..., Any]
) -> FastAPI:
    """Return the application. Mount it anywhere: its links follow the mount point.

    Args:
        repository: The store's repository, or what opens it with the first request.
        authorise: FastAPI dependency that raises (401, 403) for whom may not look; every route depends on it.
    """

    opened = cache(repository) if callable(repository) else lambda: repository
    app = FastAPI(
        title="deepseek-ops datasets",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(authorise)],
    )
    _answer_problems(app)
    _add_pages(app, opened)
    _add_file_pages(app, opened)
    _add_api(app, opened)
    return app


def _answer_problems(app: FastAPI) -> None:

    @app.exception_handler(DeepSeekOpsError)
    def ours(request: Request, error: DeepSeekOpsError) -> Response:
        status = 404 if isinstance(error, _MISSING) else 503 if isinstance(error, TransientError) else 422
        if f"{request.scope.get('root_path', '')}/api/" in request.url.path:
            return JSONResponse({"error": str(error)}, status_code=status, headers=HEADERS)
        page = data_html.problem_page(base_of(request), status, str(error))
        return HTMLResponse(page, status_code=status, headers=HEADERS)


def base_of(request: Any) -> str:
    """Return the path the application is mounted at, without a slash at its end."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def _add_pages(app: FastAPI, opened: Callable[[], DatasetRepository]) -> None:

    def shown(page: Html, status: int = 200) -> HTMLResponse:
        return HTMLResponse(page, status_code=status, headers=HEADERS)

    @app.get("/")
    def index(request: Request) -> Response:
        repository = opened()
        lines = data_views.list_datasets(repository)
        return shown(data_html.datasets_page(base_of(request), lines, repository.store.uri))

    @app.get("/data.css")
    def style() -> Response:
        text = package_files("deepseek_ops.web").joinpath("data.css").read_text(encoding="utf-8")
        return Response(text, media_type="text/css", headers={**HEADERS, "Cache-Control": "private, max-age=300"})

    @app.get("/d/{name}")
    def dataset(
        request: Request, name: str, limit: Annotated[int, Query(ge=1, le=data_views.MAX_HISTORY)] = HISTORY
    ) -> Response:
        view = data_views.view_dataset(opened(), name, limit=limit)
        if view is None:
            raise VersionNotFoundError(opened().store.uri, name)
        return shown(data_html.dataset_page(base_of(request), view, limit))

    @app.get("/diff")
    def diff(request: Request, old: str, new: str, records: bool = False) -> Response:
        repository = opened()
        left, right = repository.load(repository.resolve(old)), repository.load(repository.resolve(new))
        changed = repository.diff(left.version, right.version)
        compared = _compared(repository, left.version, right.version, changed) if records else None
        return shown(data_html_files.diff_page(base_of(request), left, right, changed, compared))


def _compared(repository: DatasetRepository, old: str, new: str, changed: DatasetDiff) -> dict[str, Any] | str:
    """Return the comparison, or why there is none: the files are worth showing in any case."""
    try:
        return data_views.compare_records(repository, old, new, changed)
    except DeepSeekOpsError as error:
        return str(error)


def _add_file_pages(app: FastAPI, opened: Callable[[], DatasetRepository]) -> None:

    @app.get("/v/{version}")
    def version_page(request: Request, version: str, pattern: str = "", split: str = "", after: str = "") -> Response:
        repository = opened()
        digest = repository.resolve(version)
        files = data_views.view_files(
            repository, digest, pattern=pattern, split=split, after=after, limit=data_views.PAGE_FILES
        )
        page = data_html.version_page(
            base_of(request),
            repository.load(digest),
            repository.describe(digest),
            files,
            pattern=pattern,
            split=split,
            splits=data_views.split_counts(repository, digest),
        )
        return HTMLResponse(page, headers=HEADERS)

    @app.get("/v/{version}/file")
    def file_page(request: Request, version: str, path: str, start: Annotated[int, Query(ge=1)] = 1) -> Response:
        repository = opened()
        digest = repository.resolve(version)
        file = data_views.file_of(repository, digest, path)
        seen = data_views.preview(repository, file, start=start)
        page = data_html_files.file_page(base_of(request), repository.load(digest), file, seen)
        return HTMLResponse(page, headers=HEADERS)

    @app.api_route("/v/{version}/raw/{path:path}", methods=["GET", "HEAD"])
    def raw(request: Request, version: str, path: str) -> Response:
        repository = opened()
        file = data_views.file_of(repository, repository.resolve(version), path)
        return file_answer(repository, file, request)


def _add_api(app: FastAPI, opened: Callable[[], DatasetRepository]) -> None:

    def answer(body: Any) -> JSONResponse:
        return JSONResponse(body, headers=HEADERS)

    @app.get("/api/datasets")
    def datasets() -> JSONResponse:
        return answer([asdict(line) for line in data_views.list_datasets(opened())])

    @app.get("/api/datasets/{name}")
    def dataset(name: str, limit: Annotated[int, Query(ge=1, le=data_views.MAX_HISTORY)] = HISTORY) -> JSONResponse:
        view = data_views.view_dataset(opened(), name, limit=limit)
        if view is None:
            raise VersionNotFoundError(opened().store.uri, name)
        return answer(asdict(view))

    @app.get("/api/versions/{version}")
    def version(version: str) -> JSONResponse:
        repository = opened()
        digest = repository.resolve(version)
        return answer({"version": digest, **repository.describe(digest)})

    @app.get("/api/versions/{version}/files")
    def files(
        version: str,
        pattern: str = "",
        split: str = "",
        after: str = "",
        limit: Annotated[int, Query(ge=1, le=MAX_FILES)] = 1000,
    ) -> JSONResponse:
        repository = opened()
        digest = repository.resolve(version)
        view = data_views.view_files(repository, digest, pattern=pattern, split=split, after=after, limit=limit)
        return answer({"version": digest, "files": [_file_body(file) for file in view.files], "after": view.next_after})

    @app.get("/api/versions/{version}/records")
    def records(version: str, path: str, start: Annotated[int, Query(ge=1)] = 1) -> JSONResponse:
        repository = opened()
        file = data_views.file_of(repository, repository.resolve(version), path)
        seen = data_views.preview(repository, file, start=start)
        rows = [{"row": number, "value": value, "problem": problem} for number, value, problem in seen.rows]
        return answer({"file": _file_body(file), "kind": seen.kind, "rows": rows, "text": seen.text, "more": seen.more})

    @app.get("/api/diff")
    def diff(old: str, new: str, records: bool = False) -> JSONResponse:
        repository = opened()
        left, right = repository.resolve(old), repository.resolve(new)
        changed = repository.diff(left, right)
        body: dict[str, Any] = {"old": left, "new": right, "files": asdict(changed)}
        if records:
            body["records"] = data_views.compare_records(repository, left, right, changed)
        return answer(body)


def _file_body(file: Stored) -> dict[str, Any]:
    entry = file.entry
    return {"path": entry.path, "size": entry.size, "sha256": entry.digest.hex(), "split": entry.split}
