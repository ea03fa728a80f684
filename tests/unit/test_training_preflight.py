"""The estimate knows the models it speaks of, refuses what cannot fit, and says what would."""

from __future__ import annotations

import pytest

from deepseek_ops.core.records import DatasetVersion, Hyperparameters, LoraPlan, TrainingPlan
from deepseek_ops.training.errors import UnsupportedTrainingError
from deepseek_ops.training.model_shape import model_shape
from deepseek_ops.training.preflight import Device, PlanDoesNotFitError, preflight, require_fit

V3 = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "first_k_dense_replace": 3, "num_attention_heads": 128,
    "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128, "v_head_dim": 128, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "max_position_embeddings": 163840,
    "num_nextn_predict_layers": 0,
}  # fmt: skip
V2_LITE = {
    "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "num_hidden_layers": 27, "first_k_dense_replace": 1, "num_attention_heads": 16,
    "num_key_value_heads": 16, "q_lora_rank": None, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128, "v_head_dim": 128, "n_routed_experts": 64, "n_shared_experts": 2,
    "num_experts_per_tok": 6, "max_position_embeddings": 163840,
}  # fmt: skip
QWEN_7B = {
    "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
}  # fmt: skip
LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
}  # fmt: skip
H100 = Device("h100", memory_gib=80, peak_tflops=989, usd_per_hour=4.0)
DATASET = DatasetVersion(name="corpus", version="1" * 64, tree="2" * 64, num_files=3, num_bytes=10)


def plan(model, *, nodes=1, ranks=8, batch=64, length=4096, steps=100, **changes):
    hyper = Hyperparameters(learning_rate=1e-4, batch_size=batch, max_steps=steps, sequence_length=length)
    values = {"dataset": DATASET, "model": model, "num_nodes": nodes, "nproc_per_node": ranks, "precision": "bf16"}
    return TrainingPlan.model_validate({**values, "hyperparameters": hyper, **changes})


@pytest.mark.parametrize(
    ("model", "billions"),
    [(V3, 671.03), (V2_LITE, 15.71), (QWEN_7B, 7.62), (LLAMA_8B, 8.03)],
    ids=["v3", "v2-lite", "qwen2-7b", "llama-8b"],
)
def test_the_formula_counts_what_transformers_makes_to_the_last_parameter(model, billions):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {key: value for key, value in model.items() if key != "model_type"}
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(model["model_type"], **values))
    shape = model_shape(model)
    assert shape.total == sum(weight.numel() for weight in made.parameters())
    assert shape.total / 1e9 == pytest.approx(billions, abs=0.01)
    experts = sum(weight.numel() for name, weight in made.named_parameters() if ".mlp.experts." in name)
    assert shape.experts == experts


def test_active_parameters_are_those_that_are_advertised():
    assert model_shape(V3).active / 1e9 == pytest.approx(37.55, abs=0.02)
    assert model_shape(V2_LITE).active / 1e9 == pytest.approx(2.66, abs=0.02)


