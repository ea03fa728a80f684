"""What a watcher announces again, and what its moves are called: one that no run took, because Airflow lost it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from fixtures_git import Developer, git_server, http_developer, make_developer, run_git  # noqa: F401
from fixtures_triggers import StateStore, connect, running, state  # noqa: F401
from test_trigger_git import WAIT, begun, developer, settled, told, watcher  # noqa: F401

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.airflow.triggers import announcements
from deepseek_ops.core.ports import Facts
from deepseek_ops.core.records import GitRef
from deepseek_ops.pipeline.pushes import claim, take


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Facts:
    connect(monkeypatch, "facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db'}")
    return open_facts(f"sqlite:///{tmp_path / 'facts.db'}")


def entries(state: StateStore) -> dict[str, str]:  # noqa: F811
    """Return what the watcher remembers, of all its keys."""
    found: dict[str, str] = {}
    for value in state.values.values():
        found |= {name: one for name, one in json.loads(value).items() if name != "shards"}
    return found


def untaken(state: StateStore) -> set[str]:  # noqa: F811
    return {name.removeprefix("untaken ") for name in entries(state) if name.startswith("untaken ")}


def pushes(events: list[dict[str, object]]) -> list[GitRef]:
    return [GitRef.load(event) for event in events]


async def test_what_was_announced_to_nobody_is_announced_again_at_the_next_start(
    developer: Developer,  # noqa: F811
    state: StateStore,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A DAG that was paused a moment ago has its watcher for a while, and what that announces starts no run."""
    facts = open_facts(f"sqlite:///{tmp_path / 'facts.db'}")
    connect(monkeypatch, "facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db' / 'no folder'}")
    old = developer.push_commit({"a": "1"})
    trigger = watcher(claimed=True, facts_conn_id="facts")
    async with running(trigger, state) as listener:
        await begun(state)
        heard = developer.push_commit({"a": "2"}, "exp/heard")
        claim(facts, GitRef.load((await listener.next(1))[0]), run="asset_triggered__1")
        lost = developer.push_commit({"a": "3"}, "main")
        gone = developer.push_commit({"a": "4"}, "exp/gone")
        await listener.next(2)
        await settled(state, lambda: gone in json.dumps(state.values) and lost in json.dumps(state.values))
    developer.git("push", "--quiet", "origin", "--delete", "exp/gone")
    async with running(trigger, state) as listener:
        fresh = developer.push_commit({"a": "5"}, "exp/fresh")
        expected = [("refs/heads/exp/fresh", fresh, None), ("refs/heads/main", lost, old)]
        assert told(await listener.next(1)) == expected[:1], "facts that are away delay nothing else"
        connect(monkeypatch, "facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db'}")
        assert told(await listener.next(2)) == expected
        for event in listener.events:
            claim(facts, GitRef.load(event), run="asset_triggered__2")
        await asyncio.sleep(0.6)
    assert heard not in json.dumps(listener.events)
    async with running(trigger, state) as listener:
        await asyncio.sleep(WAIT)
        assert listener.events == []


