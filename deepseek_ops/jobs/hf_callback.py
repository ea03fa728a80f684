"""Our streams and our guardian inside the Trainer of Hugging Face, and of TRL, which is the same underneath.

``installed(watch)`` adds them to every Trainer that is made while it lasts; the script that makes it stays as it is.
Beside a callback it needs three methods of the Trainer: ``training_step``, because the callback never sees the loss of
a micro-batch and the logged one hides NaN; ``_get_grad_norm``, for a gradient that is not finite before it is used;
and ``train``, to resume from the newest complete checkpoint where the script names none.
"""

# ruff: noqa: ARG002  (the Trainer calls with its own signature)
from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import Trainer, TrainerCallback

from deepseek_ops.core.errors import JobStoppedError
from deepseek_ops.jobs.hf_restore import restore_whole_checkpoints
from deepseek_ops.jobs.training_model import ExpertBalance

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from deepseek_ops.jobs.hf_watch import Verdict, Watch

KEPT = 2
"""Checkpoints kept of those that only we asked for."""
_SEAL = "deepseek-ops.rank-{}.json"
_OWN_WORDS = {"loss", "grad_norm", "learning_rate", "epoch", "step", "total_flos"}


class ScriptEnded(BaseException):
    """The training was told to end, and what the script would do after it is left out."""


