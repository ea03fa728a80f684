"""What is told about a step besides its loss: speed, gradient, load of the experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine

    from deepseek_ops.core.records import TrainingPlan
    from deepseek_ops.jobs.training_model import ExpertBalance


class StepMeter:
    """Derives the metrics of a step from what the loop knows at its end. It communicates with nobody."""

    def __init__(self, plan: TrainingPlan, engine: DeepSpeedEngine, balance: ExpertBalance) -> None:
        self._engine = engine
        self._balance = balance
        self._tokens = plan.hyperparameters.batch_size * plan.hyperparameters.sequence_length

    def measure(self, seconds: float, counts: torch.Tensor) -> dict[str, float]:
        """Return the metrics of a step that took ``seconds``; ``counts`` are its tokens per expert over all ranks."""
        norm = self._engine.get_global_grad_norm()  # before clipping; ZeRO-0 does not tell it
        return {
            **({} if norm is None else {"grad_norm": float(norm)}),
            **self._balance.load(counts),
            "tokens_per_second": self._tokens / seconds,
            "step_seconds": seconds,
        }
