"""What a watcher announces again: pushes that no run has taken, because Airflow lost the event."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from fixtures_git import Developer, git_server, http_developer, make_developer  # noqa: F401
from fixtures_triggers import StateStore, connect, running, state  # noqa: F401
from test_trigger_git import WAIT, begun, developer, settled, told, watcher  # noqa: F401

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.airflow.triggers import git_watch
from deepseek_ops.core.records import GitRef
from deepseek_ops.pipeline.pushes import claim


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
    monkeypatch.setattr(git_watch, "AGAIN_SECONDS", 0.4)
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
        monkeypatch.setattr(git_watch, "AGAIN_TIMES", 2)
        monkeypatch.setattr(git_watch, "AGAIN_SECONDS", 0.05)
        developer.push_commit({"a": "3"})
        await listener.next(heard + 3)
        await asyncio.sleep(WAIT)
        assert len(listener.events) == heard + 3
