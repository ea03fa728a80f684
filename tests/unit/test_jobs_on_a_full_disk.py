"""A disk that is full costs what could not be written, and never the training that wanted to write it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from deepseek_ops.adapters.local_launcher.errors import NoSpaceForJobError
from deepseek_ops.adapters.local_launcher.folder import JobFolder
from deepseek_ops.adapters.local_launcher.reading import read_events
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.jobs import ranks, training_ledger
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.ranks import RankGroupRunner, RankRun
from deepseek_ops.jobs.rendezvous import Gathering, Joined, LocalRendezvous, NodePace
from deepseek_ops.jobs.training_ledger import LedgerFile
from deepseek_ops.training.guardian_ledger import Entry

SPEC = JobSpec(name="full", kind="train", payload={}, num_ranks=1)


def refuse(*_arguments: object) -> None:
    raise NoSpaceForJobError("/here", 0, 1)


def test_events_wait_in_memory_and_follow_in_their_order_when_there_is_room(tmp_path: Path) -> None:
    context, files = JobContext(SPEC, tmp_path), JobFolder(tmp_path)
    context.report(step=1)
    written = files.events.read_bytes()
    files.events.unlink()
    files.events.symlink_to("/dev/full")
    for step in (2, 3):
        context.report(step=step)
    files.events.unlink()
    files.events.write_bytes(written)
    context.report(step=4)
    assert [event["step"] for event in read_events(files, 0)] == [1, 2, 3, 4]


def test_the_guardian_acts_and_its_ledger_goes_to_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path / "store")
    ledger = LedgerFile(JobContext(SPEC, tmp_path / "job", store=store), "runs/this")
    monkeypatch.setattr(training_ledger, "write_json", refuse)
    ledger.add([Entry(1, 7, "loss", "lower_learning_rate", factor=0.5)])
    ledger.finish()
    elsewhere = LedgerFile(JobContext(SPEC, tmp_path / "other", store=store), "runs/this")
    assert [entry.step for entry in elsewhere.ledger.entries] == [7]


def test_ranks_start_and_go_on_without_their_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = JobFolder(tmp_path)
    monkeypatch.setattr(JobFolder, "write", refuse)
    monkeypatch.setattr(ranks, "start_rank", lambda *_a, **_k: SimpleNamespace(pid=4_000_000, rank=0))
    meeting = LocalRendezvous()
    monkeypatch.setattr(meeting, "num_nodes", 2, raising=False)
    monkeypatch.setattr(meeting, "share", refuse)
    runner = RankGroupRunner(files, SPEC, 1, meeting)
    run = runner._start(Gathering(joined=(Joined(node=0, address="127.0.0.1", port=1),)))
    assert list(run.running.values()) == [0]
    watch = SimpleNamespace(look=lambda *_: None, pace=lambda: NodePace(node=0))
    runner._look(RankRun(running={}), watch)
