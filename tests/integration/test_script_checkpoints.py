"""Checkpoints of a script's Trainer as files: whole ones are found again anywhere, with the best; halves never."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.core.records import DatasetVersion, Hyperparameters, TrainingPlan
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.hf_checkpoints import ScriptCheckpoints
from deepseek_ops.jobs.training_ranks import Ranks

PLAN = TrainingPlan(
    dataset=DatasetVersion(name="none", version="0" * 64, tree="0" * 64, num_files=0, num_bytes=0),
    model={},
    nproc_per_node=1,
    hyperparameters=Hyperparameters(learning_rate=0.01, batch_size=4, max_steps=2, sequence_length=16),
)


class Machine:
    """A machine on which a script trains, told apart from others by its folder."""

    def __init__(self, root: Path, name: str, *, attempt: int = 1, number: int = 0) -> None:
        spec = JobSpec(name="script", kind="train", payload={})
        context = JobContext(spec, root / name, attempt=attempt, store=LocalStore(root / "store"))
        self.output, self.said = context.work / "output", []
        ranks = Ranks(0, 1, "cpu", lambda: False)
        self.checkpoints = ScriptCheckpoints(
            context, PLAN, ranks, number=number, say=lambda kind, **fields: self.said.append((kind, fields))
        )

    def folder(self, step: int) -> Path:
        return self.output / f"checkpoint-{step}"

    def save(self, step: int, *, best: int | None = None, ends: bool = True) -> None:
        """Write a checkpoint as a Trainer does, in this folder and in one below it."""
        folder = self.folder(step)
        self.checkpoints.begin_save(folder, ours=False)
        (folder / "global_step").mkdir()
        (folder / "global_step" / "shard.pt").write_text(f"shard at {step}")
        (folder / "model.safetensors").write_text(f"weights at {step}")
        state = {"global_step": step, "best_model_checkpoint": None if best is None else str(self.folder(best))}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        if ends:
            self.checkpoints.end_save(folder, step, {"seen": {"tokens": step}})


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Where a machine has trained for ten steps and was best at step 2."""
    first = Machine(tmp_path, "first")
    assert first.checkpoints.resume(first.output) is None
    for step in (2, 4, 6, 8, 10):
        first.save(step, best=2)
    first.checkpoints.finish(30)
    return tmp_path


def test_another_machine_finds_the_newest_and_the_best_where_its_trainer_looks(trained: Path) -> None:
    second = Machine(trained, "second", attempt=2)
    folder, state = second.checkpoints.resume(second.output)
    assert (folder, state["seen"]) == (second.folder(10), {"tokens": 10})
    assert (folder / "model.safetensors").read_text() == "weights at 10"
    assert (folder / "global_step" / "shard.pt").read_text() == "shard at 10"
    assert (second.folder(2) / "model.safetensors").read_text() == "weights at 2", "however old"
    assert json.loads((folder / "trainer_state.json").read_text())["best_model_checkpoint"] == str(second.folder(2))
    assert [fields["source"] for kind, fields in second.said if kind == "checkpoint_restored"] == ["store"]
    for step in (12, 14, 16, 18):
        second.save(step, best=2)
    second.checkpoints.finish(30)
    third = Machine(trained, "third", attempt=3)
    assert third.checkpoints.resume(third.output)[0] == third.folder(18)
    assert third.folder(2).is_dir()
    third.checkpoints.clear()
    assert [info.key for info in LocalStore(trained / "store").list("runs/")] == []


def test_half_a_checkpoint_is_not_gone_on_from_and_is_written_anew(trained: Path) -> None:
    first = Machine(trained, "first", attempt=2)
    first.checkpoints.resume(first.output)
    first.save(12, ends=False)
    assert first.checkpoints.is_own(first.folder(12))
    again = Machine(trained, "first", attempt=3)
    assert again.checkpoints.resume(again.output)[0] == again.folder(10)
    again.save(12)
    again.checkpoints.finish(30)
    assert Machine(trained, "first", attempt=4).checkpoints.resume(again.output)[0] == again.folder(12)


def test_a_second_training_of_the_script_does_not_take_the_first_ones_for_its_own(trained: Path) -> None:
    second = Machine(trained, "first", number=1)
    assert second.checkpoints.resume(second.output) is None
    second.save(10)  # in the same folder: the first one's files stay what they were
    second.checkpoints.finish(30)
    moved = Machine(trained, "moved", attempt=2)
    assert (moved.checkpoints.resume(moved.output)[0] / "model.safetensors").read_text() == "weights at 10"
    assert [kind for kind, _ in moved.said] == ["checkpoint_restored"]


def test_a_file_that_was_damaged_here_is_fetched(trained: Path) -> None:
    first = Machine(trained, "first", attempt=2)
    (first.folder(10) / "model.safetensors").write_text("weights at X!")  # linked: the shelf's copy is this file
    folder, _ = first.checkpoints.resume(first.output)
    assert (folder / "model.safetensors").read_text() == "weights at 10"
    assert first.said[-1][1]["source"] == "store"
