"""The checkpoints of a script's Trainer: kept and sent as our own trainer's are, found again on another machine.

::

    <work>/script-checkpoints/training-000/step-00000006.001-000-000/     the shelf of the script's first train()
    runs/<plan>/training-000/checkpoints/step-...                         the same in the store
    <output_dir>/checkpoint-6/                                            what the Trainer reads and writes

When all ranks have written a checkpoint, each machine's first rank links its files into the shelf (no byte is copied,
and the Trainer may rotate its own folder away); digests, the store and what is kept go on behind the training's back,
with the machinery of our own checkpoints. A resume takes the newest whole one and lays it where the Trainer looks.
Nothing here asks whether a checkpoint is healthy: an update that is not finite never reaches the weights of a script's
model, and a foreign loop cannot rewind.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.records import FileEntry
from deepseek_ops.data.blobs import hash_file
from deepseek_ops.jobs.training_choice import goes_to_store
from deepseek_ops.jobs.training_restore import Machine, Restorer, agreed_life
from deepseek_ops.jobs.training_shelf import STATE, Sealing, Shelf, Shelved, leave_part, read_json, write_json
from deepseek_ops.jobs.training_store import StoredCheckpoints
from deepseek_ops.jobs.training_upload import Place, Uploads
from deepseek_ops.training.checkpoints import Candidate, CheckpointName, Life, to_resume

if TYPE_CHECKING:
    from deepseek_ops.core.records import TrainingPlan
    from deepseek_ops.jobs.agreement import Peers
    from deepseek_ops.jobs.context import JobContext

FOLDER = "script-checkpoints"
KEPT = 2
"""Checkpoints that stay in the script's folder of those that only we asked for."""
_MARK = "deepseek-ops.json"
_TRAINER_STATE, _BEST = "trainer_state.json", "best_model_checkpoint"


class ScriptCheckpoints:
    """The checkpoints of one ``train()``, the ``number``-th of its script. Every method is called by every rank."""

    def __init__(
        self,
        context: JobContext,
        plan: TrainingPlan,
        peers: Peers,
        *,
        number: int,
        say: Callable[..., None],
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self._context, self._plan, self._peers = context, plan, peers
        self._machine = Machine.of(peers)
        self._say = say if peers.rank == 0 else context.event
        self._number = number
        part = f"training-{number:03d}"
        folder = context.work / FOLDER / part
        self._folder = folder if self._machine.num_nodes == 1 else folder / f"node-{self._machine.node:03d}"
        self._shelf = Shelf(self._folder, plan=plan.fingerprint)
        self._stored = StoredCheckpoints(context.store, f"{plan.run_prefix}/{part}", plan=plan.fingerprint)
        place = Place(self._machine.node, self._machine.num_nodes, lambda: context.is_current, settle)
        self._uploads = Uploads(self._stored, self._shelf, place, self._say)
        self._life = Life(context.turn, context.restarts)
        self._names: dict[int, CheckpointName] = {}
        self._written: set[Path] = set()
        self._sealing: Sealing | None = None
        self._linking = threading.Thread()

    def resume(self, output: Path) -> tuple[Path, dict[str, JsonValue]] | None:
        """Return the Trainer's folder of the newest whole checkpoint and what was said of it; None without one.

        It is laid below ``output``, and so is the best one so far if the Trainer remembers which that was. Raises what
        the store raises at the start of an attempt: going on from an old checkpoint would throw steps away.
        """
        if self._machine.leads:
            self._shelf.tidy()
        working = self._context.working
        restorer = Restorer(self._shelf, self._stored, self._peers, self._machine, whole=True, working=working)
        ask = self._context.restarts == 0 or self._machine.num_nodes > 1
        found = restorer.bring(to_resume, look_in_store=ask, everything=lambda _ranks: True)
        if found is None and not ask:
            found = restorer.bring(to_resume, look_in_store=True, everything=lambda _ranks: True)
        own = Life(self._context.turn, self._context.restarts)
        self._life = agreed_life(self._peers, own, (restorer.newest_life,))
        if found is None:
            return None
        shelved, source = found
        self._names[shelved.name.step] = shelved.name
        best = self._bring_best(restorer, shelved)
        folder = output / f"checkpoint-{shelved.name.step}"
        self._written.add(folder)
        if self._machine.leads:
            if best is not None:
                _lay(best, output / f"checkpoint-{best.name.step}", output)
            _lay(shelved, folder, output)
            self._pin(None if best is None else best.name.step)
            if source == "disk":
                self._uploads.offer(shelved.name)
            else:
                self._uploads.assume_sent(shelved.name)
        self._peers.barrier()
        if self._peers.rank == 0:
            self._say("checkpoint_restored", checkpoint=str(shelved.name), step=shelved.name.step, source=source)
        return folder, shelved.state()

    def begin_save(self, folder: Path, *, ours: bool) -> None:
        """Clear the way for a checkpoint in ``folder``; ``ours``: the script itself would not have taken it.

        What lies there is another train()'s, or what a killed process has left. It is removed rather than written
        over: the shelf may have links to those files.
        """
        self._settle()
        self._peers.barrier()
        self._written.add(folder)
        if self._machine.leads:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / _MARK, {"training": self._number, "ours": ours})
        self._peers.barrier()

    def end_save(self, folder: Path, step: int, state: Mapping[str, JsonValue]) -> None:
        """Keep and send the checkpoint that every rank has now written to ``folder``, and ``state`` with it."""
        self._peers.barrier()
        name = CheckpointName(self._life, step)
        self._names[step] = name
        uploads = self._uploads if self._machine.leads else None
        send = goes_to_store(self._peers, self._machine.num_nodes, name, uploads, must=self._context.stop_requested)
        if not self._machine.leads:
            return
        partial = self._shelf.partial(name)
        problem = ""
        try:
            links = link_files(folder, partial)
        except OSError as error:
            links, problem = [], error.strerror or str(error)
        self._pin(best_step(folder))
        body: dict[str, JsonValue] = {
            "plan": self._plan.fingerprint,
            "world_size": self._peers.world_size,
            "num_nodes": self._machine.num_nodes,
            "calm": True,
            **state,
        }
        rank = self._peers.rank

        def is_sealed(name: CheckpointName) -> None:
            if send:
                self._uploads.offer(name)
            self._shelf.prune()

        self._sealing = Sealing(self._shelf, name, ranks=(rank,), state=body, sealed=is_sealed, failed=self._has_failed)
        self._linking = threading.Thread(
            target=_leave, args=(partial, rank, links, problem), name="checkpoint-digests", daemon=True
        )
        self._linking.start()
        _rotate(folder.parent, self._number)

    def is_own(self, folder: Path) -> bool:
        """Return whether the folder is a checkpoint that was written under our eyes, by rank 0's view."""
        return bool(self._peers.from_first(int((folder / _MARK).is_file())))

    def finish(self, seconds: float) -> None:
        """Wait for what is still being written or sent, so long at most."""
        self._settle()
        if not self._uploads.drain(seconds):
            self._say("checkpoint_upload_abandoned", after_seconds=seconds)
        self._uploads.end()

    def clear(self, *, output: bool = False) -> None:
        """Remove everything, here and in the store: nobody resumes. ``finish`` came before.

        ``output``: of the Trainer's own folders too.
        """
        if self._machine.leads:
            self._shelf.clear()
            for folder in sorted(self._written) if output else ():
                shutil.rmtree(folder, ignore_errors=True)
        if self._peers.rank == 0 and self._context.is_current:
            with suppress(DeepSeekOpsError):  # the next collection of garbage finds them
                self._stored.clear()

    def _bring_best(self, restorer: Restorer, shelved: Shelved) -> Shelved | None:
        step = best_step(shelved.folder)
        if step is None or step == shelved.name.step:
            return None

        def choose(candidates: Sequence[Candidate]) -> Candidate | None:
            fitting = (one for one in candidates if one.name.step == step and one.name < shelved.name)
            return max(fitting, key=lambda one: one.name, default=None)

        found = restorer.bring(choose, look_in_store=True, everything=lambda _ranks: True)
        if found is None:
            if self._peers.rank == 0:
                self._say("best_checkpoint_missing", step=step)
            return None
        self._names[step] = found[0].name
        return found[0]

    def _pin(self, step: int | None) -> None:
        """Keep the checkpoint of the best step as long as it is the best."""
        name = self._names.get(-1 if step is None else step)
        self._shelf.pinned = set() if name is None else {name}

    def _settle(self) -> None:
        if self._sealing is not None:
            self._linking.join()
            self._sealing.settle()
            self._sealing = None

    def _has_failed(self, name: CheckpointName, problem: str) -> None:
        self._say("checkpoint_failed", checkpoint=str(name), step=name.step, problem=problem)
        self._shelf.prune(1)


