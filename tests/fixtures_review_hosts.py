"""GitHub and GitLab for tests: servers on loopback that speak their documented REST schemas and refuse all else.

Unknown fields, missing headers, wrong tokens and unknown commits are refused as the real ones do. A test queues faults
(a status, headers, and whether the request is carried out before the answer is lost).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepseek_ops.embedded.processes import free_port

TOKEN = "glpat-or-ghp-token-of-the-tests"
COMMIT, OTHER = "a" * 40, "b" * 40
ME, SOMEBODY = "deepseek-bot", "mallory"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class GitHubStatus(Strict):
    state: Literal["error", "failure", "pending", "success"]
    target_url: str | None = None
    description: str = Field("", max_length=140)
    context: str = "default"


class GitLabStatus(Strict):
    state: Literal["pending", "running", "success", "failed", "canceled", "skipped"]
    name: str = "default"
    target_url: str | None = Field(None, max_length=255)
    description: str = Field("", max_length=255)


class Body(Strict):
    body: str = Field(min_length=1, max_length=65536)


@dataclass
class Fault:
    """What happens to the next request that fits, instead of or after its work."""

    method: str
    part: str
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=lambda: {"message": "a fault of the test"})
    after: bool = False
    """The request is carried out, only its answer is lost."""


@dataclass
class Host:
    """What the server holds. ``pulls`` maps a request's number to (state, commits)."""

    url: str = ""
    pulls: dict[int, tuple[str, list[str]]] = field(default_factory=dict)
    statuses: list[dict[str, Any]] = field(default_factory=list)
    comments: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    who: str | None = ME
    """Who the token is; None for a GitHub App, which cannot ask."""

    def add_comment(self, number: int, author: str, body: str) -> dict[str, Any]:
        comment = {"id": len(self.comments) + 101, "number": number, "author": author, "body": body}
        self.comments.append(comment)
        return comment

    def bodies(self, number: int) -> list[str]:
        return [comment["body"] for comment in self.comments if comment["number"] == number]

    def took(self, method: str, part: str) -> int:
        return sum(1 for line in self.requests if line.startswith(method) and part in line)


def problem(status: int, message: str) -> JSONResponse:
    return JSONResponse({"message": message, "documentation_url": "https://docs"}, status)


async def parsed(request: Request, model: type[BaseModel]) -> Any:
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"]) from error


def paged(host: Host, request: Request, rows: list[dict[str, Any]]) -> JSONResponse:
    """Answer two rows a page, however many were asked for: servers may give fewer."""
    page = int(request.query_params.get("page", "1"))
    shown, more = rows[(page - 1) * 2 : page * 2], len(rows) > page * 2
    target = request.url.include_query_params(page=page + 1)
    return JSONResponse(shown, headers={"Link": f'<{target}>; rel="next"'} if more else {})


def github_app(host: Host) -> FastAPI:  # noqa: C901  (one small function for each route)
    app = FastAPI()
    repo = "/repos/team/model"

    def user(login: str) -> dict[str, Any]:
        return {"login": login, "id": 1, "type": "Bot" if login.endswith("[bot]") else "User"}

    def shown(comment: dict[str, Any]) -> dict[str, Any]:
        page = f"https://github.com/team/model/pull/{comment['number']}#issuecomment-{comment['id']}"
        about = {"id": comment["id"], "html_url": page, "body": comment["body"], "user": user(comment["author"])}
        return {**about, "created_at": "2026-11-22T00:00:00Z"}

    def allowed(request: Request) -> JSONResponse | None:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return problem(401, "Bad credentials")
        if request.headers.get("accept") != "application/vnd.github+json" or not request.headers.get("user-agent"):
            return problem(415, "wrong headers")
        return None

    faulty(app, host, allowed)

    @app.get("/user")
    async def who() -> Any:
        return user(host.who) if host.who else problem(403, "Resource not accessible by integration")

    @app.post(repo + "/statuses/{sha}", status_code=201)
    async def set_status(sha: str, request: Request) -> Any:
        if sha not in (COMMIT, OTHER):
            return problem(422, f"No commit found for SHA: {sha}")
        try:
            asked = await parsed(request, GitHubStatus)
        except ValueError as error:
            return problem(422, f"Validation Failed: {error}")
        host.statuses.append({"id": len(host.statuses) + 1, "sha": sha, **asked.model_dump()})
        return host.statuses[-1]

    @app.get(repo + "/commits/{sha}/statuses")
    async def statuses(sha: str, request: Request) -> Any:
        return paged(host, request, [one for one in reversed(host.statuses) if one["sha"] == sha])

    @app.get(repo + "/commits/{sha}/pulls")
    async def pulls(sha: str, request: Request) -> Any:
        if sha not in (COMMIT, OTHER):
            return problem(422, f"No commit found for SHA: {sha}")
        found = [{"number": n, "state": state} for n, (state, commits) in host.pulls.items() if sha in commits]
        return paged(host, request, found)

    @app.get(repo + "/issues/{number}/comments")
    async def comments(number: int, request: Request) -> Any:
        return paged(host, request, [shown(one) for one in host.comments if one["number"] == number])

    @app.post(repo + "/issues/{number}/comments", status_code=201)
    async def create(number: int, request: Request) -> Any:
        try:
            return shown(host.add_comment(number, host.who or "app[bot]", (await parsed(request, Body)).body))
        except ValueError as error:
            return problem(422, f"Validation Failed: {error}")

    @app.patch(repo + "/issues/comments/{comment}")
    async def update(comment: int, request: Request) -> Any:
        found = next((one for one in host.comments if one["id"] == comment), None)
        if found is None:
            return problem(404, "Not Found")
        found["body"] = (await parsed(request, Body)).body
        return shown(found)

    @app.delete(repo + "/issues/comments/{comment}", status_code=204)
    async def delete(comment: int) -> None:
        host.comments[:] = [one for one in host.comments if one["id"] != comment]

    @app.api_route("/repos/team/old-name/{rest:path}", methods=["GET", "POST"])
    async def renamed(rest: str) -> Any:
        return RedirectResponse(f"{host.url}/repos/team/model/{rest}", 307)

    return app


