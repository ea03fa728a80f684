"""What a step is told by: the arithmetic of known models, and routers whose experts die or whose biases drift."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from deepseek_ops.jobs.training_flops import PEAK_VARIABLE, flops_per_token, peak_flops  # noqa: E402
from deepseek_ops.jobs.training_metrics import DETAIL_STEPS, WINDOW, ExpertMeter  # noqa: E402


class Router(torch.nn.Module):
    def __init__(self, experts):
        super().__init__()
        self.register_buffer("e_score_correction_bias", torch.zeros(experts))


@pytest.fixture
def routers():
    return torch.nn.ModuleList([Router(4), Router(4)])


def test_an_expert_is_dead_after_a_window_without_a_token(routers):
    meter = ExpertMeter(routers, [4, 4])
    busy, idle = [5.0, 5, 5, 5, 9, 9, 1, 0], [5.0, 5, 5, 0, 9, 9, 1, 0]
    rows = [meter.measure(torch.tensor(idle if step else busy, dtype=torch.float64)) for step in range(WINDOW + 1)]
    assert all("experts_dead" not in row for row in rows[: WINDOW - 1])
    assert rows[WINDOW - 1]["experts_dead"] == 1, "the fourth expert of the first layer had tokens in the first step"
    assert rows[WINDOW]["experts_dead"] == 2


def test_a_drifting_bias_is_told_by_the_layer_that_drifts_most(routers):
    meter = ExpertMeter(routers, [4, 4])
    for step in range(2 * WINDOW):
        routers[1].e_score_correction_bias += torch.tensor([0.3, 0.4, 0, 0]) / WINDOW
        row = meter.measure(torch.ones(8, dtype=torch.float64))
        assert ("bias_drift" in row) == (step in (WINDOW - 1, 2 * WINDOW - 1))
    assert row["bias_drift"] == pytest.approx(0.5, rel=1e-4)
    assert row["bias_max"] == pytest.approx(0.8, rel=1e-4)


def test_the_load_of_every_expert_is_told_now_and_then(routers):
    meter = ExpertMeter(routers, [4, 4])
    for _ in range(DETAIL_STEPS):
        assert meter.detail() is None
        meter.measure(torch.tensor([8, 0, 4, 4, 1, 1, 1, 1], dtype=torch.float64))
    assert meter.detail() == {"steps": DETAIL_STEPS, "layers": [[2.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]}
    assert meter.detail() is None


def test_a_dense_model_has_no_experts():
    meter = ExpertMeter(torch.nn.Linear(2, 2), [])
    assert meter.measure(torch.zeros(0)) == {}
    assert meter.detail() is None


@pytest.mark.slow
def test_the_arithmetic_of_known_models():
    """DeepSeek-V3 has 37.55 billion active parameters with its embedding, 36.63 without; 6 operations for each."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Config, DeepseekV3ForCausalLM

    with torch.device("meta"):
        large = DeepseekV3ForCausalLM(DeepseekV3Config(num_mtp_layers=0))
        dense = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, tie_word_embeddings=True))
    attention = 6 * 61 * 128 * (192 + 128) * 4096
    assert flops_per_token(large, length=4096) - attention == pytest.approx(6 * 36.63e9, rel=1e-3)
    weights = sum(parameter.numel() for parameter in dense.parameters())
    assert flops_per_token(dense, length=128) == pytest.approx(6 * weights + 12 * 2 * 32 * 128 * 128)
    for parameter in dense.parameters():
        parameter.requires_grad = False
    assert flops_per_token(dense, length=128) == pytest.approx(4 * weights + 12 * 2 * 32 * 128 * 128)


def test_a_peak_is_known_or_told_and_never_invented(monkeypatch):
    monkeypatch.delenv(PEAK_VARIABLE, raising=False)
    assert peak_flops("cpu", "fp32") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA H100 PCIe")
    assert peak_flops("cuda:0", "bf16") == 756e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA H100 80GB HBM3")
    assert peak_flops("cuda:0", "fp32") == 67e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Abacus 9000")
    assert peak_flops("cuda:0", "bf16") is None
    monkeypatch.setenv(PEAK_VARIABLE, "0.2")
    assert peak_flops("cpu", "fp32") == 0.2e12
