"""Experiments are put together from commits, tags and notes."""

from __future__ import annotations

import pytest

from deepseek_ops.core.conditions import SelectionKindError
from deepseek_ops.core.ports import RecordText
from deepseek_ops.pipeline.experiments import UnknownNameError, body_of, chosen, experiments_of, row_of
from deepseek_ops.pipeline.records_in_git import ExperimentRecord, ReleaseRecord, experiment_message, release_message


def record(number: int, **changes: object) -> ExperimentRecord:
    made = ExperimentRecord(
        model="tiny",
        dataset="corpus",
        hyperparameters={"learning_rate": 10.0**-number, "seed": number, "schedule": {"warmup": 5}},
        performance={"val_loss": 1 / number},
        run_id=f"run-{number}",
        dataset_version="ab" * 32,
        manifest=f"{number:064x}",
    )
    return made.evolve(**changes)


def commit(number: int, text: str, *, time: int) -> RecordText:
    return RecordText("commit", f"{number:040x}", text, time, "Ada", parents=(f"{number - 1:040x}",))


def test_commit_tag_and_note_of_a_record_are_one_experiment() -> None:
    message = experiment_message(record(1))
    texts = [
        commit(1, message, time=100),
        RecordText("tag", f"{1:040x}", message, 200, "Ada", "exp-1"),
        RecordText("note", f"{0:040x}", message, 50),
    ]
    (found,) = experiments_of(texts)
    assert (found.source, found.commit, found.tags, found.time) == ("commit", f"{1:040x}", ("exp-1",), 100)


def test_a_copy_of_a_record_points_to_where_it_was_recorded_first() -> None:
    squash = f"Squash\n\n* {experiment_message(record(1))}\n* {experiment_message(record(2))}"
    texts = [commit(9, squash, time=900), commit(1, experiment_message(record(1)), time=100)]
    second, first = experiments_of(texts)
    assert (first.record, first.commit, first.copies) == (record(1), f"{1:040x}", (f"{9:040x}",))
    assert (second.record, second.commit, second.copies) == (record(2), f"{9:040x}", ())


def test_a_release_is_named_at_its_experiment() -> None:
    release = ReleaseRecord(model="tiny", version="1.0.0", bundle="cd" * 32, manifest=record(1).manifest)
    texts = [
        commit(1, experiment_message(record(1)), time=100),
        RecordText("tag", f"{1:040x}", release_message(release), 200, "Ada", "deepseek-v1.0.0"),
    ]
    (found,) = experiments_of(texts)
    assert found.releases == ("deepseek-v1.0.0",)
    assert body_of(found)["releases"] == ["deepseek-v1.0.0"]


def test_a_row_has_what_a_selection_may_ask_for() -> None:
    (found,) = experiments_of([commit(1, experiment_message(record(1)), time=86400)])
    row = row_of(found)
    assert (row["date"], row["schedule.warmup"], row["metrics.val_loss"]) == ("1970-01-02T00:00:00Z", 5.0, 1.0)


def test_a_metric_does_not_hide_what_an_experiment_is() -> None:
    odd = record(1, performance={"model": 3.0, "seed": 9.0})
    (found,) = experiments_of([commit(1, experiment_message(odd), time=1)])
    row = row_of(found)
    assert (row["model"], row["metrics.model"], row["seed"], row["hyperparameters.seed"]) == ("tiny", 3.0, 9.0, 1.0)


def test_experiments_are_chosen_sorted_and_counted() -> None:
    found = experiments_of([commit(n, experiment_message(record(n)), time=n) for n in (1, 2, 3, 4)])
    assert [one.record.run_id for one in found] == ["run-4", "run-3", "run-2", "run-1"]
    picked = chosen(found, where="val_loss < 0.6 and learning_rate >= 1e-3", sort="-val_loss")
    assert [one.record.run_id for one in picked] == ["run-2", "run-3"]
    assert [one.record.run_id for one in chosen(found, sort="val_loss", limit=2)] == ["run-4", "run-3"]
    other = experiments_of([commit(5, experiment_message(record(5, performance={"acc": 1.0})), time=5)])
    assert chosen([*other, *found], sort="val_loss")[-1].record.run_id == "run-5", "who has no value comes last"


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    found = experiments_of([commit(1, experiment_message(record(1)), time=1)])
    with pytest.raises(
        UnknownNameError, match=r"no experiment has 'val_los'; did you mean val_loss\? Known are author"
    ):
        chosen(found, where="val_los < 1")
    with pytest.raises(UnknownNameError, match="'size'"):
        chosen(found, sort="-size")
    assert chosen([], where="val_los < 1") == []
    with pytest.raises(SelectionKindError, match="val_loss is a number, but 'low' is a text"):
        chosen(found, where="val_loss < 'low'")


def test_an_experiment_is_as_old_as_its_run_and_not_as_the_commit_it_was_trained_on() -> None:
    """A retrain of an old commit is recorded on it, with its time: the record or the tag says when it really was."""
    old, new = experiment_message(record(1, date="2026-05-02", branch="exp/x")), experiment_message(record(2))
    tagged = RecordText("tag", f"{2:040x}", new, 10**9, "Ada", "exp-20260501-main-00000002")
    found = experiments_of([commit(2, new, time=10**9), commit(1, old, time=100), tagged])
    assert [(one.record.run_id, one.date) for one in found] == [("run-1", "2026-05-02"), ("run-2", "2026-05-01")]
    body = body_of(found[0])
    assert (body["date"], body["committed"], body["branch"]) == ("2026-05-02", "1970-01-01T00:01:40Z", "exp/x")
    assert chosen(found, where="date >= '2026-05-02' and branch == 'exp/x'") == found[:1]
    same_day = [
        commit(3, experiment_message(record(3, date="2026-05-01", version="1.10.0")), time=100),
        commit(4, experiment_message(record(4, date="2026-05-01", version="1.9.0")), time=900),
        commit(5, experiment_message(record(5, date="yesterday", version="x")), time=900),
    ]
    assert [one.record.run_id for one in experiments_of(same_day)] == ["run-3", "run-4", "run-5"]
    assert experiments_of(same_day)[-1].date == "1970-01-01T00:15:00Z", "what is no day is none"
