"""A JSON service over HTTP: tries again where that is safe, waits as long as it is asked to, follows pages.

The token goes to one origin only: a redirect or a next page that leads elsewhere is refused. What a service says in an
error is shown without the token, in one line, cut.
"""

from __future__ import annotations

import email.utils
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import httpx
from pydantic import JsonValue

from deepseek_ops.core.reporting import ServiceAccessError, ServiceRefusedError, ServiceUnavailableError

TRIES = 4
PATIENCE_SECONDS = 60.0
"""Longest pause that is waited for in place; a service that asks for more gets a ServiceUnavailableError."""
TIMEOUT_SECONDS = 20.0
MAX_PAGES = 100
_REDIRECTS = (301, 302, 307, 308)
_BUSY = (429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer."""

    body: JsonValue
    next_url: str = ""


class RestApi:
    """One service with one set of credentials.

    Args:
        base: Such as ``https://api.github.com``; paths are appended to it.
        headers: Sent with every request, credentials included.
        secrets: Texts that must not be shown, such as the token.
        patience: Longest pause that is waited for in place, in seconds.
    """

    def __init__(
        self,
        base: str,
        *,
        headers: Mapping[str, str],
        secrets: tuple[str, ...] = (),
        patience: float = PATIENCE_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.base = base.rstrip("/")
        self._secrets = tuple(secret for secret in secrets if secret)
        self._patience = patience
        self._sleep = sleep
        self._client = httpx.Client(headers=dict(headers), timeout=TIMEOUT_SECONDS, follow_redirects=False)

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, **params: str | int) -> JsonValue:
        """Return the JSON at ``path``."""
        return self._send("GET", f"{self.base}{path}", params=params, again=True).body

    def items(self, path: str, **params: str | int) -> Iterator[dict[str, JsonValue]]:
        """Yield the objects of a list and of its further pages (``Link: rel="next"``)."""
        answer = self._send("GET", f"{self.base}{path}", params=params, again=True)
        for _ in range(MAX_PAGES):
            if not isinstance(answer.body, list):
                raise ServiceUnavailableError(self.base, f"GET {path}", "the answer is no list")
            yield from (item for item in answer.body if isinstance(item, dict))
            if not answer.next_url:
                return
            answer = self._send("GET", answer.next_url, again=True)

    def send(self, method: str, path: str, body: JsonValue = None, *, again: bool) -> JsonValue:
        """Send a JSON body and return the answer's. ``again``: whether a lost answer may be followed by another try."""
        return self._send(method, f"{self.base}{path}", body=body, again=again).body

    def _send(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str | int] | None = None,
        body: JsonValue = None,
        again: bool,
    ) -> Answer:
        for attempt in range(TRIES):
            try:
                return self._once(method, url, params, body)
            except ServiceUnavailableError as error:
                refused = error.retry_after > 0  # it says that it did nothing
                if attempt == TRIES - 1 or error.retry_after > self._patience or not (again or refused):
                    raise
                self._sleep(error.retry_after or 0.5 * 2**attempt * random.uniform(0.5, 1.0))  # noqa: S311
        raise AssertionError("the last attempt returned or raised")

    def _once(self, method: str, url: str, params: Mapping[str, str | int] | None, body: JsonValue) -> Answer:
        request = f"{method} {urlsplit(url).path}"
        for _ in range(4):
            self._require_same_origin(url, request)
            try:
                reply = self._client.request(method, url, params=params or None, json=body)
            except (httpx.TransportError, httpx.InvalidURL) as error:
                problem = self._shown(str(error) or type(error).__name__)
                raise ServiceUnavailableError(self.base, request, problem) from None
            if reply.status_code not in _REDIRECTS:
                return self._understood(reply, request)
            url, params = urljoin(url, reply.headers.get("location", "")), None  # GitHub: the repository was renamed
        raise ServiceRefusedError(self.base, request, "it redirects in circles")

    def _understood(self, reply: httpx.Response, request: str) -> Answer:
        status = reply.status_code
        if reply.is_success:
            link = reply.links.get("next", {}).get("url", "")
            return Answer(self._json(reply, request), urljoin(str(reply.url), link) if link else "")
        problem = f"{status} {self._message(reply)}"
        pause = _pause(reply)
        if status in _BUSY or (status == httpx.codes.FORBIDDEN and pause):
            raise ServiceUnavailableError(self.base, request, problem, pause)
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND):
            raise ServiceAccessError(self.base, request, problem)
        raise ServiceRefusedError(self.base, request, problem)

    def _json(self, reply: httpx.Response, request: str) -> JsonValue:
        if not reply.content:
            return None
        try:
            body: JsonValue = reply.json()
        except ValueError:
            problem = "the answer is no JSON; is this the address of the API?"
            raise ServiceRefusedError(self.base, request, problem) from None
        return body

    def _message(self, reply: httpx.Response) -> str:
        """Return what the service says went wrong: ``message``, ``error`` and ``errors`` of the JSON, else its text."""
        try:
            body = reply.json()
        except ValueError:
            return self._shown(reply.text)
        parts = (
            [body.get(key) for key in ("message", "error", "errors", "error_description") if body.get(key)]
            if (isinstance(body, dict))
            else [body]
        )
        return self._shown("; ".join(part if isinstance(part, str) else json.dumps(part) for part in parts))

    def _shown(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        line = " ".join(text.split())
        return line if len(line) <= 300 else f"{line[:300]}..."

    def _require_same_origin(self, url: str, request: str) -> None:
        ours, theirs = urlsplit(self.base), urlsplit(url)
        if (ours.scheme, ours.netloc) != (theirs.scheme, theirs.netloc):
            raise ServiceRefusedError(self.base, request, f"it leads to {theirs.netloc!r}, which gets no token of ours")


def _pause(reply: httpx.Response) -> float:
    """Return for how many seconds the service asks to be left alone; 0 when it does not."""
    given = reply.headers.get("retry-after", "")
    if given.isdigit():
        return max(float(given), 1.0)
    if given and (date := email.utils.parsedate_tz(given)):
        return max(email.utils.mktime_tz(date) - time.time(), 1.0)
    if "0" in (reply.headers.get("x-ratelimit-remaining"), reply.headers.get("ratelimit-remaining")):
        reset = reply.headers.get("x-ratelimit-reset") or reply.headers.get("ratelimit-reset") or ""
        return max(float(reset) - time.time(), 1.0) if reset.isdigit() else 60.0
    return 60.0 if "rate limit" in reply.text.lower() and reply.status_code in (403, 429) else 0.0
