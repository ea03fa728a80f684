"""What the pipeline file says becomes a plan that is known to run, or an error that says what to change."""

from __future__ import annotations

import pytest

from deepseek_ops.core.config import PipelineFile
from deepseek_ops.core.records import DatasetVersion, FileSet, Hyperparameters, LoraPlan, ReplayPlan, TrainingPlan
from deepseek_ops.training import deepspeed_config, plan_training, plan_trial
from deepseek_ops.training.deepspeed_config import LEAF_MODULES
from deepseek_ops.training.errors import DeepSpeedConflictError, IndivisibleBatchError, UnsupportedTrainingError
from deepseek_ops.training.schedule import peak_rate

DATASET = DatasetVersion(name="corpus", version="1" * 64, tree="2" * 64, num_files=3, num_bytes=10)
MODEL = {"model_type": "deepseek_v3", "max_position_embeddings": 512}


def pipeline(sweep=None, **training):
    return PipelineFile.model_validate({"training": training, "sweep": sweep or {}})


def planned(**training):
    return plan_training(pipeline(**training), dataset=DATASET, model=MODEL)


def plan(**changes):
    values = {
        "dataset": DATASET,
        "model": MODEL,
        "nproc_per_node": 2,
        "hyperparameters": Hyperparameters(learning_rate=1e-3, batch_size=16),
    }
    return TrainingPlan(**{**values, **changes})


def test_the_file_decides_ranks_stage_and_precision():
    made = planned(
        gpus_per_node=2,
        nodes=3,
        deepspeed={"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}},
        hyperparameters={"batch_size": 12},
        seed=7,
    )
    assert (made.world_size, made.zero_stage, made.precision, made.seed) == (6, 3, "bf16", 7)
    assert made.hyperparameters.batch_size == 12


def test_equal_files_and_values_give_equal_plans():
    config = pipeline(hyperparameters={"learning_rate": [0.1, 0.2], "batch_size": 4})
    first = plan_training(config, dataset=DATASET, model=MODEL, values={"learning_rate": 0.1})
    again = plan_training(config, dataset=DATASET, model=MODEL, values={"learning_rate": 0.1})
    other = plan_training(config, dataset=DATASET, model=MODEL, values={"learning_rate": 0.2})
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_a_trial_is_short_and_alone_but_keeps_the_global_batch():
    config = pipeline(
        {"max_steps": 24}, gpus_per_node=2, eval_steps=50, hyperparameters={"batch_size": 32, "max_steps": 1000}
    )
    trial = plan_trial(config, dataset=DATASET, model=MODEL, values={"learning_rate": 0.01})
    assert (trial.purpose, trial.world_size, trial.eval_steps) == ("trial", 1, 6)
    assert trial.hyperparameters.max_steps == 24
    assert trial.hyperparameters.batch_size == 32
    assert trial.hyperparameters.learning_rate == 0.01


def test_a_trial_keeps_the_global_batch_where_the_file_names_accumulation():
    keys = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2}
    config = pipeline(gpus_per_node=2, deepspeed=keys, hyperparameters={"batch_size": 16})
    trial = plan_trial(config, dataset=DATASET, model=MODEL)
    assert deepspeed_config(trial)["gradient_accumulation_steps"] == 4


def test_a_trial_without_a_length_is_as_long_as_the_training():
    config = pipeline(eval_steps=50, hyperparameters={"epochs": 2})
    trial = plan_trial(config, dataset=DATASET, model=MODEL)
    assert (trial.hyperparameters.max_steps, trial.hyperparameters.epochs, trial.eval_steps) == (None, 2, 50)


def test_a_window_longer_than_the_model_is_refused():
    with pytest.raises(UnsupportedTrainingError, match="max_position_embeddings=512"):
        planned(hyperparameters={"sequence_length": 1024})


def test_a_model_without_a_type_is_refused():
    with pytest.raises(UnsupportedTrainingError, match="model_type"):
        plan_training(pipeline(), dataset=DATASET, model={"hidden_size": 8})


