"""The checkpoints of a training: exact, asynchronous, and never without a good one.

What must come back is weights, optimiser, expert biases and the progress; batches, rates and random states are
functions of the step. A save copies the state in memory and lets the ranks go on (``training_snapshot``); threads
write it to this machine's disk (``training_shelf``) and send it to the store (``training_upload``), where a training
that lost its machine finds it (``training_restore``), with any number of ranks (``training_universal``). What a
checkpoint is worth, and which one to go on from, is decided by ``training.checkpoints``; what was trained on is
written down and proved at the end (``training_lives``, ``training.proof``).

When something fails: a disk that is full, or a machine that cannot write, costs that checkpoint and nothing else, the
ones before stay, and the next one is tried; a store that is away delays uploads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.jobs.agreement import Peers
from deepseek_ops.jobs.training_health import Health
from deepseek_ops.jobs.training_lives import Lives
from deepseek_ops.jobs.training_pace import Pace
from deepseek_ops.jobs.training_progress import Progress as Progress  # noqa: PLC0414  (what callers of this module use)
from deepseek_ops.jobs.training_restore import Machine, Restored, Restorer, agreed_life
from deepseek_ops.jobs.training_shelf import Sealing, Shelf, leave_part
from deepseek_ops.jobs.training_snapshot import SnapshotWriter, TensorPool, Written, take_snapshot
from deepseek_ops.jobs.training_store import StoredCheckpoints
from deepseek_ops.jobs.training_upload import Place, Uploads
from deepseek_ops.training.checkpoints import Candidate, CheckpointName, Life, to_resume, to_rewind
from deepseek_ops.training.proof import prove

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from deepseek_ops.core.records import TrainingPlan
    from deepseek_ops.jobs.context import JobContext

DRAIN_SECONDS = 300.0
"""How long the end of a training waits for uploads; half of its grace when it was told to stop."""


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
        self._before_whole = settle
        self._machine = Machine.of(peers)
        self._node, nodes = self._machine.node, self._machine.num_nodes
        folder = context.work / "checkpoints"
        self._folder = folder if nodes == 1 else folder / f"node-{self._node:03d}"
        self._say = say if peers.rank == 0 else context.event
        self._shelf = Shelf(self._folder, plan=plan.fingerprint)
        self._lives = Lives(self._folder)
        self._health = Health(plan.checkpoint_steps)
        self._pace = Pace.of(context, plan, nodes)
        self._writer, self._pool = SnapshotWriter(), TensorPool()
        self._sealing: Sealing | None = None
        self._uploads: Uploads | None = None
        self._life = Life(context.attempt, context.restarts)
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
        if self._machine.leads:
            self._shelf.tidy()
            self._uploading()
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
        self._give_up(restored.name)
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
        if self._machine.leads:
            for name in healthy:
                self._shelf.mark_healthy(name)
                self._uploading().mark_healthy(name)
        if suspect:
            if self._last is not None and self._last[0] in suspect:
                self._settle()  # it may still be in the making
            self._forget(suspect)
        if self._expected_loss is not None:
            self._compare_loss(step, self._expected_loss)

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due after step ``step``."""
        return self._pace.due(step)

    def save(self, engine: DeepSpeedEngine, progress: Progress, *, reason: str = "interval") -> Path:
        """Take a checkpoint of the state after ``progress.step`` steps and return its folder, which appears later.

        The ranks wait for a copy in memory, and for the checkpoint before it if that is still being written.
        """
        name = CheckpointName(self._life, progress.step)
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        began = time.perf_counter()
        with self._context.phase("checkpointing"):
            self._settle()
        self._progress = progress
        partial = self._shelf.partial(name)
        files = take_snapshot(engine, self._pool, shared=self._machine.leads)
        rank = self._peers.rank

        def done(written: Written) -> None:
            leave_part(partial, rank, written.files, written.problem)

        self._writer.start(files, partial, done)
        if self._machine.leads:
            self._sealing = self._seal_later(name, progress, reason)
        self._health.saved(name)
        self._last = (name, self._shelf.path(name))
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
        if self._uploads is not None:
            stopping = self._context.stop_requested
            seconds = 0.5 * self._context.spec.grace_seconds if stopping else DRAIN_SECONDS
            if not self._uploads.drain(seconds):
                self._say("checkpoint_upload_abandoned", after_seconds=seconds)
            self._uploads.end()
            self._uploads = None
        self._lives.close()

    def clear(self) -> None:
        """Remove all checkpoints, here and in the store: the run's result is stored."""
        self._settle()
        self._prove(self._progress)
        if self._uploads is not None:
            self._uploads.end()
        self._lives.close()
        if self._machine.leads:
            self._shelf.clear()
        if self._peers.rank == 0 and self._context.is_current:
            with suppress(DeepSeekOpsError):  # the next collection of garbage, or the next attempt, finds them
                self._stored().clear()
        if self._machine.leads:
            with suppress(OSError):
                (self._context.work / "checkpoints").rmdir()

    # --- inside ---

    def _settle(self) -> None:
        """Return when the last checkpoint is on the disks of all machines, or given up."""
        self._writer.wait()
        self._peers.barrier()
        if self._sealing is not None:
            self._sealing.settle()
            self._sealing = None

    def _seal_later(self, name: CheckpointName, progress: Progress, reason: str) -> Sealing:
        began = time.perf_counter()

        def sealed(name: CheckpointName) -> None:
            self._pace.busy = max(time.perf_counter() - began, self._uploads.seconds if self._uploads else 0.0)
            self._uploading().offer(name)
            self._shelf.prune()

        def failed(name: CheckpointName, problem: str) -> None:
            self._say("checkpoint_failed", checkpoint=str(name), step=name.step, problem=problem)
            self._shelf.prune(1)  # room for the next one; the newest and the newest healthy one stay

        state: dict[str, JsonValue] = {
            "plan": self._plan.fingerprint,
            "world_size": self._peers.world_size,
            "num_nodes": self._machine.num_nodes,
            "calm": self._health.calm,
            "reason": reason,
            "progress": progress.dump(),
            "lives": self._lives.dump(),
            "cost_seconds": self._pace.cost,
        }
        return Sealing(self._shelf, name, ranks=self._machine.ranks, state=state, sealed=sealed, failed=failed)

    def _begin_life(self, newest: Life | None) -> None:
        """Agree on a life that comes after every one that anybody has heard of."""
        own = Life(self._context.attempt, self._context.restarts)
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
            if self._machine.leads:
                self._store_has(restored)
        self._progress = progress
        self._last = None
        self._health.begin(restored.name if restored is not None else None)
        self._pace.begin(progress.step)
        if self._peers.rank == 0:
            self._lives.begin(self._life, from_step=progress.step, world_size=self._peers.world_size)
        return progress if restored is not None else None

    def _store_has(self, restored: Restored) -> None:
        """Send what a process that was killed may not have sent; what came from the store is there."""
        if restored.source == "disk":
            self._uploading().offer(restored.name)
        else:
            self._uploading().assume_sent(restored.name)

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

    def _give_up(self, last_good: CheckpointName) -> None:
        """Let go of every checkpoint that does not lead to where the training goes on from."""
        names = [one.name for one in self._shelf.all()]
        self._forget([name for name in names if name > last_good or name.step > last_good.step])

    def _forget(self, names: Sequence[CheckpointName]) -> None:
        if self._machine.leads:
            for name in names:
                self._shelf.remove(name)
            self._uploading().forget(names)

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
        return Restorer(self._shelf, self._stored(), self._peers, self._machine, working=self._context.working)

    def _stored(self) -> StoredCheckpoints:
        return StoredCheckpoints(self._context.store, self._plan.run_prefix, plan=self._plan.fingerprint)

    def _uploading(self) -> Uploads:
        if self._uploads is None:
            place = Place(self._node, self._machine.num_nodes, lambda: self._context.is_current, self._before_whole)
            self._uploads = Uploads(self._stored(), self._shelf, place, self._say)
        return self._uploads


def _last_loss(progress: Progress) -> float | None:
    return progress.history[-1].get("training_loss") if progress.history else None