def gitlab_app(host: Host) -> FastAPI:  # noqa: C901  (one small function for each route)
    app = FastAPI()
    project = "/api/v4/projects/group%2Fsub%2Fmodel"

    def shown(comment: dict[str, Any]) -> dict[str, Any]:
        author = {"id": 1, "username": comment["author"]}
        return {"id": comment["id"], "body": comment["body"], "author": author, "system": False}

    def allowed(request: Request) -> JSONResponse | None:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"message": "401 Unauthorized"}, 401)
        return None

    faulty(app, host, allowed)

    @app.get("/api/v4/user")
    async def who() -> Any:
        return {"id": 1, "username": host.who}

    @app.post(project + "/statuses/{sha}", status_code=201)
    async def set_status(sha: str, request: Request) -> Any:
        if sha not in (COMMIT, OTHER):
            return JSONResponse({"message": "404 Commit Not Found"}, 404)
        try:
            asked = await parsed(request, GitLabStatus)
        except ValueError as error:
            return JSONResponse({"message": {"base": [str(error)]}}, 400)
        same = [one for one in host.statuses if one["sha"] == sha and one["name"] == asked.name]
        if same and same[-1]["status"] == asked.state:
            text = (
                f'Cannot transition status via :run from :{asked.state} (Reason(s): Status cannot transition via "run")'
            )
            return JSONResponse({"message": text}, 400)
        row = {"id": len(host.statuses) + 1, "sha": sha, "status": asked.state, **asked.model_dump(exclude={"state"})}
        host.statuses.append(row)
        return row

    @app.get(project + "/repository/commits/{sha}/statuses")
    async def statuses(sha: str, request: Request) -> Any:
        name = request.query_params.get("name")
        rows = [one for one in host.statuses if one["sha"] == sha and (name is None or one["name"] == name)]
        return paged(host, request, rows if request.query_params.get("all") else rows[-1:])

    @app.get(project + "/repository/commits/{sha}/merge_requests")
    async def requests(sha: str, request: Request) -> Any:
        words = {"open": "opened"}
        page = "https://gitlab.com/group/sub/model/-/merge_requests"
        found = [
            {"id": n + 1000, "iid": n, "state": words.get(state, state), "web_url": f"{page}/{n}"}
            for n, (state, commits) in host.pulls.items()
            if sha in commits
        ]
        return paged(host, request, found)

    @app.get(project + "/merge_requests/{number}/notes")
    async def notes(number: int, request: Request) -> Any:
        return paged(host, request, [shown(one) for one in host.comments if one["number"] == number])

    @app.post(project + "/merge_requests/{number}/notes", status_code=201)
    async def create(number: int, request: Request) -> Any:
        return shown(host.add_comment(number, host.who or "", (await parsed(request, Body)).body))

    @app.put(project + "/merge_requests/{number}/notes/{note}")
    async def update(number: int, note: int, request: Request) -> Any:
        found = next((one for one in host.comments if one["id"] == note and one["number"] == number), None)
        if found is None:
            return JSONResponse({"message": "404 Not found"}, 404)
        found["body"] = (await parsed(request, Body)).body
        return shown(found)

    @app.delete(project + "/merge_requests/{number}/notes/{note}", status_code=204)
    async def delete(number: int, note: int) -> None:
        host.comments[:] = [one for one in host.comments if one["id"] != note]

    return app


def faulty(app: FastAPI, host: Host, allowed: Any) -> None:
    @app.middleware("http")
    async def middle(request: Request, call_next: Any) -> Any:
        line = f"{request.method} {request.scope['raw_path'].decode()}"
        host.requests.append(line)
        # Starlette routes the decoded path; GitLab's project is one encoded segment.
        request.scope["path"] = request.scope["raw_path"].decode()
        fault = next((one for one in host.faults if one.method == request.method and one.part in line), None)
        if fault is not None:
            host.faults.remove(fault)
            if fault.after:
                await call_next(request)
            return JSONResponse(fault.body, fault.status, fault.headers)
        return allowed(request) or await call_next(request)


@contextmanager
def serving(app: FastAPI, host: Host) -> Iterator[Host]:
    """Serve the application on a free port of this process."""
    config = uvicorn.Config(app, port=free_port(), log_level="error", lifespan="off", timeout_graceful_shutdown=3)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    host.url = f"http://127.0.0.1:{config.port}"
    try:
        yield host
    finally:
        server.should_exit = True
        thread.join(timeout=10)
