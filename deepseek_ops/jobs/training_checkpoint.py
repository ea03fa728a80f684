"""The checkpoints of a training: exact, asynchronous, and never without a good one.

What must come back is weights, optimiser, expert biases and the progress; batches, rates and random states are
functions of the step. A save copies the state in memory and lets the ranks go on (``training_snapshot``); threads
write it to this machine's disk, keep it there and send it to the store (``training_keeper``), where a training that
lost its machine finds it (``training_restore``), with any number of ranks (``training_universal``). What a checkpoint
is worth, and which one to go on from, is decided by ``training.checkpoints``; what was trained on is written down and
proved at the end (``training_lives``, ``training.proof``). Here is what all ranks do together.

When something fails: a disk that is full, or a machine that cannot write, costs that checkpoint and nothing else, the
ones before stay, and the next one is tried; a store that is away delays uploads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.jobs.agreement import Peers
from deepseek_ops.jobs.training_health import Health
from deepseek_ops.jobs.training_keeper import DRAIN_SECONDS as DRAIN_SECONDS  # noqa: PLC0414  (as Progress below)
from deepseek_ops.jobs.training_keeper import Keeper
from deepseek_ops.jobs.training_lives import Lives
from deepseek_ops.jobs.training_pace import Pace
from deepseek_ops.jobs.training_progress import Progress as Progress  # noqa: PLC0414  (what callers of this module use)
from deepseek_ops.jobs.training_restore import Restored, Restorer, agreed_life
from deepseek_ops.jobs.training_shelf import leave_part
from deepseek_ops.jobs.training_snapshot import SnapshotWriter, TensorPool, Written, take_snapshot
from deepseek_ops.training.checkpoints import Candidate, CheckpointName, Life, to_resume, to_rewind
from deepseek_ops.training.proof import prove

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from deepseek_ops.core.records import TrainingPlan
    from deepseek_ops.jobs.context import JobContext

INTERVAL = "interval"
"""Why most checkpoints are taken; those that are taken for another reason go to the store whatever is under way."""


class Checkpoints:
    """The checkpoints of one plan. Every method is called by every rank, with equal arguments, in the same step."""

    def __init__(
        self,
        context: JobContext,
        plan: TrainingPlan,
        peers: Peers,
        *,
        say: Callable[..., None],
        settle: Callable[[], None],
    ) -> None:
        self._context, self._plan, self._peers = context, plan, peers
        self._say = say if peers.rank == 0 else context.event
        self._keeper = Keeper(context, plan, peers, say=self._say, settle=settle)
        self._lives = Lives(self._keeper.folder)
        self._health = Health(plan.checkpoint_steps)
        self._pace = Pace.of(context, plan, self._keeper.machine.num_nodes)
        self._writer, self._pool = SnapshotWriter(), TensorPool()
        self._life = Life(context.turn, context.restarts)
        self._last: tuple[CheckpointName, Path] | None = None
        self._progress = Progress()
        self._expected_loss: float | None = None
        self._proved = False

    @classmethod
    def of(
        cls,
        context: JobContext,
        plan: TrainingPlan,
        peers: Peers,
        *,
        say: Callable[..., None],
        settle: Callable[[], None] = lambda: None,
    ) -> Checkpoints:
        """Return the checkpoints of the plan, in the job's work folder and in its store.

        ``say`` reports events; ``settle`` brings to the store what was reported before a checkpoint.
        """
        return cls(context, plan, peers, say=say, settle=settle)

    # --- the way in ---

    def load(self, engine: DeepSpeedEngine) -> Progress | None:
        """Restore the newest usable checkpoint and return its progress; None when there is none.

        The store is asked where another machine may have trained since: at the start of an attempt. Raises what the
        store raises then, because going on from an old checkpoint would throw steps away.
        """
        self._keeper.begin()
        restorer = self._restorer()
        fresh = self._context.restarts == 0
        with self._context.phase("restoring"):
            restored = restorer.restore(engine, to_resume, look_in_store=fresh)
            if restored is None and not fresh:  # a disk that was wiped, or another number of machines
                restored = restorer.restore(engine, to_resume, look_in_store=True)
        copies = [restored.state.get("lives")] if restored is not None else []
        self._lives.read(copies)
        self._begin_life(restorer.newest_life)
        return self._resumed(restored)

    def rewind(self, engine: DeepSpeedEngine, *, before: int) -> Progress | None:
        """Restore the newest healthy checkpoint of at most step ``before``, in place; None when there is none.

        Checkpoints of later steps are given up: nobody goes on from them again.
        """
        self._settle()

        def choose(candidates: Sequence[Candidate]) -> Candidate | None:
            return to_rewind(candidates, before=before)

        with self._context.phase("restoring"):
            restored = self._restorer().restore(engine, choose, look_in_store=False)
            if restored is None:
                restored = self._restorer().restore(engine, choose, look_in_store=True)
        if restored is None:
            return None
        self._life = Life(self._life.attempt, self._life.restart, self._life.rewind + 1)
        self._keeper.give_up_after(restored.name)
        return self._resumed(restored)

    # --- while it trains ---

    def observe(self, step: int, clean: bool, *, position: int | None = None, samples: int | None = None) -> None:
        """Take note that step ``step`` is over: the ``position`` of its batch, its samples, and whether it was clean.

        ``clean``: a finite loss on all ranks, nothing skipped, no rule that fired. Every step is told, after its row
        was added to the progress and before ``due`` and ``save``. N clean steps later a checkpoint is healthy.
        """
        self._pace.step()
        if self._peers.rank == 0:
            at = step - 1 if position is None else position
            size = self._plan.hyperparameters.batch_size if samples is None else samples
            if self._lives.records:
                self._lives.add(step, at, size, self._pace.trained_seconds)
        healthy, suspect = self._health.observe(step, clean)
        self._keeper.mark_healthy(healthy)
        if suspect:
            if self._last is not None and self._last[0] in suspect:
                self._settle()  # it may still be in the making
            self._keeper.forget(suspect)
        if self._expected_loss is not None:
            self._compare_loss(step, self._expected_loss)

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due after step ``step``."""
        return self._pace.due(step)

    def save(self, engine: DeepSpeedEngine, progress: Progress, *, reason: str = INTERVAL) -> Path:
        """Take a checkpoint of the state after ``progress.step`` steps and return its folder, which appears later.

        The ranks wait for a copy in memory, and for the checkpoint before it if that is still being written.
        """
        name = CheckpointName(self._life, progress.step)
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        began = time.perf_counter()
        with self._context.phase("checkpointing"):
            self._settle()
            send = self._keeper.goes_to_store(name, must=reason != INTERVAL)
        self._progress = progress
        shelf = self._keeper.shelf
        partial = shelf.partial(name)
        files = take_snapshot(engine, self._pool, shared=self._keeper.machine.leads)
        rank = self._peers.rank

        def done(written: Written) -> None:
            leave_part(partial, rank, written.files, written.problem)

        self._writer.start(files, partial, done)
        self._seal_later(name, progress, reason, send=send)
        self._health.saved(name)
        self._last = (name, shelf.path(name))
        self._pace.saved(progress.step, time.perf_counter() - began)
        if self._pace.automatic:
            self._replan(progress.step)
        return self._last[1]

    # --- the way out ---

    def finish(self, progress: Progress | None = None) -> None:
        """Wait for what is still being written or sent; with the last ``progress``, report the proof of the resumes."""
        self._settle()
        if progress is not None:
            self._prove(progress)
        self._keeper.finish()
        self._lives.close()

    def clear(self) -> None:
        """Remove all checkpoints, here and in the store: the run's result is stored."""
        self._settle()
        self._prove(self._progress)
        self._lives.close()
        self._keeper.clear()

    # --- inside ---

    def _settle(self) -> None:
        """Return when the last checkpoint is on the disks of all machines, or given up."""
        self._writer.wait()
        self._peers.barrier()
        self._keeper.settle()

    def _seal_later(self, name: CheckpointName, progress: Progress, reason: str, *, send: bool) -> None:
        began = time.perf_counter()

        def sealed() -> None:
            self._pace.busy = max(time.perf_counter() - began, self._keeper.upload_seconds)

        state: dict[str, JsonValue] = {
            "plan": self._plan.fingerprint,
            "world_size": self._peers.world_size,
            "num_nodes": self._keeper.machine.num_nodes,
            "calm": self._health.calm,
            "reason": reason,
            "progress": progress.dump(),
            "lives": self._lives.dump(),
            "cost_seconds": self._pace.cost,
        }
        self._keeper.seal_later(name, state, send=send, sealed=sealed)

    def _begin_life(self, newest: Life | None) -> None:
        """Agree on a life that comes after every one that anybody has heard of."""
        own = Life(self._context.turn, self._context.restarts)
        self._life = agreed_life(self._peers, own, (newest, self._lives.newest))

    def _resumed(self, restored: Restored | None) -> Progress | None:
        """Start the record of a life, from scratch or from what was restored."""
        progress = Progress()
        if restored is not None:
            state = restored.state["progress"]
            progress = Progress.load(state if isinstance(state, dict) else {})
            self._pace.cost = float(str(restored.state.get("cost_seconds", 0.0)))
            if restored.world_size != self._peers.world_size:
                self._expected_loss = _last_loss(progress)
            self._say_restored(restored, progress)
            self._keeper.restored(restored)
        self._progress = progress
        self._last = None
        self._health.begin(restored.name if restored is not None else None)
        self._pace.begin(progress.step)
        if self._peers.rank == 0:
            self._lives.begin(self._life, from_step=progress.step, world_size=self._peers.world_size)
        return progress if restored is not None else None

    def _say_restored(self, restored: Restored, progress: Progress) -> None:
        if self._peers.rank == 0:
            self._say(
                "checkpoint_restored",
                checkpoint=str(restored.name),
                step=progress.step,
                source=restored.source,
                written_by_ranks=restored.world_size,
                ranks=self._peers.world_size,
                life=str(self._life),
            )

    def _replan(self, step: int) -> None:
        lives = self._lives.records
        starts = {(life.attempt, life.restart) for life in (Life.parse(record.life) for record in lives)}
        before = sum(record.seconds for record in lives[:-1])
        interval = self._pace.planned(interruptions=max(0, len(starts) - 1), before_seconds=before)
        steps = self._peers.from_first(interval.steps)
        self._pace.next_after(step, steps)
        if self._peers.rank == 0 and self._pace.is_news(steps):
            self._say("checkpoint_interval", **asdict(interval))

    def _compare_loss(self, step: int, expected: float) -> None:
        self._expected_loss = None
        loss = _last_loss(self._progress)
        if loss is None or self._peers.rank != 0:
            return
        self._say("loss_continuity", step=step, loss=loss, before=expected, difference=loss - expected)

    def _prove(self, progress: Progress) -> None:
        if self._peers.rank == 0 and not self._proved:
            self._proved = True
            self._say(
                "resume_proof", **prove(self._lives.records, steps=progress.step, left_out=progress.skipped).dump()
            )

    def _restorer(self) -> Restorer:
        keeper = self._keeper
        return Restorer(keeper.shelf, keeper.stored(), self._peers, keeper.machine, working=self._context.working)


def _last_loss(progress: Progress) -> float | None:
    return progress.history[-1].get("training_loss") if progress.history else None