async def test_what_no_run_takes_is_announced_again_and_no_more_often_than_it_helps(
    developer: Developer,  # noqa: F811
    state: StateStore,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Airflow drops an event that comes while it makes a run of another one."""
    monkeypatch.setattr(announcements, "AGAIN_SECONDS", 0.4)
    facts = open_facts(f"sqlite:///{tmp_path / 'facts.db'}")
    connect(monkeypatch, "facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db'}")
    old = developer.push_commit({"a": "1"})
    async with running(watcher(claimed=True, facts_conn_id="facts"), state) as listener:
        await begun(state)
        new = developer.push_commit({"a": "2"})
        move = ("refs/heads/main", new, old)
        assert told(await listener.next(2)) == [move, move]
        claim(facts, GitRef.load(listener.events[1]), run="asset_triggered__1")
        await asyncio.sleep(0.5)
        heard = len(listener.events)
        await asyncio.sleep(WAIT)
        assert len(listener.events) == heard <= 3
        monkeypatch.setattr(announcements, "AGAIN_TIMES", 2)
        monkeypatch.setattr(announcements, "AGAIN_SECONDS", 0.05)
        developer.push_commit({"a": "3"})
        await listener.next(heard + 3)
        await asyncio.sleep(WAIT)
        assert len(listener.events) == heard + 3


async def test_as_many_as_were_announced_are_announced_again_after_a_restart(
    developer: Developer,  # noqa: F811
    state: StateStore,  # noqa: F811
    facts: Facts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = developer.push_commit({"a": "1"}), developer.push_commit({"a": "2"}, "exp/kept")
    names = [f"refs/heads/exp/{number:03d}" for number in range(130)]
    run_git(developer.bare, "update-ref", "--stdin", data="".join(f"create {n} {old}\n" for n in names).encode())
    trigger = watcher(claimed=True, facts_conn_id="facts")
    async with running(trigger, state) as listener:
        await begun(state)
        run_git(developer.bare, "update-ref", "--stdin", data="".join(f"update {n} {new}\n" for n in names).encode())
        first = pushes(await listener.next(130))
        await settled(state, lambda: len(untaken(state)) == 130)
    for push in first[:50]:
        claim(facts, push, run="asset_triggered__1")
    async with running(trigger, state) as listener:
        again = pushes(await listener.next(80))
        assert {one.name: one for one in again} == {one.name: one for one in first[50:]}, "the very same moves"
        await settled(state, lambda: len(untaken(state)) == 80)
        await asyncio.sleep(WAIT)
        assert len(listener.events) == 80
    for push in again:
        claim(facts, push, run="asset_triggered__2")
    async with running(trigger, state) as listener:
        await settled(state, lambda: not untaken(state))
        assert listener.events == []


async def test_a_branch_that_goes_to_and_fro_is_announced_and_taken_each_time(
    developer: Developer,  # noqa: F811
    state: StateStore,  # noqa: F811
    facts: Facts,
) -> None:
    one = developer.push_commit({"a": "1"})
    other = developer.push_commit({"a": "2"})
    trigger = watcher(claimed=True, facts_conn_id="facts")
    taken = []
    async with running(trigger, state) as listener:
        await begun(state)
        for number, commit in enumerate((one, other, one, other), 1):
            run_git(developer.bare, "update-ref", "refs/heads/main", commit)
            (push,) = pushes(await listener.next(number))[number - 1 :]
            taken.append(take(facts, [push], run=f"run-{number}"))
            await settled(state, lambda commit=commit: entries(state)["refs/heads/main"].startswith(commit))
        run_git(developer.bare, "update-ref", "-d", "refs/heads/main")
        await settled(state, lambda: entries(state)["refs/heads/main"].startswith("-"))
    async with running(trigger, state) as listener:
        run_git(developer.bare, "update-ref", "refs/heads/main", other)
        taken.append(take(facts, pushes(await listener.next(1)), run="run-5"))
        await asyncio.sleep(WAIT)
        assert len(listener.events) == 1
    assert [source and source.ref.commit for source in taken] == [one, other, one, other, other]


async def test_a_move_that_is_announced_again_after_a_kill_is_called_the_same_and_one_of_another_watcher_is_not(
    developer: Developer,  # noqa: F811
    state: StateStore,  # noqa: F811
    facts: Facts,
) -> None:
    developer.push_commit({"a": "1"})
    trigger = watcher(claimed=True, facts_conn_id="facts")
    async with running(trigger, state):
        await begun(state)
    developer.push_commit({"a": "2"})
    told = []
    for _ in range(2):
        async with running(trigger, state) as listener:
            told += pushes(await listener.next(1))  # stopped before the watermark moved
    assert told[0] == told[1]
    assert take(facts, [told[0]], run="run-1") is not None
    assert take(facts, [told[1]], run="run-2") is None
    async with running(watcher(claimed=True, facts_conn_id="facts", on_start="announce"), StateStore()) as listener:
        assert pushes(await listener.next(1))[0].move != told[0].move, "a memory that was lost knows nothing of it"


async def test_a_lost_push_is_announced_again_as_it_was_where_only_documentation_followed(
    developer: Developer,  # noqa: F811
    state: StateStore,  # noqa: F811
    facts: Facts,
) -> None:
    developer.push_commit({"deepseek/a": "1"})
    trigger = watcher(claimed=True, facts_conn_id="facts", paths=["deepseek/**"])
    async with running(trigger, state) as listener:
        await begun(state)
        wanted = developer.push_commit({"deepseek/a": "2"})
        first = pushes(await listener.next(1))
        docs = developer.push_commit({"README.md": "x"})
        await settled(state, lambda: entries(state)["refs/heads/main"].startswith(docs))
    async with running(trigger, state) as listener:
        assert pushes(await listener.next(1)) == first
        assert first[0].commit == wanted
        claim(facts, first[0], run="run-1")
        await asyncio.sleep(WAIT)
        assert len(listener.events) == 1


async def test_a_memory_of_an_older_version_is_taken_up(
    developer: Developer,  # noqa: F811
    state: StateStore,  # noqa: F811
    facts: Facts,
) -> None:
    """It has no names for its moves: those it announced keep having none, and what comes is named."""
    old, new = developer.push_commit({"a": "1"}), developer.push_commit({"a": "2"})
    taken = developer.push_commit({"a": "3"}, "exp/taken")
    trigger = watcher(claimed=True, facts_conn_id="facts")
    async with running(trigger, state):
        await begun(state)
    keys = [key for key in state.values if "shards" not in state.values[key]]
    state.values.update(dict.fromkeys(keys, "{}"))
    url = developer.remote.url
    moves = [["refs/heads/main", new, old], ["refs/heads/exp/taken", taken, ""]]
    known = {"repository": url, "refs/heads/main": new, "refs/heads/exp/taken": taken}
    state.values[keys[0]] = json.dumps({**known, "announced": json.dumps([url, *moves])})
    facts.insert("claim", f"refs/heads/exp/taken@{taken}", {"run": "run-1"})  # as it was written then
    async with running(trigger, state) as listener:
        (lost,) = pushes(await listener.next(1))
        assert (lost.name, lost.commit, lost.previous, lost.move) == ("refs/heads/main", new, old, None)
        fresh = developer.push_commit({"a": "4"}, "exp/taken")
        push = pushes(await listener.next(2))[1]
        assert (push.commit, push.previous, bool(push.move)) == (fresh, taken, True)
        await settled(state, lambda: untaken(state) == {"refs/heads/main", "refs/heads/exp/taken"})
    assert "announced" not in entries(state)
