"""A disk that is full costs what could not be written, and never the training that wanted to write it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepseek_ops.adapters.local_launcher.errors import NoSpaceForJobError
from deepseek_ops.adapters.local_launcher.folder import JobFolder
from deepseek_ops.adapters.local_launcher.reading import read_events
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.errors import TransientError
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.jobs import ranks, training_ledger
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.entry import Outcome
from deepseek_ops.jobs.meeting import FolderRendezvous
from deepseek_ops.jobs.nodes import NodePlace
from deepseek_ops.jobs.ranks import RankGroupRunner, RankRun
from deepseek_ops.jobs.rendezvous import (
    Failure,
    Gathering,
    Joined,
    LocalRendezvous,
    NodePace,
    NoRoomToMeetError,
    Rendezvous,
)
from deepseek_ops.jobs.rendezvous_folder import SharedFolderRendezvous
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


# --- nodes that meet ---

Full = Callable[[int], None]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    """Makes the disk refuse so many new folders and files, as the system says it."""
    left = 0

    def refusing(real: Callable[..., object]) -> Callable[..., object]:
        def call(path: Path, *arguments: object, **fields: object) -> object:
            nonlocal left
            mode = str(fields.get("mode", arguments[0] if arguments else "r"))
            if "meet" in path.parts and left > 0 and not mode.startswith("r"):
                left -= 1
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(path, *arguments, **fields)

        return call

    def set_left(refusals: int) -> None:
        nonlocal left
        left = refusals

    monkeypatch.setattr(Path, "mkdir", refusing(Path.mkdir))
    monkeypatch.setattr(Path, "open", refusing(Path.open))
    return set_left


def mirrored(folder: Path) -> Rendezvous:
    return FolderRendezvous(JobFolder(folder), 1, NodePlace(0, 2))


def shared(folder: Path) -> Rendezvous:
    return SharedFolderRendezvous(folder / "meet", node=0, num_nodes=2)


@pytest.mark.parametrize("make", [mirrored, shared])
def test_a_node_that_cannot_say_that_it_is_there_tries_again_and_then_counts_as_lost(
    tmp_path: Path, make: Callable[[Path], Rendezvous], full: Full
) -> None:
    full(10**6)
    runner = RankGroupRunner(JobFolder(tmp_path), SPEC, 1, make(tmp_path), meet_seconds=0.3)
    with pytest.raises(NoRoomToMeetError, match=r"node 0 .* other nodes .* 0\.3 s") as caught:
        runner._meet()
    assert isinstance(caught.value, TransientError), "the job is LOST, and the next attempt may find room"


@pytest.mark.parametrize("make", [mirrored, shared])
def test_words_follow_when_there_is_room_while_the_nodes_meet(
    tmp_path: Path, make: Callable[[Path], Rendezvous], full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "TELL_SECONDS", 0.01)
    meeting = make(tmp_path)
    runner = RankGroupRunner(JobFolder(tmp_path), SPEC, 1, meeting, meet_seconds=60)
    for say, name in (
        (lambda: meeting.join(0, 1), "join"),
        (lambda: meeting.finish(0, Outcome(result={})), "finish"),
        (lambda: meeting.fail(0, Failure(node=0, outcome=Outcome(reason="x"), final=True)), "fail"),
    ):
        full(3)
        runner._tell(say)
        files = [path.name for path in tmp_path.rglob("*.json") if "meet" in path.parts]
        assert len(files) == {"join": 1, "finish": 2, "fail": 3}[name], files
    full(3)
    with runner._full_disk_allowed():
        meeting.share(NodePace(node=0))
