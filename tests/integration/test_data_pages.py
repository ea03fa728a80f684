"""The pages of a store: right, guarded, harmless whatever names and records hold, and usable without scripts."""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import fixtures_datasets
import httpx
import pytest
from fastapi.testclient import TestClient
from fixtures_datasets import CountingStore

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.data import DatasetRepository
from deepseek_ops.data.exchange import split_by_name
from deepseek_ops.web.data_graph import strips
from deepseek_ops.web.data_pages import data_app
from deepseek_ops.web.data_server import standalone_app
from deepseek_ops.web.data_views import view_dataset, view_files
from deepseek_ops.web.markup import el, join

local = fixtures_datasets.local
HOSTILE = "<img src=x onerror=alert(1)>"
TOKEN = "t" * 43
WRONG = (("Authorization", "Bearer wrong"), ("Authorization", "Basic !"), ("Cookie", "deepseek_ops_data=x"))


def put(folder: Path, name: str, data: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


@pytest.fixture
def repository(local: CountingStore, tmp_path: Path) -> DatasetRepository:
    """Two branches that were merged, two tags, a second dataset, and names and records that want to be code."""
    repository = DatasetRepository.open(local)
    folder = tmp_path / "work"

    def commit(message: str, **options: object) -> str:
        made = repository.commit(
            folder,
            name="corpus",
            message=message,
            author=f"Ada {HOSTILE}",
            split_of=split_by_name,
            **options,  # type: ignore[arg-type]
        )
        return made.version

    for number in range(5):
        put(folder, f"train/{number}.jsonl", "".join(f'{{"id": {number}{row}}}\n' for row in range(120)))
    put(folder, "test/a.txt", "one\ntwo\n")
    first = commit("First")
    repository.tag("corpus-v1", first)
    put(folder, "train/9.jsonl", '{"id": 9}\n')
    commit("On a branch", branch="exp/a", parent=first)
    (folder / "train" / "9.jsonl").unlink()
    put(
        folder, f"train/{HOSTILE}.jsonl", json.dumps({"text": f"{HOSTILE}</pre><script>alert(2)</script>\u202e"}) + "\n"
    )
    put(folder, "large.bin", bytes(range(256)) * 8192)
    put(folder, "page.html", f"<html>{HOSTILE}<script>alert(3)</script>")
    put(folder, "train/0.jsonl", '{"id": "00"}\n')
    commit(f"Second {HOSTILE}")
    repository.merge("corpus", "corpus@exp/a", into="main", author="Ada", message="Merged")
    repository.commit(folder, name="other", message="Another", author="Bo")
    shutil.rmtree(folder)
    return repository


@pytest.fixture
def client(repository: DatasetRepository) -> TestClient:
    made = TestClient(standalone_app(repository, TOKEN), follow_redirects=False)
    made.headers["Authorization"] = f"Bearer {TOKEN}"
    return made


def head(repository: DatasetRepository) -> str:
    return repository.resolve("corpus")


def test_every_route_asks_who_it_is(repository: DatasetRepository, client: TestClient) -> None:
    stranger = TestClient(standalone_app(repository, TOKEN), follow_redirects=False)
    asked = 0
    for route in stranger.app.routes:  # type: ignore[attr-defined]
        path = re.sub(r"\{version\}", head(repository), route.path)
        path = re.sub(r"\{name\}", "corpus", re.sub(r"\{path:path\}", "test/a.txt", path))
        query = {"path": "test/a.txt", "old": "corpus-v1", "new": "corpus"}
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic !"},
            {"Cookie": "deepseek_ops_data=x"},
        ):
            assert stranger.get(path, params=query, headers=headers).status_code == 401, path
        if path != "/login":
            assert client.get(path, params=query).status_code == 200, path
            asked += 1
    assert asked >= 12
    assert stranger.post("/").status_code == 405


