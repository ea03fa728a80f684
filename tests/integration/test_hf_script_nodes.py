"""A script on two machines: a rank of one is killed, and both go on from the checkpoint that they have in common."""

from __future__ import annotations

import itertools
import json
import os
import signal

import pytest
from fixtures_hf_scripts import TRAINER_SCRIPT
from fixtures_launcher import until
from fixtures_nodes import Nodes
from fixtures_trainer import MODEL, dataset, lab  # noqa: F401  (pytest fixtures)

from deepseek_ops.adapters.stores.opening import store_environment
from deepseek_ops.core.jobs import JobPhase, JobSpec
from deepseek_ops.core.records import Checkpoint
from deepseek_ops.training.script import TrainingScript, scripted
from deepseek_ops.training.streams import current, read

pytestmark = [pytest.mark.slow, pytest.mark.heavy]
STEPS = 30
ARGS = ("--data", "{dataset}/documents/train.jsonl", "--tokenizer", "{dataset}/tokenizer", "--rate", "{learning_rate}")
KIND = {
    "OMP_NUM_THREADS": "1",
    "DEEPSEEK_OPS_JOB_KINDS": "train=deepseek_ops.jobs.hf_script:run",
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(scope="module")
def script(lab, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("script")
    (folder / "train.py").write_text(TRAINER_SCRIPT)
    model = json.dumps({**MODEL, "num_mtp_layers": 0})
    args = (*ARGS, "--model", model, "--steps", str(STEPS))
    return TrainingScript(code=lab.blobs.put_folder(folder), path="train.py", args=args, bias_update_rate=0.01)


def rows_of(lab, plan):  # noqa: F811
    return [row for segment in read(lab.store, f"{plan.run_prefix}/metrics") for row in segment.rows]


def test_a_killed_rank_of_one_machine_costs_both_some_steps_and_no_sample(lab, dataset, script, tmp_path):  # noqa: F811
    alone = scripted(lab.plan(dataset, ranks=2, checkpoint_steps=1000), script)
    payload = {"plan": alone.dump(), "alerts": [], "script": script.dump()}
    lab.submit("train", "script-alone", payload, num_ranks=2, environment=KIND)
    plan = scripted(lab.plan(dataset, ranks=1, num_nodes=2, checkpoint_steps=1000), script)
    spec = JobSpec(
        name="script-nodes",
        kind="train",
        payload={**payload, "plan": plan.dump()},
        num_ranks=1,
        num_nodes=2,
        environment={**KIND, **store_environment(lab.store.uri)},
    )
    undisturbed = Checkpoint.load(lab.result("script-alone"))
    nodes = Nodes(tmp_path, spec)
    try:
        nodes.start(0, 1)
        stored = f"{plan.run_prefix}/"
        until(lambda: [i for i in lab.store.list(stored) if i.key.endswith("/checkpoint.json")], within=120)
        until(lambda: any(row["step"] >= 9 for row in rows_of(lab, plan)), within=120)
        os.kill(json.loads((nodes.folders[1].path / "ranks.json").read_text())["pids"][0], signal.SIGKILL)
        for node in (0, 1):
            status = nodes.status(node, within=240)
            assert (status.phase, status.restarts) == (JobPhase.SUCCEEDED, 1), (status, nodes.log(node)[-4000:])
        checkpoint = Checkpoint.load(nodes.result(0))
    finally:
        nodes.close()
    steps = [row["step"] for row in rows_of(lab, plan)]
    (again,) = [step for before, step in itertools.pairwise(steps) if step <= before]
    assert again > 1, "it went on from a checkpoint"
    losses = {row["step"]: row["training_loss"] for row in current(rows_of(lab, plan))}
    expected = {row["step"]: row["training_loss"] for row in current(rows_of(lab, alone))}
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert losses == pytest.approx(expected, abs=1e-5)
    assert (checkpoint.step, undisturbed.step) == (STEPS, STEPS)
    left = [info.key for info in lab.store.list(stored) if "/checkpoints/" in info.key]
    assert left == [], "nothing is kept of what is published"
