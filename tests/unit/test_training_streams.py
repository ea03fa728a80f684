"""Segments in the store: written once, numbered on, nothing lost while the store is away."""

from __future__ import annotations

import json

import pytest

from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.errors import StoreUnavailableError
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.training_streams import Segments, Streams


class FlakyStore(LocalStore):
    """A real store whose writes fail, or succeed without an answer, when told to."""

    away = False
    lose_answer = False

    def create(self, key, data):
        if self.away:
            raise StoreUnavailableError(self.uri, "connection refused")
        super().create(key, data)
        if self.lose_answer:
            self.lose_answer = False
            raise StoreUnavailableError(self.uri, "connection reset")


@pytest.fixture
def store(tmp_path):
    return FlakyStore(tmp_path / "store")


def read(store, prefix="run/metrics"):
    return [[json.loads(line) for line in store.get(item.key).splitlines()] for item in store.list(f"{prefix}/")]


def test_each_flush_is_one_segment(store):
    segments = Segments(store, "run/metrics")
    for step in (1, 2):
        segments.append({"step": step, "training_loss": step / 3})
    segments.flush()
    segments.flush()
    segments.append({"step": 3, "training_loss": float("nan")})
    segments.flush()
    assert read(store) == [
        [{"step": 1, "training_loss": 1 / 3}, {"step": 2, "training_loss": 2 / 3}],
        [{"step": 3, "training_loss": "NaN"}],
    ]


def test_a_restart_numbers_on(store):
    for step in range(3):
        segments = Segments(store, "run/metrics")
        segments.append({"step": step})
        segments.flush()
    assert [rows[0]["step"] for rows in read(store)] == [0, 1, 2]


def test_rows_wait_for_a_store_that_is_away(store):
    segments = Segments(store, "run/metrics")
    segments.append({"step": 1})
    store.away = True
    with pytest.raises(StoreUnavailableError):
        segments.flush()
    segments.append({"step": 2})
    store.away = False
    segments.flush()
    assert read(store) == [[{"step": 1}, {"step": 2}]]


def test_a_write_whose_answer_was_lost_is_not_repeated_as_another_segment(store):
    segments = Segments(store, "run/metrics")
    segments.append({"step": 1})
    store.lose_answer = True
    with pytest.raises(StoreUnavailableError):
        segments.flush()
    segments.flush()
    assert read(store) == [[{"step": 1}]]


def test_two_writers_overwrite_nothing(store):
    first, second = Segments(store, "run/metrics"), Segments(store, "run/metrics")
    for step, segments in enumerate((first, second, first, second)):
        segments.append({"step": step})
        segments.flush()
    assert [rows[0]["step"] for rows in read(store)] == [0, 1, 2, 3]


def test_only_rank_0_speaks_and_leaving_writes_the_rest(store, tmp_path):
    spec = JobSpec(name="job", kind="train", payload={})
    for rank in (0, 1):
        context = JobContext(spec, tmp_path / "job", rank=rank, world_size=2, store=store)
        with Streams(context, "run", flush_seconds=3600) as streams:
            streams.metric(1, {"training_loss": 2.5 + rank})
            streams.event("checkpoint", step=1)
    assert read(store) == [[{"step": 1, "training_loss": 2.5}]]
    assert read(store, "run/events") == [[{"kind": "checkpoint", "step": 1}]]


def test_a_store_that_stays_away_ends_no_training(store, tmp_path):
    store.away = True
    context = JobContext(JobSpec(name="job", kind="train", payload={}), tmp_path / "job", store=store)
    with Streams(context, "run", flush_seconds=0.01) as streams:
        streams.metric(1, {"training_loss": 2.5})
    assert read(store) == []
