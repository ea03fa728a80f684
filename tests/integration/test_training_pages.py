"""The pages of trainings: true, live, guarded, harmless whatever a stream holds, and of bounded size."""

from __future__ import annotations

import html
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from fixtures_training_streams import HOSTILE, PLAN, make_run, put_rows
from starlette.requests import Request

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.jobs.training_streams import Segments
from deepseek_ops.training.streams import segment_name
from deepseek_ops.web.training_pages import training_app

STEPS = 1500
PATHS = ["/", "/training.css", "/training.js", f"/runs/{PLAN}", f"/api/runs/{PLAN}", f"/api/runs/{PLAN}/live"]
HANG = {"kind": "hang", "time": "2026-11-22T08:00:00.000+00:00", "step": 9, "behind": [3], "silent_seconds": 61}


def authorise(request: Request) -> None:
    answers = {"Bearer right": None, "Bearer viewer": 403}
    status = answers.get(request.headers.get("authorization", ""), 401)
    if status is not None:
        raise HTTPException(status, "log in")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    store = open_store(f"file://{tmp_path_factory.mktemp('pages')}/store")
    make_run(store, time.time() - 2 * STEPS, steps=STEPS)
    store.create("runs/notes.txt", b"no run")
    store.create(f"runs/{PLAN}/result.json", b'{"secret": 1}')
    return store


