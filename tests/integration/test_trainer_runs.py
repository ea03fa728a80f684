"""Real trainings on real ranks: they learn, they are published only when they load again, they stop when told."""

from __future__ import annotations

import json

import pytest
from fixtures_launcher import until
from fixtures_trainer import MODEL, dataset, lab  # noqa: F401  (pytest fixtures)

from deepseek_ops.core.jobs import JobPhase, JobSpec
from deepseek_ops.core.records import Checkpoint
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.training_ranks import Ranks
from deepseek_ops.jobs.training_turn import take_turn
from deepseek_ops.training.errors import PublishedModelError
from deepseek_ops.training.streams import read

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def first(lab, dataset):  # noqa: F811
    """A training of 40 steps on two ranks, ZeRO-2."""
    plan = lab.plan(dataset, hyperparameters={"max_steps": 40, "bias_update_rate": 0.02})
    return plan, lab.trained("first", plan)


def test_the_loss_falls_on_two_ranks(lab, first):  # noqa: F811
    _, checkpoint = first
    rows = lab.rows("first")
    assert sorted(rows) == list(range(1, 41))
    assert rows[1]["training_loss"] == pytest.approx(6.24, abs=0.35), "ln(512): it knows nothing yet"
    assert checkpoint.metrics["val_loss"] < rows[8]["val_loss"] < rows[1]["training_loss"]
    assert checkpoint.metrics["training_loss"] < rows[1]["training_loss"] - 0.8
    assert checkpoint.tokens == 40 * 8 * 64
    assert checkpoint.step == 40


def test_the_metrics_of_a_step_are_complete(lab, first):  # noqa: F811
    row = lab.rows("first")[40]
    assert {"training_loss", "val_loss", "learning_rate", "grad_norm", "tokens_per_second", "skipped_steps",
            "loss_nan_ranks", "expert_load_min", "expert_load_max", "step_seconds"} <= set(row)  # fmt: skip
    assert row["expert_load_min"] <= 1 <= row["expert_load_max"]


def test_the_bias_balances_the_experts(lab, first):  # noqa: F811
    rows = lab.rows("first")
    unevenness = {step: row["expert_load_max"] - row["expert_load_min"] for step, row in rows.items()}
    assert sum(unevenness[step] for step in range(36, 41)) < sum(unevenness[step] for step in range(6, 11))


def test_the_streams_in_the_store_hold_every_step_once(lab, first):  # noqa: F811
    plan, _ = first
    steps = [row["step"] for segment in read(lab.store, f"{plan.run_prefix}/metrics") for row in segment.rows]
    assert steps == list(range(1, 41))
    events = [row["kind"] for segment in read(lab.store, f"{plan.run_prefix}/events") for row in segment.rows]
    kinds = [kind for kind in events if kind not in ("no_gpu_telemetry", "expert_load")]
    assert kinds[0] == "started"
    assert kinds[-2:] == ["published", "finished"]


