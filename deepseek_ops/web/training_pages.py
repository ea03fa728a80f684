"""Trainings to look at while they run: the newest runs, and one page for each; read-only.

Every route asks ``authorise`` first. An id is a plan's fingerprint (64 hex digits) or the answer is 404, and of a run
only its streams are read. Pages load one style sheet and one script of ours and nothing from elsewhere; the script
asks for the sections of the page again when they have changed. Whatever a stream holds is text.
"""

# No postponed annotations here: FastAPI reads them, and they name what only exists inside the builder.
import time
from collections.abc import Callable
from functools import cache
from importlib.resources import files as package_files
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Query
from fastapi.exceptions import RequestValidationError
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from deepseek_ops.core.errors import DeepSeekOpsError, TransientError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.web import training_html, training_sections
from deepseek_ops.web.training_listing import RUN_ID, list_runs
from deepseek_ops.web.training_runs import NoSuchRunError, Runs, RunView, Supervised

PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""Content-Security-Policy of these pages: own style sheet, own script, own JSON."""
HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-store",
}
LIST_SECONDS = 10.0
"""How long the list of runs is kept: making it is two requests to the store for each run."""
_ASSETS = {"data.css": "text/css", "training.css": "text/css", "training.js": "text/javascript"}

Plan = Annotated[str, Path(pattern=RUN_ID)]
FirstNode = Annotated[int, Query(ge=0, le=100_000)]


def training_app(
    store: Callable[[], ObjectStore], *, authorise: Callable[..., Any], supervised: Supervised | None = None
) -> FastAPI:
    """Return the application. Mount it anywhere: its links follow the mount point.

    Args:
        store: Opens the store, with the first request.
        authorise: FastAPI dependency that raises (401, 403) for whom may not look; every route depends on it.
        supervised: Gives the events that a run's job told outside its ranks, such as hangs; none without it.
    """
    app = FastAPI(
        title="deepseek-ops training",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(authorise)],
    )
    app.add_middleware(GZipMiddleware, minimum_size=2000)
    runs = Runs(cache(store), supervised)
    _answer_problems(app)
    _add_pages(app, runs)
    _add_api(app, runs)
    return app


def _base(request: Any) -> str:
    return str(request.scope.get("root_path", "")).rstrip("/")


def _answer_problems(app: FastAPI) -> None:

    def answer(request: Request, status: int, problem: str) -> Response:
        if f"{_base(request)}/api/" in request.url.path:
            return JSONResponse({"error": problem}, status_code=status, headers=HEADERS)
        page = training_html.problem_page(_base(request), status, problem)
        return HTMLResponse(page, status_code=status, headers=HEADERS)

    @app.exception_handler(DeepSeekOpsError)
    def ours(request: Request, error: DeepSeekOpsError) -> Response:
        missing = isinstance(error, NoSuchRunError)
        return answer(request, 404 if missing else 503 if isinstance(error, TransientError) else 422, str(error))

    @app.exception_handler(RequestValidationError)
    def no_id(request: Request, _error: RequestValidationError) -> Response:
        return answer(request, 404, "This is no address of a run: it ends with the 64 hex digits of a plan.")


def _looked(runs: Runs, plan: str, nodes: int) -> RunView:
    """Return the view with what is new, its lock held: the caller releases it. Raises what ``look`` raises."""
    view = runs.view(plan)
    view.lock.acquire()
    try:
        view.look(nodes_from=nodes, supervised=runs.supervised)
    except BaseException as error:
        view.lock.release()
        if isinstance(error, NoSuchRunError):
            runs.forget(plan)
        raise
    return view


def _add_pages(app: FastAPI, runs: Runs) -> None:
    kept: list[tuple[float, Any]] = []

    @app.get("/")
    def index(request: Request) -> Response:
        if not kept or time.monotonic() - kept[-1][0] > LIST_SECONDS:
            kept[:] = [(time.monotonic(), list_runs(runs.store))]
        lines, more = kept[-1][1]
        return HTMLResponse(training_html.runs_page(_base(request), lines, more, runs.store.uri), headers=HEADERS)

    @app.get("/{name}.{ending}")
    def asset(name: str, ending: str) -> Response:
        media = _ASSETS.get(f"{name}.{ending}")
        if media is None:
            return Response(status_code=404, headers=HEADERS)
        text = package_files("deepseek_ops.web").joinpath(f"{name}.{ending}").read_text(encoding="utf-8")
        return Response(text, media_type=media, headers={**HEADERS, "Cache-Control": "private, max-age=300"})

    @app.get("/runs/{plan}")
    def run(request: Request, plan: Plan, nodes: FirstNode = 0) -> Response:
        view = _looked(runs, plan, nodes)
        try:
            return HTMLResponse(training_html.run_page(_base(request), view, nodes_from=nodes), headers=HEADERS)
        finally:
            view.lock.release()


def _add_api(app: FastAPI, runs: Runs) -> None:

    @app.get("/api/runs/{plan}/live")
    def live(
        request: Request, plan: Plan, after: Annotated[str, Query(max_length=100)] = "", nodes: FirstNode = 0
    ) -> Response:
        """The sections of the page as they are now, or only the revision when that is ``after``."""
        view = _looked(runs, plan, nodes)
        try:
            body: dict[str, Any] = {"revision": view.revision, "state": view.state, "more": view.more}
            if view.revision != after:
                body["sections"] = training_sections.sections(_base(request), view, nodes_from=nodes)
            return JSONResponse(body, headers=HEADERS)
        finally:
            view.lock.release()

    @app.get("/api/runs/{plan}")
    def run(plan: Plan) -> Response:
        view = _looked(runs, plan, 0)
        try:
            return JSONResponse(training_html.shown_json(view), headers=HEADERS)
        finally:
            view.lock.release()