class Foreign:
    """What the Trainers of one script and this package know of each other."""

    def __init__(self, watch: Watch, *, name: str, bias_update_rate: float = 0.0) -> None:
        self.watch = watch
        self.name = name
        self.trainer: Trainer | None = None
        """The one that trained last."""
        self.finished = False
        """Whether its training came to its end."""
        self.sample: torch.Tensor | None = None
        """Token ids of the last batch, (at most 2, length), to check the published model with."""
        self.gradient: float | None = None
        self.verdict: Verdict | None = None
        self.before = 0
        """Steps of the Trainers that have finished."""
        self._rate = bias_update_rate

    def attach(self, trainer: Trainer) -> None:
        """Add the callback to a new Trainer and stand around its methods."""
        trainer.add_callback(WatchCallback(self))
        trainer.training_step = self._observed(trainer.training_step)
        trainer._get_grad_norm = self._measured(trainer._get_grad_norm)
        trainer.train = self._resumed(trainer, trainer.train)
        restore_whole_checkpoints(trainer, self.watch.streams.event)

    def _observed(self, step: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def training_step(model: torch.nn.Module, inputs: dict[str, object], *rest: object) -> torch.Tensor:
            ids = next((value for key, value in inputs.items() if _are_ids(key, value)), None)
            if isinstance(ids, torch.Tensor):
                self.sample = ids[:2].detach()
            loss = step(model, inputs, *rest)
            self.watch.micro_batch(loss, _used(inputs))
            return loss

        return training_step

    def _measured(self, norm: Callable[..., object]) -> Callable[..., object]:
        def grad_norm(*args: object, **words: object) -> object:
            value = norm(*args, **words)
            self.gradient = None if value is None else float(value)  # type: ignore[arg-type]
            return value

        return grad_norm

    def _resumed(self, trainer: Trainer, train: Callable[..., object]) -> Callable[..., object]:
        def train_or_resume(resume_from_checkpoint: object = None, *rest: object, **words: object) -> object:
            self.trainer, self.finished = trainer, False
            self._count_experts(trainer.model)
            if not resume_from_checkpoint or resume_from_checkpoint is True:
                resume_from_checkpoint = self._newest(Path(trainer.args.output_dir))
            kind = "started" if resume_from_checkpoint is None else "resumed"
            self.watch.streams.event(kind, script=self.name, checkpoint=str(resume_from_checkpoint or ""))
            result = train(resume_from_checkpoint, *rest, **words)
            self.before += trainer.state.global_step
            self._end_if_told()
            self.finished = True
            return result

        return train_or_resume

    def _count_experts(self, model: torch.nn.Module) -> None:
        balance = ExpertBalance(model, self._rate)
        self.watch.balance = balance if balance.sizes else None

    def _end_if_told(self) -> None:
        verdict = self.verdict
        if verdict is not None and verdict.stopped:
            reason = "; ".join(decision.reason for decision in self.watch.decisions) or "a rule, on rank 0"
            raise JobStoppedError(self.name, f"at step {self.watch.seen.step} by an alert rule: {reason}")
        if verdict is not None and verdict.asked:
            raise ScriptEnded

    def _newest(self, folder: Path) -> str | None:
        """Return the newest checkpoint that every rank completed, by rank 0's view."""
        found = [step for step, path in _checkpoints(folder) if _is_complete(path)]
        step = self.watch.peers.from_first(max(found, default=-1))
        return None if step < 0 else str(folder / f"checkpoint-{step}")


class WatchCallback(TrainerCallback):
    """Passes on what the Trainer says about its training."""

    def __init__(self, foreign: Foreign) -> None:
        self.foreign = foreign
        self.watch = foreign.watch
        self._rate = 0.0

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """A step begins."""
        self.watch.begin_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **words: object
    ) -> None:
        """Gradients are there: without them the optimiser leaves the weights alone."""
        groups = getattr(words.get("optimizer"), "param_groups", [])
        self._rate = float(groups[0]["lr"]) if groups else 0.0  # the schedule moves on before the step has ended
        good = self.watch.agree(self.foreign.gradient)
        model = words.get("model")
        if not good and isinstance(model, torch.nn.Module):
            for parameter in model.parameters():
                parameter.grad = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **words: object
    ) -> TrainerControl:
        """A step has ended: do what rank 0 decided."""
        verdict = self.watch.end_step(self.foreign.before + state.global_step, self._rate)
        if verdict.factor < 1.0:
            groups = getattr(words.get("optimizer"), "param_groups", [])
            _lower(words.get("lr_scheduler"), groups, verdict.factor)
        control.should_save = control.should_save or verdict.save
        control.should_training_stop = control.should_training_stop or verdict.ends
        self.foreign.verdict = verdict
        return control

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, object] | None = None,
        **_: object,
    ) -> None:
        """An evaluation has ended: ``eval_loss`` is our ``val_loss``."""
        found = _numbers(metrics or {})
        self.watch.told({f"val_{name.removeprefix('eval_')}": value for name, value in found.items()})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, object] | None = None,
        **_: object,
    ) -> None:
        """The Trainer logs: what we do not measure ourselves is passed on, such as TRL's token accuracy."""
        found = _numbers(logs or {})
        own = {name: value for name, value in found.items() if name not in _OWN_WORDS}
        self.watch.told({name: value for name, value in own.items() if not name.startswith(("eval_", "train_"))})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """A checkpoint is written by this rank: seal it, so that half of one is never resumed from."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        peers = self.watch.peers
        files = {
            path.name: path.stat().st_size for path in folder.iterdir() if path.is_file() and _ours(path, peers.rank)
        }
        seal = folder / _SEAL.format(peers.rank)
        partial = seal.with_suffix(".partial")
        partial.write_text(json.dumps({"ranks": peers.world_size, "files": files}))
        partial.replace(seal)
        peers.barrier()
        if peers.rank == 0:
            self.watch.streams.event("checkpoint", step=self.watch.seen.step, folder=folder.name)
            if args.save_total_limit is None and str(args.save_strategy).endswith("no"):
                for _step, old in _checkpoints(Path(args.output_dir))[:-KEPT]:
                    shutil.rmtree(old)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """The training has ended."""
        self.watch.flush()


@contextlib.contextmanager
def installed(foreign: Foreign) -> Iterator[None]:
    """Have every Trainer made inside watched; subclasses come by through their ``super().__init__``."""
    make = Trainer.__init__

    def make_watched(self: Trainer, *args: object, **words: object) -> None:
        make(self, *args, **words)
        foreign.attach(self)

    make_watched.__wrapped__ = make  # type: ignore[attr-defined]  # for libraries that look at the signature
    Trainer.__init__ = make_watched
    try:
        yield
    finally:
        Trainer.__init__ = make


def _lower(scheduler: object, groups: list[dict[str, float]], factor: float) -> None:
    """Multiply the rate of the next steps: that of schedules is their base times a function of the step."""
    inner = getattr(scheduler, "scheduler", scheduler)  # accelerate wraps it
    if hasattr(inner, "base_lrs"):
        inner.base_lrs = [rate * factor for rate in inner.base_lrs]
    for group in groups:
        group["lr"] *= factor


def _numbers(values: Mapping[str, object]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _are_ids(key: str, value: object) -> bool:
    return key.endswith("input_ids") and isinstance(value, torch.Tensor) and value.ndim == 2


def _used(inputs: Mapping[str, object]) -> int:
    """Return the tokens of a micro-batch, padding included: counting it would wait for the device."""
    return sum(
        value.numel() for key, value in inputs.items() if _are_ids(key, value) and isinstance(value, torch.Tensor)
    )


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return the Trainer's checkpoints below its folder, oldest first."""
    numbers = [(path.name.rpartition("-")[2], path) for path in folder.glob("checkpoint-*")]
    return sorted((int(number), path) for number, path in numbers if number.isdigit())


def _is_complete(folder: Path) -> bool:
    """Return whether every rank sealed it, and every file is as long as it was then."""
    try:
        ranks = int(json.loads((folder / _SEAL.format(0)).read_text())["ranks"])
        seals = [json.loads((folder / _SEAL.format(rank)).read_text()) for rank in range(ranks)]
        return all((folder / name).stat().st_size == size for seal in seals for name, size in seal["files"].items())
    except (OSError, ValueError):
        return False


def _ours(path: Path, rank: int) -> bool:
    """Return whether a file of a checkpoint is written by this rank: the first one writes what ranks share."""
    if path.name.startswith("deepseek-ops."):
        return False
    return path.name == f"rng_state_{rank}.pth" or (rank == 0 and not path.name.startswith("rng_state_"))
