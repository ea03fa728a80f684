"""One rank of ``benchmarks/trainer.py``: three trainers take turns in one process, a few steps each.

Called by torchrun. All three live in the same ranks, have the same shape of model, batches and DeepSpeed configuration,
and only one of them computes at a time, so a noisy machine is as noisy for each: a ratio needs no quiet hour. Each is
a thread that hands over at the end of a step. What our background threads (streams, telemetry, uploads) cost is read
from their own clocks, taken off whose turn it was, and put on ours.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.core.records import TrainingPlan
from deepseek_ops.jobs import train as our_train
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.tokens import TokenSplit
from deepseek_ops.jobs.training_engine import end_ranks, next_token_loss, start_engine, start_ranks
from deepseek_ops.jobs.training_metrics import StepMeter
from deepseek_ops.jobs.training_model import build_model, decay_groups
from deepseek_ops.training.deepspeed_config import deepspeed_config, micro_batch_of

ORDER = ("bare", "ours", "hf")


class Over(BaseException):
    """The measured blocks are done."""


@dataclass
class Turns:
    """Who computes now, and what each block of steps cost."""

    block: int
    blocks: int
    blocks_of: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {name: [] for name in ORDER})
    """(wall seconds, CPU seconds) of each block."""
    ours_behind: float = 0.0
    """CPU seconds of our background threads while anybody's blocks ran."""
    failed: BaseException | None = None

    def __post_init__(self) -> None:
        self._turn = threading.Condition()
        self._now = ORDER[0]
        self._steps = dict.fromkeys(ORDER, 0)
        self._clock = (0.0, 0.0)
        self._behind_at: dict[int, float] = {}

    def wait(self, name: str) -> None:
        """Return when it is this one's turn."""
        with self._turn:
            self._turn.wait_for(lambda: self._now == name or self.failed is not None)
        if self.failed is not None:
            raise Over
        self._behind()
        self._clock = (time.perf_counter(), time.process_time())

    def step(self, name: str) -> None:
        """Note a finished step; at the end of a block the next one computes, and this one waits."""
        self._steps[name] += 1
        warm = self._steps[name] - self.block
        if self._steps[name] % self.block:
            return
        wall, cpu = time.perf_counter() - self._clock[0], time.process_time() - self._clock[1]
        behind = self._behind()
        if warm > 0:  # the first block is its warm-up
            self.blocks_of[name].append((wall, cpu - behind))
            self.ours_behind += behind
        if len(self.blocks_of[name]) == self.blocks:
            raise Over  # it ends what it holds while it is still its turn
        self.hand_over(name)
        self.wait(name)

    def hand_over(self, name: str) -> None:
        """Let the next one compute."""
        with self._turn:
            self._now = ORDER[(ORDER.index(name) + 1) % len(ORDER)]
            self._turn.notify_all()

    def fail(self, error: BaseException) -> None:
        """End everybody."""
        with self._turn:
            self.failed = error
            self._turn.notify_all()

    def _behind(self) -> float:
        """Return the CPU seconds of background threads since the last call."""
        spent = 0.0
        for thread in threading.enumerate():
            if thread.name not in (*ORDER, "MainThread") and thread.ident is not None and thread.is_alive():
                try:
                    now = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
                except OSError:
                    continue
                spent += now - self._behind_at.get(thread.ident, now)
                self._behind_at[thread.ident] = now
        return spent


def bare(plan: TrainingPlan, dataset: Path, turns: Turns) -> None:
    """The loop of DeepSpeed's own getting-started page: forward, backward, step, a loss printed now and then."""
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    model = build_model(plan, None)
    engine = start_engine(
        model, deepspeed_config(plan, world_size=world), decay_groups(model, plan.hyperparameters.weight_decay)
    )
    split = TokenSplit(dataset / "tokens", "train", length=plan.hyperparameters.sequence_length)
    micro = micro_batch_of(plan, world)
    per_rank = plan.hyperparameters.batch_size // world
    step = 0
    while True:
        start = step * plan.hyperparameters.batch_size + rank * per_rank
        for at in range(start, start + per_rank, micro):
            indices = [index % len(split) for index in range(at, at + micro)]
            batch = torch.from_numpy(split.samples(indices)).to(engine.device)
            loss = next_token_loss(engine(input_ids=batch[:, :-1], use_cache=False).logits, batch[:, 1:])
            engine.backward(loss)
            engine.step()
        step += 1
        if step % 10 == 0:
            print(f"step {step} loss {loss.item():.3f}", file=sys.stderr)
        turns.step("bare")


def ours(plan: TrainingPlan, payload: Mapping[str, object], folder: Path, turns: Turns) -> None:
    """Our train job with everything on."""
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    measure = StepMeter.measure

    def counted(self: StepMeter, seconds: float, counts: torch.Tensor) -> dict[str, float]:
        found = measure(self, seconds, counts)
        turns.step("ours")
        return found

    StepMeter.measure = counted  # type: ignore[method-assign]
    our_train.end_ranks = lambda: None  # the others go on
    spec = JobSpec(name="benchmark", kind="train", payload={"plan": plan.dump(), "alerts": payload["alerts"]})
    store = LocalStore(Path(str(payload["store"])))
    our_train.run(JobContext(spec, folder, rank=rank, world_size=world, store=store))


def hf(plan: TrainingPlan, dataset: Path, folder: Path, turns: Turns) -> None:
    """The Trainer of transformers over the same DeepSpeed."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    world, hyper = torch.distributed.get_world_size(), plan.hyperparameters
    split = TokenSplit(dataset / "tokens", "train", length=hyper.sequence_length)

    class Windows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(split)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            ids = torch.from_numpy(split.samples([index])[0, :-1])
            return {"input_ids": ids, "labels": ids}

    class Turn(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            turns.step("hf")

    config = {key: value for key, value in deepspeed_config(plan, world_size=world).items() if key != "steps_per_print"}
    micro = micro_batch_of(plan, world)
    accumulation = hyper.batch_size // (micro * world)
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=100_000,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        learning_rate=hyper.learning_rate,
        weight_decay=hyper.weight_decay,
        max_grad_norm=hyper.max_grad_norm,
        adam_beta2=hyper.adam_beta2,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        bf16=plan.precision == "bf16",
        deepspeed=config,
    )
    Trainer(model=build_model(plan, None), args=settings, train_dataset=Windows(), callbacks=[Turn()]).train()


def main() -> None:
    """Run the three in turn and print what each block cost on this rank."""
    request = json.loads(Path(sys.argv[1]).read_text())
    plan = TrainingPlan.load(request["plan"])
    folder, dataset = Path(request["folder"]), Path(request["dataset"])
    start_ranks(folder, single_node=True)
    turns = Turns(block=request["block"], blocks=request["blocks"])
    parts: dict[str, Callable[[], None]] = {
        "bare": lambda: bare(plan, dataset, turns),
        "ours": lambda: ours(plan, request, folder / "job", turns),
        "hf": lambda: hf(plan, dataset, folder / "hf", turns),
    }

    def take_part(name: str) -> None:
        try:
            turns.wait(name)
            parts[name]()
        except Over:
            turns.hand_over(name)
        except BaseException as error:  # noqa: BLE001  (told to everybody, raised below)
            turns.fail(error)

    threads = [threading.Thread(target=take_part, args=(name,), name=name) for name in ORDER]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if turns.failed is not None:
        raise turns.failed
    found = {"rank": int(os.environ["RANK"]), "blocks": turns.blocks_of, "behind": turns.ours_behind}
    Path(request["out"], f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
    end_ranks()


if __name__ == "__main__":
    main()
