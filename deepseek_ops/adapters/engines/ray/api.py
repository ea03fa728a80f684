"""Ray's Jobs REST API: the requests, and what their answers mean. No ``import ray``: the control plane has none."""

from __future__ import annotations

import json
import random
import ssl
import time
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

import httpx
from pydantic import JsonValue

from deepseek_ops.adapters.engines.ray.errors import (
    RayAccessError,
    RayAddressError,
    RayRefusedError,
    RayUnavailableError,
)

TIMEOUT_SECONDS = 30.0
"""A first submission on a cold head took 3.4 s."""
TRIES = 3
AUTH_HEADER = "X-Ray-Authorization"
"""Ray reads ``Authorization`` and this one; a proxy before the dashboard may want the former for itself."""


class RayJobsApi:
    """The Jobs API of one cluster.

    Args:
        address: Of the dashboard, such as ``http://head:8265`` or ``https://ray.example.org/cluster``.
        token: The cluster's ``RAY_AUTH_TOKEN``; empty where it wants none.
        headers: For a proxy in front of the dashboard.
        verify: Check the certificate of an https address; a path names the CA bundle to check it with.

    Raises RayAddressError for an address that is none.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str = "",
        headers: Mapping[str, str] | None = None,
        verify: bool | str = True,
    ) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RayAddressError(address, "it is no http or https URL")
        if parts.username or parts.password:
            raise RayAddressError(f"{parts.scheme}://***@{parts.hostname}", "credentials do not belong into a URL")
        self.address = address.rstrip("/")
        sent = dict(headers or {})
        if token:
            sent[AUTH_HEADER] = f"Bearer {token}"
            sent.setdefault("Authorization", f"Bearer {token}")
        context: ssl.SSLContext | bool = (
            ssl.create_default_context(cafile=verify) if isinstance(verify, str) else verify
        )
        self._client = httpx.Client(headers=sent, timeout=TIMEOUT_SECONDS, verify=context, follow_redirects=False)

    def close(self) -> None:
        self._client.close()

    def job(self, job: str) -> dict[str, JsonValue] | None:
        """Return what Ray knows of the submission, or None when it knows none of that id.

        Of a submission that was deleted, Ray may still know the driver, and shows that under the same id.
        """
        body = self._ask("GET", f"/api/jobs/{quote(job)}", missing=True)
        return body if isinstance(body, dict) and body.get("type") == "SUBMISSION" else None

    def jobs(self) -> list[dict[str, JsonValue]]:
        """Return what Ray knows of every job of the cluster, other people's included."""
        body = self._ask("GET", "/api/jobs/")
        return [item for item in body if isinstance(item, dict)] if isinstance(body, list) else []

    def submit(self, body: Mapping[str, JsonValue]) -> bool:
        """Submit a job; return False when Ray refuses because it has one of that id.

        The id makes a second try harmless: whether a first one that was not answered had come through shows in the
        answer to the second.
        """
        try:
            self._ask("POST", "/api/jobs/", body=dict(body))
        except RayRefusedError as error:
            if "already exists" in error.problem:
                return False
            raise
        return True

    def stop(self, job: str) -> bool:
        """Have the driver told to end; return False when there is nothing to tell (yet, or any more)."""
        body = self._ask("POST", f"/api/jobs/{quote(job)}/stop", missing=True)
        return isinstance(body, dict) and body.get("stopped") is True

    def delete(self, job: str) -> None:
        """Remove what Ray keeps of a settled job. Raises RayRefusedError when it is not settled."""
        self._ask("DELETE", f"/api/jobs/{quote(job)}", missing=True)

    def logs(self, job: str) -> str:
        """Return all that the driver printed; "" when there is no such job or its machine is gone."""
        body = self._ask("GET", f"/api/jobs/{quote(job)}/logs", missing=True)
        return str(body.get("logs", "")) if isinstance(body, dict) else ""

    def _ask(self, method: str, path: str, *, body: JsonValue = None, missing: bool = False) -> JsonValue:
        for attempt in range(TRIES):
            try:
                return self._once(method, path, body, missing=missing)
            except RayUnavailableError:
                if attempt == TRIES - 1:
                    raise
                time.sleep(0.3 * 2**attempt * random.uniform(0.5, 1.0))  # noqa: S311
        raise AssertionError("the last try returned or raised")

    def _once(self, method: str, path: str, body: JsonValue, *, missing: bool) -> JsonValue:
        request = f"{method} {path}"
        try:
            reply = self._client.request(method, f"{self.address}{path}", json=body)
        except httpx.TransportError as error:
            if isinstance(error.__cause__, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise RayAddressError(self.address, f"its certificate is not trusted ({error})") from None
            raise RayUnavailableError(self.address, request, str(error) or type(error).__name__) from None
        if reply.is_success:
            return self._json(reply)
        problem = f"{reply.status_code} {_last_line(reply.text)}"
        if reply.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise RayAccessError(self.address, request, problem)
        if reply.status_code == httpx.codes.NOT_FOUND:
            if missing and "does not exist" in reply.text:
                return None
            raise RayAddressError(self.address, f"{request} is answered by {problem}")
        if reply.is_redirect:
            raise RayAddressError(self.address, f"it redirects to {reply.headers.get('location', 'nowhere')}")
        if reply.is_client_error or _is_refusal(reply.text):
            raise RayRefusedError(self.address, request, problem)
        raise RayUnavailableError(self.address, request, problem)

    def _json(self, reply: httpx.Response) -> JsonValue:
        try:
            body: JsonValue = json.loads(reply.content)
        except ValueError:
            raise RayAddressError(self.address, "its answer is no JSON") from None
        return body


def _is_refusal(text: str) -> bool:
    """Return whether a status of 500 is Ray's way to say no: it passes the traceback of its own ValueError on."""
    return "already exists" in text or "non-terminal state" in text or "ValueError" in text


def _last_line(text: str) -> str:
    """Return the line of a traceback that says what went wrong, cut."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    told = [line for line in lines if "Error: " in line] or lines
    return told[-1][:400] if told else "(no text)"
