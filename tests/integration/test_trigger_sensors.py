"""The sensors: look once, then defer; a retry goes on from where the first try began."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from fixtures_git import TOKEN, USER, Developer, git_server, http_developer  # noqa: F401
from fixtures_triggers import connect, running

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.airflow.sensors.data import DatasetArrivalSensor
from deepseek_ops.airflow.sensors.git import GitRefSensor
from deepseek_ops.airflow.sensors.waiting import NoEventError
from deepseek_ops.airflow.triggers.data import DataArrival
from deepseek_ops.core.records import GitRef


class TaskState(dict[str, Any]):
    """Airflow's task state store: get and set, shared by the tries of a task."""

    def set(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))


@pytest.fixture
def developer(http_developer: Developer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Developer:  # noqa: F811
    connect(monkeypatch, "model", conn_type="git", host=http_developer.remote.url, login=USER, password=TOKEN)
    monkeypatch.setenv("DEEPSEEK_OPS_CACHE", str(tmp_path / "sensor-cache"))
    return http_developer


def sensor(**changes: Any) -> GitRefSensor:
    return GitRefSensor(**{"task_id": "wait", "git_conn_id": "model", "poll_interval": 0.1, **changes})


async def test_the_sensor_defers_to_a_trigger_that_fires_for_the_next_push(developer: Developer) -> None:
    old = developer.push_commit({"a": "1"})
    context = {"task_state_store": TaskState()}
    with pytest.raises(TaskDeferred) as deferred:
        sensor().execute(context)
    trigger = deferred.value.trigger
    assert trigger.serialize()[1]["after"] == {"refs/heads/main": old}
    async with running(trigger) as listener:
        new = developer.push_commit({"a": "2"})
        (event,) = await listener.next(1)
    assert sensor().execute_complete(context, event) == event
    assert GitRef.load(event) == GitRef(
        repository=developer.remote.url, name="refs/heads/main", commit=new, previous=old
    )
    assert GitRef.load(sensor().execute(context)).commit == new, "a retry finds the push that came in between"


def test_what_exists_can_count_as_new(developer: Developer) -> None:
    commit = developer.push_commit({"a": "1"})
    assert GitRef.load(sensor(after={}).execute({})).commit == commit
    with pytest.raises(TaskDeferred):
        sensor(after={}, paths=["other/**"]).execute({})


def test_without_a_triggerer_the_sensor_polls(developer: Developer) -> None:
    developer.push_commit({"a": "1"})
    waiting = sensor(deferrable=False)
    assert not waiting.poke({}).is_done
    commit = developer.push_commit({"a": "2"})
    result = waiting.poke({})
    assert result.is_done
    assert GitRef.load(result.xcom_value).commit == commit


def test_a_wait_that_ends_without_an_event_can_be_tried_again() -> None:
    with pytest.raises(NoEventError):
        sensor().execute_complete({}, None)


async def test_the_data_sensor_waits_for_a_complete_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "lake", conn_type="deepseek_store", host=f"file://{tmp_path / 'lake'}")
    lake = open_store(f"file://{tmp_path / 'lake'}")
    lake.create("raw/1", b"old")

    def arrival_sensor(**changes: Any) -> DatasetArrivalSensor:
        arguments = {"task_id": "w", "store_conn_id": "lake", "prefix": "raw/", "settle": 0.2, "poll_interval": 0.1}
        return DatasetArrivalSensor(**{**arguments, **changes})

    with pytest.raises(TaskDeferred) as deferred:
        arrival_sensor().execute({})
    async with running(deferred.value.trigger) as listener:
        lake.create("raw/2", b"new")
        (event,) = await listener.next(1)
    assert DataArrival.load(event).num_objects == 2
    polling = arrival_sensor(deferrable=False, after="", settle=0)
    assert DataArrival.load(polling.poke({}).xcom_value) == DataArrival.load(event)
    polling = arrival_sensor(deferrable=False, after=event["digest"], settle=0)
    assert not polling.poke({}).is_done
