"""The lineage pages: right, guarded, harmless whatever Git and people wrote, and usable without scripts."""

from __future__ import annotations

import html
from collections.abc import Iterator

import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from fixtures_lineage import World, make_world
from starlette.requests import Request

from deepseek_ops.web.lineage_pages import lineage_app

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("pages"))
    data = world.dataset(["one"])
    world.run("run-1", world.push(), data, record=False)
    world.developer.push_commit({"deepseek/prepare.py": f"x = '{HOSTILE}'\n"}, message=HOSTILE)
    world.run("run-2", world.developer.git("rev-parse", "HEAD"), data, loss=1.5, record=False)
    world.registry.set_alias("tiny", "champion", "0.2.0", actor=HOSTILE, reason=HOSTILE)
    return world


@pytest.fixture
def browser(told: World) -> Iterator[TestClient]:
    def authorise(request: Request) -> None:
        if request.headers.get("authorization") != "Bearer right":
            raise HTTPException(401, "log in")

    app = lineage_app(told.sources, authorise=authorise)
    with TestClient(app, headers={"Authorization": "Bearer right"}) as client:
        yield client


@pytest.mark.parametrize(
    "path", ["/", "/data.css", "/why?target=tiny", "/diff?old=a&new=b", "/api/why?target=tiny", "/api/diff?old=a&new=b"]
)
def test_nobody_sees_anything_without_the_right(browser: TestClient, path: str):
    assert browser.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_the_chain_is_on_the_page_with_its_digests(browser: TestClient, told: World):
    page = browser.get("/why?target=tiny").text
    for words in ("<h1>tiny 0.2.0</h1>", told.runs["run-2"].bundle, told.runs["run-2"].manifest.dataset, "Not found:"):
        assert words in page


def test_what_moved_is_on_the_page_with_its_text(browser: TestClient):
    page = browser.get("/diff?old=run-1&new=run-2").text
    assert "Only code moved: it alone explains a difference beyond chance" in page
    assert '<span class="removed">-x = 1\n</span>' in page
    assert "60 paired items" in page


@pytest.mark.parametrize("path", ["/why?target=tiny", "/diff?old=run-1&new=run-2", f"/why?target={HOSTILE}"])
def test_nothing_that_people_wrote_becomes_markup(browser: TestClient, path: str):
    answer = browser.get(path)
    assert HOSTILE not in answer.text
    assert html.escape(HOSTILE) in answer.text
    assert "script" not in answer.headers["content-security-policy"].replace("default-src 'none'", "")


def test_an_unknown_name_is_a_page_of_its_own_and_an_error_in_the_api(browser: TestClient):
    assert browser.get("/why?target=nothing").status_code == 404
    answer = browser.get("/api/why?target=nothing")
    assert answer.status_code == 404
    assert "is no model" in answer.json()["error"]


def test_the_api_says_what_the_pages_show(browser: TestClient):
    assert browser.get("/api/why?target=tiny").json()["version"] == "0.2.0"
    moves = browser.get("/api/diff?old=run-1&new=run-2").json()["moves"]
    assert [move["part"] for move in moves if move["moved"]] == ["code"]


def test_links_follow_the_mount_point(told: World):
    app = lineage_app(told.sources, authorise=lambda: None)
    page = TestClient(app, root_path="/deepseek-ops/lineage").get("/").text
    assert 'href="/deepseek-ops/lineage/why?target=tiny%400.2.0"' in page
    assert 'action="/deepseek-ops/lineage/why"' in page