def test_the_printed_address_sets_a_cookie_and_leaves_the_address_bar(repository: DatasetRepository) -> None:
    browser = TestClient(standalone_app(repository, TOKEN), follow_redirects=False)
    answer = browser.get("/login", params={"token": TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert browser.get("/").status_code == 200
    assert TestClient(standalone_app(repository, TOKEN)).get("/", auth=("any", TOKEN)).status_code == 200


def test_what_a_store_holds_is_shown(repository: DatasetRepository, client: TestClient) -> None:
    assert [line["name"] for line in client.get("/api/datasets").json()] == ["corpus", "other"]
    index = client.get("/").text
    assert 'href="/d/corpus"' in index
    view = client.get("/api/datasets/corpus").json()
    assert set(view["branches"]) == {"main", "exp/a"}
    assert set(view["tags"]) == {"corpus-v1"}
    assert view["history"][0]["message"] == "Merged"
    assert len(view["history"]) == 4
    assert len(view["history"][0]["parents"]) == 2
    assert client.get("/d/corpus").text.count('class="graph"') == 4
    assert 'class="plot"' in client.get("/d/corpus").text
    assert client.get("/d/nothing").status_code == 404
    assert client.get("/api/datasets/nothing").json()["error"].startswith("'nothing'")
    assert client.get("/v/0123456789abcdef").status_code == 404
    limited = client.get("/d/corpus?limit=2").text
    assert "Older versions" in limited
    assert client.get("/d/corpus?limit=0").status_code == 422


def test_files_are_paged_and_filtered(repository: DatasetRepository, client: TestClient) -> None:
    version = head(repository)
    everything = client.get(f"/api/versions/{version}/files").json()["files"]
    assert [file["path"] for file in everything] == repository.paths(version)
    seen, after = [], ""
    while True:
        part = client.get(f"/api/versions/{version}/files", params={"limit": 3, "after": after}).json()
        seen += [file["path"] for file in part["files"]]
        after = part["after"]
        if not after:
            break
    assert seen == repository.paths(version)
    train = client.get(f"/api/versions/{version}/files?split=train").json()["files"]
    assert {file["split"] for file in train} == {"train"}
    globbed = client.get(f"/api/versions/{version}/files?pattern=*.txt").json()["files"]
    assert [file["path"] for file in globbed] == ["test/a.txt"]
    assert "test/a.txt" in client.get(f"/v/{version}?pattern=test").text
    assert "train/1.jsonl" not in client.get(f"/v/{version}?pattern=test").text
    for path in (file["path"] for file in everything):
        assert client.get(f"/v/{version}/file", params={"path": path}).status_code == 200


def test_a_large_version_is_paged_without_reading_it_all(local: CountingStore, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(6000):
        (folder / f"{number:05}").write_bytes(b"")
    repository = DatasetRepository.open(local)
    version = repository.commit(folder, name="many", message="many", author="me").version
    pages = len(repository.tree(version).pages)
    local.gets.clear()
    view = view_files(repository, version, after="05500", limit=10)
    assert [file.entry.path for file in view.files] == [f"{number:05}" for number in range(5501, 5511)]
    assert len([key for key in local.gets if key.startswith("trees/")]) < pages + 1


def test_records_text_and_bytes_are_previewed(repository: DatasetRepository, client: TestClient) -> None:
    version = head(repository)

    def seen(path: str, start: int = 1) -> dict[str, object]:
        answer = client.get(f"/api/versions/{version}/records", params={"path": path, "start": start})
        assert answer.status_code == 200
        return answer.json()

    rows = seen("train/1.jsonl")["rows"]
    assert (len(rows), rows[0]) == (50, {"row": 1, "value": {"id": 10}, "problem": ""})  # type: ignore[arg-type,index]
    later = seen("train/1.jsonl", start=101)
    assert (len(later["rows"]), later["more"]) == (20, False)  # type: ignore[arg-type]
    assert [row["value"] for row in seen("test/a.txt")["rows"]] == ["one", "two"]  # type: ignore[attr-defined]
    assert seen("large.bin")["kind"] == "bytes"
    assert "00 01 02 03" in str(seen("large.bin")["text"])
    assert seen("page.html")["kind"] == "text"
    assert client.get(f"/v/{version}/file", params={"path": "none"}).status_code == 404
    far = client.get(f"/v/{version}/file", params={"path": "train/1.jsonl", "start": 10**6})
    assert far.status_code == 422


def test_two_versions_are_compared_by_file_and_by_record(repository: DatasetRepository, client: TestClient) -> None:
    body = client.get("/api/diff", params={"old": "corpus-v1", "new": "corpus", "records": True}).json()
    assert "train/9.jsonl" in body["files"]["added"]
    assert body["files"]["modified"] == ["train/0.jsonl"]
    assert body["records"]["splits"]["train"]["added"]["records"] >= 3
    page = client.get("/diff", params={"old": "corpus-v1", "new": "corpus", "records": 1}).text
    assert "Records that differ" in page
    assert "The files are equal" in client.get("/diff?old=corpus&new=corpus").text


def test_nothing_a_dataset_holds_becomes_markup(repository: DatasetRepository, client: TestClient) -> None:
    version = head(repository)
    paths = repository.paths(version)
    pages = ["/", "/d/corpus", f"/v/{version}", f"/v/{version}?pattern={HOSTILE}&split={HOSTILE}", f"/d/{HOSTILE}"]
    pages += ["/diff?old=corpus-v1&new=corpus&records=1"]
    pages += [f"/v/{version}/file?path={httpx.QueryParams({'p': path})['p']}" for path in paths]
    for address in pages:
        answer = client.get(address)
        assert "<img" not in answer.text, address
        assert "<script" not in answer.text, address
        assert "\u202e" not in answer.text, "a character that turns the text around"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert html.escape(HOSTILE) in client.get("/d/corpus").text
    assert join(["<", el("b", "&", title='"')]) == '&lt;<b title="&quot;">&amp;</b>'


def test_a_file_is_downloaded_whole_in_ranges_or_not_again(repository: DatasetRepository, client: TestClient) -> None:
    version = head(repository)
    for path in repository.paths(version):
        data = repository.read_file(version, path)
        digest = hashlib.sha256(data).hexdigest()
        address = f"/v/{version}/raw/{path}"
        whole = client.get(address)
        assert (whole.content, whole.headers["etag"]) == (data, f'"{digest}"')
        assert whole.headers["content-disposition"].startswith("attachment")
        assert "sandbox" in whole.headers["content-security-policy"]
        assert whole.headers["content-type"] == "application/octet-stream"
        assert client.head(address).headers["content-length"] == str(len(data))
        assert client.get(address, headers={"If-None-Match": f'"x", "{digest}"'}).status_code == 304
        part = client.get(address, headers={"Range": "bytes=2-5"})
        assert (part.status_code, part.content) == (206, data[2:6])
        assert part.headers["content-range"] == f"bytes 2-5/{len(data)}"
        assert client.get(address, headers={"Range": "bytes=-3"}).content == data[-3:]
        assert client.get(address, headers={"Range": "bytes=3-"}).content == data[3:]
        stale = client.get(address, headers={"Range": "bytes=2-5", "If-Range": '"other"'})
        assert (stale.status_code, stale.content) == (200, data)
        beyond = client.get(address, headers={"Range": f"bytes={len(data)}-"})
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(data)}")
    assert client.get(f"/v/{version}/raw/none").status_code == 404
    assert client.get(f"/v/{version}/raw/../../../etc/passwd").status_code == 404


def test_damage_cuts_a_download_short(repository: DatasetRepository, local: CountingStore) -> None:
    client = TestClient(data_app(repository, authorise=lambda: None))
    version = head(repository)
    (key,) = [info.key for info in local.list("objects/")]
    data = bytearray(local.get(key))
    data[-1] ^= 1
    local.delete([key])
    local.create(key, bytes(data))
    with pytest.raises(RuntimeError, match="already started") as caught:
        client.get(f"/v/{version}/raw/large.bin")
    assert "large.bin" in str(caught.value.__cause__)


def test_pages_follow_the_mount_point(repository: DatasetRepository) -> None:
    from fastapi import FastAPI

    outer = FastAPI()
    outer.mount("/plugin/data", data_app(lambda: repository, authorise=lambda: None))
    client = TestClient(outer)
    page = client.get("/plugin/data/").text
    links = re.findall(r'href="(/[^"]*)"', page)
    assert links
    assert all(link.startswith("/plugin/data/") for link in links)
    assert all(client.get(html.unescape(link)).status_code == 200 for link in links)
    assert client.get("/plugin/data/api/versions/none").json()["error"]


def test_the_graph_draws_each_line_from_a_version_to_its_parent(repository: DatasetRepository) -> None:
    view = view_dataset(repository, "corpus", limit=50)
    assert view is not None
    merged, *others, first = strips(view.history)
    assert sorted(merged.links) == [(0, 0), (0, 1)]
    assert {strip.lane for strip in others} == {0, 1}
    assert first.links == ()
    # Every line that leaves a row arrives in the next one.
    rows = strips(view.history)
    for upper, lower in pairwise(rows):
        assert {end for _, end in upper.links} == set(lower.above)


@pytest.fixture
def served(repository: DatasetRepository) -> Iterator[str]:
    """Give the address that the real server prints."""
    command = [sys.executable, "-m", "deepseek_ops.cli.main", "data", "serve", "--port", "0"]
    env = {**os.environ, "DEEPSEEK_OPS_STORE": repository.store.uri}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@pytest.mark.slow
def test_datasets_reads_a_file_from_the_server(served: str, repository: DatasetRepository, tmp_path: Path) -> None:
    from datasets import load_dataset

    server, _, token = served.partition("/login?token=")
    assert httpx.get(server).status_code == 401
    address = f"{server}/v/{head(repository)}/raw/train/1.jsonl"
    options = {"client_kwargs": {"headers": {"Authorization": f"Bearer {token}"}}}
    loaded = load_dataset("json", data_files=address, storage_options=options, cache_dir=str(tmp_path), split="train")
    assert loaded["id"][:2] == [10, 11]
    assert loaded.num_rows == 120


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_without_scripts_finds_its_way_and_runs_nothing(served: str, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scripts in (False, True):
            context = browser.new_context(java_script_enabled=scripts)
            page = context.new_page()
            told: list[str] = []
            page.on("dialog", lambda dialog, told=told: (told.append(dialog.message), dialog.dismiss()))
            page.on("console", lambda message, told=told: told.append(message.text))
            page.goto(served)
            assert "token" not in page.url
            page.click("text=corpus")
            page.click("ol.log a >> nth=0")
            page.fill("input[name=pattern]", "onerror")
            page.click("text=Filter")
            page.click("td a >> nth=0")
            assert HOSTILE in page.inner_text("h1")
            assert "alert(2)" in page.inner_text("pre")
            with page.expect_download() as download:
                page.click("text=Download")
            assert json.loads(Path(download.value.path()).read_text())["text"].startswith(HOSTILE)
            page.click("text=corpus")
            page.click("text=Compare >> nth=-1")
            assert page.inner_text("h1") == "What changed"
            assert told == [], "no dialog, no error, nothing refused by the policy"
            context.close()
        browser.close()


def test_a_server_that_others_can_reach_wants_tls(local: CountingStore) -> None:
    command = [sys.executable, "-m", "deepseek_ops.cli.main", "data", "serve", "--host", "::", "--port", "0"]
    done = subprocess.run(
        [*command, "--store", open_store(local.uri).uri], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "--tls-cert" in done.stderr
    assert done.stdout == ""
