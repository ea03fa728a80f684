"""What a watcher of a repository announces: every wanted push, whatever happens to branches, servers and triggerers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures_git import TOKEN, USER, Developer, git_server, http_developer, make_developer, run_git  # noqa: F401
from fixtures_triggers import StateStore, connect, running, state  # noqa: F401

from deepseek_ops.adapters.git import GitRepository, open_git
from deepseek_ops.adapters.git.refs import RefsSeen
from deepseek_ops.airflow.triggers.git import GitRefTrigger
from deepseek_ops.core.records import GitRef
from deepseek_ops.embedded.git_server import GitServer

PIPELINE = """
name: tiny
triggers:
  - {type: git-push, branches: [main, "exp/*"], paths: ["deepseek/**", deepseek.yaml]}
  - {type: git-tag, tags: ["deepseek-v*"]}
data: {raw: "s3://lake/raw/", dataset: corpus}
training:
  model: deepseek/model.json
  hyperparameters: [{name: learning_rate, value: 0.001}, {name: batch_size, value: 8}, {name: epochs, value: 1}]
"""
WAIT = 1.5
"""Several polls: long enough to see that nothing fires."""


@pytest.fixture
def developer(http_developer: Developer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Developer:  # noqa: F811
    connect(monkeypatch, "model", conn_type="git", host=http_developer.remote.url, login=USER, password=TOKEN)
    monkeypatch.setenv("DEEPSEEK_OPS_CACHE", str(tmp_path / "trigger-cache"))
    return http_developer


def watcher(**changes: Any) -> GitRefTrigger:
    arguments: dict[str, Any] = {"git_conn_id": "model", "asset_name": "model_repository", "poll_interval": 0.1}
    return GitRefTrigger(**{**arguments, **changes})


def told(events: list[dict[str, Any]]) -> list[tuple[str, str, str | None]]:
    records = [GitRef.load(event) for event in events]
    return [(record.name, record.commit, record.previous) for record in records]


async def settled(state: StateStore, before: Callable[[], bool]) -> None:  # noqa: F811
    async with asyncio.timeout(20):
        while not before():  # noqa: ASYNC110  (the store is a plain dictionary)
            await asyncio.sleep(0.05)


async def begun(state: StateStore) -> None:  # noqa: F811
    """Return once the watcher has stored its first look."""
    await settled(state, lambda: any("shards" in value for value in state.values.values()))


async def test_announces_each_push_and_not_what_was_there(developer: Developer, state: StateStore) -> None:  # noqa: F811
    old = developer.push_commit({"a": "1"})
    async with running(watcher(refs=["refs/heads/*", "refs/tags/v*"]), state) as listener:
        await begun(state)
        await asyncio.sleep(0.3)
        assert listener.events == []
        new = developer.push_commit({"a": "2"})
        await listener.next(1)
        developer.git("tag", "-a", "v1", "-m", "one")
        developer.git("tag", "other")
        developer.push("v1", "other")
        assert told(await listener.next(2)) == [("refs/heads/main", new, old), ("refs/tags/v1", new, None)]
        assert listener.events[0]["repository"] == developer.remote.url
    assert state.assets == {"model_repository"}
    assert TOKEN not in json.dumps(listener.events) + json.dumps(state.values)


async def test_a_first_start_can_announce_what_is_there(developer: Developer, state: StateStore) -> None:  # noqa: F811
    commit = developer.push_commit({"a": "1"})
    async with running(watcher(on_start="announce"), state) as listener:
        assert told(await listener.next(1)) == [("refs/heads/main", commit, None)]


async def test_pushes_while_nobody_watched_are_announced_once_with_all_they_changed(
    developer: Developer,
    state: StateStore,  # noqa: F811
) -> None:
    known = developer.push_commit({"deepseek/a": "1", "docs/b": "1"})
    trigger = watcher(paths=["deepseek/**"])
    async with running(trigger, state):
        await begun(state)
    developer.push_commit({"deepseek/a": "2"})
    last = developer.push_commit({"docs/b": "2"})
    fresh = developer.push_commit({"deepseek/c": "1"}, "exp/new")
    developer.git("switch", "--quiet", "main")
    async with running(trigger, state) as listener:
        expected = [("refs/heads/exp/new", fresh, None), ("refs/heads/main", last, known)]
        assert told(await listener.next(2)) == expected
        await asyncio.sleep(0.6)
    async with running(trigger, state) as listener:
        await asyncio.sleep(WAIT)
        assert listener.events == [], "a restarted triggerer announces nothing twice"


async def test_an_event_that_may_not_have_been_stored_is_announced_again(
    developer: Developer,
    state: StateStore,  # noqa: F811
) -> None:
    developer.push_commit({"a": "1"})
    trigger = watcher()
    async with running(trigger, state):
        await begun(state)
    commit = developer.push_commit({"a": "2"})
    for _ in range(2):
        async with running(trigger, state) as listener:
            listener_task = await listener.next(1)  # stopped before the watermark moved
        assert told(listener_task)[0][1] == commit


async def test_only_touched_paths_fire_and_the_watermark_still_moves(
    developer: Developer,
    state: StateStore,  # noqa: F811
) -> None:
    developer.push_commit({"deepseek/a": "1", "docs/b": "1"})
    async with running(watcher(paths=["deepseek/**", "!**/*.md"]), state) as listener:
        await begun(state)
        docs = developer.push_commit({"docs/b": "2", "deepseek/README.md": "x"})
        await settled(state, lambda: any(docs in value for value in state.values.values()))
        assert listener.events == []
        code = developer.push_commit({"deepseek/a": "2"})
        assert told(await listener.next(1)) == [("refs/heads/main", code, docs)]


async def test_a_new_branch_is_compared_with_where_it_left_the_default_branch(
    developer: Developer,
    state: StateStore,  # noqa: F811
) -> None:
    developer.push_commit({"deepseek/a": "1", "docs/b": "1"})
    async with running(watcher(paths=["deepseek/**"]), state) as listener:
        await begun(state)
        developer.git("push", "--quiet", "origin", "main:refs/heads/exp/empty")
        developer.push_commit({"docs/b": "2"}, "exp/docs")
        developer.git("switch", "--quiet", "main")
        developer.push_commit({"docs/c": "2"})
        developer.git("switch", "--quiet", "-c", "exp/code", "main~1")
        code = developer.push_commit({"deepseek/a": "2"}, "exp/code")
        developer.git("switch", "--quiet", "--orphan", "island")
        island = developer.push_commit({"deepseek/z": "1"}, "island")
        await listener.next(2)
        await asyncio.sleep(WAIT)
        assert sorted(told(listener.events)) == [
            ("refs/heads/exp/code", code, None),
            ("refs/heads/island", island, None),
        ]


async def test_a_forced_push_is_announced_by_what_differs_and_a_deleted_branch_is_forgotten(
    developer: Developer,
    state: StateStore,  # noqa: F811
) -> None:
    developer.push_commit({"deepseek/a": "1"})
    first = developer.push_commit({"deepseek/a": "2"}, "exp/x")
    async with running(watcher(paths=["deepseek/**"]), state) as listener:
        await begun(state)
        developer.git("reset", "--quiet", "--hard", "main")
        forced = developer.push_commit({"deepseek/a": "3"}, "exp/x")
        run_git(developer.bare, "reflog", "expire", "--expire=now", "--all")
        run_git(developer.bare, "gc", "--quiet", "--prune=now")  # the old commit is gone from the server
        assert told(await listener.next(1)) == [("refs/heads/exp/x", forced, first)]
        await settled(state, lambda: any(forced in value for value in state.values.values()))
        developer.git("push", "--quiet", "origin", ":exp/x")
        await settled(state, lambda: not any(forced in value for value in state.values.values()))
        developer.push("exp/x")
        assert told(await listener.next(2))[1] == ("refs/heads/exp/x", forced, None)


async def test_the_pushed_pipeline_file_decides(developer: Developer, state: StateStore) -> None:  # noqa: F811
    developer.push_commit({"deepseek.yaml": PIPELINE, "deepseek/a": "1", "docs/b": "1"})
    trigger = watcher(refs=["refs/heads/*", "refs/tags/*"], pipeline_file="deepseek.yaml")
    async with running(trigger, state) as listener:
        await begun(state)
        developer.push_commit({"docs/b": "2"})
        developer.push_commit({"deepseek/a": "x"}, "feature/x")
        wanted = developer.push_commit({"deepseek/a": "y"}, "exp/first")
        developer.git("tag", "deepseek-v1.0")
        developer.git("tag", "unrelated")
        developer.push("deepseek-v1.0", "unrelated")
        developer.git("switch", "--quiet", "--orphan", "pages")
        developer.git("rm", "-rfq", "--ignore-unmatch", ".")
        developer.push_commit({"index.html": "x"}, "pages")
        await listener.next(2)
        await asyncio.sleep(WAIT)
        expected = [("refs/heads/exp/first", wanted, None), ("refs/tags/deepseek-v1.0", wanted, None)]
        assert sorted(told(listener.events)) == expected


@pytest.mark.parametrize("content", ["name: [", "nonsense: 1\n", "#" * 1_100_000], ids=["syntax", "keys", "size"])
async def test_a_broken_pipeline_file_starts_the_run_that_will_say_so(
    developer: Developer,
    state: StateStore,  # noqa: F811
    content: str,
) -> None:
    developer.push_commit({"deepseek.yaml": PIPELINE})
    async with running(watcher(pipeline_file="deepseek.yaml"), state) as listener:
        await begun(state)
        broken = developer.push_commit({"deepseek.yaml": content})
        assert told(await listener.next(1))[0][1] == broken


async def test_a_server_that_is_away_is_waited_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: StateStore,  # noqa: F811
) -> None:
    server = GitServer(tmp_path / "repos", username=USER, token=TOKEN)
    server.start()
    url = server.create_repository("model")
    remote = open_git(url, username=USER, password=TOKEN, cache=tmp_path / "c")
    developer = make_developer(tmp_path / "work", tmp_path / "repos/model.git", remote)
    connect(monkeypatch, "model", conn_type="git", host=url, login=USER, password=TOKEN)
    monkeypatch.setenv("DEEPSEEK_OPS_CACHE", str(tmp_path / "trigger-cache"))
    developer.push_commit({"a": "1"})
    async with running(watcher(), state) as listener:
        await begun(state)
        await asyncio.to_thread(server.stop)
        commit = developer.push_commit({"a": "2"})
        await asyncio.sleep(0.5)
        assert not listener.ended
        server.start()
        try:
            assert told(await listener.next(1))[0][1] == commit
        finally:
            await asyncio.to_thread(server.stop)


async def test_a_state_store_that_is_away_announces_nothing_and_loses_nothing(
    developer: Developer,
    state: StateStore,  # noqa: F811
) -> None:
    developer.push_commit({"a": "1"})
    async with running(watcher(), state):
        await begun(state)
    commit = developer.push_commit({"a": "2"})
    state.fails = True
    async with running(watcher(), state) as listener:
        await asyncio.sleep(0.5)
        assert listener.events == []
        state.fails = False
        assert told(await listener.next(1))[0][1] == commit


async def test_a_missing_connection_is_waited_for(
    developer: Developer,
    state: StateStore,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    commit = developer.push_commit({"a": "1"})
    async with running(watcher(git_conn_id="later", on_start="announce"), state) as listener:
        await asyncio.sleep(0.3)
        assert "Airflow has no connection 'later'" in caplog.text
        connect(monkeypatch, "later", conn_type="git", host=developer.remote.url, login=USER, password=TOKEN)
        assert told(await listener.next(1))[0][1] == commit


async def test_a_thousand_refs_are_one_poll_and_fit_the_state_store(
    developer: Developer,
    state: StateStore,  # noqa: F811
    git_server: GitServer,  # noqa: F811
) -> None:
    commit = developer.push_commit({"a": "1"})
    names = [f"refs/heads/exp/a-rather-long-name-of-an-experiment-{number:05d}" for number in range(1200)]
    lines = "".join(f"create {name} {commit}\n" for name in names)
    run_git(developer.bare, "update-ref", "--stdin", data=lines.encode())
    async with running(watcher(on_start="skip"), state) as listener:
        await begun(state)
        moved = developer.push_commit({"a": "2"})
        run_git(developer.bare, "update-ref", names[700], moved)
        found = told(await listener.next(2))
        assert sorted(found) == [(names[700], moved, commit), ("refs/heads/main", moved, commit)]
    remembered = {}
    for value in state.values.values():
        remembered |= {name: commit for name, commit in json.loads(value).items() if name.startswith("refs/")}
    assert len(remembered) == 1201


async def test_two_watchers_of_one_asset_keep_separate_watermarks(
    developer: Developer,
    state: StateStore,  # noqa: F811
) -> None:
    developer.push_commit({"a/x": "1", "b/x": "1"})
    one, two = watcher(paths=["a/**"]), watcher(paths=["b/**"])
    async with running(one, state), running(two, state):
        await settled(state, lambda: sum("shards" in value for value in state.values.values()) == 2)
    commit = developer.push_commit({"a/x": "2", "b/x": "2"})
    for trigger in (one, two):
        async with running(trigger, state) as listener:
            assert told(await listener.next(1))[0][1] == commit
            await asyncio.sleep(0.3)


def test_a_trigger_is_rebuilt_from_plain_json_without_secrets() -> None:
    trigger = watcher(paths=["a/**"], pipeline_file="deepseek.yaml", after={"refs/heads/main": "0" * 40})
    path, kwargs = trigger.serialize()
    module, _, name = path.rpartition(".")
    assert (module, name) == (GitRefTrigger.__module__, GitRefTrigger.__name__)
    assert GitRefTrigger(**json.loads(json.dumps(kwargs))).serialize() == (path, kwargs)
    assert watcher().shared_stream_key() == watcher(refs=["x"], paths=["y"]).shared_stream_key()


async def test_triggers_of_one_repository_share_one_poll(
    developer: Developer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Drives Airflow's own manager of shared streams, as the triggerer does."""
    shared_stream = pytest.importorskip("airflow.triggers.shared_stream")
    polls = 0
    plain = GitRepository.look_async

    async def counted(remote: GitRepository) -> RefsSeen:
        nonlocal polls
        polls += 1
        return await plain(remote)

    monkeypatch.setattr(GitRepository, "look_async", counted)
    old = developer.push_commit({"a": "1"})
    manager = shared_stream.SharedStreamManager()
    triggers = [watcher(refs=[f"refs/heads/{name}"], after={"refs/heads/main": old}) for name in ("main", "exp/*", "x")]
    found: dict[int, list[dict[str, Any]]] = {0: [], 1: [], 2: []}

    async def consume(number: int, trigger: GitRefTrigger) -> None:
        key = trigger.shared_stream_key()
        stream = manager.subscribe(trigger_id=number, trigger=trigger, key=key)
        async for event in trigger.filter_shared_stream(stream):
            found[number].append(event.payload)

    tasks = [asyncio.ensure_future(consume(number, trigger)) for number, trigger in enumerate(triggers)]
    await asyncio.sleep(0.5)
    main = developer.push_commit({"a": "2"})
    side = developer.push_commit({"a": "3"}, "exp/y")
    async with asyncio.timeout(20):
        while not (found[0] and found[1]):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    before = polls
    await asyncio.sleep(1.0)
    assert polls - before <= 11, "three triggers polled for themselves"
    assert (told(found[0]), told(found[1]), found[2]) == (
        [("refs/heads/main", main, old)],
        [("refs/heads/exp/y", side, None)],
        [],
    )
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await manager.stop_all()
