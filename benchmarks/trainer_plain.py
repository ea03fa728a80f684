"""What a person would run with torchrun: a bare DeepSpeed script that saves and resumes. Part of trainer.py.

Appends ``<step> <unix seconds>`` to a file after every step of rank 0, and goes on from its newest checkpoint.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from deepseek_ops.core.records import TrainingPlan
from deepseek_ops.jobs.tokens import TokenSplit
from deepseek_ops.jobs.training_engine import end_ranks, next_token_loss, start_engine, start_ranks
from deepseek_ops.jobs.training_model import build_model, decay_groups
from deepseek_ops.training.deepspeed_config import deepspeed_config


def main() -> None:
    """Train until killed."""
    import torch

    request = json.loads(Path(sys.argv[1]).read_text())
    plan, folder = TrainingPlan.load(request["plan"]), Path(request["folder"])
    start_ranks(folder, single_node=True)
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    config = deepspeed_config(plan, world_size=world)
    model = build_model(plan, None)
    engine = start_engine(model, config, decay_groups(model, plan.hyperparameters.weight_decay))
    split = TokenSplit(Path(request["dataset"]) / "tokens", "train", length=plan.hyperparameters.sequence_length)
    per_rank = plan.hyperparameters.batch_size // world
    step = 0
    if (folder / "saved" / "latest").is_file():
        _, state = engine.load_checkpoint(str(folder / "saved"))
        step = int(state["step"])
    with (folder / f"steps-{rank}").open("a", buffering=1) as said:
        while True:
            start = (step * plan.hyperparameters.batch_size + rank * per_rank) % (len(split) - per_rank)
            batch = torch.from_numpy(split.samples(range(start, start + per_rank))).to(engine.device)
            loss = next_token_loss(engine(input_ids=batch[:, :-1], use_cache=False).logits, batch[:, 1:])
            engine.backward(loss)
            engine.step()
            step += 1
            said.write(f"{step} {time.time()}\n")
            if step == request["save_at"]:
                engine.save_checkpoint(str(folder / "saved"), tag=f"step-{step}", client_state={"step": step})
    end_ranks()


if __name__ == "__main__":
    main()
