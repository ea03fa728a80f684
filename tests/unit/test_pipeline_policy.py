"""Turns of a branch: whatever order runs enter in, and however often, the newest push decides."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.core.config import load_pipeline
from deepseek_ops.core.records import GitRef
from deepseek_ops.pipeline.policy import (
    KEPT,
    Lane,
    Turn,
    advance,
    advanced,
    enter,
    entered,
    explain_turn,
    lane_key,
    lane_of,
    superseded_reason,
)
from deepseek_ops.pipeline.runs import push_policy


def turn(number: int, policy: str = "parallel") -> Turn:
    return Turn(run=f"run-{number}", commit=f"{number:040x}", order=f"2026-01-01T00:{number:03d}", policy=policy)


def lane(*turns: Turn) -> Lane:
    result = Lane()
    for one in turns:
        result = advanced(entered(result, one), one.run, ended=())
    return result


def states(one: Lane) -> list[str]:
    return [each.state for each in one.turns]


@pytest.fixture
def facts(tmp_path):
    return open_facts(f"sqlite:///{tmp_path / 'facts.db'}")


def test_parallel_runs_neither_wait_nor_stop_each_other():
    assert states(lane(turn(1), turn(2))) == ["active", "active"]


def test_a_queued_run_waits_until_every_earlier_one_has_ended():
    waiting = lane(turn(1), turn(2, "queue"), turn(3, "queue"))
    assert states(waiting) == ["active", "waiting", "waiting"]
    assert "waits for run-1, run-2" in explain_turn(waiting, "run-3")
    first = advanced(waiting, "run-3", ended={"run-1"})
    assert states(first) == ["ended", "waiting", "waiting"]
    second = advanced(first, "run-2", ended={"run-1"})
    assert states(second) == ["ended", "active", "waiting"]
    assert states(advanced(second, "run-3", ended={"run-2"})) == ["ended", "ended", "active"]


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
def test_the_newest_superseding_push_wins_whoever_enters_first(order):
    turns = {1: turn(1), 2: turn(2, "queue"), 3: turn(3, "supersede")}
    result = lane(*(turns[number] for number in order))
    assert states(result) == ["superseded", "superseded", "active"]
    assert {one.by for one in result.turns[:2]} == {turns[3].commit}


def test_what_has_ended_is_not_superseded_and_an_older_push_never_takes_a_newer_ones_place():
    ended = advanced(lane(turn(1), turn(2)), "run-2", ended={"run-1"})
    assert states(entered(ended, turn(3, "supersede"))) == ["ended", "superseded", "waiting"]
    assert states(lane(turn(2), turn(1, "supersede"))) == ["active", "active"]


def test_entering_twice_changes_nothing(facts):
    key = "lane"
    enter(facts, key, turn(1))
    advance(facts, key, "run-1", has_ended=lambda _run: False)
    before = facts.get("lane", key)
    assert states(enter(facts, key, turn(1))) == ["active"]
    assert facts.get("lane", key).revision == before.revision


def test_runs_that_enter_at_once_all_see_each_other(facts):
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: enter(facts, "lane", turn(number, "supersede")), range(1, 7)))
    assert states(lane_of(facts, "lane")) == ["superseded"] * 5 + ["waiting"]
    # By whichever newer one came first: a reason that was given is not changed any more.
    assert superseded_reason(facts, "lane", "run-1") in {f"superseded by {number:040x}" for number in range(2, 7)}
    assert superseded_reason(facts, "lane", "run-6") == ""
    assert superseded_reason(facts, "lane", "somebody's") == ""


def test_a_run_that_was_deleted_blocks_nobody(facts):
    enter(facts, "lane", turn(1))
    enter(facts, "lane", turn(2, "queue"))
    assert advance(facts, "lane", "run-2", has_ended=lambda _run: False).turn("run-2").state == "waiting"
    assert advance(facts, "lane", "run-2", has_ended=lambda _run: True).turn("run-2").state == "active"


def test_in_a_lane_of_a_hundred_every_run_keeps_its_turn(facts):
    """The first waits, as the others do, for one that goes on; none may go on because it was forgotten."""
    enter(facts, "lane", turn(0))
    numbers = range(1, 101)
    for number in numbers:
        enter(facts, "lane", turn(number, "queue"))
    looked = advance(facts, "lane", "run-100", has_ended=lambda _run: False)
    assert [looked.turn(f"run-{number}").state for number in numbers] == ["waiting"] * 100
    enter(facts, "lane", turn(101, "supersede"))
    assert all(superseded_reason(facts, "lane", f"run-{number}") for number in numbers)


def test_a_long_lane_forgets_the_oldest_of_the_runs_that_have_ended(facts):
    for number in range(150):
        enter(facts, "lane", turn(number))
        lane = advance(facts, "lane", f"run-{number}", has_ended=lambda run: run not in ("run-3", "run-149"))
    assert len(lane.turns) <= KEPT + 2
    assert lane.turn("run-3").state == "active", "old, and goes on"
    assert [lane.turn(f"run-{number}").state for number in range(147, 150)] == ["active"] * 3


def test_each_branch_of_each_repository_has_a_lane_of_its_own():
    refs = [
        GitRef(repository=url, name=f"refs/heads/{branch}", commit=f"{1:040x}")
        for url in ("https://one/m.git", "https://two/m.git")
        for branch in ("main", "exp/a")
    ]
    assert len({lane_key(ref) for ref in refs}) == 4


def test_the_first_trigger_that_watches_the_branch_says_what_holds():
    text = """
triggers:
  - {type: git-push, branches: [main], concurrency: queue}
  - {type: git-push, branches: ["exp/*"], concurrency: supersede}
"""
    config = load_pipeline(text, file="deepseek.yaml")

    def policy(name: str) -> str:
        return push_policy(config, GitRef(repository="https://h/m.git", name=name, commit=f"{1:040x}"))

    assert policy("refs/heads/main") == "queue"
    assert policy("refs/heads/exp/a") == "supersede"
    assert policy("refs/heads/other") == "parallel"
    assert policy("refs/tags/main") == "parallel"