@pytest.fixture(scope="module")
def browser(store: ObjectStore) -> Iterator[TestClient]:
    app = training_app(lambda: store, authorise=authorise)
    with TestClient(app, headers={"Authorization": "Bearer right"}, raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
def test_nobody_sees_anything_without_the_right(browser: TestClient, path: str) -> None:
    assert browser.get(path).status_code == 200
    assert browser.get(path, headers={"Authorization": ""}).status_code == 401
    assert browser.get(path, headers={"Authorization": "Bearer viewer"}).status_code == 403


@pytest.mark.parametrize(
    "plan",
    [
        "x",
        "..%2f..%2fobjects",
        "%2e%2e",
        PLAN[:-1],
        PLAN + "0",
        PLAN.upper(),
        PLAN + "%0a",
        f"{PLAN}%2fresult.json",
        HOSTILE,
    ],
)
@pytest.mark.parametrize("path", ["/runs/{}", "/api/runs/{}", "/api/runs/{}/live"])
def test_what_is_no_id_reads_nothing(browser: TestClient, path: str, plan: str) -> None:
    answer = browser.get(path.format(plan))
    assert answer.status_code == 404
    assert HOSTILE not in answer.text


def test_a_run_that_wrote_nothing_is_not_there_and_not_kept(browser: TestClient) -> None:
    assert browser.get(f"/runs/{'0' * 64}").status_code == 404
    assert "has no streams" in browser.get(f"/api/runs/{'0' * 64}").json()["error"]


def test_the_list_has_the_run_with_where_it_stands(browser: TestClient) -> None:
    page = browser.get("/").text
    assert f'href="/runs/{PLAN}"' in page
    assert f"{STEPS:,} of {STEPS:,}" in page
    assert "finished" in page
    assert "notes.txt" not in page


def test_the_page_shows_curves_experts_machines_and_what_happened(browser: TestClient) -> None:
    page = browser.get(f"/runs/{PLAN}").text
    for words in (
        "<figcaption>Loss", "Learning rate", "Gradient norm", "Tokens per second", "MFU", "Expert load",
        "Load of each expert", "Node 0000 ", "gpu-node-1", "GPU utilisation", "Network per second", "Disk per second",
        "went back to step", "Evidence: training_loss = 2.31, 2.29, 300.0, nan", "rank 5 keeps the others",
        "rank 11 (node 1) needs 1.8 x the others", "exact: 0 samples repeated", "3 frames", "The curves as numbers",
    ):  # fmt: skip
        assert words in page, words
    for tone in ("saved", "decision", "trouble", "resumed", "bad"):
        assert f'class="mark-{tone}"' in page, tone


def test_what_was_rewound_is_no_part_of_the_curve(browser: TestClient) -> None:
    told = browser.get(f"/api/runs/{PLAN}").json()
    loss = told["curves"]["training_loss"]
    assert max(high for _, _, _, high, _ in loss if high is not None) < 20, "the spike of 300 was rewound"
    assert sum(bad for *_, bad in loss) == 1, "and its NaN; the one before it stays"
    assert (told["state"], told["step"], told["attempt"]) == ("finished", STEPS, 2)


@pytest.mark.parametrize("path", ["/", f"/runs/{PLAN}", f"/api/runs/{PLAN}/live"])
def test_nothing_that_a_stream_holds_becomes_markup(browser: TestClient, path: str) -> None:
    answer = browser.get(path)
    assert HOSTILE not in answer.text
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    if "runs" in path:
        assert html.escape(HOSTILE) in answer.text


def test_an_open_page_gets_what_is_new_and_little_when_nothing_is(store: ObjectStore, browser: TestClient) -> None:
    plan = "ab" * 32
    events, metrics = (Segments(store, f"runs/{plan}/{name}") for name in ("events", "metrics"))
    events.append({"kind": "started", "total_steps": 100})
    events.flush()
    first = browser.get(f"/api/runs/{plan}/live").json()
    assert "No step has been reported yet" in first["sections"]["curves"]
    again = browser.get(f"/api/runs/{plan}/live", params={"after": first["revision"]})
    assert again.json() == {"revision": first["revision"], "state": "running", "more": False}
    for step in (1, 2):
        metrics.append({"step": step, "training_loss": 4.0 / step, "step_seconds": 1.0})
    metrics.flush()
    later = browser.get(f"/api/runs/{plan}/live", params={"after": first["revision"]}).json()
    assert "training loss <b>2</b>" in later["sections"]["curves"]
    assert "about 2 min" in later["sections"]["facts"] or "about 1 h" in later["sections"]["facts"]
    events.append({"kind": "stopped", "step": 2, "reason": "asked"})
    events.flush()
    assert browser.get(f"/api/runs/{plan}/live").json()["state"] == "stopped"


def test_what_the_job_told_outside_its_ranks_is_among_the_events(store: ObjectStore) -> None:
    told = [{"kind": "metric", "step": 1}, HANG, {"kind": "restart", "reason": HOSTILE, "restarts": 1}]
    app = training_app(lambda: store, authorise=lambda: None, supervised=lambda plan: told if plan == PLAN else [])
    page = TestClient(app).get(f"/runs/{PLAN}").text
    assert "no progress for 61 s" in page
    assert f"number 1: {html.escape(HOSTILE)}" in page


def test_a_damaged_segment_is_named_and_breaks_no_other_run(store: ObjectStore, browser: TestClient) -> None:
    plan = "cd" * 32
    store.create(f"runs/{plan}/events/{segment_name(0)}", b"no zstd")
    answer = browser.get(f"/runs/{plan}")
    assert answer.status_code == 422
    assert "000000.jsonl.zst" in answer.text
    fresh = TestClient(training_app(lambda: store, authorise=lambda: None))  # a list is kept for some seconds
    assert "cannot be read" in fresh.get("/").text
    assert fresh.get(f"/runs/{PLAN}").status_code == 200


def test_a_page_is_as_large_for_a_long_run_as_for_a_short_one(store: ObjectStore, browser: TestClient) -> None:
    plan = "ef" * 32
    rows = ({"step": step, "training_loss": 1.0 + step % 7, "grad_norm": 1.0, "at": 1e9, "attempt": 1}
            for step in range(30_000))  # fmt: skip
    put_rows(store, f"runs/{plan}/metrics", rows, each=5000)
    put_rows(store, f"runs/{plan}/events", [{"kind": "alert", "step": n, "rule": "r" * 900} for n in range(3000)])
    page = browser.get(f"/runs/{plan}", headers={"Accept-Encoding": "identity"})
    assert page.status_code == 200
    assert len(page.content) < 400_000
    assert "30,000" not in page.text.partition("<h2>Events")[0].partition("<h2>Curves")[0]  # steps count from 0
    assert "29,999" in page.text


def test_a_run_that_is_too_long_for_one_look_is_read_on_by_the_next(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepseek_ops.web.training_runs.LOOK_SECONDS", 0.0)
    client = TestClient(training_app(lambda: store, authorise=lambda: None))
    answer = client.get(f"/api/runs/{PLAN}/live").json()
    assert answer["more"]
    for _ in range(30):
        before, answer = answer, client.get(f"/api/runs/{PLAN}/live").json()
        if not answer["more"]:
            break
        assert answer["revision"] != before["revision"]
    assert f"{STEPS:,} of {STEPS:,}" in client.get(f"/runs/{PLAN}").text


def test_links_follow_the_mount_point(store: ObjectStore) -> None:
    app = training_app(lambda: store, authorise=lambda: None)
    page = TestClient(app, root_path="/deepseek-ops/training").get(f"/runs/{PLAN}").text
    for link in ("training.js", "training.css", f"api/runs/{PLAN}/live"):
        assert f'"/deepseek-ops/training/{link}"' in page


@pytest.fixture
def served(store: ObjectStore) -> Iterator[str]:
    import uvicorn

    app = training_app(lambda: store, authorise=lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_an_open_page_moves_on_by_itself_and_runs_nothing_of_others(
    served: str, store: ObjectStore, tmp_path: Path
) -> None:
    from playwright.sync_api import sync_playwright

    plan = "12" * 32
    metrics, events = (Segments(store, f"runs/{plan}/{name}") for name in ("metrics", "events"))
    events.append({"kind": "started", "total_steps": 50, "model": HOSTILE})
    events.append({"kind": "stacks", "rank": 0, "source": "py-spy", "frames": [f"wait {HOSTILE}"], "step": 1})
    metrics.append({"step": 1, "training_loss": 3.0})
    events.flush()
    metrics.flush()
    told: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))
        page.goto(f"{served}/runs/{plan}")
        page.click("#events summary >> nth=0")
        metrics.append({"step": 2, "training_loss": 1.25})
        metrics.flush()
        page.wait_for_selector("#curves b:has-text('1.25')", timeout=30_000)
        assert page.locator("#events details[open]").count() == 1, "what was unfolded stays so"
        page.click("#pause")
        assert page.inner_text("#pause") == "Go on"
        page.goto(f"{served}/runs/{PLAN}")
        page.screenshot(path=tmp_path / "run.png", full_page=True)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide == 0, "nothing sticks out"
        assert (tmp_path / "run.png").stat().st_size > 50_000
        browser.close()
    assert told == [], "no dialog, no error, nothing refused by the policy"
