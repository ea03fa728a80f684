"""Lineage to look at: why a result is what it is, and what moved between two; read-only pages and JSON.

Every route asks ``authorise`` first. Nothing here writes, pages hold no script, and what Git, people and registries
put into names and messages is text. ``/api/why`` and ``/api/diff`` give as JSON what the pages show.
"""

# No postponed annotations here: FastAPI reads them, and they name what only exists inside the builder.
from collections.abc import Callable
from importlib.resources import files as package_files
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from deepseek_ops.core.errors import DeepSeekOpsError, ObjectNotFoundError, TransientError
from deepseek_ops.core.records import RunManifest
from deepseek_ops.pipeline.lineage import explain
from deepseek_ops.pipeline.lineage_diff import compare
from deepseek_ops.pipeline.lineage_sources import Sources
from deepseek_ops.pipeline.lineage_targets import UnknownTargetError
from deepseek_ops.registry import VersionNotFoundError
from deepseek_ops.web import lineage_html
from deepseek_ops.web.markup import PAGE_POLICY

HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-store",
}
MAX_VERSIONS = 200
_MISSING = (UnknownTargetError, VersionNotFoundError, ObjectNotFoundError)
Target = Annotated[str, Query(min_length=1, max_length=500)]


def lineage_app(sources: Callable[[], Sources], *, authorise: Callable[..., Any]) -> FastAPI:
    """Return the application. Mount it anywhere: its links follow the mount point.

    Args:
        sources: Called for each request: what was silent once is asked again.
        authorise: FastAPI dependency that raises (401, 403) for whom may not look; every route depends on it.
    """
    app = FastAPI(
        title="deepseek-ops lineage",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(authorise)],
    )
    _answer_problems(app)
    _add_pages(app, sources)
    _add_api(app, sources)
    return app


def manifest_facet_schema() -> dict[str, Any]:
    """Return the JSON Schema of the run facet that holds a RunManifest."""
    manifest = RunManifest.model_json_schema(ref_template="#/$defs/{model}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "RunManifestRunFacet",
        "type": "object",
        "$defs": manifest.pop("$defs", {}),
        "properties": {
            "manifest": {**manifest, "properties": {**manifest["properties"], "schema": {"const": "RunManifest/1"}}},
            "fingerprint": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        },
        "required": ["manifest", "fingerprint"],
    }


def _base(request: Any) -> str:
    return str(request.scope.get("root_path", "")).rstrip("/")


def _answer_problems(app: FastAPI) -> None:

    @app.exception_handler(DeepSeekOpsError)
    def ours(request: Request, error: DeepSeekOpsError) -> Response:
        missing = isinstance(error, _MISSING)
        status = 404 if missing else 503 if isinstance(error, TransientError) else 422
        if f"{_base(request)}/api/" in request.url.path:
            return JSONResponse({"error": str(error)}, status_code=status, headers=HEADERS)
        page = lineage_html.problem_page(_base(request), status, str(error))
        return HTMLResponse(page, status_code=status, headers=HEADERS)


def _add_pages(app: FastAPI, sources: Callable[[], Sources]) -> None:

    @app.get("/")
    def start(request: Request) -> Response:
        known = [(one.name, one.version) for one in sources().known_versions[:MAX_VERSIONS]]
        return HTMLResponse(lineage_html.start_page(_base(request), known), headers=HEADERS)

    @app.get("/data.css")
    def style() -> Response:
        text = package_files("deepseek_ops.web").joinpath("data.css").read_text(encoding="utf-8")
        return Response(text, media_type="text/css", headers={**HEADERS, "Cache-Control": "private, max-age=300"})

    @app.get("/why")
    def why(request: Request, target: Target) -> Response:
        page = lineage_html.why_page(_base(request), explain(sources(), target))
        return HTMLResponse(page, headers=HEADERS)

    @app.get("/diff")
    def diff(request: Request, old: Target, new: Target) -> Response:
        page = lineage_html.diff_page(_base(request), compare(sources(), old, new))
        return HTMLResponse(page, headers=HEADERS)


def _add_api(app: FastAPI, sources: Callable[[], Sources]) -> None:

    @app.get("/api/why")
    def why(target: Target) -> Response:
        return JSONResponse(explain(sources(), target).dump(), headers=HEADERS)

    @app.get("/schema/RunManifest-1.json")
    def schema() -> Response:
        """The schema of the facet in which OpenLineage events carry a manifest."""
        return JSONResponse(manifest_facet_schema(), headers=HEADERS)

    @app.get("/api/diff")
    def diff(old: Target, new: Target) -> Response:
        return JSONResponse(compare(sources(), old, new).dump(), headers=HEADERS)
