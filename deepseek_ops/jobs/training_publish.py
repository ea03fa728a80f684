"""From trained weights to a folder other tools load: the hub's layout, checked by loading it again.

``save_pretrained`` writes experts one by one under the names of DeepSeek's own checkpoints, where DeepSpeed's
converter leaves the fused tensors that only transformers reads. Half of the known export bugs give a folder that loads
without an error and holds something else, so a folder counts only after its loss on a real batch agrees.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_ops.core.records import TrainingPlan
from deepseek_ops.jobs.training_experts import gathered_experts, is_expert_parallel
from deepseek_ops.jobs.training_lora import merged_state, save_adapters
from deepseek_ops.jobs.training_model import ROUTER_KEYS
from deepseek_ops.jobs.training_verify import FreshProcess
from deepseek_ops.training.errors import PublishedModelError

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine
    from transformers import PreTrainedModel

    from deepseek_ops.jobs.training_task import Batch

TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}
"""Largest difference of the loss before and after, in nats per token: the same numbers, summed by another kernel."""
WINDOW_KEY = "train_sequence_length"
"""Key of config.json that says how many tokens a training sample had, so that evaluation looks back no further."""


def export_model(engine: DeepSpeedEngine, plan: TrainingPlan, tokenizer: Path, folder: Path, *, rank: int) -> None:
    """Write weights, config and tokenizer below ``folder``. Every rank calls it; rank 0 writes.

    Adapters are merged into the base's weights, and lie beside them in ``adapter/``.
    """
    state = _whole_state(engine, plan, keep=rank == 0)
    if rank != 0:
        return
    if folder.exists():
        shutil.rmtree(folder)
    model = engine.module
    if plan.lora is not None:
        save_adapters(model, state, folder)
        state = merged_state(state, plan.lora)
    model.config.use_cache = True
    _shell(model).save_pretrained(folder, state_dict=state, max_shard_size="4GB")
    for path in sorted(tokenizer.iterdir()):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    _complete_config(folder / "config.json", plan)


def check_export(fresh: FreshProcess, folder: Path, plan: TrainingPlan, batch: Batch, expected: float) -> None:
    """Load the folder again, in a process that saw nothing of the training, and compare its loss on ``batch``.

    Args:
        fresh: That process.
        folder: What ``export_model`` wrote.
        plan: Its plan; the precision sets the tolerance.
        batch: Samples.
        expected: Loss of the model in memory on this batch, nats per token.

    Raises:
        PublishedModelError: A weight is missing, or the losses differ.
    """
    actual = fresh.loss(folder, batch, plan.precision)
    if not math.isfinite(actual) or abs(actual - expected) > TOLERANCE[plan.precision]:
        problem = f"its loss on a batch is {actual:.6f}, in training it was {expected:.6f}"
        raise PublishedModelError(str(folder), problem)


def _whole_state(engine: DeepSpeedEngine, plan: TrainingPlan, *, keep: bool) -> dict[str, torch.Tensor]:
    """Return all weights on the CPU, on the rank that keeps them; other ranks help and get what they get."""
    if is_expert_parallel(engine.module):
        return gathered_experts(engine.module, keep=keep)
    if plan.zero_stage == 3:
        state: dict[str, torch.Tensor] = engine._zero3_consolidated_16bit_state_dict()
        return state
    return dict(engine.module.state_dict()) if keep else {}


def _shell(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model of the same class without weights: one whose layers were not replaced, to save a state with."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(model.config)


def _complete_config(path: Path, plan: TrainingPlan) -> None:
    config = json.loads(path.read_text())
    keys = {**ROUTER_KEYS.get(str(config.get("model_type")), {}), WINDOW_KEY: plan.hyperparameters.sequence_length}
    path.write_text(json.dumps({**config, **keys}, indent=2, sort_keys=True) + "\n")
