"""A script that gets stuck is found; one whose machine is taken goes on with other ranks: every sample once."""

from __future__ import annotations

import itertools
import json

import pytest
from fixtures_trainer import MODEL, dataset, lab  # noqa: F401  (pytest fixtures)

from deepseek_ops.core.jobs import JobCause, JobPhase
from deepseek_ops.core.records import Checkpoint
from deepseek_ops.training.script import TrainingScript, scripted

pytestmark = pytest.mark.slow
SCRIPT = '''
import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

ROWS = 64


class Numbered(torch.utils.data.Dataset):
    """Rows whose first token is their number."""

    def __len__(self):
        return ROWS

    def __getitem__(self, at):
        ids = torch.tensor([at, *range(100, 115)])
        return {"input_ids": ids, "labels": ids.clone()}


class Telling(Trainer):
    """Notes which rows each step was of."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        with (output / f"rows-{self.args.process_index}.jsonl").open("a") as file:
            rows = inputs["input_ids"][:, 0].tolist()
            file.write(json.dumps({"step": self.state.global_step + 1, "rows": rows}) + "\\n")
        time.sleep(0.1)
        mark = output / "was-stuck"
        if self.state.global_step == stuck_at and self.args.process_index == 1 and not mark.exists():
            mark.touch()
            time.sleep(600)
        return super().compute_loss(model, inputs, *args, **kwargs)


output, config, stuck_at = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
settings = TrainingArguments(
    output_dir=str(output), num_train_epochs=2, per_device_train_batch_size=4, learning_rate=1e-3,
    save_strategy="no", disable_tqdm=True, use_cpu=True, seed=5,
)
model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
Telling(model=model, args=settings, train_dataset=Numbered()).train()
'''
KIND = {"OMP_NUM_THREADS": "1", "DEEPSEEK_OPS_JOB_KINDS": "train=deepseek_ops.jobs.hf_script:run"}


def submit(lab, dataset, folder, name, *, ranks, stuck_at=-1, every=1000, environment=KIND, **fields):  # noqa: F811
    """Start the script as a trial, whose answer is a number: no model is published."""
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(SCRIPT)
    args = ("{output}", json.dumps({**MODEL, "num_mtp_layers": 0}), str(stuck_at))
    script = TrainingScript(code=lab.blobs.put_folder(folder), path="train.py", args=args)
    plan = scripted(lab.plan(dataset, checkpoint_steps=every, purpose="trial"), script)
    payload = {"plan": plan.dump(), "script": script.dump()}
    lab.submit("train", name, payload, num_ranks=ranks, environment=environment, **fields)


def test_a_rank_of_a_script_that_gets_stuck_is_found_by_the_jobs_own_limit(lab, dataset, tmp_path):  # noqa: F811
    submit(lab, dataset, tmp_path / "code", "hf-stuck", ranks=2, stuck_at=5, every=2, hang_seconds=10.0)
    checkpoint = Checkpoint.load(lab.result("hf-stuck"))
    assert (checkpoint.step, checkpoint.restarts) == (16, 1)
    (hang,) = lab.events("hf-stuck", "hang")
    assert hang["limit_seconds"] == 10.0
    assert 10.0 <= hang["silent_seconds"] < 60
    assert {place["phase"] for place in hang["positions"].values()} == {"scripted"}
    (restored,) = lab.events("hf-stuck", "checkpoint_restored")
    assert restored["step"] == 4


def test_a_script_leaves_a_machine_that_is_taken_and_goes_on_with_half_the_ranks(lab, dataset, tmp_path):  # noqa: F811
    leave = tmp_path / "leave"
    leave.write_text("the machine goes")
    environment = {**KIND, "DEEPSEEK_OPS_SPOT_NOTICE": leave.as_uri()}

    submit(lab, dataset, tmp_path / "code", "hf-taken", ranks=2, environment=environment)
    lost = lab.settle("hf-taken")
    assert (lost.phase, lost.cause) == (JobPhase.LOST, JobCause.PREEMPTED), lab.launcher.logs("hf-taken")[0][-4000:]
    assert [event["notice"] for event in lab.events("hf-taken", "spot_notice")] == ["the machine goes"]
    (stopped,) = lab.events("hf-taken", "stopped")
    assert stopped["step"] < 15

    submit(lab, dataset, tmp_path / "code", "hf-taken", ranks=1)
    checkpoint = Checkpoint.load(lab.result("hf-taken"))
    (kept,) = lab.events("hf-taken", "batch_kept")
    assert (kept["samples"], kept["ranks"], kept["accumulation"], kept["instead_of"]) == (8, 1, 2, 1)
    assert checkpoint.step == 16, "two epochs of 64 rows, 8 in a step"
    files = (lab.root / "jobs" / "hf-taken" / "work" / "output").glob("rows-*.jsonl")
    told = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    steps = {step: [row for one in told if one["step"] == step for row in one["rows"]] for step in range(1, 17)}
    assert {step: len(rows) for step, rows in steps.items()} == dict.fromkeys(range(1, 17), 8)
    for first in (1, 9):
        epoch = list(itertools.chain.from_iterable(steps[step] for step in range(first, first + 8)))
        assert sorted(epoch) == list(range(64)), "every row once"
    assert checkpoint.tokens == 16 * 8 * 16
