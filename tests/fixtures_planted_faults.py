"""Faults planted into real trainings: ``run`` is the train job with what goes wrong in long runs, at a chosen step.

A job gets them through its payload, and this module through its environment (``submit_planted``), so the trainer that
runs is the one that is shipped; only the publishing of the model is left out::

    {"faults": [{"kind": "nan", "step": 20, "steps": 1, "rank": 1}]}

========== =======================================================================================================
nan        the loss of ``rank`` is NaN in steps ``step`` .. ``step + steps - 1``
bad_batch  the loss of ``rank`` is NaN on batch positions ``position`` .. : it stays with the data, whatever the step
broken     the loss on these positions is finite, and its gradient turns the weights into NaN where nothing skips it
spike      the learning rate of ``steps`` steps is multiplied by ``factor``: the weights really go wrong
explode    the gradient of ``steps`` steps is multiplied by ``factor``, the loss is as it was
collapse   the routers' biases send every token to the first experts from ``step`` on
slow       ``rank`` sleeps ``seconds`` in each of ``steps`` steps
hang       ``rank`` stops for good at ``step``
full_disk  files above ``bytes`` cannot be written by any rank for ``steps`` steps
store_down the object store does not answer for ``seconds``, from ``step`` on
========== =======================================================================================================

What is planted at a step happens once, however often the step is run again: a cosmic ray does not strike twice. Every
rank reports what it did after a step (event ``acted``), so that a test can see that all acted in the same one.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.core.errors import StoreUnavailableError
from deepseek_ops.core.ports import ObjectInfo, ObjectStore
from deepseek_ops.core.records import FileSet
from deepseek_ops.jobs import train, training_loop
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.training_actions import Actions, Ending
from deepseek_ops.jobs.training_loop import Loop

if TYPE_CHECKING:
    import torch
    from fixtures_trainer import Lab

    from deepseek_ops.core.jobs import JobStatus
    from deepseek_ops.core.records import TrainingPlan
    from deepseek_ops.jobs.training_checkpoint import Progress

Fault = Mapping[str, JsonValue]


@dataclass(frozen=True)
class Planted:
    """What a training with planted faults came to."""

    status: JobStatus
    events: Sequence[Mapping[str, JsonValue]]
    log: str

    def of(self, kind: str, **fields: object) -> list[Mapping[str, JsonValue]]:
        """Return the events of a kind that have these fields."""
        return [
            event
            for event in self.events
            if event["kind"] == kind and all(event.get(name) == value for name, value in fields.items())
        ]

    @property
    def rows(self) -> dict[int, Mapping[str, JsonValue]]:
        """The metrics of each step, the last ones where a step ran more than once."""
        return {int(str(event["step"])): event for event in self.of("metric")}

    @property
    def final_loss(self) -> float:
        """Validation loss after the last step."""
        rows = self.rows
        return float(str(rows[max(rows)]["val_loss"]))

    @property
    def actions(self) -> list[tuple[object, object]]:
        """(step, action) of what the guardian did, in order."""
        return [(event["step"], event["action"]) for event in self.of("guardian", done=True)]

    @property
    def acted_together(self) -> bool:
        """Whether every rank did the same in the same steps, in the same order."""
        names = ("step", "to", "skipped", "lr_factor", "ended")
        done: dict[object, list[list[JsonValue]]] = {}
        for event in self.of("acted"):
            done.setdefault(event["rank"], []).append([event[name] for name in names])
        return len(done) > 1 and all(told == done[0] for told in done.values())


def submit_planted(
    lab: Lab,
    name: str,
    plan: TrainingPlan,
    faults: list[Fault],
    alerts: list[JsonValue] | None = None,
    **fields: object,
) -> str:
    """Start a training with these faults and return its name."""
    payload: dict[str, JsonValue] = {
        "plan": plan.dump(),
        "alerts": alerts or [],
        "faults": [dict(one) for one in faults],
    }
    environment = {
        "OMP_NUM_THREADS": "1",
        "DEEPSEEK_OPS_JOB_KINDS": "train=fixtures_planted_faults:run",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    return lab.submit("train", name, payload, num_ranks=plan.nproc_per_node, environment=environment, **fields)


def outcome(lab: Lab, name: str) -> Planted:
    """Return what the training has come to once it has ended."""
    status = lab.settle(name)
    return Planted(status, lab.launcher.events(name), lab.launcher.logs(name)[0])


def run(context: JobContext) -> dict[str, JsonValue]:
    """Train as the trainer does, with the payload's faults."""
    faults = Faults(context)
    context.__dict__["store"] = FailingStore(context.store, faults)

    class PlantedLoop(Loop):
        def __init__(self, *args: object, **named: object) -> None:
            super().__init__(*args, **named)  # type: ignore[arg-type]
            self.task = FaultyTask(self.task, faults)
            faults.loop = self

        def _step(self, step: int) -> dict[str, float]:
            faults.before(step + 1)
            return super()._step(step)

    class WitnessedActions(Actions):
        def settle(
            self, progress: Progress, row: Mapping[str, float], *, asked: bool
        ) -> tuple[Progress, Ending | None]:
            before = (progress.step, list(progress.skipped), progress.lr_factor)
            going, ending = super().settle(progress, row, asked=asked)
            after = (going.step, list(going.skipped), going.lr_factor)
            if after != before or ending is not None:
                context.event(
                    "acted", step=before[0], to=going.step, skipped=going.skipped, lr_factor=going.lr_factor,
                    ended=ending is not None,
                )  # fmt: skip
            return going, ending

    train.Loop, train.Actions = PlantedLoop, WitnessedActions  # type: ignore[misc]
    train._publish = lambda context, loop, _tokenizer: train._checkpoint(context, loop, FileSet(files=()))
    set_rate = training_loop.set_learning_rate
    training_loop.set_learning_rate = lambda engine, value: set_rate(engine, value * faults.rate())
    return train.run(context)


