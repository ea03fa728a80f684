"""A job's folder and the job in the store are kept equal, through outages, kills and newer attempts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from deepseek_ops.adapters.local_launcher.folder import Attempt, JobFolder
from deepseek_ops.adapters.remote_launcher.layout import (
    Beat,
    Control,
    JobKeys,
    RemoteAttempt,
    RemoteStop,
    read_control,
)
from deepseek_ops.adapters.remote_launcher.shared_log import SharedLog
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.errors import StoreUnavailableError
from deepseek_ops.core.jobs import JobRequest, JobSpec
from deepseek_ops.core.ports import ObjectInfo
from deepseek_ops.core.records import Record, canonical_json
from deepseek_ops.jobs import attend_watch
from deepseek_ops.jobs.attend_child import SupervisorChild
from deepseek_ops.jobs.attend_watch import Watch
from deepseek_ops.jobs.entry import Outcome
from deepseek_ops.jobs.meeting import FolderRendezvous
from deepseek_ops.jobs.mirror_folder import FolderMirror
from deepseek_ops.jobs.nodes import NodePlace
from deepseek_ops.jobs.rendezvous import Failure, NodePace, RankPace

NAME = "job"
KEYS = JobKeys(NAME)


class Switched(LocalStore):
    """A store that can be away."""

    away = False

    def _path(self, key: str) -> Path:
        if self.away:
            raise StoreUnavailableError(self.uri, "it is switched off")
        return super()._path(key)

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        if self.away:
            raise StoreUnavailableError(self.uri, "it is switched off")
        return super().list(prefix, start_after=start_after, limit=limit)


@pytest.fixture
def store(tmp_path: Path) -> Switched:
    return Switched(tmp_path / "store")


def folder(path: Path, attempt: int = 1) -> JobFolder:
    """Return a job's folder as the agent makes it."""
    files = JobFolder(path)
    files.claims.mkdir(parents=True, exist_ok=True)
    files.log.touch()
    files.lease.touch()
    files.write("spec.json", JobSpec(name=NAME, kind="train", payload={}, lease_seconds=100, grace_seconds=30))
    files.write("attempt.json", Attempt(attempt=attempt))
    return files


def mirror_of(files: JobFolder, store: LocalStore, node: int = 0, attempt: int = 1) -> FolderMirror:
    mirror = FolderMirror(files, store, NAME, attempt=attempt, node=node, pace_seconds=0.02)
    mirror.start()
    return mirror


def put(store: LocalStore, what: str, record: Record | None = None, attempt: int = 1) -> None:
    store.create(KEYS.of(attempt, what), canonical_json(record.dump()) if record is not None else b"{}")


def text(store: LocalStore, *, events: bool = False) -> str:
    stream = SharedLog(store, KEYS.events if events else KEYS.log, lines=events)
    return b"".join(piece.data for piece in stream.read(0)).decode()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_what_was_written_while_the_store_was_away_goes_up_whole_when_it_is_back(store, tmp_path: Path) -> None:
    files = folder(tmp_path / "job")
    mirror = mirror_of(files, store)
    lines = [f"line {number} äöü\n" for number in range(300)]
    with files.log.open("a") as log:
        for number, line in enumerate(lines):
            store.away = 50 < number < 200
            log.write(line)
            log.flush()
            files.append_event("metric", 1, {"step": number})
            time.sleep(0.001)
        until(lambda: not store.away)
    assert mirror.finish(within=20)
    assert text(store) == "".join(lines)
    steps = [json.loads(line)["step"] for line in text(store, events=True).splitlines()]
    assert steps == list(range(300))


def test_the_next_attempt_on_a_machine_sends_what_the_last_agent_could_not(store, tmp_path: Path) -> None:
    files = folder(tmp_path / "job")
    files.log.write_text("first\n")
    assert mirror_of(files, store).finish(within=20)
    with files.log.open("a") as log:
        log.write("last words of attempt 1\nwithout an end")
    files.write("attempt.json", Attempt(attempt=2))
    assert mirror_of(files, store, attempt=2).finish(within=20)
    assert text(store) == "first\nlast words of attempt 1\nwithout an end"


