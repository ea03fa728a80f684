"""Large transfers that were cut short: the next try sends or fetches what is missing, and no more."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fixtures_faulty_s3 as faulty
import fixtures_s3
import pytest
from fixtures_faulty_s3 import Fault, FaultyS3

from deepseek_ops.adapters.stores import open_store, remote, s3, s3_parts, store_environment
from deepseek_ops.adapters.stores.remote import PARALLEL_PARTS
from deepseek_ops.adapters.stores.s3 import S3Store
from deepseek_ops.core.errors import IntegrityError, StoreUnavailableError
from deepseek_ops.data import blob_key

faulty_s3, faulty_credentials = faulty.faulty_s3, faulty.faulty_credentials

PART_BYTES = 5 << 20
"""S3 takes no smaller ones."""
PARTS = 8
SIZE = PARTS * PART_BYTES - 12_345

PROGRAM = """
import os, sys
from pathlib import Path
from deepseek_ops.adapters.stores import remote, s3
remote.PART_BYTES, s3.PART_BYTES, remote.SINGLE_PUT_BYTES = 5 << 20, 5 << 20, 10 << 20
from deepseek_ops.adapters.stores import store_from_environment
store = store_from_environment(os.environ)
what, key, path = sys.argv[1:]
print("ready", flush=True)
store.put_blob(key, Path(path)) if what == "put" else store.download(key, Path(path))
"""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(s3, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(remote, "SINGLE_PUT_BYTES", 2 * PART_BYTES)
    monkeypatch.setattr("deepseek_ops.adapters.stores.pace.BUSY_SECONDS", 0.05)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "weights.bin"
    path.write_bytes(random.Random(7).randbytes(SIZE))  # noqa: S311
    return path


@pytest.fixture(scope="module")
def key(source: Path) -> str:
    return blob_key(sha256_of(source))


@pytest.fixture
def store(s3_uri: str, faulty_credentials: dict[str, str]) -> S3Store:
    opened = open_store(s3_uri, faulty_credentials)
    assert isinstance(opened, S3Store)
    return opened


s3_uri = fixtures_s3.s3_uri


@pytest.fixture
def straight(store: S3Store) -> S3Store:
    opened = open_store(store.uri, fixtures_s3.shared_server().credentials)
    assert isinstance(opened, S3Store)
    return opened


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stored_digest(store: S3Store, key: str) -> str:
    seen = hashlib.sha256()
    for start in range(0, SIZE, PART_BYTES):
        seen.update(store.get(key, start=start, length=PART_BYTES))
    return seen.hexdigest()


def open_uploads(store: S3Store) -> list[s3_parts.OpenUpload]:
    assert store._requests is not None
    return list(s3_parts.open_uploads(store._requests, store._prefix))


def killed(
    store: S3Store, credentials: dict[str, str], proxy: FaultyS3, what: str, key: str, path: Path, after: int
) -> None:
    """Run one transfer in a process that is killed after so many parts."""
    kind = "part" if what == "put" else "get"
    before = proxy.counts[kind]
    environment = {**os.environ, **store_environment(store.uri, credentials)}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, what, key, str(path)], env=environment)
    deadline = time.monotonic() + 60
    while proxy.counts[kind] < before + after and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()


class TestUploads:
    def test_a_killed_one_goes_on(
        self,
        store: S3Store,
        straight: S3Store,
        faulty_s3: FaultyS3,
        faulty_credentials: dict[str, str],
        source: Path,
        key: str,
    ) -> None:
        faulty_s3.will(Fault(faulty.LATENCY, "part", seconds=0.1))
        killed(store, faulty_credentials, faulty_s3, "put", key, source, after=6)
        assert straight.head(key) is None, "nothing half-visible"
        assert len(open_uploads(straight)) == 1
        assert store._requests is not None
        upload = open_uploads(straight)[0]
        time.sleep(0.5)  # what the server still received
        have = len(
            s3_parts.PartedUpload(store._requests, upload.path, source, SIZE, PART_BYTES, 4)._parts(upload.upload)
        )
        assert have >= 6 - PARALLEL_PARTS
        faulty_s3.reset_counts()
        store.put_blob(key, source)
        assert faulty_s3.counts["part"] == PARTS - have, "only what is missing is sent"
        assert stored_digest(straight, key) == sha256_of(source)
        assert open_uploads(straight) == []

    def test_a_lost_connection_keeps_the_parts_for_the_next_try(
        self, store: S3Store, straight: S3Store, faulty_s3: FaultyS3, source: Path, key: str
    ) -> None:
        faulty_s3.will(Fault(faulty.ERROR, "part", key=r".*", probability=0.0), Fault(faulty.ERROR, "complete"))
        with pytest.raises(StoreUnavailableError):
            store.put_blob(key, source)
        faulty_s3.will()
        faulty_s3.reset_counts()
        store.put_blob(key, source)
        assert faulty_s3.counts["part"] == 0, "all parts were there"
        assert straight.head(key) is not None

    def test_two_at_once_store_the_same_object(self, straight: S3Store, source: Path, key: str) -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: straight.put_blob(key, source), range(2)))
        assert stored_digest(straight, key) == sha256_of(source)

    def test_one_that_another_finishes_meanwhile_is_finished(
        self, store: S3Store, straight: S3Store, faulty_s3: FaultyS3, source: Path, key: str
    ) -> None:
        faulty_s3.will(Fault(faulty.LATENCY, "part", seconds=1.0))
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(store.put_blob, key, source)
            while not open_uploads(straight):
                time.sleep(0.02)
            straight.put_blob(key, source)
            assert open_uploads(straight) == [], "they worked on one upload"
            slow.result()
        assert stored_digest(straight, key) == sha256_of(source)

    def test_parts_of_another_content_are_sent_again(
        self, straight: S3Store, faulty_s3: FaultyS3, store: S3Store, source: Path, key: str
    ) -> None:
        requests = straight._requests
        assert requests is not None
        path = straight._prefix + key
        upload = s3_parts.PartedUpload(requests, path, source, SIZE, PART_BYTES, 4)._begin()
        for number in (1, 3):
            requests.send("PUT", path, {"partNumber": str(number), "uploadId": upload}, bytes(PART_BYTES))
        store.put_blob(key, source)
        assert faulty_s3.counts["part"] == PARTS
        assert stored_digest(straight, key) == sha256_of(source)

    def test_a_file_that_changed_takes_its_parts_back(
        self, straight: S3Store, source: Path, key: str, tmp_path: Path
    ) -> None:
        other = tmp_path / "other"
        other.write_bytes(source.read_bytes()[:-1] + b"\0")
        with pytest.raises(IntegrityError):
            straight.put_blob(key, other)
        assert open_uploads(straight) == []
        assert straight.head(key) is None

    def test_what_nobody_goes_on_with_is_aborted(
        self, straight: S3Store, source: Path, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        requests = straight._requests
        assert requests is not None
        s3_parts.PartedUpload(requests, straight._prefix + key, source, SIZE, PART_BYTES, 4)._begin()
        assert straight.drop_unfinished(3600) == 0, "young ones may be somebody's"
        monkeypatch.setattr(s3_parts, "STALE_SECONDS", -60.0)
        straight.put_blob(key, source)
        monkeypatch.undo()
        assert open_uploads(straight) == []
        s3_parts.PartedUpload(requests, straight._prefix + "other", source, SIZE, PART_BYTES, 4)._begin()
        assert straight.drop_unfinished(-60) == 1
        assert open_uploads(straight) == []


class TestDownloads:
    @pytest.fixture
    def stored(self, straight: S3Store, source: Path, key: str) -> str:
        straight.put_blob(key, source)
        return key

    def test_a_killed_one_goes_on(
        self,
        store: S3Store,
        faulty_s3: FaultyS3,
        faulty_credentials: dict[str, str],
        source: Path,
        stored: str,
        tmp_path: Path,
    ) -> None:
        faulty_s3.will(Fault(faulty.LATENCY, "get", seconds=0.1))
        killed(store, faulty_credentials, faulty_s3, "get", stored, tmp_path / "copy", after=7)
        assert not (tmp_path / "copy").exists(), "nothing half-visible"
        faulty_s3.reset_counts()
        store.download(stored, tmp_path / "copy")
        assert faulty_s3.counts["get"] <= 1 + PARTS - (7 - 1 - PARALLEL_PARTS), "the first asks for the size"
        assert sha256_of(tmp_path / "copy") == sha256_of(source)
        assert [path.name for path in tmp_path.iterdir()] == ["copy"]

    def test_what_is_left_is_not_believed(
        self, store: S3Store, faulty_s3: FaultyS3, source: Path, stored: str, tmp_path: Path
    ) -> None:
        faulty_s3.will(Fault(faulty.ERROR, "get", count=40))
        with pytest.raises(StoreUnavailableError):
            self._cut_after_some(store, faulty_s3, stored, tmp_path)
        left = tmp_path / f".{sha256_of(source)}.part"
        with left.open("r+b") as file:
            file.seek(100)
            file.write(b"power loss")
        faulty_s3.will()
        store.download(stored, tmp_path / "copy")
        assert sha256_of(tmp_path / "copy") == sha256_of(source)

    @staticmethod
    def _cut_after_some(store: S3Store, proxy: FaultyS3, key: str, folder: Path) -> None:
        head = Fault(faulty.LATENCY, "get", count=PARTS - 1, seconds=0.0)
        proxy.will(head, Fault(faulty.ERROR, "get"))
        store.download(key, folder / "copy")

    def test_two_at_once_into_one_folder_are_both_right(
        self, straight: S3Store, source: Path, stored: str, tmp_path: Path
    ) -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda name: straight.download(stored, tmp_path / name), ["one", "two"]))
        assert {sha256_of(path) for path in tmp_path.iterdir()} == {sha256_of(source)}
        assert len(list(tmp_path.iterdir())) == 2
