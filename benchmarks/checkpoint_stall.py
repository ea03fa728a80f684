"""What a checkpoint costs the training: how long the ranks stand still, beside DeepSpeed's own ``save_checkpoint``.

    python benchmarks/checkpoint_stall.py [--hidden 256] [--layers 4] [--steps 40] [--every 10] [--stage 2]

Two ranks train a DeepSeek-V3 of the given size on random tokens. Every ``every`` steps one checkpoint is taken, in
turn by the product's and by DeepSpeed's writer, so both meet the same machine. Reported are medians: seconds of a step,
seconds that the ranks wait in each writer, the same as a share of the steps between two checkpoints, and how much the
steps while ours is still being written are slower than the others.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fixtures_checkpoints import KINDS
from fixtures_launcher import settled
from fixtures_trainer import MODEL
from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher.launcher import LocalLauncher
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.jobs import JobPhase, JobSpec
from deepseek_ops.core.records import DatasetVersion, Hyperparameters, TrainingPlan

if TYPE_CHECKING:
    from deepseek_ops.jobs.context import JobContext

BATCH, LENGTH = 8, 128


def plan_of(options: dict[str, JsonValue]) -> TrainingPlan:
    """Return the plan of the measured training."""
    hidden = int(str(options["hidden"]))
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "moe_intermediate_size": hidden // 2}
    model = {**MODEL, **sizes, "num_hidden_layers": int(str(options["layers"])), "vocab_size": 4096}
    dataset = DatasetVersion(name="none", version="0" * 64, tree="0" * 64, num_files=0, num_bytes=0)
    hyper = Hyperparameters(learning_rate=1e-3, batch_size=BATCH, max_steps=1000, sequence_length=LENGTH)
    return TrainingPlan(
        dataset=dataset,
        model=model,
        nproc_per_node=2,
        hyperparameters=hyper,
        zero_stage=int(str(options["stage"])),
        checkpoint_steps=int(str(options["every"])),
    )


def measure(context: JobContext) -> dict[str, JsonValue]:
    """Train, checkpoint in turn by both writers, and return what each cost; a train job's work."""
    import torch

    from deepseek_ops.jobs.training_checkpoint import Checkpoints, Progress
    from deepseek_ops.jobs.training_engine import end_ranks, start_engine, start_ranks
    from deepseek_ops.jobs.training_model import build_model, decay_groups
    from deepseek_ops.jobs.training_ranks import Ranks
    from deepseek_ops.training.deepspeed_config import deepspeed_config

    start_ranks(context.work, single_node=True)
    plan, every = plan_of(context.payload), int(str(context.payload["every"]))
    context._store = LocalStore(context.work / "store")
    ranks = Ranks(context.rank, context.world_size, "cpu", lambda: False)
    model = build_model(plan, None)
    parameters = model.num_parameters()
    engine = start_engine(model, deepspeed_config(plan), decay_groups(model, 0.1))
    checkpoints, progress = Checkpoints.of(context, plan, ranks, say=lambda *_, **__: None), Progress()
    checkpoints.load(engine)
    steps: list[float] = []
    behind: list[float] = []
    stalls: dict[str, list[float]] = {"ours": [], "deepspeed": []}
    turn = ""
    for step in range(int(str(context.payload["steps"]))):
        began = time.perf_counter()
        tokens = torch.randint(0, 4096, (BATCH // 2, LENGTH + 1), generator=torch.Generator().manual_seed(step))
        logits = engine(input_ids=tokens[:, :-1]).logits.float()
        engine.backward(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
        engine.step()
        ranks.barrier()
        (behind if turn == "ours" and step % every < 3 else steps).append(time.perf_counter() - began)
        progress.step = step + 1
        checkpoints.observe(step + 1, True, position=step, samples=BATCH)
        if (step + 1) % every == 0:
            turn = "ours" if turn != "ours" else "deepspeed"
            began = time.perf_counter()
            if turn == "ours":
                checkpoints.save(engine, progress)
            else:
                engine.save_checkpoint(str(context.work / "plain"), tag=f"step-{step}")
            ranks.barrier()
            stalls[turn].append(time.perf_counter() - began)
    checkpoints.finish()
    sizes = [path.stat().st_size for path in (context.work / "checkpoints").rglob("*.pt")]
    end_ranks()
    median = statistics.median(steps)
    one = {name: statistics.median(times[1:] or times) for name, times in stalls.items()}
    return {
        "parameters": parameters,
        "checkpoint_megabytes": round(
            sum(sizes) / 1e6 / max(1, len(list((context.work / "checkpoints").glob("step-*")))), 1
        ),
        "step_seconds": round(median, 4),
        "steps_between": every,
        **{f"{name}_stall_seconds": round(value, 4) for name, value in one.items()},
        **{f"{name}_stall_share": round(value / (every * median), 5) for name, value in one.items()},
        "slower_while_writing": round(statistics.median(behind) / median - 1, 3) if behind else None,
    }


def main() -> int:
    """Run the measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name, default in (("hidden", 256), ("layers", 4), ("steps", 80), ("every", 10), ("stage", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    options = vars(parser.parse_args())
    target = options.pop("json")
    root = Path(tempfile.mkdtemp(prefix="checkpoint-stall-"))
    launcher = LocalLauncher(root)
    try:
        path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")])
        surroundings = {KINDS: "train=checkpoint_stall:measure", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        body = {"name": "stall", "kind": "train", "payload": options, "num_ranks": 2, "environment": surroundings}
        launcher.submit(JobSpec.model_validate(body))
        status = settled(launcher, "stall", within=3600)
        if status.phase is not JobPhase.SUCCEEDED:
            print(launcher.logs("stall")[0][-4000:], file=sys.stderr)
            return 1
        found = {**options, **launcher.result("stall"), "load": os.getloadavg()[0]}
        print(json.dumps(found, indent=1))
        if target is not None:
            target.write_text(json.dumps(found, indent=1))
    finally:
        launcher.shutdown(grace_seconds=5)
        shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
