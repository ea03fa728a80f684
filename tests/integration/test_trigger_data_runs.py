"""Each upload gets one run, and the run ingests what was announced and nothing that came since."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException
from airflow.sdk.execution_time.context import OutletEventAccessors
from fixtures_triggers import connect

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.airflow.announced_lake import ChangedSinceAnnouncedError, UnknownPartitionError
from deepseek_ops.airflow.assets import DATASET, RAW_DATA, SETTLED_UPLOAD
from deepseek_ops.airflow.operators.arrival import AnnounceArrivalsOperator, IngestArrivalOperator, partition_of
from deepseek_ops.airflow.triggers.uploads import DataArrival, survey
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.data import DatasetRepository


class Memory:
    """The state store of one asset, as a task sees it."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def __getitem__(self, _asset: Any) -> Memory:
        return self

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def set(self, key: str, value: Any) -> None:
        self.values[key] = value


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    connect(monkeypatch, "deepseek_ops_store", conn_type="deepseek_store", host=f"file://{tmp_path / 'store'}")
    lake = open_store(f"file://{tmp_path / 'lake'}")
    DatasetRepository.open(open_store(f"file://{tmp_path / 'store'}"))
    return lake


@pytest.fixture
def versions(tmp_path: Path) -> DatasetRepository:
    return DatasetRepository(open_store(f"file://{tmp_path / 'store'}"))


def upload(lake: ObjectStore, folder: str, *names: str) -> DataArrival:
    for name in names:
        lake.create(f"{folder}{name}", f"{folder}{name}".encode())
    return survey(lake, folder).arrival(lake, folder)


class Stored(list[Any]):
    """The events of an asset, as Airflow gives them to a task with that inlet."""

    def after(self, begin: str) -> list[Any]:
        return [one for one in self if one.timestamp.isoformat() > begin]


START = datetime(2026, 1, 1, tzinfo=UTC)


def event(extra: dict[str, Any], minutes: int = 0) -> SimpleNamespace:
    return SimpleNamespace(extra=extra, timestamp=START + timedelta(minutes=minutes))


def told(arrival: DataArrival, minutes: int = 0) -> SimpleNamespace:
    return event({"from_trigger": True, "payload": arrival.dump()}, minutes)


def announce(memory: Memory | None, run: str, *arrivals: DataArrival, stored: Stored | None = None) -> Any:
    """Run the task and return the accessor of its outlet's event, or None when it was skipped."""
    task = AnnounceArrivalsOperator(task_id="announce", watched=RAW_DATA, outlets=[SETTLED_UPLOAD])
    events = [told(arrival) for arrival in arrivals]
    outlets = OutletEventAccessors()
    context: Any = {
        "run_id": run,
        "triggering_asset_events": {RAW_DATA: events},
        "inlet_events": {RAW_DATA: Stored() if stored is None else stored},
        "outlet_events": outlets,
        "asset_state_store": memory,
    }
    try:
        task.execute(context)
    except AirflowSkipException:
        return None
    return outlets[SETTLED_UPLOAD]


def ingest(announced: Any, partition: str) -> dict[str, Any]:
    task = IngestArrivalOperator(task_id="ingest", uri="file:///nowhere", dataset="corpus", outlets=[DATASET])
    context: Any = {
        "dag_run": SimpleNamespace(partition_key=partition),
        "triggering_asset_events": {SETTLED_UPLOAD: [event(announced.extra)]},
        "outlet_events": OutletEventAccessors(),
    }
    return task.execute(context)


def test_a_burst_of_uploads_gives_a_partition_for_each_and_none_twice(lake: ObjectStore) -> None:
    arrivals = [upload(lake, f"raw/{number}/", "a", "_READY") for number in range(10)]
    memory = Memory()
    first = announce(memory, "run-1", *arrivals[:6], *arrivals[:3])  # the watcher announces at least once
    assert len(first.partition_keys) == 6
    again = announce(memory, "run-1", *arrivals[:6])
    assert set(again.partition_keys) == set(first.partition_keys), "a retry announces what its run has to"
    second = announce(memory, "run-2", *arrivals[4:])  # some come again after a restart of the triggerer
    assert set(first.partition_keys) | set(second.partition_keys) == {partition_of(one) for one in arrivals}
    assert set(first.partition_keys) & set(second.partition_keys) == set()
    assert announce(memory, "run-3", *arrivals) is None, "no event when there is nothing new"
    assert all(len(key) <= 250 for key in first.partition_keys)


def test_events_that_started_no_run_are_announced_by_the_next_one(lake: ObjectStore) -> None:
    """Airflow makes a run of the first event of a burst and forgets that the others came meanwhile."""
    one, two, three, four = (upload(lake, f"raw/{number}/", "a") for number in range(4))
    memory, stored = Memory(), Stored()
    stored += [told(one), told(two), told(three, 1)]
    first = announce(memory, "run-1", one, stored=stored)
    assert set(first.partition_keys) == {partition_of(arrival) for arrival in (one, two, three)}
    stored += [told(four, 300)]
    second = announce(memory, "by-the-clock", stored=stored)
    assert set(second.partition_keys) == {partition_of(four)}
    assert announce(memory, "by-the-clock-again", stored=stored) is None
    assert announce(Memory(), "first-run-by-the-clock", stored=stored) is None, "what is older is history"


def test_without_memory_a_doubled_announcement_has_the_same_partition(lake: ObjectStore) -> None:
    arrival = upload(lake, "raw/1/", "a")
    assert announce(None, "1", arrival).partition_keys == announce(None, "2", arrival).partition_keys


def test_a_run_ingests_its_upload_beside_what_was_ingested_before(
    lake: ObjectStore, versions: DatasetRepository
) -> None:
    one, two = upload(lake, "raw/1/", "a", "b", "_READY"), upload(lake, "raw/2/", "a", "_READY")
    lake.create("raw/3/half", b"still on its way")
    announced = announce(Memory(), "run", one, two)
    first = ingest(announced, partition_of(one))
    assert versions.paths(first["version"]) == ["raw/1/a", "raw/1/b"]
    second = ingest(announced, partition_of(two))
    assert versions.paths(second["version"]) == ["raw/1/a", "raw/1/b", "raw/2/a"]
    assert ingest(announced, partition_of(two))["version"] == second["version"], "a retried run makes no new version"


def test_what_changed_since_it_was_announced_is_not_ingested(lake: ObjectStore, versions: DatasetRepository) -> None:
    arrival = upload(lake, "raw/1/", "a", "_READY")
    announced = announce(None, "run", arrival)
    lake.create("raw/1/late", b"came after the announcement")
    with pytest.raises(ChangedSinceAnnouncedError, match="raw/1/"):
        ingest(announced, partition_of(arrival))
    assert list(versions.store.list("refs/heads/")) == []
    with pytest.raises(UnknownPartitionError):
        ingest(announced, "raw/9@0000")


def test_the_whole_prefix_as_one_upload_is_checked_as_a_whole(lake: ObjectStore, versions: DatasetRepository) -> None:
    lake.create("loose.jsonl", b"1")
    arrival = upload(lake, "", "deep/a", "_READY")
    announced = announce(None, "run", arrival)
    assert versions.paths(ingest(announced, partition_of(arrival))["version"]) == ["deep/a", "loose.jsonl"]
    lake.create("more", b"1")
    with pytest.raises(ChangedSinceAnnouncedError):
        ingest(announced, partition_of(arrival))