class Faults:
    """What goes wrong in this rank, and what did already."""

    def __init__(self, context: JobContext) -> None:
        self.context = context
        self.loop: Loop | None = None
        listed = context.payload.get("faults")
        self._faults = [dict(item) for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
        self._struck: dict[int, int] = {}
        self._down_until = 0.0
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def before(self, step: int) -> None:
        """Do what is planted before step ``step`` (from 1)."""
        for number, fault in enumerate(self._faults):
            kind = fault["kind"]
            if kind == "collapse" and self._strikes(number, fault, step):
                self._collapse()
            if kind == "store_down" and self._strikes(number, fault, step):
                self._down_until = time.monotonic() + float(str(fault["seconds"]))
            if kind == "hang" and self._strikes(number, fault, step) and self._first_time(number):
                time.sleep(10_000)
            if kind == "full_disk" and self.context.restarts == 0:
                full = int(str(fault["step"])) <= step < int(str(fault["step"])) + int(str(fault.get("steps", 1)))
                limit = int(str(fault["bytes"])) if full else self._limits[0]
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, self._limits[1]))

    def rate(self) -> float:
        """Return what the learning rate of this step is multiplied by."""
        step = self._loop.progress.step + 1
        factor = 1.0
        for number, fault in enumerate(self._faults):
            if fault["kind"] == "spike" and self._strikes(number, fault, step):
                factor *= float(str(fault["factor"]))
        return factor

    def on_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss of a micro-batch with its faults."""
        step, position = self._loop.progress.step + 1, self._loop.position
        for number, fault in enumerate(self._faults):
            kind = fault["kind"]
            if kind == "nan" and self._strikes(number, fault, step):
                loss = loss * float("nan")
            if kind == "slow" and self._strikes(number, fault, step):
                time.sleep(float(str(fault["seconds"])))
            if kind == "explode" and self._strikes(number, fault, step):
                loss = _with_gradient(loss, float(str(fault["factor"])))
            if kind == "bad_batch" and self._is_bad(fault, position):
                loss = loss * float("nan")
            if kind == "broken" and self._is_bad(fault, position):
                loss = _with_gradient(loss, float("nan"))
        return loss

    @property
    def store_is_down(self) -> bool:
        return time.monotonic() < self._down_until

    @property
    def _loop(self) -> Loop:
        assert self.loop is not None
        return self.loop

    def _strikes(self, number: int, fault: Fault, step: int) -> bool:
        """Return whether the fault strikes this rank in this step; each of its steps is struck once."""
        if fault.get("rank", self.context.rank) != self.context.rank or self.context.restarts:
            return False
        first = int(str(fault["step"]))
        if not first <= step < first + int(str(fault.get("steps", 1))) or step <= self._struck.get(number, 0):
            return False
        self._struck[number] = step
        return True

    def _is_bad(self, fault: Fault, position: int) -> bool:
        first = int(str(fault["position"]))
        return fault.get("rank", self.context.rank) == self.context.rank and (
            first <= position < first + int(str(fault.get("positions", 1)))
        )

    def _first_time(self, number: int) -> bool:
        mark = self.context.work / f"fault-{number}-{self.context.rank}"
        if mark.exists():
            return False
        mark.touch()
        return True

    def _collapse(self) -> None:
        for module in self._loop.engine.module.modules():
            bias = getattr(module, "e_score_correction_bias", None)
            if bias is not None:
                bias.zero_()
                bias[: self._loop.plan.model["num_experts_per_tok"]] = 1000.0  # type: ignore[misc]


def _with_gradient(loss: torch.Tensor, factor: float) -> torch.Tensor:
    """Return the same loss, whose gradient is multiplied by ``factor``."""
    same = loss.clone()
    same.register_hook(lambda gradient: gradient * factor)
    return same


class FaultyTask:
    """The method's task, whose losses have the faults."""

    def __init__(self, task: object, faults: Faults) -> None:
        self._task = task
        self._faults = faults

    def __getattr__(self, name: str) -> object:
        return getattr(self._task, name)

    def loss(self, model: object, batch: object) -> torch.Tensor:
        """Return the loss to go backward from."""
        return self._faults.on_loss(self._task.loss(model, batch))  # type: ignore[attr-defined, no-any-return]


class FailingStore:
    """The job's store, which does not answer while it is down."""

    def __init__(self, store: ObjectStore, faults: Faults) -> None:
        self._store = store
        self._faults = faults

    def __getattr__(self, name: str) -> object:
        inner = getattr(self._store, name)
        if not callable(inner):
            return inner

        def called(*args: object, **named: object) -> object:
            if self._faults.store_is_down:
                raise StoreUnavailableError(self._store.uri, "planted: it is down")
            return inner(*args, **named)

        return called

    def list(self, prefix: str, **named: object) -> Iterator[ObjectInfo]:
        """Yield the objects below the prefix."""
        if self._faults.store_is_down:
            raise StoreUnavailableError(self._store.uri, "planted: it is down")
        return self._store.list(prefix, **named)  # type: ignore[arg-type]
