"""The LFS server beside collections of garbage: what a client was told is there, stays there."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_gc import NOTHING_KEPT, QUICK, collect, nothing_else_names
from fixtures_lfs_server import LfsServer, lfs_server

from deepseek_ops.adapters.git_lfs.batch import BatchRequest, WireObject
from deepseek_ops.adapters.git_lfs.tokens import Grant
from deepseek_ops.core.objects import blob_key
from deepseek_ops.data import StoreBlobs
from deepseek_ops.data.gc_plan import plan_collection
from deepseek_ops.data.gc_sweep import sweep

CONTENT = b"weights" * 1000
OID = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LfsServer]:
    with lfs_server(str(tmp_path / "store"), {}) as running:
        yield running


@pytest.fixture
def ada(server: LfsServer) -> Grant:
    return server.service.tokens.issue("team/model", "write", "ada", days=1)[1]


def is_here(server: LfsServer, grant: Grant) -> bool:
    """Ask as git-lfs does before an upload, and return whether it would be told that nothing need be sent."""
    asked = BatchRequest(operation="upload", objects=(WireObject(oid=OID, size=len(CONTENT)),))
    answer = server.service.objects.batch(grant, asked, "http://server/team/model")
    return "actions" not in answer["objects"][0]


def test_what_a_client_was_told_is_here_is_never_collected(server: LfsServer, ada: Grant) -> None:
    store = server.service.store
    StoreBlobs(store).put(CONTENT)
    assert is_here(server, ada)
    collect(store)
    assert StoreBlobs(store).get(OID) == CONTENT


def test_what_nobody_pushed_is_collected(server: LfsServer, ada: Grant) -> None:
    store = server.service.store
    StoreBlobs(store).put(CONTENT)
    collect(store)
    assert not is_here(server, ada)


def test_an_object_that_a_running_collection_may_delete_is_not_called_present(server: LfsServer, ada: Grant) -> None:
    """The collection has read its roots for the last time: a note that comes now is too late, and is not relied on."""
    store = server.service.store
    StoreBlobs(store).put(CONTENT)
    time.sleep(0.01)
    plan = plan_collection(store, NOTHING_KEPT, nothing_else_names, write=True)
    reading, go_on = threading.Event(), threading.Event()

    def slow_names():
        names = nothing_else_names()
        reading.set()
        go_on.wait(20)
        return names

    answers: list[bool] = []
    sweeper = threading.Thread(target=lambda: sweep(store, NOTHING_KEPT, plan.run, slow_names, times=QUICK))
    client = threading.Thread(target=lambda: answers.append(is_here(server, ada)))
    sweeper.start()
    assert reading.wait(20)
    client.start()
    client.join(0.5)
    assert not answers, "the answer must wait for the collection"
    go_on.set()
    sweeper.join(30)
    client.join(30)
    assert answers == [store.head(blob_key(OID)) is not None]


def test_clients_and_collections_at_once_never_lose_what_was_promised(server: LfsServer, ada: Grant) -> None:
    store = server.service.store
    ended = threading.Event()

    def collect_all_the_time() -> None:
        while not ended.is_set():
            collect(store)

    collector = threading.Thread(target=collect_all_the_time)
    collector.start()
    promised = 0
    try:
        for number in range(12):
            content = CONTENT + str(number).encode()
            oid = hashlib.sha256(content).hexdigest()
            store.put_blob(blob_key(oid), content)
            time.sleep(0.02 * (number % 4))
            asked = BatchRequest(operation="upload", objects=(WireObject(oid=oid, size=len(content)),))
            answer = server.service.objects.batch(ada, asked, "http://server/team/model")
            if "actions" not in answer["objects"][0]:
                promised += 1
                time.sleep(0.2)
                assert store.head(blob_key(oid)) is not None
    finally:
        ended.set()
        collector.join(30)
    collect(store)
    assert len(list(store.list("objects/sha256/"))) == promised
