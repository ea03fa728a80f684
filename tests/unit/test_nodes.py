"""Where a process is, as each engine says it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepseek_ops.jobs.meeting import own_address
from deepseek_ops.jobs.nodes import BadPlaceError, NodePlace, first_host, node_place


def test_a_process_that_nobody_placed_is_the_only_node() -> None:
    assert node_place({}) == NodePlace(0, 1, "127.0.0.1", "", "")


def test_what_is_said_explicitly_goes_before_the_engine() -> None:
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NODEID": "3", "SLURM_NNODES": "4", "SLURM_JOB_NODELIST": "n[1-4]"}
    said = {"DEEPSEEK_OPS_NODE_RANK": "1", "DEEPSEEK_OPS_NODE_COUNT": "2", "DEEPSEEK_OPS_NODE_ADDRESS": "10.0.0.1"}
    assert node_place({**slurm, **said}) == NodePlace(1, 2, "10.0.0.1")


def test_slurm_names_the_first_node_and_tells_a_requeue_from_the_first_run() -> None:
    variables = {"SLURM_JOB_ID": "7", "SLURM_NODEID": "1", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "gpu[003-004]",
                 "SLURMD_NODENAME": "gpu004"}  # fmt: skip
    assert node_place(variables) == NodePlace(1, 2, "gpu003", "7.0", "gpu004")
    assert node_place({**variables, "SLURM_RESTART_COUNT": "2"}).instance == "7.2"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[003-006,9],login", "gpu003"), ("a[7,9]-ib", "a7-ib"), ("a-1,b[1-2]", "a-1")],
)
def test_the_first_of_slurms_nodes(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_kubernetes_trainjob_and_jobset() -> None:
    train = {
        "PET_NODE_RANK": "1",
        "PET_NNODES": "2",
        "PET_MASTER_ADDR": "job-node-0-0.job",
        "JOB_COMPLETION_INDEX": "1",
    }
    assert node_place(train) == NodePlace(1, 2, "job-node-0-0.job")
    assert node_place({"JOB_COMPLETION_INDEX": "0"}) == NodePlace(0, 1)


def test_sagemaker_with_and_without_its_toolkit(tmp_path: Path) -> None:
    expected = NodePlace(1, 2, "algo-1", "train-7", "algo-2")
    toolkit = {"SM_HOSTS": '["algo-2", "algo-1"]', "SM_CURRENT_HOST": "algo-2", "TRAINING_JOB_NAME": "train-7"}
    assert node_place(toolkit) == expected
    resources = tmp_path / "resourceconfig.json"
    resources.write_text(json.dumps({"current_host": "algo-2", "hosts": ["algo-1", "algo-2"]}))
    assert node_place({"TRAINING_JOB_NAME": "train-7"}, resources=resources) == expected


@pytest.mark.parametrize(
    "variables",
    [
        {"DEEPSEEK_OPS_NODE_RANK": "two"},
        {"DEEPSEEK_OPS_NODE_RANK": "2", "DEEPSEEK_OPS_NODE_COUNT": "2"},
        {"SM_HOSTS": '["algo-1"]', "SM_CURRENT_HOST": "algo-9"},
    ],
    ids=["no number", "beyond the count", "not among the hosts"],
)
def test_a_place_that_cannot_be_is_refused_with_what_to_set(variables: dict[str, str]) -> None:
    with pytest.raises(BadPlaceError, match="set DEEPSEEK_OPS_NODE_RANK"):
        node_place(variables)


def test_a_node_is_reached_where_the_first_node_sees_it() -> None:
    assert own_address(NodePlace(0, 2, "first")) == "first"
    assert own_address(NodePlace(1, 2, "first", host="second")) == "second"
    assert own_address(NodePlace(1, 2, "127.0.0.1")) == "127.0.0.1"
