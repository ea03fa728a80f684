"""Which push a run is of: each is taken once, whatever events Airflow batches or repeats."""

from __future__ import annotations

import pytest

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.core.errors import InvalidRecordError
from deepseek_ops.core.records import GitRef
from deepseek_ops.pipeline.pushes import claim, is_claimed, pushes_of, resolve, take, unclaimed

URL = "https://host/model.git"


def push(branch: str, number: int) -> GitRef:
    return GitRef(repository=URL, name=f"refs/heads/{branch}", commit=f"{number:040x}")


@pytest.fixture
def facts(tmp_path):
    return open_facts(f"sqlite:///{tmp_path / 'facts.db'}")


def test_a_batch_of_events_gives_one_run_here_and_one_for_each_other_ref(facts):
    pushes = pushes_of([push("exp/a", 1).dump(), push("exp/b", 2).dump(), push("exp/c", 3).dump()])
    source = take(facts, pushes, run="run-1")
    assert source.ref == push("exp/a", 1)
    assert source.others == (push("exp/b", 2), push("exp/c", 3))


def test_of_several_pushes_to_one_ref_only_the_newest_counts():
    assert pushes_of([push("exp/a", 1).dump(), push("main", 5).dump(), push("exp/a", 2).dump()]) == [
        push("main", 5),
        push("exp/a", 2),
    ]


def test_a_push_that_another_run_has_taken_is_left_to_it(facts):
    assert take(facts, [push("main", 1)], run="run-1").ref == push("main", 1)
    assert take(facts, [push("main", 1)], run="run-2") is None
    assert take(facts, [push("main", 1), push("exp/a", 2)], run="run-2").ref == push("exp/a", 2)


def test_what_comes_twice_is_dealt_with_by_the_run_that_has_it_and_again_in_its_second_try(facts):
    one, two = push("main", 1), push("exp/a", 2)
    assert not is_claimed(facts, one)
    assert unclaimed(facts, [one], run="run-1") == [one]
    assert is_claimed(facts, one)
    assert unclaimed(facts, [one, two], run="run-2") == [two]
    assert unclaimed(facts, [one], run="run-1") == [one]
    assert not is_claimed(facts, push("main", 3)), "another commit of the same branch"


def test_a_run_that_is_tried_again_keeps_its_push(facts):
    assert claim(facts, push("main", 1), run="run-1") == "run-1"
    assert claim(facts, push("main", 1), run="run-1") == "run-1"
    assert claim(facts, push("main", 1), run="run-2") == "run-1"


def test_an_exact_push_is_resolved_without_asking_what_the_branch_is_now():
    class Remote:
        url = URL

        def resolve(self, ref):
            raise AssertionError("the branch may have moved")

    assert resolve(Remote(), f"exp/a@{7:040x}") == push("exp/a", 7)
    with pytest.raises(InvalidRecordError, match="commit"):
        resolve(Remote(), "exp/a@HEAD")
