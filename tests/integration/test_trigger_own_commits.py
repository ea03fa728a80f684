"""Whose commit a push is: our own record starts nothing, and hides nothing that people push with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures_git import Developer, file_developer, git_server, http_developer, run_git  # noqa: F401
from fixtures_triggers import StateStore, connect, running, state  # noqa: F401
from test_trigger_git import WAIT, begun, developer, told, watcher  # noqa: F401

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.airflow.triggers.wanted import Wish, wish_of
from deepseek_ops.core.config.recording import Records
from deepseek_ops.core.ports import Facts, NewCommit
from deepseek_ops.core.records import GitRef
from deepseek_ops.pipeline.own_pushes import own_commits
from deepseek_ops.pipeline.recording import push_record

EVERY_PUSH = "name: tiny\ntriggers: [{type: git-push, branches: [main, 'exp/*']}]\n"
POINTER, RESULT = "data/corpus.dataset.yaml", "experiments/0.1.0.json"


class Team:
    """A developer, and runs that push records of what they trained."""

    def __init__(self, developer: Developer, facts: Facts) -> None:  # noqa: F811
        self.developer, self.facts, self.remote = developer, facts, developer.remote

    def record(self, trained: str, branch: str = "exp/a", number: int = 1) -> str:
        """Push the record of a training as a run does, update the developer's clone, and return its commit."""
        files = {POINTER: f"version: {number}\n".encode(), f"experiments/0.{number}.0.json": b"{}"}
        commit = NewCommit(branch, trained, f"Train tiny on corpus {number}", files)
        done = push_record(self.remote, Records(), commit=commit, tag=f"exp-20260301-{number}", facts=self.facts)
        assert done.on_branch
        self.developer.git("fetch", "--quiet", "origin")
        return done.commit

    def pull(self, commit: str) -> None:
        self.developer.git("reset", "--quiet", "--hard", commit)

    def wish(self, commit: str, previous: str | None, branch: str = "exp/a") -> Wish:
        ref = GitRef(repository=self.remote.url, name=f"refs/heads/{branch}", commit=commit, previous=previous)
        return wish_of(
            self.remote,
            ref,
            paths=(),
            pipeline_file="deepseek.yaml",
            ours=lambda commits: own_commits(self.facts, self.remote.url, commits),
        )


@pytest.fixture
def team(file_developer: Developer, tmp_path: Path) -> Team:  # noqa: F811
    made = Team(file_developer, open_facts(f"sqlite:///{tmp_path / 'facts.db'}"))
    file_developer.push_commit({"deepseek.yaml": EVERY_PUSH, "deepseek/a": "1", "README.md": "1"})
    return made


def test_our_record_is_unwanted_and_what_people_push_on_it_is_compared_with_it(team: Team) -> None:
    trained = team.developer.push_commit({"deepseek/a": "2"}, "exp/a")
    assert team.wish(trained, None).wanted
    record = team.record(trained)
    assert not team.wish(record, trained).wanted
    team.pull(record)
    docs = team.developer.push_commit({"README.md": "2"}, "exp/a")
    assert not team.wish(docs, record).wanted
    assert not team.wish(docs, trained).wanted, "both between two looks"
    code = team.developer.push_commit({"deepseek/a": "3"}, "exp/a")
    assert team.wish(code, docs) == Wish(True)
    assert team.wish(code, trained) == Wish(True, base=record)
    second = team.record(code, number=2)
    assert not team.wish(second, code).wanted
    assert team.wish(second, trained) == Wish(True), "what the record is on was never announced"
    assert team.remote.changed_paths(trained, second) == sorted(
        [POINTER, RESULT, "README.md", "deepseek/a", "experiments/0.2.0.json"]
    )


PEOPLE: dict[str, tuple[dict[str, str | bytes], bool]] = {
    "an empty commit, to run again": ({}, True),
    "the data pointer": ({POINTER: "version: 7\n"}, True),
    "a result that is no result any more": ({RESULT: "[]"}, False),
    "a file beside the results": ({"experiments/prepare.py": "x = 1"}, True),
}


@pytest.mark.parametrize("what", PEOPLE)
def test_a_commit_of_somebody_on_our_record_is_theirs(team: Team, what: str) -> None:
    files, wanted = PEOPLE[what]
    trained = team.developer.push_commit({"deepseek/a": "2"}, "exp/a")
    record = team.record(trained)
    team.pull(record)
    theirs = team.developer.push_commit(files, "exp/a")
    assert team.wish(theirs, record).wanted is wanted
    assert team.wish(theirs, trained).wanted is wanted, "both between two looks"


@pytest.mark.parametrize(("path", "wanted"), [("deepseek/b", True), ("README.md", False)])
@pytest.mark.parametrize("way", ["merge", "rebase", "force"])
def test_who_had_worked_on_when_our_record_came_is_heard_as_well(team: Team, path: str, wanted: bool, way: str) -> None:
    trained = team.developer.push_commit({"deepseek/a": "2"}, "exp/a")
    record = team.record(trained)
    team.developer.commit({path: "mine"})
    if way == "merge":
        team.developer.git("merge", "--quiet", "--no-edit", record)
    elif way == "rebase":
        team.developer.git("rebase", "--quiet", record)
    team.developer.push("HEAD:refs/heads/exp/a")
    tip = team.developer.git("rev-parse", "HEAD")
    for previous in (record, trained):
        assert team.wish(tip, previous).wanted is wanted, previous


