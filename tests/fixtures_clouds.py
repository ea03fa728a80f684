"""Servers for the stores that are not S3: Azurite for Azure, and for Google its XML API over the real S3 server.

Azurite comes from npm into ``.deepseek-ops/peers``. No emulator of Google's that can be had here speaks the XML API
that obstore uses (fake-gcs-server and gcp-storage-emulator know the JSON API), so ``GoogleFront`` translates it, header
by header, into S3: what is tested is our side of it, not Google's.
"""

from __future__ import annotations

import atexit
import base64
import fcntl
import hashlib
import hmac
import http.client
import os
import shutil
import socket
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import fixtures_s3
import httpx
import pytest

from deepseek_ops.adapters.stores.s3_requests import S3Place, encoded_url, signature_headers

PEERS = Path(__file__).resolve().parents[1] / ".deepseek-ops" / "peers"
AZURITE = "3.35.0"
"""The last that runs on Node 20."""
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = base64.b64encode(b"the key of an account that exists on this machine only, for tests").decode()
CONTAINER = "tests"
INSTALL_SECONDS = 240
START_SECONDS = 30


def azurite_program() -> Path:
    """Return Azurite's program, installed if need be. Skips the test where that cannot be done."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("Azurite needs node and npm")
    folder = PEERS / f"azurite-{AZURITE}"
    program = folder / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            command = [
                "npm",
                "install",
                "--no-audit",
                "--no-fund",
                "--ignore-scripts",
                "--omit=optional",
                "--prefix",
                ".",
            ]
            try:
                done = subprocess.run(
                    [*command, f"azurite@{AZURITE}"],
                    cwd=folder,
                    capture_output=True,
                    text=True,
                    timeout=INSTALL_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                pytest.skip("npm did not install Azurite in time")
            if done.returncode != 0:
                pytest.skip(f"npm cannot install Azurite here: {done.stderr.strip().splitlines()[-1:]}")
            (folder / "complete").touch()
    return program


@cache
def azurite_endpoint() -> str:
    """Return the URL of the account on the session's Azurite, with an empty container."""
    program = azurite_program()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["node", str(program), "--silent", "--skipApiVersionCheck", "--disableTelemetry", "--inMemoryPersistence"]
    process = subprocess.Popen(
        [*command, "--blobHost", "127.0.0.1", "--blobPort", str(port)],
        env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{ACCOUNT_KEY}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    atexit.register(process.kill)
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            _make_container(endpoint)
        except httpx.TransportError:
            time.sleep(0.2)
        else:
            return endpoint
    raise AssertionError("Azurite did not start")


def _make_container(endpoint: str) -> None:
    """obstore creates no containers: this signs one request with a shared access signature of the account."""
    expiry = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    fields = [ACCOUNT, "cw", "b", "c", "", expiry, "", "https,http", "2020-12-06", "", ""]
    text = "\n".join(fields).encode()
    signature = base64.b64encode(hmac.new(base64.b64decode(ACCOUNT_KEY), text, hashlib.sha256).digest()).decode()
    query = f"sv=2020-12-06&ss=b&srt=c&sp=cw&se={quote(expiry)}&spr=https,http&sig={quote(signature, safe='')}"
    answer = httpx.put(f"{endpoint}/{CONTAINER}?restype=container&{query}", headers={"x-ms-version": "2020-12-06"})
    assert answer.status_code in (201, 409), answer.text


def azure_credentials() -> dict[str, str]:
    """Return what ``open_store`` takes for the session's Azurite."""
    return {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
        "AZURE_ENDPOINT_URL": azurite_endpoint(),
    }


class GoogleFront(BaseHTTPRequestHandler):
    """Google's XML API in front of the S3 server: other names for the same things."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization", "").removeprefix("Bearer").strip():
            self._answer(400, [], b"no credentials are to be sent here")
            return
        headers = {name: value for name in ("range",) if (value := self.headers.get(name))}
        if self.headers.get("x-goog-if-generation-match") == "0":
            headers["if-none-match"] = "*"
        server = fixtures_s3.shared_server()
        path = urlsplit(self.path)
        # Google's clients encode more than S3 signs.
        query = dict(parse_qsl(path.query, keep_blank_values=True))
        url = encoded_url(server.endpoint, unquote(path.path).lstrip("/"), query)
        keys = server.credentials
        place = S3Place("", "us-east-1", keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"])
        signed = signature_headers(
            place, self.command, url, headers, hashlib.sha256(body).hexdigest(), datetime.now(UTC)
        )
        upstream = http.client.HTTPConnection(urlsplit(server.endpoint).netloc, timeout=60)
        upstream.request(self.command, url.removeprefix(server.endpoint), body=body or None, headers=signed)
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        kept = ("etag", "last-modified", "content-range", "content-type", "content-length")
        found = [(name, value) for name, value in answer.getheaders() if name.lower() in kept]
        self._answer(answer.status, [*found, ("x-goog-generation", "1")], data)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length":
                self.send_header(name, value)
        given = next((value for name, value in headers if name.lower() == "content-length"), str(len(data)))
        self.send_header("Content-Length", given if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle  # noqa: N815


@cache
def google_credentials() -> dict[str, str]:
    """Return what ``open_store`` takes for the session's front."""
    fixtures_s3.shared_server()
    server = ThreadingHTTPServer(("127.0.0.1", 0), GoogleFront)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    return {"GOOGLE_BASE_URL": base}
