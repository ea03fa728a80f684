"""What cannot be done is said, with the reason: a rewind to a step that is still to come, a payload in parts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from deepseek_ops.core.errors import ConfigError, InvalidRecordError
from deepseek_ops.core.jobs import JobRequest, JobSpec
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.training_actions import Actions
from deepseek_ops.jobs.training_ranks import Ranks
from deepseek_ops.training.guardian import Guardian
from deepseek_ops.training.guardian_ledger import Ledger


class Kept:
    """A ledger in memory, as rank 0 has it."""

    def __init__(self) -> None:
        self.ledger = Ledger()

    def add(self, entries) -> None:
        for entry in entries:
            self.ledger.add(entry)


class Progress(SimpleNamespace):
    """A training at a step."""


class Checkpoints:
    """Notes where it is asked to go back to, and has nothing there."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def observe(self, *_: object, **__: object) -> None:
        """Take the step."""

    def rewind(self, _engine: object, *, before: int) -> None:
        self.asked.append(before)


@pytest.mark.parametrize(
    ("to", "asked", "why"),
    [
        (100_000, [], "step 100000 is still to come: the training is at step 489"),
        (490, [], "step 490 is still to come: the training is at step 489"),
        (489, [489], "no healthy checkpoint of step 489 or before"),
    ],
)
def test_a_rewind_to_a_step_that_is_still_to_come_is_refused_and_leaves_nothing_out(to, asked, why) -> None:
    kept, checkpoints, said = Kept(), Checkpoints(), []
    streams = SimpleNamespace(event=lambda kind, **fields: said.append((kind, fields)))
    request = JobRequest(number=7, verb="rewind", step=to, by="ada")
    actions = Actions(
        Guardian([], []),
        kept,
        checkpoints,
        engine=None,
        streams=streams,
        ranks=Ranks(0, 1, "cpu", lambda: False),
        requests=lambda after: [request] if after < 7 else [],
        samples=8,
    )
    progress = Progress(step=489, skipped=[], lr_factor=1.0, rewinds=0, guardian={})
    going, ending = actions.settle(progress, {"step": 489.0, "training_loss": 1.0}, asked=False)
    assert (going.skipped, ending, checkpoints.asked) == ([], None, asked)
    ((kind, fields),) = said
    assert (kind, fields["action"], fields["done"], fields["request"]) == ("guardian", "rewind", False, 7)
    assert fields["why_not"] == why
    assert kept.ledger.obeyed == 7, "answered once"


def test_a_payload_without_a_part_is_refused_by_its_name(tmp_path: Path) -> None:
    context = JobContext(JobSpec(name="early", kind="train", payload={"alerts": []}), tmp_path / "early")
    assert context.payload.get("plan") is None
    with pytest.raises(InvalidRecordError) as refused:
        context.payload["plan"]
    assert str(refused.value) == "not a valid payload of the train job early: it has no 'plan'."


def test_an_error_without_a_file_begins_with_its_key() -> None:
    assert str(ConfigError("", 0, "job", "'x' names 0 jobs.", "Look.")) == "job: 'x' names 0 jobs. Look."
    assert str(ConfigError("a.yaml", 3, "", "it is empty.", "")) == "a.yaml:3: it is empty."