def test_precision_said_twice_and_differently_is_a_conflict():
    with pytest.raises(DeepSpeedConflictError, match=r"bf16.enabled=True contradicts the plan's precision"):
        planned(precision="fp32", deepspeed={"bf16": {"enabled": True}})


def test_conflicts_name_both_values():
    keys = {"train_batch_size": 64}
    with pytest.raises(DeepSpeedConflictError) as caught:
        deepspeed_config(plan(deepspeed=keys))
    assert "train_batch_size=64" in str(caught.value)
    assert "16" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "dotted"),
    [
        ({"optimizer": {"params": {"lr": 0.5}}}, "optimizer.params.lr"),
        ({"gradient_clipping": 5.0}, "gradient_clipping"),
        ({"zero_optimization": {"stage": 1}}, "zero_optimization.stage"),
        ({"gradient_accumulation_steps": 3}, "gradient_accumulation_steps"),
    ],
)
def test_what_the_plan_decides_cannot_be_set_twice(keys, dotted):
    with pytest.raises(DeepSpeedConflictError, match=dotted.replace(".", r"\.")):
        deepspeed_config(plan(deepspeed=keys))


def test_equal_and_auto_values_are_no_conflict():
    keys = {"train_batch_size": 16, "gradient_clipping": "auto", "zero_optimization": {"stage": 2}}
    config = deepspeed_config(plan(deepspeed=keys))
    assert config["train_batch_size"] == 16
    assert config["gradient_clipping"] == 1.0


def test_other_keys_pass_through_and_defaults_give_way():
    keys = {
        "zero_optimization": {"overlap_comm": False},
        "optimizer": {"params": {"torch_adam": False}},
        "comms_logger": {"enabled": True},
    }
    config = deepspeed_config(plan(deepspeed=keys))
    assert config["zero_optimization"] == {"overlap_comm": False, "stage": 2}
    assert config["optimizer"]["params"]["torch_adam"] is False
    assert config["optimizer"]["params"]["lr"] == 1e-3
    assert config["comms_logger"] == {"enabled": True}