def test_the_model_is_in_the_layout_of_the_hub(lab, first, tmp_path):  # noqa: F811
    from safetensors import safe_open

    _, checkpoint = first
    lab.blobs.fetch_folder(checkpoint.model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["topk_method"], config["scoring_func"]) == ("noaux_tc", "sigmoid")
    assert config["train_sequence_length"] == 64
    with safe_open(tmp_path / "model" / "model.safetensors", "np") as weights:
        names = set(weights.keys())
        bias = weights.get_tensor("model.layers.1.mlp.gate.e_score_correction_bias")
    assert {f"model.layers.1.mlp.experts.{expert}.gate_proj.weight" for expert in range(4)} <= names
    assert not any("gate_up_proj" in name for name in names), "fused tensors: only transformers reads those"
    assert bias.dtype.name == "float32"
    assert bias.any(), "the bias was trained"
    assert {"tokenizer.json", "tokenizer_config.json"} <= {entry.path for entry in checkpoint.model.files}


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_model_that_is_not_the_trained_one_is_not_published(lab, first, dataset, tmp_path, damage):  # noqa: F811
    """The ways exports go wrong: another tensor under the name, or none, which transformers fills with noise."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    from deepseek_ops.data import DatasetRepository
    from deepseek_ops.jobs.tokens import TokenSplit
    from deepseek_ops.jobs.training_publish import check_export
    from deepseek_ops.jobs.training_task import DocumentTask, mean_loss
    from deepseek_ops.jobs.training_verify import FreshProcess

    plan, checkpoint = first
    lab.blobs.fetch_folder(checkpoint.model, tmp_path / "model")
    DatasetRepository.open(lab.store).checkout(dataset.version, tmp_path / "data")
    batch = DocumentTask("cpu").batch(TokenSplit(tmp_path / "data" / "tokens", "val", length=64), range(4))
    expected = mean_loss(AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval(), batch)
    if damage == "changed":
        with FreshProcess() as fresh:
            check_export(fresh, tmp_path / "model", plan, batch, expected)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    name = "model.layers.1.mlp.experts.2.down_proj.weight"
    weights[name] = weights[name].roll(1, 0)
    if damage == "missing":
        del weights["model.layers.1.self_attn.o_proj.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    problem = "missing keys" if damage == "missing" else "its loss on a batch"
    with FreshProcess() as fresh, pytest.raises(PublishedModelError, match=problem):
        check_export(fresh, tmp_path / "model", plan, batch, expected)


def test_an_equal_plan_finds_the_result(lab, first):  # noqa: F811
    plan, checkpoint = first
    assert lab.trained("first-again", plan) == checkpoint
    assert lab.rows("first-again") == {}


def test_a_trial_gives_a_curve_and_no_model(lab, dataset):  # noqa: F811
    trial = lab.trained("trial", lab.plan(dataset, ranks=1, purpose="trial", eval_steps=4))
    assert trial.model.files == ()
    assert [step for step, _ in trial.curve] == [4, 8, 12, 16]
    assert trial.curve[-1][1] == trial.metrics["val_loss"] < trial.curve[0][1]


def test_accumulation_keeps_the_loss(lab, dataset):  # noqa: F811
    """Two ranks, one rank and four micro-batches train on the same global batches."""
    losses = []
    for name, ranks, keys in (
        ("whole", 1, {}),
        ("parts", 1, {"train_micro_batch_size_per_gpu": 2}),
        ("ranks", 2, {}),
    ):
        plan = lab.plan(dataset, ranks=ranks, purpose="trial", deepspeed=keys, hyperparameters={"max_steps": 6})
        lab.trained(f"accumulate-{name}", plan)
        losses.append([row["training_loss"] for _, row in sorted(lab.rows(f"accumulate-{name}").items())])
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)
    assert losses[2] == pytest.approx(losses[0], abs=2e-3)


def test_a_diverged_training_is_stopped_and_never_published(lab, dataset):  # noqa: F811
    rule = {"metric": "training_loss", "condition": "value > 20 or is_nan()", "for": "3 steps",
            "actions": [{"type": "stop_training"}]}  # fmt: skip
    plan = lab.plan(dataset, hyperparameters={"learning_rate": 30.0, "max_steps": 200, "warmup_ratio": 0})
    name = lab.train("diverged", plan, alerts=[rule])
    status = lab.settle(name)
    assert status.phase is JobPhase.STOPPED
    assert "value > 20 or is_nan() for 3 steps" in status.reason
    (alert,) = [event for event in lab.events(name, "alert") if event["metric"] == "training_loss"]
    assert alert["action"] == "stop"
    assert alert["step"] == max(lab.rows(name)), "it stopped in the step in which the rule fired"
    assert lab.store.head(f"{plan.run_prefix}/result.json") is None


@pytest.mark.parametrize(("stage", "metric"), [(2, "skipped"), (0, "poisoned")])
def test_a_poisoned_training_ends_without_any_rule_of_its_own(lab, dataset, stage, metric):  # noqa: F811
    """ZeRO skips steps whose gradients are not finite, for ever; plain data parallelism trains on, for nothing."""
    hyper = {"learning_rate": 1e6, "max_steps": 200, "warmup_ratio": 0}
    name = lab.train(
        f"poisoned-{stage}", lab.plan(dataset, zero_stage=stage, checkpoint_steps=1, hyperparameters=hyper)
    )
    status = lab.settle(name)
    assert status.phase is JobPhase.STOPPED
    assert f"{metric}: value > 0" in status.reason
    assert status.restarts == 0
    assert [event["action"] for event in lab.events(name, "guardian")][-1] == "stop_training"
    rows = lab.events(name, "metric")
    assert any(row[metric] for row in rows)
    unharmed = {row["step"] for row in rows if not row["skipped"] and not row["poisoned"]}
    assert {event["step"] for event in lab.events(name, "checkpoint")} <= unharmed


def test_a_stop_leaves_a_checkpoint_to_go_on_from(lab, dataset):  # noqa: F811
    plan = lab.plan(dataset, checkpoint_steps=1000, hyperparameters={"max_steps": 150})
    name = lab.train("stopped", plan)
    until(lambda: len(lab.rows(name)) >= 5, within=200)
    lab.launcher.stop(name, "lunch")
    status = lab.settle(name)
    assert status.phase is JobPhase.STOPPED
    assert lab.store.head(f"{plan.run_prefix}/result.json") is None
    (checkpoint,) = lab.events(name, "checkpoint")
    checkpoint = Checkpoint.load(lab.result(lab.train(name, plan)))
    (resumed,) = lab.events(name, "resumed")
    assert 5 <= resumed["from_step"] < 150
    assert "samples_repeated" not in resumed, "what was repeated is proved at the end, from what was recorded"
    (proof,) = [event for event in lab.events(name, "resume_proof") if event["steps"] == 150]
    assert proof["exact"]
    assert checkpoint.step == 150


def test_a_job_declares_no_checkpoint_once_another_one_trains_its_plan(lab, dataset, tmp_path):  # noqa: F811
    plan = lab.plan(dataset, ranks=1, nonce="twice", checkpoint_steps=2, hyperparameters={"max_steps": 300})
    name = lab.train("older", plan)
    stored = f"{plan.run_prefix}/checkpoints/"
    until(lambda: list(lab.store.list(stored)), within=200)
    spec = JobSpec(name="newer", kind="train", payload={})
    rival = JobContext(spec, tmp_path / "newer", store=lab.store)
    assert take_turn(rival, plan.run_prefix, Ranks(0, 1, "cpu", lambda: False)) == 2
    until(lambda: lab.events(name, "checkpoint_fenced"), within=60)
    kept = [info.key for info in lab.store.list(stored)]
    lab.launcher.stop(name, "lunch")
    lab.settle(name)
    assert [info.key for info in lab.store.list(stored)] == kept, "it trained on and said nothing"
    lab.result(lab.train(name, plan))
    assert [life["life"] for life in lab.events(name, "resume_proof")[-1]["lives"]][-1] == "003-000-000"
    assert not rival.is_current


def test_a_pruned_trial_leaves_nothing_and_one_that_is_only_interrupted_all_of_it(lab, dataset):  # noqa: F811
    """Nobody goes on with the first; the second may be taken up by the next attempt."""
    left = {}
    for name, reason in (("pruned", "pruned by asha at step 4"), ("paused", "its machine goes")):
        plan = lab.plan(dataset, purpose="trial", nonce=name, checkpoint_steps=2, hyperparameters={"max_steps": 400})
        lab.train(name, plan)
        until(lambda name=name: len(lab.rows(name)) >= 5, within=200)
        lab.launcher.stop(name, reason)
        assert lab.settle(name).phase is JobPhase.STOPPED
        checkpoints = list(lab.store.list(f"{plan.run_prefix}/checkpoints/"))
        folder = lab.root / "jobs" / name / "work/checkpoints"
        saved = [event["reason"] for event in lab.events(name, "checkpoint")]
        left[name] = (bool(checkpoints), folder.exists(), "stop" in saved)
    assert left == {"pruned": (False, False, False), "paused": (True, True, True)}


def test_a_model_that_transformers_refuses_fails_with_its_name(lab, dataset):  # noqa: F811
    plan = lab.plan(dataset, ranks=1, model={**MODEL, "model_type": "deepseek_v99"})
    status = lab.settle(lab.train("unknown-model", plan))
    assert status.phase is JobPhase.FAILED
    assert "deepseek_v99" in status.reason
    assert status.restarts == 0


def test_too_little_text_fails_before_training(lab, dataset):  # noqa: F811
    plan = lab.plan(dataset, ranks=1, hyperparameters={"sequence_length": 100_000},
                    model={**MODEL, "max_position_embeddings": 200_000})  # fmt: skip
    status = lab.settle(lab.train("too-little", plan))
    assert status.phase is JobPhase.FAILED
    assert "lower sequence_length" in status.reason
