"""Segments in the store: written once, numbered on, nothing lost or doubled, read the same while joined."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import pytest

from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.errors import StoreUnavailableError
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.jobs import training_streams
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.spool import Spool
from deepseek_ops.jobs.training_streams import Segments, Streams
from deepseek_ops.training import streams as stored
from deepseek_ops.training.streams import DamagedSegmentError, current, tail


class FlakyStore(LocalStore):
    """A real store whose writes fail, or succeed without an answer, when told to."""

    away = False
    lose_answer = False
    keep_all = False

    def delete(self, keys):
        if self.keep_all:
            raise StoreUnavailableError(self.uri, "deletes are refused")
        super().delete(keys)

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


def said(row):
    return {key: value for key, value in row.items() if key not in stored.STAMPS}


def read(store, prefix="run/metrics", after=-1):
    return [[said(row) for row in segment.rows] for segment in stored.read(store, prefix, after=after)]


def steps(store, after=-1):
    return [row["step"] for rows in read(store, after=after) for row in rows]


def names(store):
    return [item.key.rpartition("/")[2] for item in store.list("run/metrics/")]


def write(segments, numbers):
    for step in numbers:
        segments.append({"step": step})
        segments.flush()


def test_each_flush_is_one_segment(store):
    segments = Segments(store, "run/metrics", attempt=3)
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
    assert names(store) == ["000000.jsonl.zst", "000001.jsonl.zst"]
    assert [row["attempt"] for segment in stored.read(store, "run/metrics") for row in segment.rows] == [3, 3, 3]


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
    for step in (2, 3):
        with pytest.raises(StoreUnavailableError):
            segments.flush()
        segments.append({"step": step})
    store.away = False
    segments.flush()
    assert steps(store) == [1, 2, 3]


def test_the_oldest_rows_go_when_the_store_stays_away(store, monkeypatch):
    monkeypatch.setattr(training_streams, "MAX_HELD_ROWS", 3)
    segments = Segments(store, "run/metrics")
    for step in range(5):
        segments.append({"step": step})
    segments.flush()
    assert steps(store) == [2, 3, 4]


def test_a_write_whose_answer_was_lost_is_not_repeated_as_another_segment(store):
    segments = Segments(store, "run/metrics")
    segments.append({"step": 1})
    store.lose_answer = True
    with pytest.raises(StoreUnavailableError):
        segments.flush()
    segments.append({"step": 2})
    segments.flush()
    assert read(store) == [[{"step": 1}], [{"step": 2}]]


def spooled(store, tmp_path, attempt=1):
    return Segments(store, "run/metrics", attempt=attempt, spool=Spool(tmp_path / "work", "metrics"))


def test_rows_of_a_killed_process_are_sent_first_by_the_next(store, tmp_path):
    killed = spooled(store, tmp_path)
    write(killed, [1, 2])
    for step in (3, 4):
        killed.append({"step": step})
    after = spooled(store, tmp_path, attempt=2)
    after.append({"step": 3})
    after.flush()
    rows = [row for segment in stored.read(store, "run/metrics") for row in segment.rows]
    assert [(row["step"], row["attempt"]) for row in rows] == [(1, 1), (2, 1), (3, 1), (4, 1), (3, 2)]
    assert [(row["step"], row["attempt"]) for row in current(rows)] == [(1, 1), (2, 1), (3, 2)]
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("arrived", [False, True])
def test_a_segment_whose_writer_was_killed_while_it_was_sent_is_there_once(store, tmp_path, monkeypatch, arrived):
    monkeypatch.setattr(training_streams, "MAX_SEGMENT_ROWS", 2)
    killed = spooled(store, tmp_path)
    write(killed, [1])
    for step in (2, 3, 4):
        killed.append({"step": step})
    if arrived:
        monkeypatch.setattr(killed._spool, "sent", lambda: None)
        killed.flush()
    else:
        store.away = True
        with pytest.raises(StoreUnavailableError):
            killed.flush()
        killed.append({"step": 5})
    after = spooled(store, tmp_path)
    with pytest.raises(StoreUnavailableError) if not arrived else nullcontext():
        after.flush()
    store.away = False
    after.flush()
    assert steps(store) == [1, 2, 3, 4] if arrived else [1, 2, 3, 4, 5]
    assert not list((tmp_path / "work").iterdir())


def test_a_line_that_a_full_disk_cut_off_is_left_out(store, tmp_path):
    killed = spooled(store, tmp_path)
    killed.append({"step": 1})
    with (tmp_path / "work" / "metrics.rows").open("ab") as file:
        file.write(b'{"step": 2, "tr')
    spooled(store, tmp_path).flush()
    assert steps(store) == [1]


def test_a_disk_that_refuses_ends_nothing(store, tmp_path, caplog):
    (tmp_path / "work").write_text("a file where the folder should be")
    segments = spooled(store, tmp_path)
    write(segments, [1, 2])
    assert steps(store) == [1, 2]
    assert len(caplog.records) == 1


def test_two_writers_overwrite_nothing(store):
    first, second = Segments(store, "run/metrics"), Segments(store, "run/metrics")
    for step, segments in enumerate((first, second, first, second)):
        segments.append({"step": step})
        segments.flush()
    assert [rows[0]["step"] for rows in read(store)] == [0, 1, 2, 3]


@pytest.mark.parametrize("keep_all", [False, True], ids=["joined", "parts left"])
def test_segments_are_joined_and_read_the_same(store, monkeypatch, keep_all):
    monkeypatch.setattr(training_streams, "JOINED", 4)
    store.keep_all = keep_all
    segments = Segments(store, "run/metrics")
    write(segments, range(10))
    assert ("000000.jsonl.zst" in names(store)) == keep_all
    assert [name for name in names(store) if "-" in name] == ["000003-000000.jsonl.zst", "000007-000004.jsonl.zst"]
    segments.close()
    assert names(store)[-1 if not keep_all else -2] == "000009-000008.jsonl.zst"
    for after in range(-1, 10):
        assert steps(store, after) == list(range(after + 1, 10))
    assert [row["step"] for row in tail(store, "run/metrics", 3)] == [7, 8, 9]


def test_a_reader_that_is_overtaken_by_a_join_reads_on(store, monkeypatch):
    monkeypatch.setattr(training_streams, "JOINED", 6)
    segments = Segments(store, "run/metrics")
    write(segments, range(5))
    reader = stored.read(store, "run/metrics")
    seen = [segment.number for segment in itertools.islice(reader, 2)]
    write(segments, range(5, 6))
    assert names(store) == ["000005-000000.jsonl.zst"]
    assert seen + [segment.number for segment in reader] == list(range(6))


def test_a_number_that_was_joined_is_not_used_again(store, monkeypatch):
    monkeypatch.setattr(training_streams, "JOINED", 4)
    late = Segments(store, "run/metrics", attempt=1)
    write(late, [0])
    write(Segments(store, "run/metrics", attempt=2), range(1, 9))
    write(late, [99])
    assert sorted(steps(store)) == [*range(9), 99]


def test_plain_segments_of_earlier_releases_are_read_too(store):
    store.create("run/metrics/000000.jsonl", b'{"step":1}\n{"step":2}\n')
    write(Segments(store, "run/metrics"), [3])
    assert names(store) == ["000000.jsonl", "000001.jsonl.zst"]
    assert steps(store) == [1, 2, 3]


def test_a_damaged_segment_is_named(store):
    store.create("run/metrics/000000.jsonl.zst", b"no zstd")
    with pytest.raises(DamagedSegmentError, match=r"000000\.jsonl\.zst"):
        read(store)


def test_what_ran_again_or_was_rewound_holds_once_and_late_writers_count_for_nothing():
    rows = [{"step": step, "attempt": 1, "loss": step} for step in (1, 2, 3, 4, 5)]
    rows += [{"step": step, "attempt": 2, "loss": -step} for step in (3, 4)]
    rows += [{"step": 9, "attempt": 1, "loss": 0}, {"step": 5, "attempt": 2, "loss": -5}]
    assert [(row["step"], row["loss"]) for row in current(rows)] == [(1, 1), (2, 2), (3, -3), (4, -4), (5, -5)]
    assert [row["step"] for row in current([*rows, {"step": 2, "attempt": 2}])] == [1, 2]


def test_only_rank_0_speaks_and_leaving_writes_the_rest(store, tmp_path):
    spec = JobSpec(name="job", kind="train", payload={})
    for rank in (0, 1):
        context = JobContext(spec, tmp_path / "job", rank=rank, world_size=2, store=store)
        with Streams(context, "run", flush_seconds=3600) as streams:
            streams.metric(1, {"training_loss": 2.5 + rank})
            streams.event("checkpoint", step=1)
    assert read(store) == [[{"step": 1, "training_loss": 2.5}]]
    events = [row for rows in read(store, "run/events") for row in rows]
    assert [row for row in events if row["kind"] != "no_gpu_telemetry"] == [{"kind": "checkpoint", "step": 1}]


def test_a_store_that_stays_away_ends_no_training(store, tmp_path):
    store.away = True
    context = JobContext(JobSpec(name="job", kind="train", payload={}), tmp_path / "job", store=store)
    with Streams(context, "run", flush_seconds=0.01) as streams:
        streams.metric(1, {"training_loss": 2.5})
    assert read(store) == []
