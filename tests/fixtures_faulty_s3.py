"""A proxy before the real S3 server that does to requests what networks and busy servers do. Loopback only.

    faulty_s3.will(Fault(RESET_AFTER, "put", key="refs/", count=1))

Faults are drawn with a fixed seed, so a run that failed fails again with the same order of requests. Every request is
counted by its kind: what a request costs is part of what the tests claim.
"""

from __future__ import annotations

import http.client
import random
import re
import secrets
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import fixtures_s3
import pytest

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.ports import ObjectStore

LATENCY = "latency"
ERROR = "500"
SLOW_DOWN = "503"
RESET_BEFORE = "reset before the server has the request"
RESET_AFTER = "reset after the server has done it"
CUT_REQUEST = "half of the request reaches the server"
FLIP_REQUEST = "a bit of the request's body flips"
FLIP_ANSWER = "a bit of the answer's body flips"
TRUNCATE = "half of the answer's body arrives"
STALL = "half of the answer's body arrives, and then silence"
ANSWER = "an answer of the test's own"

KINDS = ("put", "part", "get", "head", "list", "begin", "parts", "uploads", "complete", "abort", "delete", "remove")


@dataclass
class Fault:
    """What happens to requests whose kind and key match, with a probability, at most ``count`` times."""

    what: str
    kinds: str = "|".join(KINDS)
    """Regular expression over ``KINDS``."""
    key: str = ""
    """Regular expression searched in the key."""
    probability: float = 1.0
    count: int | None = None
    seconds: float = 0.05
    body: bytes = b""
    """Of an ``ANSWER``."""
    hit: int = field(default=0, init=False)


