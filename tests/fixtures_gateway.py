"""Tiny HTTP backends and keep-alive clients for the gateway's tests."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

from pydantic import JsonValue


class Backend:
    """A server of one version: answers with its name and remembers the bodies it got.

    ``delay_seconds`` before each answer, ``status`` of it; with ``hold`` a body of two parts with a wait between them.
    """

    def __init__(self, name: str, *, delay_seconds: float = 0.0, status: int = 200) -> None:
        self.name = name
        self.delay_seconds = delay_seconds
        self.status = status
        self.bodies: list[bytes] = []
        self.hold: threading.Event | None = None
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def do_POST(self) -> None:
        backend = self.server.backend
        backend.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        time.sleep(backend.delay_seconds)
        answer = backend.name.encode()
        self.send_response(backend.status)
        if backend.hold is None:
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
            return
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for part in (answer, b"end"):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.flush()
            if part == answer:
                backend.hold.wait(20)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass


class Client:
    """One keep-alive connection, as an OpenAI client holds it."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(str(urlsplit(url).netloc), timeout=20)

    def send(
        self, *, user: str = "", body: JsonValue = None, headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """Return the answer with its body still to read."""
        sent = {"content-type": "application/json", **({"x-user-id": user} if user else {}), **(headers or {})}
        self._connection.request("POST", "/v1/completions", json.dumps(body), sent)
        return self._connection.getresponse()

    def ask(self, *, user: str = "", body: JsonValue = None) -> tuple[int, str]:
        """Return status and text of the answer."""
        answer = self.send(user=user, body=body)
        return answer.status, answer.read().decode()

    def version(self, user: str = "") -> str:
        """Return the version that answered; the status must be 200."""
        status, text = self.ask(user=user)
        assert status == 200, (status, text)
        return text

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def eventually(claim: Callable[[], bool], seconds: float = 15.0) -> bool:
    """Return whether the claim becomes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if claim():
            return True
        time.sleep(0.05)
    return claim()
