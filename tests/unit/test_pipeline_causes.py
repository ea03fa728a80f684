"""What started a run, and whether the pipeline file of the branch wants it."""

from __future__ import annotations

import datetime as dt

import pytest

from deepseek_ops.airflow.triggers.schedule import due
from deepseek_ops.core.config import load_pipeline
from deepseek_ops.core.records import GitRef
from deepseek_ops.pipeline.pushes import Source, cause_of, combined, unwanted

REF = GitRef(repository="https://h/m.git", name="refs/heads/main", commit=f"{1:040x}")
OTHER = REF.evolve(name="refs/heads/exp/a", commit=f"{2:040x}")
WATCHING = load_pipeline("triggers: [{type: data-arrival, uri: s3://lake/raw/}]", file="f")
SCHEDULED = load_pipeline("triggers: [{type: schedule, cron: '0 2 * * 0'}]", file="f")
INGESTING = load_pipeline("triggers: [{type: data-arrival, uri: s3://lake/raw/, run: ingest}]", file="f")


@pytest.mark.parametrize("uri", ["s3://lake/raw/", "s3://lake/raw", "s3://lake/raw/upload-7/", "s3://lake/"])
def test_new_data_that_a_trigger_watches_is_wanted(uri):
    assert unwanted(WATCHING, REF, arrived=[uri], scheduled=False) == ""


@pytest.mark.parametrize(
    ("config", "uri"), [(WATCHING, "s3://lake/rawer/"), (SCHEDULED, "s3://lake/raw/"), (INGESTING, "s3://lake/raw/")]
)
def test_other_new_data_says_what_is_missing(config, uri):
    reason = unwanted(config, REF, arrived=[uri], scheduled=False)
    assert uri in reason
    assert "data-arrival" in reason


def test_a_schedule_that_was_removed_since_starts_nothing():
    assert unwanted(SCHEDULED, REF, arrived=[], scheduled=True) == ""
    assert "schedule" in unwanted(WATCHING, REF, arrived=[], scheduled=True)


def test_of_a_batch_of_both_nothing_is_lost_and_nothing_runs_twice():
    push, beside = Source(ref=OTHER, cause="push"), Source(ref=REF, cause="data")
    both = combined(push, beside)
    assert (both.ref, both.beside, both.beside_cause) == (OTHER, REF, "data")
    assert combined(None, beside) == beside
    assert combined(push, None) == push
    assert combined(Source(ref=REF, cause="push"), beside).beside is None


def test_a_run_started_for_another_one_says_what_it_is_of():
    assert cause_of({"cause": "push"}) == "push"
    assert cause_of({"cause": "nonsense"}) == "manual"
    assert cause_of(None) == "manual"


def at(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def test_a_schedule_begins_when_it_is_first_seen_and_fires_once_per_time():
    weekly = [("0 2 * * 0", "UTC")]
    fired, known = due(weekly, {}, at("2026-11-21T12:00:00"))
    assert fired == {}
    fired, known = due(weekly, known, at("2026-11-22T01:59:59"))
    assert fired == {}
    fired, known = due(weekly, known, at("2026-11-22T02:00:00"))
    assert fired == {"0 2 * * 0 UTC": "2026-11-22T02:00:00+00:00"}
    fired, known = due(weekly, known, at("2026-11-22T02:00:05"))
    assert fired == {}


def test_times_that_passed_unheard_make_one_event():
    _, known = due([("0 * * * *", "UTC")], {}, at("2026-11-21T12:30:00"))
    fired, known = due([("0 * * * *", "UTC")], known, at("2026-11-23T09:10:00"))
    assert fired == {"0 * * * * UTC": "2026-11-23T09:00:00+00:00"}
    assert due([("0 * * * *", "UTC")], known, at("2026-11-23T09:20:00"))[0] == {}


def test_a_changed_schedule_does_not_fire_for_the_past_and_a_time_zone_is_obeyed():
    _, known = due([("0 2 * * *", "UTC")], {}, at("2026-11-01T00:00:00"))
    fired, known = due([("0 3 * * *", "Asia/Tokyo")], known, at("2026-11-21T23:00:00"))
    assert fired == {}
    assert list(known) == ["0 3 * * * Asia/Tokyo"]
    fired, _ = due([("0 3 * * *", "Asia/Tokyo")], known, at("2026-11-22T18:00:01"))
    assert list(fired.values()) == ["2026-11-22T18:00:00+00:00"]


def test_a_schedule_that_cannot_be_read_keeps_no_other_one_from_firing():
    schedules = [("61 * * * *", "UTC"), ("0 2 * * *", "No/Where"), ("@daily", "UTC")]
    _, known = due(schedules, {}, at("2026-11-21T12:00:00"))
    fired, _ = due(schedules, known, at("2026-11-22T00:00:00"))
    assert list(fired) == ["@daily UTC"]