def test_words_of_other_nodes_say_whose_they_are(store: Switched, tmp_path: Path) -> None:
    files = folder(tmp_path / "job")
    files.log.write_text("a\nb")
    for kind in ("started", "metric", "ended"):
        files.append_event(kind, 1, {})
    assert mirror_of(files, store, node=3).finish(within=20)
    assert text(store) == "[node 3] a\n[node 3] b\n"
    events = [json.loads(line) for line in text(store, events=True).splitlines()]
    assert [(event["kind"], event["node"]) for event in events] == [
        ("node_started", 3),
        ("metric", 3),
        ("node_ended", 3),
    ]


def test_what_others_want_arrives_in_the_folder(store: Switched, tmp_path: Path) -> None:
    files = folder(tmp_path / "job")
    mirror = mirror_of(files, store)
    renewed, touched = mirror.renewed, files.lease.stat().st_mtime_ns
    for number in (1, 2):
        put(store, f"requests/{number:06d}.json", JobRequest(number=number, verb="checkpoint"))
    for lease in ("a", "b"):
        put(store, f"lease/{lease}")
        until(lambda renewed=renewed: mirror.renewed > renewed)
        renewed = mirror.renewed
    assert files.lease.stat().st_mtime_ns > touched
    until(lambda: [request.number for request in files.requests(0)] == [1, 2])
    put(store, "stop.json", RemoteStop(reason="enough"))
    until(lambda: files.stop_request(1))
    assert (files.stop_request(1).reason, files.stop_request(1).cause) == ("enough", "stop")
    store.create(KEYS.attempt(2), b"{}")
    until(lambda: files.attempt().attempt == 2)
    assert mirror.finish(within=20)


