"""What one machine does with its checkpoints behind the training's back: completes, keeps and sends them.

The machine's first rank does it; on the other ranks every method but ``goes_to_store`` does nothing. None of them waits
for another machine, and a disk or a store that refuses costs a checkpoint and never the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.jobs.agreement import Peers
from deepseek_ops.jobs.training_choice import goes_to_store
from deepseek_ops.jobs.training_restore import Machine, Restored
from deepseek_ops.jobs.training_shelf import Sealing, Shelf
from deepseek_ops.jobs.training_store import StoredCheckpoints
from deepseek_ops.jobs.training_upload import Place, Uploads
from deepseek_ops.training.checkpoints import CheckpointName

if TYPE_CHECKING:
    from deepseek_ops.core.records import TrainingPlan
    from deepseek_ops.jobs.context import JobContext

DRAIN_SECONDS = 300.0
"""How long the end of a training waits for uploads; half of its grace when it was told to stop."""


class Keeper:
    """The checkpoints of one machine of a training, on its disk and on their way to the store."""

    def __init__(
        self,
        context: JobContext,
        plan: TrainingPlan,
        peers: Peers,
        *,
        say: Callable[..., None],
        settle: Callable[[], None],
    ) -> None:
        self._context, self._plan, self._peers, self._say = context, plan, peers, say
        self.machine = Machine.of(peers)
        folder = context.work / "checkpoints"
        self.folder = folder if self.machine.num_nodes == 1 else folder / f"node-{self.machine.node:03d}"
        self.shelf = Shelf(self.folder, plan=plan.fingerprint)
        self._place = Place(self.machine.node, self.machine.num_nodes, lambda: context.is_current, settle)
        self._uploads: Uploads | None = None
        self._sealing: Sealing | None = None

    def begin(self) -> None:
        """Tidy up what a dead process left half done, and tell the store what it found out of health."""
        if self.machine.leads:
            self.shelf.tidy()
            self._uploading().catch_up()

    def stored(self) -> StoredCheckpoints:
        """Return the training's checkpoints in the store."""
        return StoredCheckpoints(self._context.store, self._plan.run_prefix, plan=self._plan.fingerprint)

    @property
    def upload_seconds(self) -> float:
        """How long the last upload took."""
        return self._uploads.seconds if self._uploads is not None else 0.0

    def goes_to_store(self, name: CheckpointName, *, must: bool) -> bool:
        """Return whether the checkpoint is sent, the same on every rank; see ``training_choice``."""
        uploads = self._uploading() if self.machine.leads else None
        return goes_to_store(self._peers, self.machine.num_nodes, name, uploads, must=must)

    def seal_later(
        self,
        name: CheckpointName,
        state: Mapping[str, JsonValue],
        *,
        send: bool,
        sealed: Callable[[], None] = lambda: None,
    ) -> None:
        """Complete the checkpoint as soon as all ranks of this machine have written it, and send it if it is to be."""
        if not self.machine.leads:
            return

        def is_sealed(name: CheckpointName) -> None:
            sealed()
            if send:
                self._uploading().offer(name)
            self.shelf.prune()

        def has_failed(name: CheckpointName, problem: str) -> None:
            self._say("checkpoint_failed", checkpoint=str(name), step=name.step, problem=problem)
            self.shelf.prune(1)  # room for the next one; the newest and the newest healthy one stay

        self._sealing = Sealing(
            self.shelf, name, ranks=self.machine.ranks, state=state, sealed=is_sealed, failed=has_failed
        )

    def settle(self) -> None:
        """Return when the last checkpoint is complete on this machine's disk, or given up: all ranks have written."""
        if self._sealing is not None:
            self._sealing.settle()
            self._sealing = None

    def restored(self, restored: Restored) -> None:
        """Send what a process that was killed may not have sent; what came from the store is there."""
        if not self.machine.leads:
            return
        if restored.source == "disk":
            self._uploading().offer(restored.name)
        else:
            self._uploading().assume_sent(restored.name)

    def mark_healthy(self, names: Sequence[CheckpointName]) -> None:
        """Note that N clean steps came after the checkpoints."""
        if self.machine.leads:
            for name in names:
                self.shelf.mark_healthy(name)
                self._uploading().mark_healthy(name)

    def forget(self, names: Sequence[CheckpointName]) -> None:
        """Let checkpoints go, here and in the store."""
        if self.machine.leads:
            for name in names:
                self.shelf.remove(name)
            self._uploading().forget(names)

    def give_up_after(self, last_good: CheckpointName) -> None:
        """Let go of every checkpoint that does not lead to where the training goes on from."""
        names = [one.name for one in self.shelf.all()]
        self.forget([name for name in names if name > last_good or name.step > last_good.step])

    def finish(self) -> None:
        """Wait for what is still being sent: for minutes, or half of the grace when the job was told to stop."""
        if self._uploads is None:
            return
        seconds = 0.5 * self._context.spec.grace_seconds if self._context.stop_requested else DRAIN_SECONDS
        if not self._uploads.drain(seconds):
            self._say("checkpoint_upload_abandoned", after_seconds=seconds)
        self._end_uploads()

    def clear(self) -> None:
        """Remove all checkpoints, here and in the store."""
        self._end_uploads()
        if self.machine.leads:
            self.shelf.clear()
        if self._peers.rank == 0 and self._context.is_current:
            with suppress(DeepSeekOpsError):  # the next collection of garbage, or the next attempt, finds them
                self.stored().clear()
        if self.machine.leads:
            with suppress(OSError):
                (self._context.work / "checkpoints").rmdir()

    def _end_uploads(self) -> None:
        if self._uploads is not None:
            self._uploads.end()
            self._uploads = None

    def _uploading(self) -> Uploads:
        if self._uploads is None:
            self._uploads = Uploads(self.stored(), self.shelf, self._place, self._say)
        return self._uploads
