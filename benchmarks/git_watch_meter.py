"""What the Git watch benchmark measures with: a relay that counts bytes, and a REST server that lists tags."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PAGE = 30


class Meter:
    """Bytes over the wire, both ways, and connections."""

    def __init__(self) -> None:
        self.url = ""
        self.bytes = 0
        self.connections = 0

    def take(self) -> tuple[int, int]:
        """Return (bytes, connections) since the last time."""
        seen = self.bytes, self.connections
        self.bytes = self.connections = 0
        return seen


@contextmanager
def relay(url: str) -> Iterator[Meter]:
    """Forward TCP connections to the server at ``url``, counting what passes."""
    target = urlsplit(url)
    meter = Meter()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            meter.connections += 1
            with socket.create_connection((str(target.hostname), int(target.port or 80))) as far:
                back = threading.Thread(target=_pump, args=(far, self.request, meter), daemon=True)
                back.start()
                _pump(self.request, far, meter)
                back.join()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        meter.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield meter
        server.shutdown()


def _pump(source: socket.socket, sink: socket.socket, meter: Meter) -> None:
    try:
        while piece := source.recv(1 << 16):
            meter.bytes += len(piece)
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return


@contextmanager
def tag_api(tags: Callable[[], list[tuple[str, str]]]) -> Iterator[str]:
    """Serve ``/repos/o/r`` and ``/repos/o/r/tags``, 30 a page, with the fields that GitHub documents."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            page = int(parse_qs(parts.query).get("page", ["1"])[0])
            if parts.path.endswith("/tags"):
                body: object = [_tag(*tag) for tag in tags()[(page - 1) * PAGE : page * PAGE]]
            else:
                body = {"id": 1, "full_name": "o/r", "description": "x" * 4000}  # a repository answers about 5 kB
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _tag(name: str, commit: str) -> dict[str, object]:
    api = "https://api.github.com/repos/o/r"
    return {
        "name": name,
        "zipball_url": f"{api}/zipball/refs/tags/{name}",
        "tarball_url": f"{api}/tarball/refs/tags/{name}",
        "commit": {"sha": commit, "url": f"{api}/commits/{commit}"},
        "node_id": "REF_kwDOAAAAAAAvcmVmcy90YWdz",
    }