def test_without_a_compiler_nothing_is_compiled():
    config = deepspeed_config(plan())
    assert config["optimizer"]["params"]["torch_adam"] is True
    assert config["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_the_global_batch_is_kept_on_any_number_of_ranks(ranks):
    config = deepspeed_config(plan(deepspeed={"train_micro_batch_size_per_gpu": 2}), world_size=ranks)
    assert config["train_batch_size"] == 16
    assert config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * ranks == 16


def test_a_micro_batch_is_bounded_by_its_tokens():
    wide = plan(hyperparameters=Hyperparameters(learning_rate=1e-3, batch_size=24, sequence_length=4096))
    config = deepspeed_config(wide)
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 3


def test_ranks_that_do_not_divide_the_batch_are_an_error():
    with pytest.raises(IndivisibleBatchError):
        deepspeed_config(plan(), world_size=3)
    with pytest.raises(IndivisibleBatchError):
        deepspeed_config(plan(deepspeed={"train_micro_batch_size_per_gpu": 5}))


def test_zero_3_fetches_every_deepseek_block_as_a_whole():
    own = {"zero_optimization": {"stage": 3, "leaf_module": {"classes": ["mine.Block", LEAF_MODULES[0]]}}}
    classes = deepspeed_config(plan(zero_stage=3, deepspeed=own))["zero_optimization"]["leaf_module"]["classes"]
    assert classes[0] == "mine.Block"
    assert sorted(classes) == sorted({"mine.Block", *LEAF_MODULES})
    assert "leaf_module" not in deepspeed_config(plan())["zero_optimization"]


def test_eager_experts_are_refused_because_they_hang():
    with pytest.raises(UnsupportedTrainingError, match="grouped_mm"):
        deepspeed_config(plan(model={**MODEL, "experts_implementation": "eager"}))


@pytest.mark.parametrize("key", ["scheduler", "fp16", "amp"])
def test_keys_that_break_exact_resume_are_refused(key):
    with pytest.raises(UnsupportedTrainingError, match=f"training.deepspeed.{key}"):
        deepspeed_config(plan(deepspeed={key: {"enabled": True}}))
    deepspeed_config(plan(deepspeed={key: {"enabled": False}}))


EXPERTS = {"model_type": "deepseek_v3", "max_position_embeddings": 512, "n_routed_experts": 8}


def test_expert_parallelism_is_told_how_deepspeed_names_the_model():
    keys = {"expert_parallel": {"enabled": True, "autoep_size": 2}}
    section = deepspeed_config(plan(model=EXPERTS, deepspeed=keys))["expert_parallel"]
    assert section == {"enabled": True, "autoep_size": 2, "preset_model": "deepseek_v3"}
    off = {"expert_parallel": {"enabled": False}}
    assert deepspeed_config(plan(deepspeed=off))["expert_parallel"] == {"enabled": False}


@pytest.mark.parametrize(
    ("changes", "keys", "message"),
    [
        ({}, {"autoep_size": 3}, "does not divide the 2 ranks"),
        ({"model": {**EXPERTS, "n_routed_experts": 7}}, {}, "does not divide the 7 experts"),
        ({"model": {**EXPERTS, "model_type": "qwen2"}}, {}, "use deepseek_v2 or deepseek_v3"),
        ({"zero_stage": 3}, {}, "use stage 1 or 2"),
        ({}, {"load_balance_coeff": 0.1}, "bias_update_rate"),
        ({"method": "lora", "lora": LoraPlan()}, {}, "remove one of the two"),
    ],
    ids=["ranks", "experts", "family", "zero-3", "balance", "lora"],
)
def test_expert_parallelism_that_cannot_work_is_refused_with_its_reason(changes, keys, message):
    section = {"expert_parallel": {"enabled": True, **keys}}
    with pytest.raises(UnsupportedTrainingError, match=message):
        deepspeed_config(plan(**{"model": EXPERTS, "deepspeed": section, **changes}))


def test_another_preset_is_a_conflict():
    keys = {"expert_parallel": {"enabled": True, "preset_model": "mixtral"}}
    with pytest.raises(DeepSpeedConflictError, match="mixtral"):
        deepspeed_config(plan(model=EXPERTS, deepspeed=keys))


def test_adapters_are_planned_with_their_defaults():
    made = planned(method="lora", lora={"rank": 4, "targets": ["q_b_proj"]})
    assert made.lora == LoraPlan(rank=4, alpha=8, targets=("q_b_proj",))
    assert planned().lora is None
    with pytest.raises(UnsupportedTrainingError, match="use method lora"):
        planned(lora={"rank": 4})


def test_an_incremental_training_is_rewarmed_and_replays_what_the_base_was_trained_on():
    base = FileSet(files=())
    made = plan_training(pipeline(replay=0.2), dataset=DATASET, model=MODEL, base=base, base_datasets=[DATASET])
    assert made.replay == ReplayPlan(datasets=(DATASET,), share=0.2)
    assert made.rewarm == 0.5
    assert peak_rate(made) == made.hyperparameters.learning_rate / 2
    chosen = plan_training(pipeline(rewarm=0.25), dataset=DATASET, model=MODEL, base=base)
    assert (chosen.rewarm, chosen.replay) == (0.25, None)
    assert plan_training(pipeline(method="sft"), dataset=DATASET, model=MODEL, base=base).rewarm is None


def test_without_a_base_nothing_is_replayed_and_with_an_unknown_one_it_is_refused():
    fresh = planned(replay=0.2, rewarm=0.5)
    assert (fresh.replay, fresh.rewarm, peak_rate(fresh)) == (None, None, fresh.hyperparameters.learning_rate)
    with pytest.raises(UnsupportedTrainingError, match="which dataset version the base was trained on"):
        plan_training(pipeline(replay=0.2), dataset=DATASET, model=MODEL, base=FileSet(files=()))


def test_what_a_plan_does_not_say_does_not_change_its_fingerprint():
    said = plan().dump()
    assert not {"lora", "replay", "rewarm", "gradient_checkpointing"} & set(said)
    assert TrainingPlan.load(said) == plan()
    assert plan(gradient_checkpointing=True).fingerprint != plan().fingerprint
