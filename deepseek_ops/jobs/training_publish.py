"""From trained weights to a folder other tools load: the hub's layout, checked by loading it again.

``save_pretrained`` writes experts one by one under the names of DeepSeek's own checkpoints, where DeepSpeed's
converter leaves the fused tensors that only transformers reads. Half of the known export bugs give a folder that loads
without an error and holds something else, so a folder counts only after its loss on a real batch agrees.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_ops.core.records import TrainingPlan
from deepseek_ops.jobs.training_engine import next_token_loss
from deepseek_ops.jobs.training_model import ROUTER_KEYS, use_grouped_experts
from deepseek_ops.training.errors import PublishedModelError

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine

TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}
"""Largest difference of the loss before and after, in nats per token: the same numbers, summed by another kernel."""
WINDOW_KEY = "train_sequence_length"
"""Key of config.json that says how many tokens a training sample had, so that evaluation looks back no further."""


def export_model(engine: DeepSpeedEngine, plan: TrainingPlan, tokenizer: Path, folder: Path, *, rank: int) -> None:
    """Write weights, config and tokenizer below ``folder``. Every rank calls it; rank 0 writes."""
    state = engine._zero3_consolidated_16bit_state_dict() if plan.zero_stage == 3 else None
    if rank != 0:
        return
    if folder.exists():
        shutil.rmtree(folder)
    model = engine.module
    model.config.use_cache = True
    model.save_pretrained(folder, state_dict=state, max_shard_size="4GB")
    for path in sorted(tokenizer.iterdir()):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    _complete_config(folder / "config.json", plan)


def check_export(folder: Path, plan: TrainingPlan, batch: torch.Tensor, expected: float) -> None:
    """Load the folder again and compare its loss on ``batch`` with the trained model's.

    Args:
        folder: What ``export_model`` wrote.
        plan: Its plan; the precision sets the tolerance.
        batch: Token ids, shape (batch, length + 1), int64.
        expected: Loss of the model in memory on this batch, nats per token.

    Raises:
        PublishedModelError: A weight is missing, or the losses differ.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            names = ", ".join(sorted(str(key) for key in report[kind])[:3])
            raise PublishedModelError(str(folder), f"{kind.replace('_', ' ')} on loading: {names}")
    use_grouped_experts(model)
    actual = loss_on(model.to(batch.device).eval(), batch)
    del model
    gc.collect()
    if not math.isfinite(actual) or abs(actual - expected) > TOLERANCE[plan.precision]:
        problem = f"its loss on a batch is {actual:.6f}, in training it was {expected:.6f}"
        raise PublishedModelError(str(folder), problem)


def loss_on(model: torch.nn.Module, batch: torch.Tensor) -> float:
    """Return the loss of ``model`` on token ids of shape (batch, length + 1), in nats per token, without gradients."""
    import torch

    with torch.no_grad():
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        return float(next_token_loss(logits, batch[:, 1:]))


def _complete_config(path: Path, plan: TrainingPlan) -> None:
    config = json.loads(path.read_text())
    keys = {**ROUTER_KEYS.get(str(config.get("model_type")), {}), WINDOW_KEY: plan.hyperparameters.sequence_length}
    path.write_text(json.dumps({**config, **keys}, indent=2, sort_keys=True) + "\n")
