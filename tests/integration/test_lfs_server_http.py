"""The LFS server spoken to directly: what the API promises, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import fixtures_s3
import httpx
import pytest
from fixtures_lfs_server import LFS, LfsServer, lfs_server

from deepseek_ops.adapters.git_lfs.batch import ObjectLimits
from deepseek_ops.adapters.git_lfs.links import Tickets
from deepseek_ops.core.objects import blob_key, lfs_root_key
from deepseek_ops.data import StoreBlobs
from deepseek_ops.web.lfs import LfsSettings, lfs_app, token_authoriser

s3_server = fixtures_s3.s3_server
s3_uri = fixtures_s3.s3_uri
CONTENT = b"weights" * 1000
OID = hashlib.sha256(CONTENT).hexdigest()
SMALL = LfsSettings(limits=ObjectLimits(max_objects=3, max_object_bytes=50_000_000), max_body_bytes=2000)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LfsServer]:
    with lfs_server(str(tmp_path / "store"), {}, SMALL) as running:
        yield running


@pytest.fixture
def s3(s3_server, s3_uri: str) -> Iterator[LfsServer]:
    with lfs_server(s3_uri, s3_server.credentials, LfsSettings()) as running:
        yield running


@pytest.fixture(params=["local", "s3"])
def server(request: pytest.FixtureRequest) -> LfsServer:
    return request.getfixturevalue(request.param)


def batch(client: httpx.Client, operation: str, *objects: tuple[str, int]) -> httpx.Response:
    body = {"operation": operation, "objects": [{"oid": oid, "size": size} for oid, size in objects]}
    return client.post("objects/batch", json=body)


def action(client: httpx.Client, operation: str, oid: str, size: int) -> dict[str, dict]:
    answer = batch(client, operation, (oid, size))
    assert answer.status_code == 200, answer.text
    return answer.json()["objects"][0]["actions"]


def put(link: dict, content: bytes, **headers: str) -> httpx.Response:
    return httpx.put(link["href"], content=content, headers={**link["header"], **headers}, trust_env=False)


def push(client: httpx.Client, content: bytes) -> str:
    """Upload as git-lfs does, and return the oid."""
    oid = hashlib.sha256(content).hexdigest()
    actions = action(client, "upload", oid, len(content))
    assert put(actions["upload"], content).status_code == 200
    if verify := actions.get("verify"):
        asked = {"oid": oid, "size": len(content)}
        headers = {**LFS, **verify["header"]}
        assert httpx.post(verify["href"], json=asked, headers=headers, trust_env=False).status_code == 200
    return oid


# --- who may come in ---


def test_every_route_asks_for_a_token(local: LfsServer) -> None:
    app = lfs_app(lambda: local.service, token_authoriser)
    routes = [(method, route.path) for route in app.routes for method in route.methods]
    assert len(routes) >= 8
    for method, path in routes:
        url = path.replace(":path", "").format(repository="team/model", oid=OID, lock_id=f"{'a' * 32}-1")
        answer = httpx.request(method, f"{local.url}{url}", headers=LFS, json={}, trust_env=False)
        assert answer.status_code == 401, (method, path)
        assert answer.headers["LFS-Authenticate"] == 'Basic realm="Git LFS"'


@pytest.mark.parametrize(
    "header",
    ["Basic", "Basic !!!", "Bearer", "Bearer x.y.z", "Basic " + base64.b64encode(b"user:wrong").decode(), "Digest x"],
)
def test_what_is_no_token_of_ours_is_refused(local: LfsServer, header: str) -> None:
    with local.client() as client:
        assert client.get("locks", headers={"Authorization": header}).status_code == 401


def test_a_token_is_the_password_of_any_user(local: LfsServer) -> None:
    with local.client() as client:
        assert client.get("locks", auth=("whoever", local.token("read"))).status_code == 200


def test_a_changed_token_is_refused(local: LfsServer) -> None:
    purpose, body, mac = local.token("read").split(".")
    claims = base64.urlsafe_b64decode(body + "==").replace(b'"read"', b'"write"')
    forged = base64.urlsafe_b64encode(claims).decode().rstrip("=")
    with local.client(f"{purpose}.{forged}.{mac}") as client:
        assert client.get("locks").status_code == 401


def test_a_token_of_another_repository_does_not_learn_that_this_one_exists(server: LfsServer) -> None:
    with server.client(server.token()) as owner:
        push(owner, CONTENT)
    with server.client(server.token(repository="other/model")) as stranger:
        assert batch(stranger, "download", (OID, len(CONTENT))).status_code == 404


def test_a_repository_cannot_read_what_it_never_had(server: LfsServer) -> None:
    StoreBlobs(server.service.store).put(CONTENT)
    with server.client(server.token("read")) as reader:
        assert batch(reader, "download", (OID, len(CONTENT))).json()["objects"][0]["error"]["code"] == 404


def test_a_reading_token_cannot_push_or_lock(server: LfsServer) -> None:
    with server.client(server.token("read")) as client:
        assert batch(client, "upload", (OID, 1)).status_code == 403
        assert client.post("locks", json={"path": "a"}).status_code == 403
        assert client.post("locks/verify", json={}).status_code == 403
        assert client.post(f"locks/{'a' * 32}-1/unlock", json={}).status_code == 403


def test_a_revoked_token_and_its_links_open_nothing(local: LfsServer) -> None:
    token, grant = local.service.tokens.issue("team/model", "write", "ada", days=1)
    with local.client(token) as client:
        link = action(client, "upload", OID, len(CONTENT))["upload"]
        local.service.tokens.revoke(grant.id, by="operator")
        assert client.get("locks").status_code == 401
    assert put(link, CONTENT).status_code == 401


@pytest.mark.parametrize(
    "name", ["..", "../team/model", "team/../x", "team//model", "team/mo\0del", "team/mo%2e%2e", ".git"]
)
def test_a_name_that_is_no_repository_is_not_found(local: LfsServer, name: str) -> None:
    with local.client(local.token()) as client:
        path = f"/{quote(name, safe='')}/objects/batch"
        answer = client.post(f"{local.url}{path}", json={"operation": "upload", "objects": []})
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/vnd.git-lfs+json"


def test_the_address_a_client_guesses_from_a_remote_works(local: LfsServer) -> None:
    with local.client(local.token(), repository="team/model.git/info/lfs") as client:
        assert (
            batch(client, "upload", (OID, 5))
            .json()["objects"][0]["actions"]["upload"]["href"]
            .startswith(f"{local.url}/team/model/objects/")
        )


# --- the batch API ---


def test_a_present_object_is_answered_without_actions_and_claimed(server: LfsServer) -> None:
    StoreBlobs(server.service.store).put(CONTENT)
    with server.client(server.token()) as client:
        answer = batch(client, "upload", (OID, len(CONTENT)))
        assert answer.headers["content-type"] == "application/vnd.git-lfs+json"
        assert answer.json()["objects"] == [{"oid": OID, "size": len(CONTENT), "authenticated": True}]
        assert server.service.store.head(lfs_root_key("team/model", OID)) is not None
        assert "download" in action(client, "download", OID, len(CONTENT))


def test_each_object_has_its_own_error(server: LfsServer) -> None:
    with server.client(server.token()) as client:
        push(client, CONTENT)
        answer = batch(client, "download", (OID, len(CONTENT)), ("b" * 64, 3), ("../../etc", 1))
        codes = [one.get("error", {}).get("code") for one in answer.json()["objects"]]
        assert codes == [None, 404, 422]
        answer = batch(client, "upload", (OID, len(CONTENT) + 1), ("c" * 64, -1), ("C" * 64, 1))
        assert [one["error"]["code"] for one in answer.json()["objects"]] == [422, 422, 422]


def test_an_object_beyond_the_limit_is_refused(local: LfsServer) -> None:
    with local.client(local.token()) as client:
        assert batch(client, "upload", (OID, 50_000_001)).json()["objects"][0]["error"]["code"] == 422


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"operation": "steal", "objects": []}, 422),
        ({"operation": "upload", "objects": [], "hash_algo": "sha512"}, 409),
        ({"operation": "upload", "objects": [], "transfers": ["tus"]}, 422),
        ({"operation": "upload", "objects": [{"oid": OID, "size": 1}] * 4}, 413),
        ({"operation": "upload", "objects": [{"oid": "x" * 100, "size": 1}] * 20}, 413),
        ({"operation": "upload"}, 422),
        ([], 422),
        ({"operation": "upload", "objects": [], "transfers": None, "ref": {"name": "refs/heads/main"}}, 200),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(local: LfsServer, body: object, status: int) -> None:
    with local.client(local.token()) as client:
        answer = client.post("objects/batch", json=body)
    assert answer.status_code == status
    if status != 200:
        assert answer.json().keys() >= {"message", "request_id", "documentation_url"}
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_media_types_are_those_of_the_protocol(local: LfsServer) -> None:
    with local.client(local.token()) as client:
        body = {"operation": "upload", "objects": []}
        assert client.post("objects/batch", json=body, headers={"Accept": "text/html"}).status_code == 406
        assert client.post("objects/batch", json=body, headers={"Content-Type": "text/plain"}).status_code == 415
        charset = {"Content-Type": "application/vnd.git-lfs+json; charset=utf-8"}
        assert client.post("objects/batch", json=body, headers=charset).status_code == 200
        assert client.post("nothing/here", json=body).status_code in (404, 405)


# --- transfers ---


def test_an_upload_becomes_a_blob_that_can_be_downloaded(server: LfsServer) -> None:
    with server.client(server.token()) as client:
        push(client, CONTENT)
        assert StoreBlobs(server.service.store).get(OID) == CONTENT
        link = action(client, "download", OID, len(CONTENT))["download"]
        assert httpx.get(link["href"], headers=link["header"], trust_env=False).content == CONTENT
        part = httpx.get(link["href"], headers={**link["header"], "Range": "bytes=10-19"}, trust_env=False)
        assert (part.status_code, part.content) == (206, CONTENT[10:20])
        assert part.headers["content-range"] == f"bytes 10-19/{len(CONTENT)}"
        beyond = httpx.get(link["href"], headers={**link["header"], "Range": "bytes=9999-"}, trust_env=False)
        assert beyond.status_code == 416


WRONG = {"other bytes": b"x" * len(CONTENT), "too short": CONTENT[:-1], "too long": CONTENT + b"x", "empty": b""}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_wrong_bytes_are_refused_and_never_visible(server: LfsServer, wrong: bytes) -> None:
    with server.client(server.token()) as client:
        link = action(client, "upload", OID, len(CONTENT))["upload"]
        assert put(link, wrong).status_code in (400, 403)
        assert server.service.store.head(blob_key(OID)) is None
        push(client, CONTENT)
        assert put(link, wrong).status_code in (400, 403)
        assert StoreBlobs(server.service.store).get(OID) == CONTENT, "a bad upload must not replace a good object"


def test_the_store_itself_refuses_an_upload_without_the_checksum_or_to_another_name(s3: LfsServer) -> None:
    with s3.client(s3.token()) as client:
        link = action(client, "upload", OID, len(CONTENT))["upload"]
        assert httpx.put(link["href"], content=CONTENT, trust_env=False).status_code == 403
        mine = base64.b64encode(hashlib.sha256(b"mine").digest()).decode()
        assert put(link, b"mine", **{"x-amz-checksum-sha256": mine}).status_code == 403
        other = link["href"].replace(OID, hashlib.sha256(b"other").hexdigest())
        assert put({**link, "href": other}, CONTENT).status_code == 403
        assert "objects/batch" not in link["href"]
        assert s3.service.store.head(blob_key(OID)) is None


def test_what_was_not_uploaded_cannot_be_verified(s3: LfsServer) -> None:
    with s3.client(s3.token()) as client:
        link = action(client, "upload", OID, len(CONTENT))["verify"]
        asked = {"oid": OID, "size": len(CONTENT)}
        headers = {**LFS, **link["header"]}
        assert httpx.post(link["href"], json=asked, headers=headers, trust_env=False).status_code == 404
        assert s3.service.store.head(lfs_root_key("team/model", OID)) is None
        other = {"oid": "a" * 64, "size": 1}
        assert httpx.post(link["href"], json=other, headers=headers, trust_env=False).status_code == 422


def test_an_expired_link_is_refused(tmp_path: Path, s3_server, s3_uri: str) -> None:
    new, settings = hashlib.sha256(b"new").hexdigest(), LfsSettings(link_seconds=2)
    with (
        lfs_server(str(tmp_path / "store"), {}, settings) as local,
        lfs_server(s3_uri, s3_server.credentials, settings) as s3,
    ):
        links = []
        for server in (local, s3):
            StoreBlobs(server.service.store).put(CONTENT)
            server.service.objects.claim("team/model", "ada", OID, len(CONTENT))
            with server.client(server.token()) as client:
                links.append((action(client, "upload", new, 3), action(client, "download", OID, len(CONTENT))))
        time.sleep(3.1)
        for up, down in links:
            assert put(up["upload"], b"new").status_code == 403
            link = down["download"]
            assert httpx.get(link["href"], headers=link["header"], trust_env=False).status_code == 403


def test_a_link_is_good_for_its_object_and_operation_only(local: LfsServer) -> None:
    other = hashlib.sha256(b"other").hexdigest()
    with local.client(local.token()) as client:
        link = action(client, "upload", OID, len(CONTENT))["upload"]
        assert put({**link, "href": link["href"].replace(OID, other)}, b"other").status_code == 403
        assert put({**link, "href": link["href"].replace("team/model", "team/else")}, CONTENT).status_code == 403
        assert httpx.get(link["href"], headers=link["header"], trust_env=False).status_code == 403
        changed = {"Authorization": link["header"]["Authorization"][:-4] + "AAAA"}
        assert httpx.put(link["href"], content=CONTENT, headers=changed, trust_env=False).status_code == 401
        forged = Tickets([b"another secret of another server"], 60)
        grant = local.service.tokens.check(local.token())
        header = forged.header("upload", grant, OID, len(CONTENT))
        assert httpx.put(link["href"], content=CONTENT, headers=header, trust_env=False).status_code == 401
        token = {"Authorization": f"Bearer {local.token()}"}
        assert httpx.put(link["href"], content=CONTENT, headers=token, trust_env=False).status_code == 401


def test_beyond_the_size_of_a_single_put_the_server_sends_parts_itself(s3_server, s3_uri: str) -> None:
    content = hashlib.shake_128(b"large").digest(40_000_000)
    wrong = content[:-1] + bytes([content[-1] ^ 1])
    oid = hashlib.sha256(content).hexdigest()
    settings = LfsSettings(single_put_bytes=1_000_000)
    with lfs_server(s3_uri, s3_server.credentials, settings) as server, server.client(server.token()) as client:
        actions = action(client, "upload", oid, len(content))
        assert actions["upload"]["href"].startswith(server.url)
        assert put(actions["upload"], wrong).status_code == 400
        assert server.service.store.head(blob_key(oid)) is None
        assert put(actions["upload"], content).status_code == 200
        assert StoreBlobs(server.service.store).get(oid) == content
        assert server.service.store.head(lfs_root_key("team/model", oid)) is not None


def test_a_store_can_be_kept_behind_the_server(s3_server, s3_uri: str) -> None:
    settings = LfsSettings(transfers="proxied")
    with lfs_server(s3_uri, s3_server.credentials, settings) as server, server.client(server.token()) as client:
        push(client, CONTENT)
        link = action(client, "download", OID, len(CONTENT))["download"]
        assert link["href"].startswith(server.url)
        assert httpx.get(link["href"], headers=link["header"], trust_env=False).content == CONTENT


def test_uploads_at_once_are_bounded(tmp_path: Path) -> None:
    with (
        lfs_server(str(tmp_path / "store"), {}, LfsSettings(max_uploads=1)) as server,
        server.client(server.token()) as client,
    ):
        first, second = (
            action(client, "upload", hashlib.sha256(c).hexdigest(), 4)["upload"] for c in (b"aaaa", b"bbbb")
        )
        begun, go_on = threading.Event(), threading.Event()

        def slowly() -> Iterator[bytes]:
            yield b"aa"
            begun.set()
            go_on.wait(20)
            yield b"aa"

        def upload() -> int:
            headers = {**first["header"], "Content-Length": "4"}
            return httpx.put(first["href"], content=slowly(), headers=headers, trust_env=False).status_code

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(upload)
            begun.wait(20)
            deadline = time.monotonic() + 20
            while (busy := put(second, b"bbbb")).status_code == 200 and time.monotonic() < deadline:
                server.service.store.delete([blob_key(hashlib.sha256(b"bbbb").hexdigest())])
            go_on.set()
            assert (busy.status_code, busy.headers["retry-after"]) == (429, "5")
            assert running.result(30) == 200
        assert put(second, b"bbbb").status_code == 200
