"""Which push a run is of: each is taken once, whatever events Airflow batches or repeats."""

from __future__ import annotations

import re

import pytest

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.core.errors import InvalidRecordError, RefNotFoundError
from deepseek_ops.core.records import GitRef, RunManifest
from deepseek_ops.pipeline.pushes import (
    CLAIM,
    ShortCommitError,
    asked_for,
    claim,
    is_claimed,
    pushes_of,
    resolve,
    run_of,
    take,
    unclaimed,
)

URL = "https://host/model.git"


def push(branch: str, number: int, **changes: object) -> GitRef:
    return GitRef(repository=URL, name=f"refs/heads/{branch}", commit=f"{number:040x}").evolve(**changes)


class Remote:
    """A repository with these branches, all at commit 9."""

    url = URL

    def __init__(self, *branches: str) -> None:
        self.branches = branches

    def resolve(self, ref: str) -> GitRef:
        if ref not in self.branches:
            raise RefNotFoundError(URL, ref)
        return push(ref, 9)


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


def test_a_branch_that_comes_back_to_a_commit_is_pushed_again(facts):
    """However often it goes to and fro: what was before it is the same the second time, the move is not."""
    there, back, forth = (push("main", 1, move=f"e.{number}") for number in (1, 3, 5))
    assert take(facts, [there], run="run-1").ref == there
    assert take(facts, [push("main", 2, previous=there.commit, move="e.2")], run="run-2") is not None
    assert not is_claimed(facts, back)
    assert take(facts, [back.evolve(previous=f"{2:040x}")], run="run-3") is not None
    assert take(facts, [forth.evolve(previous=f"{2:040x}")], run="run-4") is not None
    assert take(facts, [back], run="run-5") is None, "announced again it is what it was"


def test_the_same_commit_of_another_repository_is_another_push(facts):
    other = push("main", 1, repository="https://host/copy.git")
    assert take(facts, [push("main", 1)], run="run-1") is not None
    assert take(facts, [other], run="run-2").ref == other
    assert pushes_of([push("main", 1).dump(), other.dump()]) == [push("main", 1), other]


def test_what_an_older_version_announced_is_still_known_by_its_commit(facts):
    facts.insert(CLAIM, f"refs/heads/main@{1:040x}", {"run": "run-1"})  # as it was written then
    (old,) = pushes_of([push("main", 1, previous=f"{7:040x}").dump()])
    assert old.move is None
    assert take(facts, [old], run="run-2") is None
    assert take(facts, [old], run="run-1").ref == old, "the run that had it is cleared"
    assert take(facts, [push("main", 1, move="e.1")], run="run-2") is not None, "a move back to it is a push of today"
    came, back = push("exp/a", 1), push("exp/a", 1, previous=f"{2:040x}")
    assert [take(facts, [one], run=one.previous or "first") is not None for one in (came, back)] == [True, True]


def test_the_others_of_a_batch_are_taken_by_their_own_runs_and_only_by_those(facts):
    pushes = [push("exp/a", 1, move="e.1"), push("exp/b", 2, move="e.1"), push("exp/c", 3, move="e.1")]
    source = take(facts, pushes, run="run-1")
    run_id, conf = run_of(source.others[0])
    again = asked_for(Remote(), conf["ref"], conf)
    assert again == pushes[1]
    assert claim(facts, again, run=run_id) == run_id
    assert take(facts, pushes, run="run-1").others == (pushes[2],), "the first run is cleared"
    assert take(facts, [pushes[1]], run="run-2") is None


def test_runs_of_other_pushes_have_ids_that_airflow_takes_and_that_no_two_pushes_share():
    pushes = [
        push("exp/a", 1),
        push("exp-a", 1),
        push("exp/a", 1, move="e.1"),
        push("exp/a", 1, move="e.2"),
        push("exp/a", 1, repository="https://host/copy.git"),
        push("exp/v@2", 1),
        push("экс" * 80, 1),
    ]
    ids = [run_of(one)[0] for one in pushes]
    assert len(set(ids)) == len(pushes)
    assert all(re.fullmatch(r"[A-Za-z0-9_.~:+-]{1,250}", one) for one in ids), "Airflow's allowed_run_id_pattern"
    assert ids[0].startswith("push__exp-a__000000000000__")
    assert ids[0] == run_of(push("exp/a", 1))[0]


def test_a_result_is_the_same_whatever_announced_its_commit():
    def manifest(source: GitRef) -> RunManifest:
        return RunManifest(
            name="tiny", source=source, tree="a" * 40, config_digest="c" * 64, environment="e", software="0"
        )

    assert manifest(push("main", 1, move="e.7")).fingerprint == manifest(push("main", 1)).fingerprint


@pytest.mark.parametrize("length", [40, 64])
@pytest.mark.parametrize("name", ["exp/a", "exp/v@2", "refs/tags/deepseek@1.0", "refs/heads/exp/a"])
def test_an_exact_push_is_resolved_without_asking_what_the_branch_is_now(name, length):
    commit = f"{7:0{length}x}"
    full = name if name.startswith("refs/") else f"refs/heads/{name}"
    assert resolve(Remote(name), f"{name}@{commit}") == GitRef(repository=URL, name=full, commit=commit)


def test_a_name_with_an_at_sign_is_a_name():
    assert resolve(Remote("exp/v@2"), "exp/v@2") == push("exp/v@2", 9)
    assert resolve(Remote("a@deadbeef"), "a@deadbeef") == push("a@deadbeef", 9)
    with pytest.raises(RefNotFoundError, match="exp/a@HEAD"):
        resolve(Remote("exp/a"), "exp/a@HEAD")
    with pytest.raises(RefNotFoundError):
        resolve(Remote("exp/a"), f"@{7:040x}")


def test_a_shortened_commit_is_refused_with_what_to_write():
    with pytest.raises(ShortCommitError, match=r"'exp/a@1234abc'.*'1234abc' is a shortened commit id.*40 characters"):
        resolve(Remote("exp/a"), "exp/a@1234abc")


def test_a_push_that_a_run_says_to_be_of_must_be_one():
    with pytest.raises(InvalidRecordError, match="previous='HEAD'"):
        asked_for(Remote(), f"main@{1:040x}", {"cause": "push", "previous": "HEAD"})
