"""When the local store brings what to the disk: a ref must not outlive what it names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deepseek_ops.adapters.stores import flushing, open_store
from deepseek_ops.adapters.stores.flushing import ONE_BY_ONE
from deepseek_ops.core.errors import StoreUnavailableError
from deepseek_ops.core.ports import ObjectStore


class Recorder:
    """What is flushed and linked, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        fsync, link = os.fsync, os.link

        def recorded_fsync(handle: int) -> None:
            self.events.append(f"flush {Path(f'/proc/self/fd/{handle}').readlink().name}")
            fsync(handle)

        def recorded_link(source: Path, target: Path) -> None:
            self.events.append(f"link {target.name}")
            link(source, target)

        def recorded_syncfs(handle: int) -> None:
            self.events.append("flush all")

        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(os, "link", recorded_link)
        monkeypatch.setattr(flushing, "_syncfs", lambda: recorded_syncfs)

    def before_link(self, name: str) -> list[str]:
        return self.events[: self.events.index(f"link {name}")]


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def test_blobs_wait_for_the_ref_and_the_ref_waits_for_them(store: ObjectStore, recorder: Recorder) -> None:
    store.put_blob("objects/aa/blob", b"1")
    store.put_blob("packs/pack", b"2")
    assert recorder.events == []
    store.create("refs/head", b"3")
    before = recorder.before_link("head")
    assert {"flush blob", "flush pack", "flush aa", "flush packs", "flush objects", "flush store"} <= set(before)
    assert any(event[6].isdigit() for event in before), "the ref's own bytes come down before its name"
    assert recorder.events.index("flush refs") > recorder.events.index("link head")


def test_what_is_on_the_disk_is_not_flushed_again(store: ObjectStore, recorder: Recorder) -> None:
    store.put_blob("packs/pack", b"2")
    store.create("refs/1", b"3")
    recorder.events.clear()
    store.create("refs/2", b"4")
    assert "flush pack" not in recorder.events


def test_many_blobs_are_flushed_by_one_call(store: ObjectStore, recorder: Recorder) -> None:
    for number in range(ONE_BY_ONE + 1):
        store.put_blob(f"packs/{number}", b"x")
    store.create("refs/head", b"")
    assert recorder.before_link("head") == ["flush all"]


@pytest.mark.parametrize("how", ["put", "head"])
def test_what_another_process_left_unflushed_is_flushed_by_who_names_it(
    store: ObjectStore, recorder: Recorder, how: str
) -> None:
    open_store(store.uri).put_blob("packs/pack", b"2")
    recorder.events.clear()
    if how == "put":
        store.put_blob("packs/pack", b"2")
    else:
        assert store.head("packs/pack")
    store.create("refs/head", b"")
    assert "flush pack" in recorder.before_link("head")


def test_a_flush_that_fails_makes_no_ref_and_is_owed_to_the_next(
    store: ObjectStore, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_blob("packs/pack", b"2")
    good = os.fsync

    def failing(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StoreUnavailableError, match="Input/output"):
        store.create("refs/head", b"")
    assert store.head("refs/head") is None
    monkeypatch.setattr(os, "fsync", good)
    store.create("refs/head", b"")
    assert "flush pack" in recorder.before_link("head")


def test_a_blob_removed_meanwhile_does_not_stop_a_ref(store: ObjectStore) -> None:
    store.put_blob("packs/pack", b"2")
    store.delete(["packs/pack"])
    store.create("refs/head", b"")
    assert store.get("refs/head") == b""


def test_what_was_put_last_is_flushed_when_the_store_is_let_go(tmp_path: Path, recorder: Recorder) -> None:
    store = open_store(str(tmp_path / "mine"))
    store.put_blob("packs/pack", b"2")
    assert recorder.events == []
    del store
    assert "flush pack" in recorder.events


def test_the_file_system_is_really_flushed(tmp_path: Path) -> None:
    sync = flushing._syncfs()
    assert sync is not None, "Linux has syncfs"
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        sync(handle)
    finally:
        os.close(handle)
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync(handle)