def test_old_renewals_are_removed_and_the_newest_beat_is_the_only_one(store, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("deepseek_ops.jobs.mirror_folder._TIDY_SECONDS", 0.0)
    files = folder(tmp_path / "job")
    mirror = mirror_of(files, store)
    for number in range(5):
        put(store, f"lease/{number}")
        files.append_event("metric", 1, {"step": number})
        time.sleep(0.05)
    until(lambda: read_control(store, KEYS).below(1, "lease/") == ["lease/4"])
    assert mirror.finish(within=20)
    beats = read_control(store, KEYS).below(1, "beats/0/")
    assert len(beats) == 1
    assert Beat.load(json.loads(store.get(KEYS.of(1, beats[0])))).step == 4


def test_two_nodes_meet_through_the_store_and_the_first_failure_is_everybodys(store, tmp_path: Path) -> None:
    nodes = [folder(tmp_path / f"node-{node}") for node in range(2)]
    for node in range(2):
        put(store, f"claims/{node}")
    meetings = [FolderRendezvous(files, 1, NodePlace(node, 2)) for node, files in enumerate(nodes)]
    mirrors = [mirror_of(files, store, node=node) for node, files in enumerate(nodes)]
    for meeting in meetings:
        meeting.join(0, 1000 + meeting.node)
    until(lambda: all(len(meeting.poll().joined) == 2 for meeting in meetings))
    assert [joined.port for joined in meetings[1].poll().joined] == [1000, 1001]
    for meeting in meetings:
        meeting.fail(0, Failure(node=meeting.node, outcome=Outcome(reason=f"says {meeting.node}"), final=False))
    until(lambda: all(meeting.poll().generation == 1 for meeting in meetings))
    first, second = (meeting.poll().failures for meeting in meetings)
    assert first == second
    assert meetings[0].poll().joined == (), "the new generation has not met"
    for step in (1, 2):
        ranks = (RankPace(rank=1, step=step, phase="training"),)
        meetings[1].share(NodePace(node=1, ranks=ranks))
        until(lambda ranks=ranks: [pace.ranks for pace in meetings[0].poll().paces] == [ranks])
    meetings[1].finish(1, Outcome(result={"x": 1}))
    until(lambda: meetings[0].poll().finished)
    assert meetings[0].poll().finished[0].outcome.result == {"x": 1}
    assert all(mirror.finish(within=20) for mirror in mirrors)


class TestWatch:
    """Times are given, so that a minute costs none."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> JobFolder:
        return folder(tmp_path / "job")

    def watch(
        self, files: JobFolder, store: LocalStore, *, count: int = 1, **fields: object
    ) -> tuple[Watch, FolderMirror]:
        spec = JobSpec.model_validate({"name": NAME, "kind": "train", "payload": {}, "num_nodes": count, **fields})
        record = RemoteAttempt(spec=spec, attempt=1, engine_id="x", life="x")
        mirror = FolderMirror(files, store, NAME, attempt=1)
        mirror.start()
        assert mirror.finish(within=20)  # what it has seen is set by the tests
        return Watch(mirror, files, record, NodePlace(0, count), cast("SupervisorChild", None)), mirror

    def test_a_lease_that_nobody_renews_stops_the_job_and_all_is_over_a_minute_later(self, files, store) -> None:
        watch, mirror = self.watch(files, store, lease_seconds=100, grace_seconds=50)
        mirror.contact = mirror.renewed + 88
        watch._check_lease(mirror.renewed + 89)
        assert files.stop_request(1) is None
        mirror.contact = mirror.renewed + 91
        watch._check_lease(mirror.renewed + 91)
        stop = files.stop_request(1)
        assert stop.cause == "stop"
        assert "lease expired" in stop.reason
        assert 91 + 50 + attend_watch.FLUSH_SECONDS <= 100 + 60 + 1

    def test_with_the_store_away_nobody_can_renew_and_the_job_is_lost_not_stopped(self, files, store) -> None:
        watch, mirror = self.watch(files, store, lease_seconds=100, grace_seconds=10)
        mirror.contact = mirror.renewed + 5
        watch._check_lease(mirror.renewed + 101)
        assert files.stop_request(1).cause == "signal"
        assert "the store was away for 96 s" in files.stop_request(1).reason

    def test_a_job_without_a_lease_waits_for_the_store_for_ten_minutes_at_its_end(self, files, store) -> None:
        watch, mirror = self.watch(files, store)
        watch._check_lease(mirror.renewed + 1e6)
        assert files.stop_request(1) is None
        assert 590 < watch.deadline() - time.monotonic() <= 600

    def test_a_node_that_falls_silent_ends_the_job_as_lost(self, files, store) -> None:
        watch, mirror = self.watch(files, store, count=2)
        now = time.monotonic()
        beat = ObjectInfo("x", 1)
        mirror.control = Control((1,), {1: {"beats/1/00000001": beat, "beats/0/00000001": beat}})
        mirror.contact = now
        watch._check_peers(now)
        mirror.contact = now + 59
        watch._check_peers(now + 59)
        assert files.stop_request(1) is None
        mirror.contact = now + 30  # who cannot see the store cannot see the nodes
        watch._check_peers(now + 70)
        assert files.stop_request(1) is None
        mirror.contact = now + 70
        watch._check_peers(now + 70)
        assert files.stop_request(1).cause == "signal"
        assert files.stop_request(1).reason == "node 1 was silent for 60 s"

    def test_a_node_that_has_left_may_be_silent(self, files, store) -> None:
        watch, mirror = self.watch(files, store, count=2)
        now = time.monotonic()
        mirror.control = Control((1,), {1: {"left/1": ObjectInfo("x", 1), "beats/1/00000001": ObjectInfo("x", 1)}})
        for later in (0, 100):
            mirror.contact = now + later
            watch._check_peers(now + later)
        assert files.stop_request(1) is None
