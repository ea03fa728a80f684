"""What is told about a step besides its loss: speed, utilisation, gradient, load and bias of the experts."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.jobs.training_flops import flops_per_token, peak_flops

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine

    from deepseek_ops.core.records import TrainingPlan
    from deepseek_ops.jobs.training_model import ExpertBalance

WINDOW = 16
"""Steps over which an expert without a single token counts as dead, and over which biases are compared."""
DETAIL_STEPS = 64
"""Steps between two rows with the load of every expert."""
_BIAS = "e_score_correction_bias"


class StepMeter:
    """Derives the metrics of a step from what the loop knows at its end. It communicates with nobody."""

    def __init__(self, plan: TrainingPlan, engine: DeepSpeedEngine, balance: ExpertBalance) -> None:
        hyper = plan.hyperparameters
        self._engine = engine
        self._balance = balance
        self._tokens = hyper.batch_size * hyper.sequence_length
        device = str(getattr(engine, "device", "cpu"))
        peak = peak_flops(device, plan.precision)
        self._flops = None if peak is None else flops_per_token(engine.module, length=hyper.sequence_length)
        self._peak = (peak or 0.0) * plan.world_size
        self._experts = ExpertMeter(engine.module, balance.sizes)

    def measure(self, seconds: float, counts: torch.Tensor) -> dict[str, float]:
        """Return the metrics of a step that took ``seconds``; ``counts`` are its tokens per expert over all ranks.

        ``mfu`` is there where the peak of the device is known, ``experts_dead`` once there were WINDOW steps, the
        biases' ``bias_drift`` (L2 norm of a layer's change over WINDOW steps, the largest) every WINDOW steps.
        """
        norm = self._engine.get_global_grad_norm()  # before clipping; ZeRO-0 does not tell it
        rate = self._tokens / seconds
        return {
            **({} if norm is None else {"grad_norm": float(norm)}),
            **self._balance.load(counts),
            **self._experts.measure(counts),
            **({} if self._flops is None else {"mfu": rate * self._flops / self._peak}),
            "tokens_per_second": rate,
            "step_seconds": seconds,
        }

    def detail(self) -> dict[str, JsonValue] | None:
        """Return the load of every expert every DETAIL_STEPS steps, for ``Streams.detail``; None in between."""
        return self._experts.detail()


class ExpertMeter:
    """What the routers do over many steps: dead experts, drifting biases, the load of each expert."""

    def __init__(self, model: torch.nn.Module, sizes: list[int]) -> None:
        self._sizes = sizes
        self._routers = [module for module in model.modules() if getattr(module, _BIAS, None) is not None]
        self._recent: deque[torch.Tensor] = deque(maxlen=WINDOW)
        self._sum: torch.Tensor | None = None
        self._summed = 0
        self._steps = 0
        self._before = self._biases()

    def measure(self, counts: torch.Tensor) -> dict[str, float]:
        """Take the tokens per expert of a step, all layers in one vector, and return what can be said now."""
        if not self._sizes:
            return {}
        self._steps += 1
        self._recent.append(counts)
        self._sum = counts.clone() if self._sum is None else self._sum + counts
        self._summed += 1
        metrics: dict[str, float] = {}
        if len(self._recent) == WINDOW:
            metrics["experts_dead"] = float(sum(self._recent).eq(0).sum())
        if self._steps % WINDOW == 0 and self._before:
            now = self._biases()
            changes = [(new - old).norm() for new, old in zip(now, self._before, strict=True)]
            metrics["bias_drift"] = max(float(change) for change in changes)
            metrics["bias_max"] = max(float(bias.abs().max()) for bias in now)
            self._before = now
        return metrics

    def detail(self) -> dict[str, JsonValue] | None:
        """Return each expert's share of its layer's tokens, as a multiple of an even one, since the last detail."""
        if self._sum is None or self._summed < DETAIL_STEPS:
            return None
        layers = [counts / counts.mean().clamp_min(1.0) for counts in self._sum.split(self._sizes)]
        steps, self._sum, self._summed = self._summed, None, 0
        return {"steps": steps, "layers": [[round(float(share), 3) for share in layer] for layer in layers]}

    def _biases(self) -> list[torch.Tensor]:
        return [getattr(router, _BIAS).detach().to("cpu", copy=True) for router in self._routers]
