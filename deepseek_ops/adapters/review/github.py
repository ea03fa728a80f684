"""Reviews on GitHub: commit statuses, and one comment in each open pull request with the commit.

Commit statuses and not check runs, because every kind of token may write them; check runs need a GitHub App.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from urllib.parse import quote

from pydantic import JsonValue

from deepseek_ops.adapters.rest import RestApi
from deepseek_ops.adapters.review.comments import Comment, Discussion, keep_one
from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.reporting import STATUS_CONTEXT, ReviewState, ServiceAccessError

MAX_SUMMARY = 140
"""Characters of a status' description that GitHub takes."""
MAX_BODY = 65_000


class GitHubReview:
    """The ``Review`` of one repository on GitHub or GitHub Enterprise.

    Args:
        api: Base URL, ``https://api.github.com`` or ``https://host/api/v3``.
        project: ``owner/name``.
        token: Personal token (``repo:status`` and pull requests: write) or installation token of a GitHub App.
    """

    name = "github"

    def __init__(self, api: str, project: str, token: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._repo = f"/repos/{quote(project, safe='/')}"
        headers = {
            "Authorization": f"Bearer {token}",
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
            "User-Agent": "deepseek-ops",
        }
        self._api = RestApi(api, headers=headers, secrets=(token,), sleep=sleep)
        self._author: str | None = None

    def status(
        self, commit: str, state: ReviewState, summary: str, *, url: str = "", context: str = STATUS_CONTEXT
    ) -> None:
        """Set the commit's status; an equal one is not written again, because GitHub keeps 1,000 for each context."""
        wanted: dict[str, JsonValue] = {"state": state, "description": cut(summary, MAX_SUMMARY), "context": context}
        if url:
            wanted["target_url"] = url
        if not self._has(commit, wanted):
            self._api.send("POST", f"{self._repo}/statuses/{commit}", wanted, again=True)

    def comment(self, commit: str, body: str, *, key: str) -> list[str]:
        """Write or update the comment in every open pull request with the commit; see the port."""
        pulls = self._api.items(f"{self._repo}/commits/{commit}/pulls", per_page=100)
        numbers = sorted(number_of(pull, "number") for pull in pulls if pull.get("state") == "open")
        return [keep_one(self._discussion(number), cut(body, MAX_BODY), key=key) for number in numbers]

    def _has(self, commit: str, wanted: dict[str, JsonValue]) -> bool:
        for there in self._api.items(f"{self._repo}/commits/{commit}/statuses", per_page=100):  # newest first
            if there.get("context") == wanted["context"]:
                fields = ("state", "description", "target_url")
                return all((there.get(name) or "") == wanted.get(name, "") for name in fields)
        return False

    def _discussion(self, number: int) -> Discussion:
        issue, comments = f"{self._repo}/issues/{number}/comments", f"{self._repo}/issues/comments"
        return Discussion(
            mine=lambda: self._mine(issue),
            create=lambda body: _comment(self._api.send("POST", issue, {"body": body}, again=False)),
            update=lambda at, body: _comment(self._api.send("PATCH", f"{comments}/{at}", {"body": body}, again=True)),
            delete=lambda at: self._delete(f"{comments}/{at}"),
        )

    def _mine(self, issue: str) -> Iterable[Comment]:
        author = self._login()
        for item in self._api.items(issue, per_page=100):
            user = item.get("user")
            if not isinstance(user, dict):
                continue
            # An app cannot ask who it is. Its comments are a bot's, and people cannot write as one.
            if user.get("login") == author if author else user.get("type") == "Bot":
                yield _comment(item)

    def _login(self) -> str:
        if self._author is None:
            try:
                user = self._api.get("/user")
            except PermanentError:
                user = None
            self._author = str(user.get("login") or "") if isinstance(user, dict) else ""
        return self._author

    def _delete(self, path: str) -> None:
        try:
            self._api.send("DELETE", path, again=True)
        except ServiceAccessError as error:
            if not error.problem.startswith("404"):  # gone already
                raise


def cut(text: str, most: int) -> str:
    """Return ``text`` with at most ``most`` characters, an ellipsis at the end where it was longer."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def number_of(item: dict[str, JsonValue], key: str) -> int:
    """Return an id that a host gave, 0 where it gave none."""
    value = item.get(key)
    return value if isinstance(value, int) else 0


def _comment(item: JsonValue) -> Comment:
    found = item if isinstance(item, dict) else {}
    return Comment(number_of(found, "id"), str(found.get("body") or ""), str(found.get("html_url") or ""))
