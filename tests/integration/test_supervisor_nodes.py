"""Two nodes of one training: they begin together, fail together, and a failure anywhere has one meaning everywhere."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures_launcher import job, until
from fixtures_nodes import Nodes

from deepseek_ops.core.jobs import JobPhase

Make = Callable[..., Nodes]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made = []

    def nodes(order: dict[str, object], *, ranks: int = 2, meet_seconds: float = 60.0, **fields: object) -> Nodes:
        marks = tmp_path / "marks"
        marks.mkdir()
        spec = job("march", {**order, "marks": str(marks)}, kind="train", num_ranks=ranks, num_nodes=2, **fields)
        made.append(Nodes(tmp_path, spec, meet_seconds))
        return made[-1]

    yield nodes
    for each in made:
        each.close()


def runs(nodes: Nodes, wanted: int) -> list[dict[str, object]]:
    found = [event for node in nodes.folders for event in nodes.events(node, "run")]
    return found if len(found) >= wanted else []


def test_ranks_of_two_nodes_form_one_world_and_a_killed_one_restarts_them_all_once(make: Make) -> None:
    nodes = make({"steps": 150})
    nodes.start(0, 1)
    first = {event["rank"]: event for event in until(lambda: runs(nodes, 4))}
    assert sorted(first) == [0, 1, 2, 3]
    variables = {rank: event["variables"] for rank, event in first.items()}
    assert {each["WORLD_SIZE"] for each in variables.values()} == {"4"}
    assert [variables[rank]["LOCAL_RANK"] for rank in range(4)] == ["0", "1", "0", "1"]
    assert [variables[rank]["GROUP_RANK"] for rank in range(4)] == ["0", "0", "1", "1"]
    assert len({(each["MASTER_ADDR"], each["MASTER_PORT"]) for each in variables.values()}) == 1
    os.kill(first[3]["pid"], signal.SIGKILL)
    for node in (0, 1):
        status = nodes.status(node)
        assert (status.phase, status.restarts) == (JobPhase.SUCCEEDED, 1), (status, nodes.log(node))
        assert nodes.result(node)["rank"] == 0, "every node knows the job's result"
    second = {event["rank"] for node in (0, 1) for event in nodes.events(node, "run")[2:]}
    assert second == {0, 1, 2, 3}, "all ranks of all nodes start again"
    restarts = [(node, event) for node in (0, 1) for event in nodes.events(node, "restart")]
    ((where, restart),) = restarts
    assert (where, restart["rank"]) == (1, 3)
    assert "rank 3 was killed by SIGKILL" in restart["reason"]


def test_a_failure_for_good_on_one_node_fails_both_with_its_reason(make: Make) -> None:
    nodes = make({"steps": 100, "fail_rank": 1, "fail_at": 20}, ranks=1)
    nodes.start(0, 1)
    for node in (0, 1):
        status = nodes.status(node)
        assert (status.phase, status.reason) == (JobPhase.FAILED, "ValueError: this rank cannot")


def test_a_hang_on_one_node_is_put_on_record_by_both_and_ends_on_both(make: Make) -> None:
    nodes = make({"steps": 60, "stuck_rank": 1, "stuck_at": 30}, ranks=1, hang_seconds=2)
    nodes.start(0, 1)
    for node in (0, 1):
        status = nodes.status(node)
        assert (status.phase, status.restarts) == (JobPhase.SUCCEEDED, 1), (status, nodes.log(node))
    (stack,) = nodes.events(1, "stacks")
    assert stack["frames"][0].startswith("get_stuck")
    assert [event["rank"] for event in nodes.events(0, "stacks")] == [0]
    assert len([event for node in (0, 1) for event in nodes.events(node, "restart")]) == 1


def test_a_node_that_is_killed_and_started_again_joins_the_others(make: Make) -> None:
    nodes = make({"steps": 120}, ranks=1)
    nodes.start(0, 1)
    until(lambda: runs(nodes, 2))
    nodes.processes[1].kill()
    nodes.processes[1].wait()
    nodes.start(1, again="-again")
    for node in (0, 1):
        status = nodes.status(node)
        assert (status.phase, status.restarts) == (JobPhase.SUCCEEDED, 1), (status, nodes.log(node))
    (restart,) = nodes.events(1, "restart")
    assert restart["reason"] == "node 1 of 2 was started again"


def test_a_node_that_waits_in_vain_loses_the_job_and_says_for_whom(make: Make) -> None:
    nodes = make({"steps": 10}, ranks=1, meet_seconds=1.0)
    nodes.start(1)
    status = nodes.status(1)
    assert status.phase is JobPhase.LOST
    assert status.reason == "node 1 of 2 waited 1 s for the others, 1 were there"


def test_a_stop_on_one_node_while_it_waits_is_obeyed(make: Make) -> None:
    nodes = make({"steps": 10}, ranks=1)
    nodes.start(1)
    until(lambda: nodes.root.joinpath("meet/1/0/joined-1.json").exists())
    nodes.processes[1].terminate()
    assert nodes.status(1).phase is JobPhase.LOST
    assert nodes.status(1).reason.startswith("the supervisor got SIGTERM")


def test_a_slow_node_is_named_by_the_paces_that_nodes_share(make: Make) -> None:
    nodes = make({"steps": 300, "slow_rank": 1}, ranks=1)
    nodes.start(0, 1)
    assert nodes.status(1).phase is JobPhase.SUCCEEDED
    named = [rank for event in nodes.events(1, "stragglers") for rank in event["ranks"]]
    assert {(rank["rank"], rank["node"]) for rank in named} == {(1, 1)}
    assert nodes.status(0).phase is JobPhase.SUCCEEDED
    assert not nodes.events(0, "stragglers")
