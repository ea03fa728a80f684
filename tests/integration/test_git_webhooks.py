"""Webhooks: who may wake a watcher, what a replay does, and how fast a push is seen between two polls."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from fixtures_git import TOKEN, USER, Developer, git_server, http_developer  # noqa: F401
from fixtures_triggers import StateStore, connect, running, state  # noqa: F401

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.airflow.triggers.git import GitRefTrigger
from deepseek_ops.airflow.ui import hooks as airflow_hooks
from deepseek_ops.core.errors import FactsUnavailableError
from deepseek_ops.core.records import GitRef
from deepseek_ops.pipeline import wakes as wakes_module
from deepseek_ops.pipeline.wakes import Wakes
from deepseek_ops.web import hooks as web_hooks
from deepseek_ops.web.hooks import hooks_app

SECRET, OLD_SECRET = "a-secret-of-the-webhook-tests", "the-one-before-it-was-changed"
SIGNING = "whsec_" + base64.b64encode(b"k" * 32).decode()
CLOCK = 1_800_000_000
CONNECTION = "deepseek_ops_git"


@pytest.fixture
def wakes(tmp_path: Path) -> Wakes:
    return Wakes(open_facts(f"sqlite:///{tmp_path / 'facts.db'}"))


@pytest.fixture
def client(wakes: Wakes) -> TestClient:
    known = {CONNECTION: [SECRET, OLD_SECRET, SIGNING], "other": ["another-secret-of-another-team"]}
    return TestClient(hooks_app(lambda name: known.get(name, []), wakes.ring, default=CONNECTION, now=lambda: CLOCK))


def github(body: bytes, secret: str = SECRET, event: str = "push") -> dict[str, str]:
    code = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {"X-GitHub-Event": event, "X-Hub-Signature-256": f"sha256={code}", "X-GitHub-Delivery": "1-2-3"}


def gitea(body: bytes, secret: str = SECRET) -> dict[str, str]:
    return {
        "X-Gitea-Event": "push",
        "X-Gitea-Signature": hmac.new(secret.encode(), body, hashlib.sha256).hexdigest(),
    }


def gitlab_token(_body: bytes, secret: str = SECRET) -> dict[str, str]:
    return {"X-Gitlab-Event": "Push Hook", "X-Gitlab-Token": secret, "X-Gitlab-Event-UUID": "e-1"}


def gitlab_signed(body: bytes, at: int = CLOCK, identity: str = "d-1", key: bytes = b"k" * 32) -> dict[str, str]:
    code = hmac.new(key, f"{identity}.{at}.".encode() + body, hashlib.sha256).digest()
    return {
        "X-Gitlab-Event": "Push Hook",
        "webhook-id": identity,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,AAAA v1,{base64.b64encode(code).decode()}",
    }


SENDERS = [("github", github), ("gitea", gitea), ("gitlab", gitlab_token), ("gitlab", gitlab_signed)]


@pytest.mark.parametrize(("host", "sign"), SENDERS)
def test_a_signed_push_wakes_once_and_its_replay_does_not(
    client: TestClient, wakes: Wakes, host: str, sign: Any
) -> None:
    body = b'{"ref": "refs/heads/main", "after": "1"}'
    answer = client.post(f"/{host}", content=body, headers=sign(body))
    assert (answer.status_code, answer.json()) == (202, {"woken": True})
    assert wakes.count(CONNECTION) == 1
    replay = client.post(f"/{host}", content=body, headers=sign(body) | {"X-GitHub-Delivery": "another"})
    assert (replay.status_code, replay.json(), wakes.count(CONNECTION)) == (202, {"woken": False}, 1)


@pytest.mark.parametrize(("host", "sign"), SENDERS)
def test_what_nobody_signed_is_refused_and_wakes_nobody(client: TestClient, wakes: Wakes, host: str, sign: Any) -> None:
    body = b'{"after": "1"}'
    event = {"X-GitHub-Event": "push", "X-Gitea-Event": "push", "X-Gitlab-Event": "Push Hook"}
    refused = [event, {}, dict.fromkeys(sign(body), "")]
    if sign is gitlab_signed:
        refused += [sign(body + b" "), sign(body, key=b"x" * 32), sign(body) | {"webhook-id": "other"}]
        refused += [sign(body) | {"webhook-timestamp": text} for text in ("", "x", "-1", str(CLOCK + 1), "9" * 400)]
        refused += [sign(body, at=CLOCK - 301), sign(body, at=CLOCK + 301), sign(body, identity="")]
    elif sign is gitlab_token:
        refused += [sign(body, "wrong"), {"X-Gitlab-Token": SECRET + "x"}, {"X-Gitlab-Token": "\xe9"}]
    else:
        refused += [sign(body + b" "), sign(body, "wrong"), sign(body, "")]
    for headers in refused:
        sent = {name: value.encode("latin-1") for name, value in headers.items()}
        assert client.post(f"/{host}", content=body, headers=sent).status_code == 401, headers
    assert wakes.count(CONNECTION) == 0


def test_a_secret_holds_for_its_own_connection_and_an_unknown_one_looks_the_same(
    client: TestClient, wakes: Wakes
) -> None:
    body = b"{}"
    answers = [
        client.post(f"/github/{name}", content=body, headers=github(body))
        for name in ("other", "unknown", "..%2fother", "x" * 200)
    ]
    assert {answer.status_code for answer in answers[:2]} == {401}
    assert answers[0].json() == answers[1].json()
    assert all(answer.status_code in (401, 404) for answer in answers)
    assert client.post("/github/other", content=body, headers=github(body, OLD_SECRET)).status_code == 401
    assert client.post(f"/github/{CONNECTION}", content=body, headers=github(body, OLD_SECRET)).status_code == 202
    assert (wakes.count("other"), wakes.count(CONNECTION)) == (0, 1)


def test_a_ping_is_answered_and_wakes_nobody(client: TestClient, wakes: Wakes) -> None:
    answer = client.post("/github", content=b"{}", headers=github(b"{}", event="ping"))
    assert (answer.status_code, answer.json()["woken"], wakes.count(CONNECTION)) == (200, False, 0)
    assert client.post("/bitbucket", content=b"{}").status_code == 404
    assert client.get("/github").status_code == 405


def test_a_body_is_limited_whatever_length_it_tells(
    client: TestClient, wakes: Wakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_hooks, "MAX_BODY_BYTES", 1000)
    body = b"x" * 1001
    assert client.post("/github", content=body, headers=github(body)).status_code == 413

    def pieces() -> Iterator[bytes]:
        yield from (body[:600], body[600:])

    assert client.post("/github", content=pieces(), headers=github(body)).status_code == 413
    fits = b"x" * 1000
    assert client.post("/github", content=fits, headers=github(fits)).status_code == 202
    assert wakes.count(CONNECTION) == 1


def test_replays_are_known_after_a_restart_and_the_memory_is_bounded(
    wakes: Wakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakes_module, "REMEMBERED", 20)
    assert wakes.ring("model", "first")
    later = Wakes(open_facts(f"sqlite:///{tmp_path / 'facts.db'}"))
    assert not later.ring("model", "first")
    assert later.ring("other", "first"), "another repository's deliveries are its own"
    for number in range(20):
        assert later.ring("model", f"{number}")
    assert not later.ring("model", "0")
    assert later.ring("model", "first"), "the oldest is forgotten"


def test_while_the_facts_are_away_the_host_is_told_to_try_again() -> None:
    def away(_repository: str, _delivery: str) -> bool:
        raise FactsUnavailableError("facts", "connection refused")

    client = TestClient(hooks_app(lambda _name: [SECRET], away, default=CONNECTION))
    answer = client.post("/github", content=b"{}", headers=github(b"{}"))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")


def test_secrets_come_from_the_git_connection_and_short_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connect(monkeypatch, CONNECTION, conn_type="git", host="https://x/m.git", extra={"webhook_secret": SECRET})
    pair = {"webhook_secret": [SECRET, OLD_SECRET]}
    connect(monkeypatch, "pair", conn_type="git", host="https://x/m.git", extra=pair)
    connect(monkeypatch, "short", conn_type="git", host="https://x/m.git", extra={"webhook_secret": "short"})
    connect(monkeypatch, "none", conn_type="git", host="https://x/m.git")
    connect(monkeypatch, "http", conn_type="http", host="https://x/", extra={"webhook_secret": SECRET})
    connect(monkeypatch, "deepseek_ops_facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db'}")
    airflow_hooks.wakes.cache_clear()
    client = TestClient(airflow_hooks.build_hooks_app())
    status = {
        name: client.post(f"/github/{name}", content=name.encode(), headers=github(name.encode(), secret)).status_code
        for name, secret in [
            (CONNECTION, SECRET), ("pair", OLD_SECRET), ("short", "short"), ("none", ""), ("http", SECRET), ("no", ""),
        ]
    }  # fmt: skip
    assert status == {CONNECTION: 202, "pair": 202, "short": 401, "none": 401, "http": 401, "no": 401}
    assert "is shorter than 16 characters" in caplog.text
    assert SECRET not in caplog.text
    airflow_hooks.wakes.cache_clear()


@pytest.fixture
def developer(http_developer: Developer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Developer:  # noqa: F811
    connect(monkeypatch, "model", conn_type="git", host=http_developer.remote.url, login=USER, password=TOKEN)
    connect(monkeypatch, "deepseek_ops_facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db'}")
    monkeypatch.setenv("DEEPSEEK_OPS_CACHE", str(tmp_path / "trigger-cache"))
    return http_developer


async def begun(state: StateStore) -> None:  # noqa: F811
    async with asyncio.timeout(20):
        while not any("shards" in value for value in state.values.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_webhook_wakes_a_watcher_that_polls_once_in_ten_minutes(
    developer: Developer,
    state: StateStore,  # noqa: F811
    wakes: Wakes,
) -> None:
    wakes.ring("model", "before the watcher came")
    developer.push_commit({"a": "1"})
    trigger = GitRefTrigger(git_conn_id="model", asset_name="m", poll_interval=600)
    async with running(trigger, state) as listener:
        await begun(state)
        commit = developer.push_commit({"a": "2"})
        await asyncio.sleep(1.5)
        assert listener.events == [], "it polls once in ten minutes"
        body = json.dumps({"after": commit}).encode()
        client = TestClient(hooks_app(lambda _name: [SECRET], wakes.ring, default="model"))
        assert client.post("/github", content=body, headers=github(body)).json() == {"woken": True}
        assert [GitRef.load(event).commit for event in await listener.next(1, seconds=10)] == [commit]


async def test_a_webhook_that_came_before_the_push_was_visible_is_not_wasted(
    developer: Developer,
    state: StateStore,  # noqa: F811
    wakes: Wakes,
) -> None:
    developer.push_commit({"a": "1"})
    trigger = GitRefTrigger(git_conn_id="model", asset_name="m", poll_interval=600)
    async with running(trigger, state) as listener:
        await begun(state)
        await asyncio.sleep(0.3)
        wakes.ring("model", "early")
        await asyncio.sleep(1.6)
        commit = developer.push_commit({"a": "2"})
        assert [GitRef.load(event).commit for event in await listener.next(1, seconds=15)] == [commit]


async def test_without_facts_the_watcher_polls_on(
    developer: Developer,
    state: StateStore,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    old = developer.push_commit({"a": "1"})
    trigger = GitRefTrigger(git_conn_id="model", asset_name="m", poll_interval=2.5, facts_conn_id="nowhere")
    async with running(trigger, state) as listener:
        await begun(state)
        commit = developer.push_commit({"a": "2"})
        await listener.next(1, seconds=15)
        assert [(GitRef.load(e).commit, GitRef.load(e).previous) for e in listener.events] == [(commit, old)]
    assert caplog.text.count("webhooks wake nobody") <= 1


# --- debounce ---------------------------------------------------------------------------------------------------------


async def test_a_burst_of_pushes_is_one_event_of_the_newest_once_the_branch_rests(
    developer: Developer,
    state: StateStore,  # noqa: F811
) -> None:
    old = developer.push_commit({"a": "1"})
    trigger = GitRefTrigger(git_conn_id="model", asset_name="m", poll_interval=0.1, debounce=1.2)
    async with running(trigger, state) as listener:
        await begun(state)
        for number in range(4):
            newest = developer.push_commit({"a": f"burst {number}"})
            await asyncio.sleep(0.3)
            assert listener.events == []
        await listener.next(1)
        await asyncio.sleep(1.5)
        assert [(GitRef.load(e).commit, GitRef.load(e).previous) for e in listener.events] == [(newest, old)]


async def test_a_branch_that_never_rests_is_announced_after_ten_times_its_debounce(
    developer: Developer,
    state: StateStore,  # noqa: F811
) -> None:
    developer.push_commit({"a": "1"})
    trigger = GitRefTrigger(git_conn_id="model", asset_name="m", poll_interval=0.05, debounce=0.5)
    async with running(trigger, state) as listener:
        await begun(state)
        started = time.monotonic()
        number = 0
        while not listener.events and time.monotonic() - started < 20:
            developer.push_commit({"a": f"{number}"})
            number += 1
            await asyncio.sleep(0.1)
        assert listener.events, "a branch that moves all the time is never announced"
        assert time.monotonic() - started >= 4.5


async def test_the_pushed_file_says_how_long_its_branch_must_rest_and_a_watcher_looks_then_by_itself(
    developer: Developer,
    state: StateStore,  # noqa: F811
    wakes: Wakes,
) -> None:
    pipeline = """
