"""Our streams and our guardian inside the Trainer of Hugging Face, and of TRL, which is the same underneath.

``installed(watch)`` adds them to every Trainer that is made while it lasts; the script that makes it stays as it is.
Beside a callback it needs six methods of the Trainer: ``training_step``, because the callback never sees the loss of
a micro-batch and the logged one hides NaN; ``_get_grad_norm``, for a gradient that is not finite before it is used;
``_save_checkpoint``, to have each one whole, kept and sent; ``evaluate``, which may take longer than any step;
``train``, to resume from the newest whole one; and ``_run_epoch``, because a Trainer that is resumed after its last
step takes one more (seen in 5.23).
"""

# ruff: noqa: ARG002  (the Trainer calls with its own signature)
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import JsonValue
from transformers import Trainer, TrainerCallback

from deepseek_ops.core.errors import JobStoppedError
from deepseek_ops.jobs.hf_loop import are_ids, lower, numbers, unless_done, used
from deepseek_ops.jobs.hf_restore import restore_whole_checkpoints
from deepseek_ops.jobs.training_model import ExpertBalance

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from deepseek_ops.jobs.hf_batch import Batches
    from deepseek_ops.jobs.hf_checkpoints import ScriptCheckpoints
    from deepseek_ops.jobs.hf_seen import Verdict
    from deepseek_ops.jobs.hf_watch import Watch

_OWN_WORDS = {"loss", "grad_norm", "learning_rate", "epoch", "step", "total_flos"}


class ScriptEnded(BaseException):
    """The training was told to end, and what the script would do after it is left out."""


class Foreign:
    """What the Trainers of one script and this package know of each other."""

    def __init__(
        self,
        watch: Watch,
        checkpoints: Callable[[int], ScriptCheckpoints],
        *,
        name: str,
        batches: Batches,
        bias_update_rate: float = 0.0,
    ) -> None:
        self.watch = watch
        self.batches = batches
        self.trainings: list[ScriptCheckpoints] = []
        """The checkpoints of each train() so far."""
        self.extra_save = False
        """Whether the checkpoint of this step is one that the script would not have taken."""
        self._checkpoints = checkpoints
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
        trainer._save_checkpoint = self._kept(trainer, trainer._save_checkpoint)
        trainer._run_epoch = unless_done(trainer, trainer._run_epoch)
        trainer.evaluate = self._evaluated(trainer.evaluate)
        trainer.train = self._resumed(trainer, trainer.train)
        restore_whole_checkpoints(trainer, self.watch.streams.event)

    def _observed(self, step: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def training_step(model: torch.nn.Module, inputs: dict[str, object], *rest: object) -> torch.Tensor:
            ids = next((value for key, value in inputs.items() if are_ids(key, value)), None)
            if isinstance(ids, torch.Tensor):
                self.sample = ids[:2].detach()
            loss = step(model, inputs, *rest)
            self.watch.micro_batch(loss, used(inputs))
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
            resume_from_checkpoint, state = self._begun(Path(trainer.args.output_dir), resume_from_checkpoint)
            kind = "started" if resume_from_checkpoint is None else "resumed"
            self.watch.streams.event(kind, script=self.name, checkpoint=str(resume_from_checkpoint or ""))
            with self.batches.kept(trainer, state):
                result = train(resume_from_checkpoint, *rest, **words)
            self.before += trainer.state.global_step
            self._end_if_told()
            self.sample = self._some_batch(trainer) if self.sample is None else self.sample
            self.finished = True
            return result

        return train_or_resume

    def _begun(self, output: Path, named: object) -> tuple[str | None, Mapping[str, JsonValue] | None]:
        """Return the checkpoint that a train() goes on from, and what was said of it: our newest, or the script's."""
        training = self._checkpoints(len(self.trainings))
        self.trainings.append(training)
        self.watch.at("restoring")
        found = training.resume(output)
        self.watch.at("away")  # until the first step: a model may be compiled, a data set be made
        if found is not None:
            self.watch.go_on(found[1])
            return str(found[0]), found[1]
        if not isinstance(named, str | Path) or not str(named) or training.is_own(Path(named)):
            return None, None  # a checkpoint of ours that is not whole, or another train()'s, is none to go on from
        return str(named), None

    def _kept(self, trainer: Trainer, save: Callable[..., object]) -> Callable[..., object]:
        def save_checkpoint(model: object, trial: object, *rest: object, **words: object) -> object:
            step, training = trainer.state.global_step, self.trainings[-1]
            folder = Path(trainer._get_output_dir(trial=trial)) / f"checkpoint-{step}"
            with self.watch.during("checkpointing"):
                self.watch.flush()  # the Trainer has logged and evaluated; who goes on from here finds the step told
                training.begin_save(folder, ours=self.extra_save)
                result = save(model, trial, *rest, **words)
                training.end_save(folder, step, {**self.watch.dump(), **self.batches.dump()})
            self.watch.streams.event("checkpoint", step=self.watch.seen.step, folder=folder.name)
            return result

        return save_checkpoint

    def _evaluated(self, evaluate: Callable[..., object]) -> Callable[..., object]:
        def evaluate_with_patience(*args: object, **words: object) -> object:
            with self.watch.during("evaluating"):
                return evaluate(*args, **words)

        return evaluate_with_patience

    def _some_batch(self, trainer: Trainer) -> torch.Tensor | None:
        """Return token ids for a training that was resumed after its last step and saw no batch in this process."""
        batch: Mapping[str, object] = next(iter(trainer.get_train_dataloader()), {})
        for key, value in batch.items():
            if isinstance(value, torch.Tensor) and are_ids(key, value):
                return value[:2].detach()
        return None

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


class WatchCallback(TrainerCallback):
    """Passes on what the Trainer says about its training."""

    def __init__(self, foreign: Foreign) -> None:
        self.foreign = foreign
        self.watch = foreign.watch
        self._rate = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **w: object
    ) -> None:
        """The training begins, at its first step or at a later one."""
        self.foreign.batches.begun(w.get("train_dataloader"), args.gradient_accumulation_steps)

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
            lower(words.get("lr_scheduler"), groups, verdict.factor)
        last = state.global_step >= state.max_steps
        self.foreign.extra_save = not control.should_save
        control.should_save = control.should_save or verdict.save or last
        control.should_training_stop = control.should_training_stop or verdict.ends
        self.foreign.verdict = verdict
        if last or control.should_training_stop:
            self.watch.at("away")  # the best model may be loaded now
        elif control.should_save or control.should_evaluate or state.epoch in (None, int(state.epoch or 0)):
            self.watch.at("evaluating")  # until the next step: callbacks of the script's own come after these
        return control

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """An epoch has ended: loaders are made anew, and scripts look at what they have."""
        if self.watch.phase != "away":
            self.watch.at("evaluating")

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """A batch of an evaluation is done."""
        self.watch.at(self.watch.phase)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, object] | None = None,
        **_: object,
    ) -> None:
        """An evaluation has ended: ``eval_loss`` is our ``val_loss``."""
        found = numbers(metrics or {})
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
        found = numbers(logs or {})
        own = {name: value for name, value in found.items() if name not in _OWN_WORDS}
        self.watch.told({name: value for name, value in own.items() if not name.startswith(("eval_", "train_"))})

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """The training has ended; what the script does next is its own business."""
        self.watch.flush()
        self.watch.at("away")


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