def link_files(folder: Path, target: Path) -> list[Path]:
    """Return the files below ``folder``, relative to it, each now a link (on another disk: a copy) in ``target``."""
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        there = target / name
        there.parent.mkdir(parents=True, exist_ok=True)
        there.unlink(missing_ok=True)
        try:
            os.link((folder / name).resolve(), there)
        except OSError:
            shutil.copyfile(folder / name, there)
    return names


def best_step(folder: Path) -> int | None:
    """Return the step of the best checkpoint as the Trainer's state names it."""
    state = read_json(folder / _TRAINER_STATE)
    best = state.get(_BEST) if isinstance(state, dict) else None
    number = str(best).rpartition("-")[2]
    return int(number) if best and number.isdigit() else None


def _leave(partial: Path, rank: int, names: Sequence[Path], problem: str) -> None:
    entries = []
    try:
        for name in names:
            digest, size = hash_file(partial / name)
            entries.append(FileEntry(path=name.as_posix(), size=size, digest=digest))
    except DeepSeekOpsError as error:
        problem = str(error)
    leave_part(partial, rank, [] if problem else entries, problem)


def _lay(shelved: Shelved, folder: Path, output: Path) -> None:
    """Make ``folder`` the checkpoint; its best one is looked for below ``output``, wherever it was written."""
    shutil.rmtree(folder, ignore_errors=True)
    link_files(shelved.folder, folder)
    for name in (STATE, "files.json"):
        (folder / name).unlink(missing_ok=True)
    best, state = best_step(folder), read_json(folder / _TRAINER_STATE)
    if best is not None and isinstance(state, dict):
        write_json(folder / _TRAINER_STATE, {**state, _BEST: str(output / f"checkpoint-{best}")})


def _rotate(output: Path, number: int) -> None:
    """Let go of the oldest checkpoints that only we asked for."""
    found = [(path.name.rpartition("-")[2], path) for path in output.glob("checkpoint-*")]
    ours = sorted(
        (int(step), path)
        for step, path in found
        if step.isdigit() and read_json(path / _MARK) == {"training": number, "ours": True}
    )
    for _step, path in ours[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)
