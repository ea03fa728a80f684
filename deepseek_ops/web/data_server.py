"""The data pages as a process of their own: one address, one access token that is printed once and kept nowhere."""

# No postponed annotations here: FastAPI reads them.
import base64
import binascii
import secrets
import socket
from collections.abc import Callable
from urllib.parse import urlencode

from fastapi import FastAPI, HTTPException
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from deepseek_ops.data import DatasetRepository
from deepseek_ops.web.data_html import problem_page
from deepseek_ops.web.data_pages import HEADERS, data_app
from deepseek_ops.web.lfs_serving import Address

COOKIE = "deepseek_ops_data"
GRACE_SECONDS = 5
MAX_CONNECTIONS = 128


class TokenAuthoriser:
    """Lets in who shows the token: in the cookie that the printed address sets, as Bearer, or as Basic password."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Request) -> None:
        """Raise 401 for everybody else."""
        shown = (request.cookies.get(COOKIE, ""), _credential(request.headers.get("authorization", "")))
        if not any(self.matches(token) for token in shown):
            raise HTTPException(401, "open the address that `deepseek-ops data serve` printed", _CHALLENGE)

    def matches(self, token: str) -> bool:
        """Return whether this is the token, in a time that does not say how much of it is right."""
        return secrets.compare_digest(token.encode(), self._token.encode())


_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="deepseek-ops data"'}


def _credential(header: str) -> str:
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic" or len(value) > 1024:
        return ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def standalone_app(repository: DatasetRepository, token: str, *, secure: bool = False) -> FastAPI:
    """Return the pages with a way to log in: ``/login?token=...`` sets the cookie and goes on without the token."""
    authoriser = TokenAuthoriser(token)

    app = data_app(repository, authorise=authoriser)

    async def login(request: Request) -> Response:
        if not authoriser.matches(request.query_params.get("token", "")):
            return HTMLResponse(problem_page("", 401, "This is not the server's token."), 401, HEADERS)
        answer = RedirectResponse("/", status_code=303, headers=HEADERS)
        answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=secure)
        return answer

    async def refused(_request: Request, error: Exception) -> Response:
        status, detail = 500, "internal error"
        if isinstance(error, AnyHTTPException):
            status, detail = error.status_code, str(error.detail)
        headers = {**HEADERS, **(_CHALLENGE if status == 401 else {})}
        return HTMLResponse(problem_page("", status, detail), status, headers)

    app.add_route("/login", login, methods=["GET"])
    app.add_exception_handler(AnyHTTPException, refused)
    return app


def run_data_server(repository: DatasetRepository, address: Address, *, tell: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; ``tell`` gets the address with a fresh token, once.

    Raises InsecureAddressError for an address that others can reach without TLS.
    """
    import uvicorn

    address.checked()
    token = secrets.token_urlsafe(32)
    secure = address.certificate is not None
    app = standalone_app(repository, token, secure=secure)
    with socket.create_server((address.host, address.port), family=_family(address.host)) as listening:
        port = listening.getsockname()[1]
        host = f"[{address.host}]" if ":" in address.host else address.host
        tell(f"{'https' if secure else 'http'}://{host}:{port}/login?{urlencode({'token': token})}")
        config = uvicorn.Config(
            app,
            ssl_certfile=str(address.certificate) if address.certificate else None,
            ssl_keyfile=str(address.key) if address.key else None,
            access_log=False,  # the address of the login holds the token
            log_level="warning",
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        uvicorn.Server(config).run(sockets=[listening])


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
