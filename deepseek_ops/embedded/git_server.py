"""Bare Git repositories over smart HTTP on loopback: ``git http-backend`` behind a small threaded server.

For the demo and the tests: clones, pushes and partial fetches are real, every request needs the token. Started as a
process by ``python -m deepseek_ops.embedded.git_server --root DIR --port N`` with the token in the environment variable
``DEEPSEEK_OPS_GIT_TOKEN``; it ends with its parent unless ``--detach`` is given.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hmac
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self
from urllib.parse import urlsplit

from deepseek_ops.core.errors import PermanentError

TOKEN_VARIABLE = "DEEPSEEK_OPS_GIT_TOKEN"  # noqa: S105  (the variable's name)
MAX_REQUEST_BYTES = 2 * 1024**3

_ROUTE = re.compile(
    r"/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*\.git)/(?P<service>info/refs|git-upload-pack|git-receive-pack)"
)
_SERVICES = ("service=git-upload-pack", "service=git-receive-pack")
_CHUNK = 1 << 16
_SETTINGS = {
    "http.receivepack": "true",
    "uploadpack.allowFilter": "true",
    "uploadpack.allowAnySHA1InWant": "true",
    "receive.fsckObjects": "true",
    "receive.advertiseAtomic": "true",
    "gc.auto": "0",
}


@dataclass(eq=False)
class RepositoryNameError(PermanentError):
    """A name that cannot be a repository of the embedded server."""

    name: str

    def __str__(self) -> str:
        return f"repository name {self.name!r} is not allowed; use letters, digits, '.', '_' and '-'."


class GitServer:
    """Serves the repositories below ``root`` on 127.0.0.1. A context manager; ``port`` 0 takes a free one."""

    def __init__(self, root: Path, *, username: str = "git", token: str, port: int = 0) -> None:
        self.root = root
        self._username = username
        self._token = token
        self._port = port
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """Base URL of the running server, without credentials."""
        port = self._server.server_address[1] if self._server else self._port
        return f"http://127.0.0.1:{port}"

    def repository_url(self, name: str) -> str:
        """Return the URL of a repository."""
        return f"{self.url}/{_file_name(name)}"

    def create_repository(self, name: str) -> str:
        """Make the bare repository unless it is there, and return its URL."""
        place = self.root / _file_name(name)
        self.root.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            fresh = Path(tempfile.mkdtemp(dir=self.root, prefix=".new-"))
            _git("init", "--bare", "--quiet", "--initial-branch=main", "--template=", str(fresh / "repository"))
            for key, value in _SETTINGS.items():
                _git(f"--git-dir={fresh / 'repository'}", "config", key, value)
            with contextlib.suppress(FileExistsError, OSError):  # somebody else made it first
                (fresh / "repository").rename(place)
            shutil.rmtree(fresh, ignore_errors=True)
        return self.repository_url(name)

    def start(self) -> None:
        """Listen, and answer in threads of this process. Raises OSError when the port is taken."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._server = _Server(self._port, self.root, self._username, self._token)
        threading.Thread(target=self._server.serve_forever, name="git-server", daemon=True).start()

    def stop(self) -> None:
        """Stop listening. Requests that are being answered end with their process."""
        if self._server is not None:
            self._port = int(self._server.server_address[1])
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, root: Path, username: str, token: str) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.root = root.resolve()
        self.username = username
        self.expected = base64.b64encode(f"{username}:{token}".encode())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 60

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
        """Say nothing: request lines of a test server are noise, and headers hold the token."""

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        route = _ROUTE.fullmatch(parts.path)
        if not self._authorised():
            self._answer(HTTPStatus.UNAUTHORIZED, ("WWW-Authenticate", 'Basic realm="deepseek-ops"'))
        elif route is None or ".." in parts.path or not (self.server.root / route["name"] / "HEAD").is_file():
            self._answer(HTTPStatus.NOT_FOUND)
        elif (route["service"] == "info/refs") != (self.command == "GET"):
            self._answer(HTTPStatus.METHOD_NOT_ALLOWED)
        elif route["service"] == "info/refs" and parts.query not in _SERVICES:
            self._answer(HTTPStatus.FORBIDDEN)  # the dumb protocol would serve files
        else:
            self._backend(parts.path, parts.query)

    def _authorised(self) -> bool:
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "basic" and hmac.compare_digest(given.strip().encode(), self.server.expected)

    def _answer(self, status: HTTPStatus, *headers: tuple[str, str]) -> None:
        body = f"{status.phrase}\n".encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")  # a request body may still be unread
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def _backend(self, path: str, query: str) -> None:
        with tempfile.SpooledTemporaryFile(max_size=1 << 20) as body:
            if not self._read_body(body):
                self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                return
            size = body.tell()
            body.seek(0)
            body.rollover()  # git reads a file, not our memory
            with subprocess.Popen(
                ["git", "http-backend"],
                stdin=body.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment(path, query, size),
            ) as process:
                if process.stdout is not None:
                    self._relay(process.stdout)
                if self.close_connection:
                    process.kill()

    def _environment(self, path: str, query: str, size: int) -> dict[str, str]:
        given = {
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "GIT_PROJECT_ROOT": str(self.server.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REMOTE_USER": self.server.username,
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_LENGTH": str(size),
            **{name: value for name, value in given.items() if value},
        }

    def _read_body(self, sink: IO[bytes]) -> bool:
        """Copy the request's body, chunked or not; False when it is larger than we take."""
        size = 0
        for piece in self._pieces():
            size += len(piece)
            if size > MAX_REQUEST_BYTES:
                return False
            sink.write(piece)
        return True

    def _pieces(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            left = int(self.headers.get("Content-Length") or 0)
            while left > 0 and (piece := self.rfile.read(min(left, _CHUNK))):
                left -= len(piece)
                yield piece
            return
        while left := int(self.rfile.readline().split(b";")[0], 16):
            while left > 0 and (piece := self.rfile.read(min(left, _CHUNK))):
                left -= len(piece)
                yield piece
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def _relay(self, source: IO[bytes]) -> None:
        """Turn the CGI answer into an HTTP one; its length is unknown, so it goes out in chunks."""
        status, headers = HTTPStatus.OK.value, []
        while line := source.readline().decode("latin-1").strip():
            name, _, value = line.partition(":")
            if name.lower() == "status":
                status = int(value.split()[0])
            else:
                headers.append((name, value.strip()))
        try:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while piece := source.read(_CHUNK):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


def _file_name(name: str) -> str:
    file_name = name.removesuffix(".git") + ".git"
    if not _ROUTE.fullmatch(f"/{file_name}/info/refs"):
        raise RepositoryNameError(name)
    return file_name


def _git(*arguments: str) -> None:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    subprocess.run(["git", *arguments], check=True, env=environment, stdin=subprocess.DEVNULL, timeout=60)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT or, without ``--detach``, the parent's end."""
    parser = argparse.ArgumentParser(prog="python -m deepseek_ops.embedded.git_server", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of the bare repositories")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--username", default="git")
    parser.add_argument("--create", action="append", default=[], metavar="NAME", help="repository to make at start")
    parser.add_argument("--detach", action="store_true", help="outlive the parent process")
    options = parser.parse_args(arguments)
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        sys.stderr.write(f"set the environment variable {TOKEN_VARIABLE} to the token clients must give\n")
        return 2
    parent, stopped = os.getppid(), threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        server = GitServer(options.root, username=options.username, token=token, port=options.port)
        server.start()
    except OSError as error:
        sys.stderr.write(f"cannot listen on 127.0.0.1:{options.port}: {error.strerror or error}\n")
        return 1
    try:
        for name in options.create:
            server.create_repository(name)
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        while not stopped.wait(0.5) and (options.detach or os.getppid() == parent):
            pass
    finally:
        server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
