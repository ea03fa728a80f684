"""What a store makes of a bad network and a busy server: the right end, or one typed error and nothing half-visible."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fixtures_datasets
import fixtures_faulty_s3 as faulty
import fixtures_s3
import pytest
from fixtures_datasets import contents
from fixtures_faulty_s3 import Fault, FaultyS3, moderate
from fixtures_patterns import LARGE, keys, pattern

from deepseek_ops.adapters.stores import clients, open_store
from deepseek_ops.core.errors import ObjectExistsError, StoreAccessError, StoreUnavailableError, TransientError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import digest_of
from deepseek_ops.data import DatasetRepository, blob_key
from deepseek_ops.data.refs import RefLog

faulty_s3, faulty_store, faulty_credentials = faulty.faulty_s3, faulty.faulty_store, faulty.faulty_credentials
folder = fixtures_datasets.folder

BEFORE = (faulty.ERROR, faulty.SLOW_DOWN, faulty.RESET_BEFORE, faulty.CUT_REQUEST)
"""Faults after which the server has done nothing."""


@pytest.fixture
def straight(faulty_store: ObjectStore) -> ObjectStore:
    """Give the same store without the proxy: what is really there."""
    return open_store(faulty_store.uri, fixtures_s3.shared_server().credentials)


class TestOneFault:
    @pytest.mark.parametrize("what", [*BEFORE, faulty.RESET_AFTER, faulty.TRUNCATE])
    def test_of_any_kind_is_not_seen_by_the_caller(
        self, faulty_s3: FaultyS3, faulty_store: ObjectStore, tmp_path: Path, what: str
    ) -> None:
        data = pattern(100_000)
        calls = {
            "put": lambda: faulty_store.put_blob("blob", data),
            "get": lambda: faulty_store.get("blob") == data,
            "get range": lambda: faulty_store.get("blob", start=5, length=50_000) == data[5:50_005],
            "get file": lambda: faulty_store.download("blob", tmp_path / "out"),
            "head": lambda: faulty_store.head("blob"),
            "list": lambda: keys(faulty_store.list("")) == ["blob"],
            "delete": lambda: faulty_store.delete(["blob"]),
        }
        for name, call in calls.items():
            fault = Fault(what, name.partition(" ")[0], count=1)
            faulty_s3.will(fault)
            assert call() in (None, True) or name == "head", name
            assert fault.hit == 1
        assert (tmp_path / "out").read_bytes() == data
        assert max(faulty_s3.counts.values()) <= 6, "each was sent twice at most"
        assert keys(faulty_store.list("")) == []

    @pytest.mark.parametrize("what", BEFORE)
    def test_before_a_create_is_made_good(self, faulty_s3: FaultyS3, faulty_store: ObjectStore, what: str) -> None:
        faulty_s3.will(Fault(what, "put", count=1))
        faulty_store.create("refs/a", b"mine")
        assert faulty_store.get("refs/a") == b"mine"

    def test_silence_in_the_middle_of_an_answer_ends(
        self,
        faulty_s3: FaultyS3,
        faulty_store: ObjectStore,
        faulty_credentials: dict[str, str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        faulty_store.put_blob("blob", pattern(1000))
        monkeypatch.setattr(clients, "READ_SECONDS", 0.5)
        impatient = open_store(faulty_store.uri, faulty_credentials)
        faulty_s3.will(Fault(faulty.STALL, "get", count=1, seconds=5))
        began = time.monotonic()
        assert impatient.get("blob") == pattern(1000)
        assert time.monotonic() - began < 4

    def test_in_the_middle_of_a_listing_loses_and_doubles_nothing(
        self, faulty_s3: FaultyS3, faulty_store: ObjectStore, straight: ObjectStore
    ) -> None:
        made = [f"many/{number:05}" for number in range(1100)]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda key: straight.put_blob(key, b"x"), made))
        for what in (faulty.TRUNCATE, faulty.RESET_AFTER, faulty.ERROR):
            found = faulty_store.list("many/")
            begun = [next(found).key for _ in range(3)]
            fault = Fault(what, "list", count=1)
            faulty_s3.will(fault)
            assert begun + keys(found) == made, what
            assert fault.hit == 1


class TestDamage:
    @pytest.mark.parametrize("size", [1000, LARGE])
    def test_bytes_that_change_on_their_way_are_refused_and_never_visible(
        self, faulty_s3: FaultyS3, faulty_store: ObjectStore, straight: ObjectStore, tmp_path: Path, size: int
    ) -> None:
        source = tmp_path / "source"
        source.write_bytes(pattern(size))
        key = blob_key(digest_of(pattern(size)))
        faulty_s3.will(Fault(faulty.FLIP_REQUEST, "put|part"))
        with pytest.raises(StoreUnavailableError):
            faulty_store.put_blob(key, source)
        assert straight.head(key) is None
        assert sum(faulty_s3.counts.values()) < 30, "it does not try for ever"
        faulty_s3.will(Fault(faulty.FLIP_REQUEST, "put|part", count=1))
        faulty_store.put_blob(key, source)
        assert straight.get(key) == pattern(size)

    def test_a_create_that_was_damaged_is_sent_again(self, faulty_s3: FaultyS3, faulty_store: ObjectStore) -> None:
        faulty_s3.will(Fault(faulty.FLIP_REQUEST, "put", count=1))
        faulty_store.create("refs/a", b"mine")
        assert faulty_store.get("refs/a") == b"mine"

    def test_a_large_download_that_is_cut_again_and_again_ends(
        self, faulty_s3: FaultyS3, faulty_store: ObjectStore, tmp_path: Path
    ) -> None:
        source = tmp_path / "source"
        source.write_bytes(pattern(LARGE))
        key = blob_key(digest_of(pattern(LARGE)))
        faulty_store.put_blob(key, source)
        faulty_s3.will(Fault(faulty.TRUNCATE, "get", count=2), Fault(faulty.RESET_AFTER, "get", count=2))
        faulty_store.download(key, tmp_path / "copy")
        assert digest_of((tmp_path / "copy").read_bytes()) == digest_of(pattern(LARGE))


class TestLostAnswers:
    def test_a_create_whose_answer_is_lost_has_stored_our_bytes_and_says_taken(
        self, faulty_s3: FaultyS3, faulty_store: ObjectStore
    ) -> None:
        faulty_s3.will(Fault(faulty.RESET_AFTER, "put", count=1))
        with pytest.raises(ObjectExistsError):
            faulty_store.create("refs/a", b"unique")
        assert faulty_store.get("refs/a") == b"unique", "so that a writer can read back who won"

    def test_a_branch_knows_its_own_entry_again(self, faulty_s3: FaultyS3, faulty_store: ObjectStore) -> None:
        log = RefLog(faulty_store, "corpus", "main")
        faulty_s3.will(Fault(faulty.RESET_AFTER, "put", key="refs/heads", count=1))
        entry = log.append("a" * 64, after=None)
        assert entry is not None
        assert entry == log.head()
        assert log.append("b" * 64, after=None) is None, "a place is taken once"

    def test_a_commit_whose_every_answer_is_lost_is_made_once_by_the_next_try(
        self, faulty_s3: FaultyS3, faulty_store: ObjectStore, straight: ObjectStore, folder: Path
    ) -> None:
        repository = DatasetRepository.open(faulty_store)
        faulty_s3.will(
            Fault(faulty.RESET_AFTER, "put", key="refs/heads"), Fault(faulty.RESET_BEFORE, "get|list", key="")
        )
        with pytest.raises(TransientError):
            repository.commit(folder, name="corpus", message="m", author="a")
        faulty_s3.will()
        made = repository.commit(folder, name="corpus", message="m", author="a")
        assert DatasetRepository(straight).verify(made.version).problems == ()
        assert len(DatasetRepository(straight).log("corpus")) == 1

    def test_a_finished_upload_whose_answer_is_lost_is_finished(
        self, faulty_s3: FaultyS3, faulty_store: ObjectStore, tmp_path: Path
    ) -> None:
        source = tmp_path / "source"
        source.write_bytes(pattern(LARGE))
        key = blob_key(digest_of(pattern(LARGE)))
        faulty_s3.will(Fault(faulty.RESET_AFTER, "complete", count=1), Fault(faulty.RESET_AFTER, "begin|part", count=2))
        faulty_store.put_blob(key, source)
        assert faulty_store.head(key).size == LARGE  # type: ignore[union-attr]

    def test_a_completion_that_fails_after_its_200_is_asked_for_again(
        self, faulty_s3: FaultyS3, faulty_store: ObjectStore, tmp_path: Path
    ) -> None:
        source = tmp_path / "source"
        source.write_bytes(pattern(LARGE))
        faulty_s3.will(Fault(faulty.ANSWER, "complete", count=1, body=b"<Error><Code>InternalError</Code></Error>"))
        faulty_store.put_blob("blob", source)
        assert faulty_store.get("blob", start=LARGE - 9) == pattern(LARGE)[-9:]


class TestBusyServer:
    def test_a_server_that_stays_busy_is_left_alone_after_a_bounded_number_of_requests(
        self, faulty_s3: FaultyS3, faulty_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("deepseek_ops.adapters.stores.pace.BUSY_SECONDS", 0.05)
        faulty_s3.will(Fault(faulty.SLOW_DOWN))
        with pytest.raises(StoreUnavailableError, match="503 SlowDown"):
            faulty_store.put_blob("a", b"x")
        assert faulty_s3.counts["put"] <= 16

    def test_many_threads_become_few_and_all_succeed(
        self,
        faulty_s3: FaultyS3,
        faulty_store: ObjectStore,
        faulty_credentials: dict[str, str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("deepseek_ops.adapters.stores.pace.BUSY_SECONDS", 0.2)
        monkeypatch.setattr("deepseek_ops.adapters.stores.pace._ROUND_SECONDS", 0.0)
        monkeypatch.setattr(clients, "RETRIES", 0)
        store = open_store(
            faulty_store.uri, {**fixtures_s3.shared_server().credentials, "AWS_ENDPOINT_URL": faulty_s3.endpoint}
        )
        faulty_s3.will(Fault(faulty.SLOW_DOWN, "put", count=24), Fault(faulty.LATENCY, "put", seconds=0.02))
        with ThreadPoolExecutor(24) as pool:
            list(pool.map(lambda number: store.put_blob(f"k/{number}", b"x"), range(24)))
            faulty_s3.reset_counts()
            faulty_s3.will(Fault(faulty.LATENCY, "put", seconds=0.02))
            list(pool.map(lambda number: store.put_blob(f"l/{number}", b"x"), range(24)))
        assert faulty_s3.most_at_once <= 12, "of 24 that would"
        assert len(keys(store.list(""))) == 48


class TestDeletions:
    def test_go_a_thousand_a_request(self, faulty_s3: FaultyS3, faulty_store: ObjectStore) -> None:
        faulty_store.delete([f"none/{number}" for number in range(2500)])
        assert faulty_s3.counts["delete"] == 3

    def test_name_the_keys_that_are_refused(self, faulty_s3: FaultyS3, faulty_store: ObjectStore) -> None:
        prefix = faulty_store.uri.rpartition("/")[2]
        rows = "".join(
            f"<Error><Key>{prefix}/{key}</Key><Code>AccessDenied</Code></Error>" for key in ("b", "c", "d", "e")
        )
        faulty_s3.will(Fault(faulty.ANSWER, "delete", body=f"<DeleteResult>{rows}</DeleteResult>".encode()))
        with pytest.raises(StoreAccessError, match=r"4 objects were not deleted: b \(AccessDenied\), c .*and 1 more"):
            faulty_store.delete(["a", "b", "c", "d", "e"])

    def test_send_again_only_what_failed(self, faulty_s3: FaultyS3, faulty_store: ObjectStore) -> None:
        for key in ("a", "b"):
            faulty_store.create(key, b"")
        prefix = faulty_store.uri.rpartition("/")[2]
        body = f"<DeleteResult><Error><Key>{prefix}/b</Key><Code>InternalError</Code></Error></DeleteResult>"
        faulty_s3.will(Fault(faulty.ANSWER, "delete", count=1, body=body.encode()))
        faulty_store.delete(["a", "b"])
        assert keys(faulty_store.list("")) == ["a"], "the answer said that a was deleted"


@pytest.mark.slow
def test_datasets_are_committed_and_checked_out_through_all_of_it(
    faulty_s3: FaultyS3, faulty_store: ObjectStore, straight: ObjectStore, folder: Path, tmp_path: Path
) -> None:
    repository = DatasetRepository.open(faulty_store)
    errors = 0
    for number in range(6):
        (folder / f"new{number}").write_bytes(pattern(3000 + number))
        faulty_s3.will(*moderate(lost_answers=True))
        for _ in range(10):
            try:
                made = repository.commit(folder, name="corpus", message=f"{number}", author="a")
                break
            except TransientError:
                errors += 1
                assert (
                    DatasetRepository(straight).log("corpus") == []
                    or not DatasetRepository(straight).verify("corpus").problems
                )
        for _ in range(10):
            try:
                repository.checkout(made.version, tmp_path / f"out{number}")
                break
            except TransientError:
                errors += 1
                assert not (tmp_path / f"out{number}").exists()
        assert contents(tmp_path / f"out{number}") == contents(folder)
        assert len(DatasetRepository(straight).log("corpus")) == number + 1
    assert DatasetRepository(straight).verify("corpus").problems == ()
    assert errors <= 6, "most faults are made good where they happen"