name: tiny
triggers:
  - {type: git-push, branches: ["exp/*"], debounce: 2s}
  - {type: git-push, branches: [main]}
data: {raw: "s3://lake/raw/", dataset: corpus}
training:
  model: deepseek/model.json
  hyperparameters: [{name: learning_rate, value: 0.001}, {name: batch_size, value: 8}, {name: epochs, value: 1}]
"""
    developer.push_commit({"deepseek.yaml": pipeline})
    trigger = GitRefTrigger(git_conn_id="model", asset_name="m", poll_interval=600, pipeline_file="deepseek.yaml")
    async with running(trigger, state) as listener:
        await begun(state)
        await asyncio.sleep(0.2)
        experiment = developer.push_commit({"a": "1"}, "exp/x")
        main = developer.push_commit({"b": "1"}, "main")
        wakes.ring("model", "both")
        found = [GitRef.load(event) for event in await listener.next(2, seconds=20)]
        assert [(ref.name, ref.commit) for ref in found] == [
            ("refs/heads/main", main),
            ("refs/heads/exp/x", experiment),
        ], "ten minutes to the next poll, two seconds to the end of the rest"


async def test_what_a_burst_takes_back_is_not_announced(
    developer: Developer,
    state: StateStore,  # noqa: F811
) -> None:
    developer.push_commit({"deepseek/a": "1"})
    trigger = GitRefTrigger(git_conn_id="model", asset_name="m", poll_interval=0.1, debounce=0.8, paths=["deepseek/**"])
    async with running(trigger, state) as listener:
        await begun(state)
        developer.push_commit({"deepseek/a": "2"})
        await asyncio.sleep(0.4)
        back = developer.push_commit({"deepseek/a": "1", "docs": "1"})
        async with asyncio.timeout(20):
            while not any(back in value for value in state.values.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert listener.events == []
