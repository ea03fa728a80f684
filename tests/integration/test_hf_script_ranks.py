"""A script that its machine's end stops goes on with another number of ranks: every sample once, in the same steps."""

from __future__ import annotations

import itertools
import json

import pytest
from fixtures_launcher import until
from fixtures_trainer import MODEL, dataset, lab  # noqa: F401  (pytest fixtures)

from deepseek_ops.core.jobs import JobPhase
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
        return super().compute_loss(model, inputs, *args, **kwargs)


output, config = Path(sys.argv[1]), json.loads(sys.argv[2])
settings = TrainingArguments(
    output_dir=str(output), num_train_epochs=2, per_device_train_batch_size=4, learning_rate=1e-3,
    save_strategy="no", disable_tqdm=True, use_cpu=True, seed=5,
)
model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
Telling(model=model, args=settings, train_dataset=Numbered()).train()
'''
KIND = {"OMP_NUM_THREADS": "1", "DEEPSEEK_OPS_JOB_KINDS": "train=deepseek_ops.jobs.hf_script:run"}


def test_a_script_leaves_a_machine_that_is_taken_and_goes_on_with_half_the_ranks(lab, dataset, tmp_path):  # noqa: F811
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text(SCRIPT)
    model = json.dumps({**MODEL, "num_mtp_layers": 0})
    script = TrainingScript(code=lab.blobs.put_folder(tmp_path / "code"), path="train.py", args=("{output}", model))
    plan = scripted(lab.plan(dataset, checkpoint_steps=1000, purpose="trial"), script)
    payload = {"plan": plan.dump(), "script": script.dump()}
    leave = tmp_path / "leave"
    environment = {**KIND, "DEEPSEEK_OPS_SPOT_NOTICE": leave.as_uri()}

    lab.submit("train", "hf-taken", payload, num_ranks=2, environment=environment)
    until(lambda: (lab.launcher.status("hf-taken").step or 0) >= 2, within=120)
    leave.write_text("the machine goes")
    assert lab.settle("hf-taken").phase is JobPhase.LOST, lab.launcher.logs("hf-taken")[0][-4000:]
    assert [event["notice"] for event in lab.events("hf-taken", "spot_notice")] == ["the machine goes"]
    (stopped,) = lab.events("hf-taken", "stopped")
    assert 2 <= stopped["step"] < 15, "in the first epoch or the second, not at the end"

    lab.submit("train", "hf-taken", payload, num_ranks=1, environment=KIND)
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
