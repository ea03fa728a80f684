"""Reviews on GitLab: commit statuses, and one note in each open merge request with the commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from urllib.parse import quote

from pydantic import JsonValue

from deepseek_ops.adapters.rest import RestApi
from deepseek_ops.adapters.review.comments import Comment, Discussion, keep_one
from deepseek_ops.adapters.review.github import cut, number_of
from deepseek_ops.core.reporting import STATUS_CONTEXT, ReviewState, ServiceAccessError, ServiceRefusedError

MAX_SUMMARY = 255
MAX_BODY = 500_000
_STATES = {"pending": "running", "success": "success", "failure": "failed", "error": "failed"}
"""Our state -> GitLab's. A run that is under way is ``running``: ``pending`` would say that nothing has begun."""


class GitLabReview:
    """The ``Review`` of one project on GitLab, hosted or one's own.

    Args:
        api: Base URL, such as ``https://gitlab.com/api/v4``.
        project: Full path with groups, such as ``group/sub/model``.
        token: Personal, group or project token with the scope ``api``, at least as a developer.
    """

    name = "gitlab"

    def __init__(self, api: str, project: str, token: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._project = f"/projects/{quote(project, safe='')}"
        headers = {"Authorization": f"Bearer {token}", "User-Agent": "deepseek-ops"}
        self._api = RestApi(api, headers=headers, secrets=(token,), sleep=sleep)
        self._author = ""

    def status(
        self, commit: str, state: ReviewState, summary: str, *, url: str = "", context: str = STATUS_CONTEXT
    ) -> None:
        """Set the commit's status. GitLab refuses to set a state again, so an equal one is looked for first."""
        wanted: dict[str, JsonValue] = {
            "state": _STATES[state],
            "name": context,
            "description": cut(summary, MAX_SUMMARY),
        }
        if url:
            wanted["target_url"] = url
        if self._has(commit, wanted, ("status", "description", "target_url")):
            return
        try:
            self._api.send("POST", f"{self._project}/statuses/{commit}", wanted, again=True)
        except ServiceRefusedError as error:
            # An answer that was lost, or another task's status in between. The state is what matters.
            if "Cannot transition" not in error.problem or not self._has(commit, wanted, ("status",)):
                raise

    def comment(self, commit: str, body: str, *, key: str) -> list[str]:
        """Write or update the note in every open merge request with the commit; see the port."""
        found = self._api.items(f"{self._project}/repository/commits/{commit}/merge_requests", per_page=100)
        requests = {number_of(item, "iid"): str(item.get("web_url") or "") for item in found if _is_open(item)}
        return [
            keep_one(self._discussion(number, url), cut(body, MAX_BODY), key=key)
            for number, url in sorted(requests.items())
        ]

    def _has(self, commit: str, wanted: dict[str, JsonValue], fields: tuple[str, ...]) -> bool:
        name = str(wanted["name"])
        path = f"{self._project}/repository/commits/{commit}/statuses"
        newest: dict[str, JsonValue] = {}
        for there in self._api.items(path, name=name, per_page=100):  # without ``all`` the latest of each name
            if there.get("name") == name and number_of(there, "id") >= number_of(newest, "id"):
                newest = there
        asked = {**wanted, "status": wanted["state"]}
        return bool(newest) and all((newest.get(field) or "") == asked.get(field, "") for field in fields)

    def _discussion(self, number: int, url: str) -> Discussion:
        notes = f"{self._project}/merge_requests/{number}/notes"
        return Discussion(
            mine=lambda: self._mine(notes, url),
            create=lambda body: _comment(self._api.send("POST", notes, {"body": body}, again=False), url),
            update=lambda at, body: _comment(self._api.send("PUT", f"{notes}/{at}", {"body": body}, again=True), url),
            delete=lambda at: self._delete(f"{notes}/{at}"),
        )

    def _mine(self, notes: str, url: str) -> Iterable[Comment]:
        if not self._author:
            user = self._api.get("/user")
            self._author = str(user.get("username") or "") if isinstance(user, dict) else ""
        for item in self._api.items(notes, sort="asc", order_by="created_at", per_page=100):
            author = item.get("author")
            if isinstance(author, dict) and author.get("username") == self._author and not item.get("system"):
                yield _comment(item, url)

    def _delete(self, path: str) -> None:
        try:
            self._api.send("DELETE", path, again=True)
        except ServiceAccessError as error:
            if not error.problem.startswith("404"):  # gone already
                raise


def _is_open(request: dict[str, JsonValue]) -> bool:
    return request.get("state") == "opened"


def _comment(item: JsonValue, url: str) -> Comment:
    found = item if isinstance(item, dict) else {}
    number = number_of(found, "id")
    return Comment(number, str(found.get("body") or ""), f"{url}#note_{number}")
