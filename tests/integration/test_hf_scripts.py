"""Scripts for transformers' Trainer and TRL, unchanged: our streams, our guardian, exact resume, a published model."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal

import pytest
from fixtures_hf_scripts import SFT_SCRIPT, TRAINER_SCRIPT
from fixtures_launcher import until
from fixtures_trainer import MODEL, dataset, lab  # noqa: F401  (pytest fixtures)

from deepseek_ops.core.jobs import JobPhase
from deepseek_ops.core.records import Checkpoint
from deepseek_ops.training.script import TrainingScript, scripted
from deepseek_ops.training.streams import current, read

pytestmark = pytest.mark.slow
MODEL_JSON = json.dumps({**MODEL, "num_mtp_layers": 0})
KIND = {
    "OMP_NUM_THREADS": "1",
    "DEEPSEEK_OPS_JOB_KINDS": "train=deepseek_ops.jobs.hf_script:run",
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(scope="module")
def code(lab, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "train.py").write_text(TRAINER_SCRIPT)
    (folder / "sft.py").write_text(SFT_SCRIPT)
    return lab.blobs.put_folder(folder)


def trainer_script(code, *more, steps=20):
    args = ("--data", "{dataset}/documents/train.jsonl", "--tokenizer", "{dataset}/tokenizer", "--model", MODEL_JSON)
    args += ("--rate", "{learning_rate}", "--steps", str(steps))
    return TrainingScript(code=code, path="train.py", args=(*args, *more), bias_update_rate=0.01)


def start(lab, dataset, name, script, *, alerts=(), nonce="", **fields):  # noqa: F811
    plan = scripted(lab.plan(dataset, checkpoint_steps=1000, nonce=nonce), script)
    payload = {"plan": plan.dump(), "alerts": list(alerts), "script": script.dump()}
    lab.submit("train", name, payload, num_ranks=2, environment=KIND, **fields)
    return plan


def rows_of(lab, plan):  # noqa: F811
    return [row for segment in read(lab.store, f"{plan.run_prefix}/metrics") for row in segment.rows]


def kinds_of(lab, plan):  # noqa: F811
    return [row["kind"] for segment in read(lab.store, f"{plan.run_prefix}/events") for row in segment.rows]


@pytest.fixture(scope="module")
def killed(lab, dataset, code):  # noqa: F811
    """A training whose second rank is killed after its first checkpoint, and whose loss was NaN there in one step."""
    plan = start(lab, dataset, "hf-killed", trainer_script(code, "--nan-at", "3"))
    lab.kill_rank("hf-killed", 1, after_step=9)
    return plan, Checkpoint.load(lab.result("hf-killed"))


def test_a_script_for_the_trainer_has_our_streams(lab, killed):  # noqa: F811
    plan, checkpoint = killed
    rows = current(rows_of(lab, plan))
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert {"training_loss", "learning_rate", "grad_norm", "tokens_per_second", "step_seconds", "expert_load_max",
            "loss_nan_ranks", "skipped_steps"} <= set(rows[8])  # fmt: skip
    assert rows[0]["learning_rate"] == pytest.approx(0.01), "the rate that the step was made with"
    assert rows[5]["val_loss"] > rows[17]["val_loss"] > 0
    assert rows[19]["training_loss"] < rows[0]["training_loss"] - 0.5
    assert checkpoint.step == 20


def test_a_nan_on_one_rank_reaches_no_weight(lab, killed):  # noqa: F811
    plan, _ = killed
    first = next(row for row in rows_of(lab, plan) if row["step"] == 4)
    assert (first["loss_nan_ranks"], first["skipped"], first["training_loss"]) == (1, 1, "NaN")
    assert all(isinstance(row["training_loss"], float) for row in rows_of(lab, plan) if row["step"] > 4)
    assert "alert" in kinds_of(lab, plan)


def test_a_killed_rank_resumes_from_the_newest_complete_checkpoint(lab, killed):  # noqa: F811
    plan, checkpoint = killed
    assert checkpoint.restarts == 1
    steps = [row["step"] for row in rows_of(lab, plan)]
    again = [step for before, step in itertools.pairwise(steps) if step <= before]
    assert again == [7], "it went back to the checkpoint of step 6, once"
    twice = {step: [row["training_loss"] for row in rows_of(lab, plan) if row["step"] == step] for step in (7, 8, 9)}
    for losses in twice.values():
        assert losses[0] == losses[1], "with the experts, which transformers' Trainer alone leaves at their start"
    assert "checkpoint_completed" in kinds_of(lab, plan)


def test_the_scripts_model_is_published_and_found_again(lab, dataset, killed, code, tmp_path):  # noqa: F811
    from safetensors import safe_open

    _, checkpoint = killed
    lab.blobs.fetch_folder(checkpoint.model, tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as weights:
        assert "model.layers.1.mlp.experts.3.gate_proj.weight" in weights.keys()  # noqa: SIM118
    assert {entry.path for entry in checkpoint.model.files} >= {"config.json", "tokenizer.json"}
    assert not any(entry.path.endswith(".bin") for entry in checkpoint.model.files)
    start(lab, dataset, "hf-again", trainer_script(code, "--nan-at", "3"))
    assert Checkpoint.load(lab.result("hf-again")) == checkpoint


def losses_of(lab, plan):  # noqa: F811
    return {row["step"]: row["training_loss"] for row in current(rows_of(lab, plan))}


def test_a_script_goes_on_on_another_machine_and_is_trained_again_when_that_is_asked(lab, dataset, code):  # noqa: F811
    script = trainer_script(code, steps=30)
    plan = start(lab, dataset, "hf-moved", script)
    until(lambda: (lab.launcher.status("hf-moved").step or 0) >= 8, within=120)
    until(lambda: [i for i in lab.store.list(f"{plan.run_prefix}/") if i.key.endswith("/checkpoint.json")], within=60)
    os.kill(lab.launcher.status("hf-moved").pid, signal.SIGKILL)
    assert lab.settle("hf-moved").phase is JobPhase.LOST
    shutil.rmtree(lab.root / "jobs" / "hf-moved" / "work")
    start(lab, dataset, "hf-moved", script)
    moved = Checkpoint.load(lab.result("hf-moved"))
    (restored,) = lab.events("hf-moved", "checkpoint_restored")
    assert (restored["source"], restored["step"] % 6) == ("store", 0)
    steps = [row["step"] for row in rows_of(lab, plan)]
    again = [step for before, step in itertools.pairwise(steps) if step <= before]
    assert again in ([], [restored["step"] + 1]), "nothing before the checkpoint was trained twice"

    straight = start(lab, dataset, "hf-anew", script, nonce="again")
    whole = Checkpoint.load(lab.result("hf-anew"))
    assert [row["step"] for row in rows_of(lab, straight)] == list(range(1, 31)), "trained, not found"
    seen, expected = losses_of(lab, plan), losses_of(lab, straight)
    assert seen == {step: expected[step] for step in seen}
    lost = expected.keys() - seen.keys()
    assert all(step <= restored["step"] for step in lost), "rows that only the lost machine had"
    assert (moved.tokens, moved.curve) == (whole.tokens, whole.curve), "what was seen before the move counts"
    left = [info.key for info in lab.store.list("runs/") if "/checkpoints/" in info.key]
    assert [key for key in left if key.startswith((plan.run_prefix, straight.run_prefix))] == []


def test_a_rule_stops_a_script_and_a_person_does(lab, dataset, code):  # noqa: F811
    rule = {
        "metric": "training_loss",
        "condition": "value > 0",
        "for": "3 steps",
        "actions": [{"type": "stop_training"}],
    }
    start(lab, dataset, "hf-rule", trainer_script(code, steps=10_000), alerts=[rule])
    status = lab.settle("hf-rule")
    assert status.phase is JobPhase.STOPPED
    assert "at step 3 by an alert rule" in status.reason
    plan = start(lab, dataset, "hf-person", trainer_script(code, steps=9_999))
    until(lambda: (lab.launcher.status("hf-person").step or 0) >= 3, within=120)
    lab.launcher.stop("hf-person", reason="lunch")
    assert lab.settle("hf-person").phase is JobPhase.STOPPED
    assert kinds_of(lab, plan)[-2:] == ["checkpoint_uploaded", "stopped"], "the emergency checkpoint is in the store"
    assert "SCRIPT ENDED" not in lab.launcher.logs("hf-person")[0]


def test_a_script_for_trl_has_the_same(lab, dataset, code, tmp_path):  # noqa: F811
    args = ("{dataset}/documents/train.jsonl", "{dataset}/tokenizer", MODEL_JSON)
    plan = start(lab, dataset, "hf-sft", TrainingScript(code=code, path="sft.py", args=args))
    checkpoint = Checkpoint.load(lab.result("hf-sft"))
    rows = current(rows_of(lab, plan))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"training_loss", "mean_token_accuracy", "tokens_per_second"} <= set(rows[2])
    lab.blobs.fetch_folder(checkpoint.model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["topk_method"] == "noaux_tc"
    assert (tmp_path / "model" / "adapter" / "adapter_model.safetensors").is_file()