@pytest.mark.parametrize("family", ["deepseek_v3", "llama"])
def test_activations_are_about_what_torch_keeps(family):
    """Counted through autograd's own hooks on a small model, each tensor's memory once."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {
        "vocab_size": 64, "hidden_size": 128, "intermediate_size": 320, "moe_intermediate_size": 96,
        "num_hidden_layers": 4, "first_k_dense_replace": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
        "q_lora_rank": 96, "kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32,
        "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "num_nextn_predict_layers": 0,
    }  # fmt: skip
    config = AutoConfig.for_model(family, **small)
    model = AutoModelForCausalLM.from_config(config).float()
    own = {weight.untyped_storage().data_ptr() for weight in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(input_ids=torch.randint(0, 64, (4, 128)), use_cache=False)
    shape = model_shape({"model_type": family, **small})
    estimate = 4 * 128 * 4 * shape.layers * shape.activation_width
    assert estimate == pytest.approx(sum(kept.values()), rel=0.35)


def test_v3_does_not_fit_on_eight_machines_and_fits_on_more():
    report = preflight(plan(V3, nodes=8, batch=4096, zero_stage=3, gradient_checkpointing=True), H100)
    assert not report.fits
    assert "each rank needs" in report.reason
    assert report.memory_gib["optimizer"] == pytest.approx(671.03e9 * 12 / 64 / 2**30, rel=1e-3)
    with pytest.raises(PlanDoesNotFitError, match="the nearest plan that fits has"):
        require_fit(report)
    nodes = report.nearest.get("nodes")
    assert nodes is None or nodes > 8


def test_a_7b_model_is_told_the_smallest_change_first():
    tight = preflight(plan(QWEN_7B, ranks=8, batch=64, zero_stage=2), H100)
    assert not tight.fits
    assert set(tight.nearest) <= {"deepspeed.train_micro_batch_size_per_gpu", "gradient_checkpointing",
                                  "deepspeed.zero_optimization.stage"}  # fmt: skip
    fitting = preflight(plan(QWEN_7B, ranks=8, batch=64, zero_stage=3, gradient_checkpointing=True,
                             deepspeed={"train_micro_batch_size_per_gpu": 1}), H100)  # fmt: skip
    assert fitting.fits
    assert fitting.nearest is None
    assert require_fit(fitting) == fitting


def test_the_nearest_plan_really_fits():
    given = plan(LLAMA_8B, ranks=2, batch=32, zero_stage=1)
    report = preflight(given, H100)
    assert not report.fits
    zero = {"stage": report.nearest.get("deepspeed.zero_optimization.stage", 1)}
    if offload := report.nearest.get("deepspeed.zero_optimization.offload_optimizer"):
        zero["offload_optimizer"] = offload
    keys = {"zero_optimization": zero}
    if micro := report.nearest.get("deepspeed.train_micro_batch_size_per_gpu"):
        keys["train_micro_batch_size_per_gpu"] = micro
    changed = given.evolve(
        deepspeed=keys,
        zero_stage=zero["stage"],
        num_nodes=report.nearest.get("nodes", 1),
        gradient_checkpointing=bool(report.nearest.get("gradient_checkpointing")),
    )
    assert preflight(changed, H100).fits


def test_each_remedy_needs_less():
    def total(**changes):
        return preflight(plan(LLAMA_8B, **changes), H100).memory_gib["total"]

    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    assert total(zero_stage=0) > total(zero_stage=1) > total(zero_stage=2)
    assert total(zero_stage=2) > total(zero_stage=2, deepspeed=offload)
    assert total(zero_stage=2) > total(zero_stage=2, gradient_checkpointing=True)
    assert total(zero_stage=2) > total(zero_stage=2, deepspeed={"train_micro_batch_size_per_gpu": 1})
    adapters = LoraPlan(rank=16, alpha=32)
    assert total(zero_stage=2) > total(zero_stage=2, method="lora", lora=adapters)


def test_a_host_without_room_for_what_is_offloaded_is_named():
    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    small = Device("h100", memory_gib=80, peak_tflops=989, usd_per_hour=4.0, host_memory_gib=64)
    keys = {"train_micro_batch_size_per_gpu": 1, **offload}
    report = preflight(plan(LLAMA_8B, deepspeed=keys, gradient_checkpointing=True), small)
    assert not report.fits
    assert "offloading needs" in report.reason


def test_a_billion_tokens_of_v3_take_what_deepseek_says():
    """180 thousand H800 hours per trillion tokens, by their report; they counted attention's pairs half, we do full."""
    steps = round(1e9 / (4096 * 4096))
    report = preflight(plan(V3, nodes=256, batch=4096, length=4096, steps=steps), H100)
    hours = report.seconds / 3600 * report.ranks
    assert hours * 1e9 / report.tokens == pytest.approx(180, rel=0.3)
    assert report.usd == pytest.approx(hours * 4.0)


def test_a_budget_that_pays_for_less_is_refused_with_its_share():
    given = plan(LLAMA_8B, zero_stage=3, gradient_checkpointing=True, steps=100_000,
                 deepspeed={"train_micro_batch_size_per_gpu": 1})  # fmt: skip
    report = preflight(given, H100, budget_usd=100)
    assert not report.fits
    assert "the budget is 100.00 USD" in report.reason
    assert "h and the budget is 1.0 h" in preflight(given, H100, budget_hours=1).reason
    assert preflight(given, H100).fits


def test_epochs_need_the_number_of_samples():
    hyper = Hyperparameters(learning_rate=1e-4, batch_size=64, epochs=2, sequence_length=4096)
    given = plan(QWEN_7B, hyperparameters=hyper)
    assert preflight(given, H100).seconds is None
    assert preflight(given, H100, num_samples=640).tokens == 2 * 640 * 4096


def test_a_family_without_a_formula_is_refused():
    with pytest.raises(UnsupportedTrainingError, match="model_type='mamba'"):
        model_shape({"model_type": "mamba"})
