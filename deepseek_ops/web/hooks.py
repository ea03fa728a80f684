"""Webhooks of Git hosts: an authenticated way to say "look now" to the watcher of a repository, and nothing else.

``POST /<host>/<connection>`` (or ``/<host>`` for the default one) with a valid signature wakes the watcher. The body is
only hashed, never read: what was pushed is asked of the Git host itself, so a delivery that is late, lost, doubled or
replayed changes nothing but when the watcher looks. A refusal does not say whether the connection exists.
"""

# No postponed annotations here: FastAPI reads them.
import logging
import re
import secrets as randomness
import time
from collections.abc import Callable, Sequence
from typing import Any

from deepseek_ops.core.errors import FactsUnavailableError, PermanentError
from deepseek_ops.web.hook_signatures import EVENT_HEADERS, HOSTS, PUSHES, Proof, proof_of

MAX_BODY_BYTES = 26 * 1024 * 1024
"""GitHub's own limit is 25 MB. The body is hashed as it comes and never held."""
MAX_EVENT_CHARACTERS = 40

_REPOSITORY = re.compile(r"[A-Za-z0-9_.-]{1,100}")

log = logging.getLogger(__name__)

SecretsOf = Callable[[str], Sequence[str]]
"""Secrets that may sign deliveries for a repository; none when it is unknown or has no webhook."""
Ring = Callable[[str, str], bool]
"""Wakes the watchers of a repository for a delivery; False when the delivery was here before."""


def hooks_app(secrets_of: SecretsOf, ring: Ring, *, default: str, now: Callable[[], float] = time.time) -> Any:
    """Return the FastAPI application. ``secrets_of`` is its authorisation: no secret, no entry.

    202 woken or known already, 200 for an event that is no push (a ping), 401 for every kind of refusal, 413 for a body
    above MAX_BODY_BYTES, 503 while the facts are away: the host shows it, and polling goes on.
    """
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.responses import JSONResponse
    from starlette.concurrency import run_in_threadpool

    app = FastAPI(title="deepseek-ops webhooks", docs_url=None, redoc_url=None, openapi_url=None)

    async def delivered(request: Request, host: str, repository: str = default) -> JSONResponse:
        if host not in HOSTS:
            raise HTTPException(404, f"hooks come from {', '.join(HOSTS)}")
        known = await run_in_threadpool(_secrets, secrets_of, repository)
        headers = {name.lower(): value for name, value in request.headers.items()}
        # A repository without secrets gets one that nobody has: the answer takes as long and says the same.
        proof = proof_of(host, headers, known or [randomness.token_hex(32)], now())
        if not await _read(request, proof):
            raise HTTPException(413, f"a delivery has at most {MAX_BODY_BYTES} bytes")
        delivery = proof.delivery()
        if delivery is None:
            raise HTTPException(401, "the signature does not match a secret of this connection, or is too old")
        event = headers.get(EVENT_HEADERS[host], "")
        if event not in PUSHES[host]:
            return JSONResponse({"woken": False, "reason": "no push"}, 200)
        try:
            woken = await run_in_threadpool(ring, repository, delivery)
        except FactsUnavailableError:
            log.warning("a delivery of %s could not wake %s: the facts are away", host, repository)
            raise HTTPException(503, "try again later; polling goes on", {"Retry-After": "60"}) from None
        log.info("%s delivered %s for %s%s", host, event, repository, "" if woken else " (again)")
        return JSONResponse({"woken": woken}, 202)

    app.add_api_route("/{host}", delivered, methods=["POST"])
    app.add_api_route("/{host}/{repository}", delivered, methods=["POST"])
    return app


def _secrets(secrets_of: SecretsOf, repository: str) -> list[str]:
    if not _REPOSITORY.fullmatch(repository):
        return []
    try:
        return [secret for secret in secrets_of(repository) if secret]
    except PermanentError as error:
        log.error("no delivery can be checked: %s", error)  # noqa: TRY400  (the message is the whole story)
        return []


async def _read(request: Any, proof: Proof) -> bool:
    """Feed the body to the proof; False when it is larger than a delivery can be."""
    told = request.headers.get("content-length", "0")
    if told.isdecimal() and int(told) > MAX_BODY_BYTES:
        return False
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY_BYTES:
            return False
        proof.add(piece)
    return True
