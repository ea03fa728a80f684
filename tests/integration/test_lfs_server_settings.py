"""The LFS server's settings, its command line, TLS, and stores that cannot be trusted with presigned uploads."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fixtures_s3
import httpx
import pytest
from fixtures_lfs_server import LFS, SECRET, LfsProcess, lfs_server

from deepseek_ops.adapters.git_lfs.tokens import TokenBook
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.objects import blob_key
from deepseek_ops.embedded.seaweedfs import SeaweedServer
from deepseek_ops.web.lfs import LfsSettingError, LfsSettings, open_service
from deepseek_ops.web.lfs_serving import Address, InsecureAddressError

s3_server = fixtures_s3.s3_server
s3_uri = fixtures_s3.s3_uri
OID = hashlib.sha256(b"new").hexdigest()


def upload_action(server, size: int = 3) -> dict:
    with server.client(server.token()) as client:
        body = {"operation": "upload", "objects": [{"oid": OID, "size": size}]}
        return client.post("objects/batch", json=body).json()["objects"][0]["actions"]


@pytest.fixture
def careless(s3_server: SeaweedServer) -> Iterator[str]:
    """Endpoint of an S3 server that stores whatever is put with a presigned URL, as some do."""
    real = s3_server.credentials["AWS_ENDPOINT_URL"]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.command == "PUT" and "X-Amz-Signature" in self.path:
                store = open_store(f"s3://{self.path.split('/lfs/')[0][1:]}", s3_server.credentials)
                store.put_blob(self.path.partition("?")[0].split("/", 3)[3], body)
                status, headers, data = 200, {}, b""
            else:
                # The signature covers the Host, so the store gets the one that was signed.
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                done = httpx.request(self.command, real + self.path, content=body, headers=headers, trust_env=False)
                status, headers, data = done.status_code, dict(done.headers), done.content
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding", "content-encoding"):
                    self.send_header(name, value)
            length = headers.get("content-length", "0") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.answer)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_store_that_takes_wrong_bytes_gets_its_uploads_through_the_server(
    s3_server: SeaweedServer, s3_uri: str, careless: str
) -> None:
    credentials = {**s3_server.credentials, "AWS_ENDPOINT_URL": careless}
    with lfs_server(s3_uri, credentials) as server:
        link = upload_action(server)["upload"]
        assert link["href"].startswith(server.url)
        wrong = httpx.put(link["href"], content=b"bad", headers=link["header"], trust_env=False)
        assert wrong.status_code == 400
        assert server.service.store.head(blob_key(OID)) is None
        assert not list(server.service.store.list("lfs/probes/")), "a probe must leave nothing"


def test_the_probe_of_an_honest_store_leaves_nothing(s3_server: SeaweedServer, s3_uri: str) -> None:
    with lfs_server(s3_uri, s3_server.credentials) as server:
        assert upload_action(server)["upload"]["href"].startswith(s3_server.endpoint)
        assert not list(server.service.store.list("lfs/probes/"))


def test_links_name_the_addresses_that_clients_can_reach(s3_server: SeaweedServer, s3_uri: str) -> None:
    settings = LfsSettings(public_url="https://lfs.example.com/x/", store_endpoint="https://s3.example.com")
    with lfs_server(s3_uri, s3_server.credentials, settings) as server:
        actions = upload_action(server)
    assert actions["upload"]["href"].startswith(f"https://s3.example.com/tests/{s3_uri.rpartition('/')[2]}/objects/")
    assert actions["verify"]["href"] == f"https://lfs.example.com/x/team/model/objects/{OID}/verify"


def test_a_folder_cannot_have_presigned_transfers(tmp_path: Path) -> None:
    with pytest.raises(LfsSettingError):
        open_service(str(tmp_path), {}, [SECRET.encode()], LfsSettings(transfers="presigned"))


def test_a_store_that_is_away_is_an_answer_to_come_back_later(s3_uri: str) -> None:
    away = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    token = TokenBook(open_store("/nonexistent"), [SECRET.encode()])._signer.sign(
        {
            "id": "0" * 16,
            "repository": "team/model",
            "access": "read",
            "subject": "ada",
            "expires": 4_000_000_000,
            "schema": "Grant/1",
        }
    )
    with lfs_server(s3_uri, away) as server, server.client(token) as client:
        answer = client.get("locks")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "127.0.0.1:9" not in answer.text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.com"])  # noqa: S104
def test_tokens_do_not_travel_in_clear(host: str, tmp_path: Path) -> None:
    with pytest.raises(InsecureAddressError):
        Address(host).checked()
    Address(host, allow_plain=True).checked()
    Address(host, certificate=tmp_path / "c", key=tmp_path / "k").checked()
    Address("127.0.0.1").checked()
    Address("::1").checked()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_the_server_speaks_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-days", "1", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    store = tmp_path / "store"
    store.mkdir()
    server = LfsProcess(str(store), {}, tmp_path, "--tls-cert", str(certificate), "--tls-key", str(key))
    trusted = ssl.create_default_context(cafile=str(certificate))
    server.start(verify=trusted)
    try:
        token = TokenBook(open_store(str(store)), [SECRET.encode()]).issue("team/model", "write", "ada", days=1)[0]
        with httpx.Client(verify=trusted, trust_env=False, headers=LFS, auth=("ada", token)) as client:
            body = {"operation": "upload", "objects": [{"oid": OID, "size": 3}]}
            answer = client.post(f"{server.url}/team/model/objects/batch", json=body).json()
            link = answer["objects"][0]["actions"]["upload"]
            assert link["href"].startswith("https://")
            assert client.put(link["href"], content=b"new", headers=link["header"], auth=None).status_code == 200
    finally:
        server.end()


def cli(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DEEPSEEK_OPS_STORE": str(folder / "store")}
    command = [sys.executable, "-m", "deepseek_ops.cli.main", "lfs", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_tokens_are_made_listed_and_revoked_on_the_command_line(tmp_path: Path) -> None:
    secret = str(tmp_path / "secret")
    assert cli(tmp_path, "secret", "--secret-file", secret).returncode == 0
    assert "File exists" in cli(tmp_path, "secret", "--secret-file", secret).stderr
    create = ["token", "create", "--repository", "team/model", "--secret-file", secret]
    made = json.loads(cli(tmp_path, *create, "--write", "--days", "30", "--subject", "ada").stdout)
    assert (made["access"], made["subject"], made["repository"]) == ("write", "ada", "team/model")
    ssh = ["authenticate", "/team/model.git", "download", "--url", "https://lfs.example.com", "--secret-file", secret]
    answer = json.loads(cli(tmp_path, *ssh, "--subject", "deploy-key").stdout)
    assert answer["href"] == "https://lfs.example.com/team/model"
    assert answer["expires_in"] == 3600
    book = TokenBook(open_store(str(tmp_path / "store")), [Path(secret).read_text().strip().encode()])
    assert book.check(answer["header"]["Authorization"].removeprefix("Bearer ")).access == "read"
    assert cli(tmp_path, "token", "revoke", made["id"]).returncode == 0
    listed = json.loads(cli(tmp_path, "token", "list", "--repository", "team/model").stdout)
    assert {row["id"]: row["state"] for row in listed}[made["id"]] == "revoked"
    unknown = cli(tmp_path, "token", "revoke", "0" * 16)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    refused = cli(tmp_path, *create[:3], "../x", "--secret-file", secret)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)


@pytest.mark.parametrize("module", ["deepseek_ops.airflow.plugin", "deepseek_ops.web.lfs", "deepseek_ops.cli.lfs"])
def test_importing_a_door_imports_no_server_and_no_signer(module: str) -> None:
    heavy = ["botocore", "uvicorn"] if "airflow" in module else ["botocore", "uvicorn", "fastapi"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