class FaultyS3:
    """The proxy. Use it as a context manager."""

    def __init__(self, upstream: str, seed: int = 1) -> None:
        address = urlsplit(upstream)
        self.upstream = (str(address.hostname), int(address.port or 80))
        self.counts: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        self.most_at_once = 0
        self._faults: list[Fault] = []
        self._random = random.Random(seed)  # noqa: S311
        self._lock = threading.Lock()
        self._now = 0
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> FaultyS3:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def will(self, *faults: Fault) -> None:
        """Have these faults, and no others, from now on."""
        with self._lock:
            self._faults = list(faults)

    def reset_counts(self) -> None:
        with self._lock:
            self.counts.clear()
            self.sent_bytes.clear()
            self.most_at_once = 0

    def draw(self, kind: str, key: str, num_bytes: int) -> Fault | None:
        """Count a request and return what happens to it."""
        with self._lock:
            self.counts[kind] += 1
            self.sent_bytes[kind] += num_bytes
            for fault in self._faults:
                if not re.fullmatch(fault.kinds, kind) or not re.search(fault.key, key):
                    continue
                if (fault.count is None or fault.hit < fault.count) and self._random.random() < fault.probability:
                    fault.hit += 1
                    return fault
        return None

    def entered(self, change: int) -> None:
        with self._lock:
            self._now += change
            self.most_at_once = max(self.most_at_once, self._now)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultyS3

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed in the middle is what these tests are for."""


def kind_of(method: str, key: str, query: dict[str, list[str]]) -> str:
    """Return which of ``KINDS`` a request is."""
    special = {
        ("PUT", "partNumber"): "part",
        ("POST", "uploads"): "begin",
        ("POST", "uploadId"): "complete",
        ("POST", "delete"): "delete",
        ("GET", "uploads"): "uploads",
        ("GET", "uploadId"): "parts",
        ("DELETE", "uploadId"): "abort",
    }
    for (verb, name), kind in special.items():
        if method == verb and name in query:
            return kind
    if method == "GET" and not key:
        return "list"
    return {"PUT": "put", "GET": "get", "HEAD": "head", "DELETE": "remove"}[method]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        return

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        key = unquote(address.path).lstrip("/").partition("/")[2]
        kind = kind_of(self.command, key, parse_qs(address.query, keep_blank_values=True))
        fault = self.server.proxy.draw(kind, key, len(body))
        self.server.proxy.entered(1)
        try:
            self._act(fault, body)
        finally:
            self.server.proxy.entered(-1)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle  # noqa: N815

    def _act(self, fault: Fault | None, body: bytes) -> None:
        what = fault.what if fault else ""
        if fault and what == LATENCY:
            time.sleep(fault.seconds)
        if what in (ERROR, SLOW_DOWN):
            time.sleep(0.005)
            self._refuse(int(what), "InternalError" if what == ERROR else "SlowDown")
        elif fault and what == ANSWER:
            self._send(200, [("Content-Type", "application/xml")], fault.body)
        elif what == RESET_BEFORE:
            self._reset()
        elif what == CUT_REQUEST:
            if body:  # half of nothing would be all of it
                self._forward_half(body)
            self._reset()
        else:
            self._relay(fault, flipped(body) if what == FLIP_REQUEST else body)

    def _relay(self, fault: Fault | None, body: bytes) -> None:
        what = fault.what if fault else ""
        upstream = http.client.HTTPConnection(*self.server.proxy.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        if what == RESET_AFTER:
            self._reset()
            return
        data = flipped(data) if what == FLIP_ANSWER else data
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in ("connection", "date")]
        half = fault if fault and what in (TRUNCATE, STALL) and len(data) > 1 else None
        self._send(answer.status, headers, data, half)

    def _send(self, status: int, headers: list[tuple[str, str]], data: bytes, half: Fault | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "content-length"):
                self.send_header(name, value)
        given = next((value for name, value in headers if name.lower() == "content-length"), None)
        self.send_header("Content-Length", given if self.command == "HEAD" and given else str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            self.wfile.flush()
            time.sleep(half.seconds if half.what == STALL else 0)
            self.close_connection = True

    def _refuse(self, status: int, code: str) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>"
        self._send(status, [("Content-Type", "application/xml")], body.encode())

    def _forward_half(self, body: bytes) -> None:
        with socket.create_connection(self.server.proxy.upstream, timeout=60) as upstream:
            head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
            upstream.sendall(f"{self.command} {self.path} HTTP/1.1\r\n{head}\r\n".encode() + body[: len(body) // 2])

    def _reset(self) -> None:
        """End the connection with RST, as a load balancer that restarts does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def flipped(data: bytes) -> bytes:
    """Return ``data`` with one bit of its middle byte changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data


MODERATE = [
    (ERROR, "put|part|get|list|head|begin|complete|parts|uploads|delete", 0.04),
    (SLOW_DOWN, "put|part|get|list|head", 0.02),
    (RESET_BEFORE, "put|part|get|list|head|complete|delete", 0.04),
    (TRUNCATE, "get|list", 0.04),
    (CUT_REQUEST, "put|part", 0.03),
    (FLIP_REQUEST, "put|part", 0.03),
    (LATENCY, ".*", 0.1),
]


def moderate(*, lost_answers: bool) -> Iterator[Fault]:
    """Yield a bad day: every tenth request or so goes wrong in some way."""
    for what, kinds, probability in MODERATE:
        yield Fault(what, kinds, probability=probability, seconds=0.01)
    if lost_answers:
        yield Fault(RESET_AFTER, probability=0.05)


@pytest.fixture
def faulty_s3() -> Iterator[FaultyS3]:
    with FaultyS3(fixtures_s3.shared_server().endpoint) as proxy:
        yield proxy


@pytest.fixture
def faulty_credentials(faulty_s3: FaultyS3) -> dict[str, str]:
    return {**fixtures_s3.shared_server().credentials, "AWS_ENDPOINT_URL": faulty_s3.endpoint}


@pytest.fixture
def faulty_store(faulty_s3: FaultyS3, faulty_credentials: dict[str, str]) -> ObjectStore:
    """Give an empty store behind the proxy."""
    return open_store(f"s3://{fixtures_s3.BUCKET}/{secrets.token_hex(6)}", faulty_credentials)