def test_a_branch_that_somebody_makes_at_our_record_is_theirs(team: Team) -> None:
    record = team.record(team.developer.push_commit({"deepseek/a": "2"}, "exp/a"))
    team.developer.git("push", "--quiet", "origin", f"{record}:refs/heads/exp/b")
    assert team.wish(record, None, "exp/b").wanted
    assert team.wish(record, None, "exp/a").wanted, "a first look finds what people changed before it"


def test_a_branch_of_several_experiments_brings_only_what_people_changed(team: Team) -> None:
    """As a merge to main does; here its people changed documentation only."""
    main = team.remote.resolve("main").commit
    for number in (1, 2):
        trained = team.developer.push_commit({"README.md": f"try {number}"}, "exp/a")
        team.pull(team.record(trained, number=number))
    team.developer.git("switch", "--quiet", "main")
    team.developer.git("merge", "--quiet", "--no-ff", "--no-edit", "exp/a")
    team.developer.push("HEAD:refs/heads/main")
    assert not team.wish(team.developer.git("rev-parse", "HEAD"), main, "main").wanted


async def _rest(seconds: float = WAIT) -> None:
    await asyncio.sleep(seconds)


@pytest.mark.parametrize(
    "filters", [{"pipeline_file": "deepseek.yaml"}, {"paths": ["**"]}, {}], ids=["file", "paths", ""]
)
async def test_a_watcher_announces_what_people_push_around_our_records(
    developer: Developer,  # noqa: F811
    state: StateStore,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    filters: dict[str, object],
) -> None:
    facts = open_facts(f"sqlite:///{tmp_path / 'facts.db'}")
    connect(monkeypatch, "facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db'}")
    team = Team(developer, facts)
    developer.push_commit({"deepseek.yaml": EVERY_PUSH, "deepseek/a": "1"})
    async with running(watcher(claimed=True, facts_conn_id="facts", **filters), state) as listener:
        await begun(state)
        trained = developer.push_commit({"deepseek/a": "2"}, "exp/a")
        await listener.next(1)
        record = team.record(trained)
        await _rest()
        assert len(listener.events) == 1
        team.pull(record)
        theirs = developer.push_commit({"deepseek/a": "3"}, "exp/a")
        await listener.next(2)
        await _rest(0.5)
    name = "refs/heads/exp/a"
    assert told(listener.events) == [(name, trained, None), (name, theirs, record)]


async def test_what_may_be_ours_waits_for_the_facts_that_know_it_and_nothing_else_does(
    developer: Developer,  # noqa: F811
    state: StateStore,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("deepseek_ops.airflow.triggers.git_watch.pause_after", lambda failures, interval: 0.2)
    team = Team(developer, open_facts(f"sqlite:///{tmp_path / 'facts.db'}"))
    away = f"sqlite:///{tmp_path / 'facts.db' / 'no folder'}"
    connect(monkeypatch, "facts", conn_type="deepseek_facts", host=away)
    trained = developer.push_commit({"deepseek.yaml": EVERY_PUSH, "deepseek/a": "1"}, "exp/a")
    trigger = watcher(claimed=True, facts_conn_id="facts", pipeline_file="deepseek.yaml")
    async with running(trigger, state) as listener:
        await begun(state)
        record = team.record(trained)
        developer.git("switch", "--quiet", "-c", "exp/b", trained)
        plain = developer.push_commit({"deepseek/a": "2"}, "exp/b")
        developer.git("switch", "--quiet", "exp/a")
        assert [one[1] for one in told(await listener.next(1))] == [plain]
        await _rest()
        connect(monkeypatch, "facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db'}")
        await _settles(lambda: record in str(state.values))
        assert len(listener.events) == 1


async def _settles(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not done():  # noqa: ASYNC110  (the store is a plain dictionary)
            await asyncio.sleep(0.05)


async def test_a_tag_on_a_file_or_a_folder_is_unwanted_and_looked_at_once(
    developer: Developer,  # noqa: F811
    state: StateStore,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    commit = developer.push_commit({"deepseek.yaml": "name: tiny\ntriggers: [{type: git-tag, tags: ['*']}]\n"})
    trigger = watcher(refs=["refs/tags/*"], pipeline_file="deepseek.yaml")
    async with running(trigger, state) as listener:
        await begun(state)
        developer.git("tag", "file", f"{commit}:deepseek.yaml")
        developer.git("tag", "-a", "-m", "x", "described-file", f"{commit}:deepseek.yaml")
        developer.git("tag", "folder", f"{commit}^{{tree}}")
        developer.git("tag", "commit", commit)
        developer.push("--tags")
        assert [one[0] for one in told(await listener.next(1))] == ["refs/tags/commit"]
        names = [f"refs/tags/{name}" for name in ("file", "described-file", "folder")]
        await _settles(lambda: all(name in str(state.values) for name in names))
        await _rest()
        assert len(listener.events) == 1
    assert sum("is on no commit" in line for line in caplog.messages) == 3
    assert "cannot look at" not in caplog.text
