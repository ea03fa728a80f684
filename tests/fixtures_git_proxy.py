"""A Git server in front of the embedded one that behaves as some hosts do: old protocol only, or moved elsewhere."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PASSED_ON = ("Authorization", "Content-Type", "Content-Encoding", "Accept", "Accept-Encoding", "Git-Protocol")


class Proxy:
    """What the proxy does, changed by tests while it runs. Counts requests and bytes."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.old_protocol = False
        self.moved: dict[str, str] = {}
        """First path segment -> where it redirects to."""
        self.renamed: dict[str, str] = {}
        """First path segment -> the repository that answers."""
        self.down = False
        self.requests = 0
        self.sent = 0
        self.received = 0
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _serve(self) -> None:
        proxy = self.proxy
        body = self._body()
        proxy.requests += 1
        proxy.received += len(body) + len(self.path) + sum(len(k) + len(v) + 4 for k, v in self.headers.items())
        name, _, rest = self.path.lstrip("/").partition("/")
        if proxy.down:
            self._answer(503, [], b"away")
        elif name in proxy.moved:
            self._answer(301, [("Location", f"{proxy.moved[name]}/{rest}")], b"")
        else:
            self._forward(f"/{proxy.renamed.get(name, name)}/{rest}", body)

    def _forward(self, path: str, body: bytes) -> None:
        proxy = self.proxy
        headers = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
        if proxy.old_protocol:
            headers.pop("Git-Protocol", None)
        connection = http.client.HTTPConnection(proxy.target.hostname or "", proxy.target.port, timeout=60)
        try:
            connection.request(self.command, path, body or None, headers)
            answer = connection.getresponse()
            content = answer.read()
            kept = [
                (name, value) for name, value in answer.getheaders() if name in ("Content-Type", "WWW-Authenticate")
            ]
            self._answer(answer.status, kept, content)
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.proxy.sent += len(body)
        self.send_response(status)
        for name, value in [*headers, ("Content-Length", str(len(body))), ("Connection", "close")]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)


@contextmanager
def git_proxy(target: str) -> Iterator[Proxy]:
    """Run a proxy in front of the Git server at ``target``."""
    proxy = Proxy(target)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
