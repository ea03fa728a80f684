"""What every ObjectStore promises, asked of a real S3 server and of a folder."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import fixtures_s3
import pytest
from contract_object_store import BlobsContract, ObjectStoreContract, keys, largest_file

from deepseek_ops.adapters.stores import (
    StoreUriError,
    ensure_bucket,
    open_store,
    store_environment,
)
from deepseek_ops.core.errors import (
    LocalDiskError,
    StoreAccessError,
    StoreUnavailableError,
)
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import digest_of
from deepseek_ops.data import blob_key
from deepseek_ops.embedded.seaweedfs import SeaweedServer

s3_server, s3_store, s3_uri = fixtures_s3.s3_server, fixtures_s3.s3_store, fixtures_s3.s3_uri


class TestLocalStore(ObjectStoreContract, BlobsContract):
    @pytest.fixture
    def store(self, tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
        return open_store(str(tmp_path_factory.mktemp("store") / "made by the first write"))

    @pytest.fixture
    def environment(self, store: ObjectStore) -> dict[str, str]:
        return store_environment(store.uri)

    @staticmethod
    def scribble(store: ObjectStore, key: str, data: bytes) -> None:
        path = store.folder / key  # type: ignore[attr-defined]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def test_a_full_disk_says_so_and_leaves_nothing(self, store: ObjectStore) -> None:
        for put in (store.create, store.put_blob):
            with largest_file(100_000), pytest.raises(LocalDiskError, match="too large"):
                put("big", b"x" * 200_000)
        assert keys(store.list("")) == []
        assert not [path for path in store.folder.rglob("*") if path.is_file()]  # type: ignore[attr-defined]

    def test_heals_an_object_that_was_cut(self, store: ObjectStore) -> None:
        key = blob_key(digest_of(b"whole"))
        self.scribble(store, key, b"who")
        store.put_blob(key, b"whole")
        assert store.get(key) == b"whole"

    def test_unfinished_writes_of_the_dead_are_swept(self, store: ObjectStore) -> None:
        store.create("one", b"1")
        left = store.folder / ".tmp" / "1-dead"  # type: ignore[attr-defined]
        young = store.folder / ".tmp" / "2-alive"  # type: ignore[attr-defined]
        left.write_bytes(b"x")
        young.write_bytes(b"x")
        os.utime(left, (0, 0))
        open_store(store.uri).create("two", b"2")
        assert not left.exists()
        assert young.exists()

    def test_a_folder_without_rights_is_an_access_error(self, store: ObjectStore) -> None:
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        store.create("secret", b"")
        (store.folder / "secret").chmod(0)  # type: ignore[attr-defined]
        with pytest.raises(StoreAccessError):
            store.get("secret")


class TestS3Store(ObjectStoreContract, BlobsContract):
    @pytest.fixture
    def store(self, s3_store: ObjectStore) -> ObjectStore:
        return s3_store

    @pytest.fixture
    def environment(self, store: ObjectStore, s3_server: SeaweedServer) -> dict[str, str]:
        return store_environment(store.uri, s3_server.credentials)

    @staticmethod
    def scribble(store: ObjectStore, key: str, data: bytes) -> None:
        store.create(key, data)

    @pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
    def test_wrong_keys_are_refused_and_not_shown(
        self,
        s3_server: SeaweedServer,
        s3_uri: str,
        tmp_path: Path,
        variable: str,
    ) -> None:
        wrong = open_store(s3_uri, {**s3_server.credentials, variable: "WRONGWRONGWRONG"})
        for call in (
            lambda: wrong.create("a", b""),
            lambda: wrong.put_blob("a", b"x"),
            lambda: wrong.get("a"),
            lambda: wrong.head("a"),
            lambda: wrong.download("a", tmp_path / "a"),
            lambda: list(wrong.list("")),
            lambda: wrong.delete(["a"]),
        ):
            with pytest.raises(StoreAccessError, match="403") as caught:
                call()
            assert "WRONG" not in str(caught.value) + repr(wrong)
            assert s3_server.credentials["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)

    def test_a_server_without_keys_is_refused_at_once(self) -> None:
        with pytest.raises(StoreAccessError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set"):
            open_store(f"s3://{fixtures_s3.BUCKET}", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})

    def test_half_a_pair_of_keys_is_refused_at_once(self) -> None:
        with pytest.raises(StoreAccessError, match="AWS_SECRET_ACCESS_KEY is not set"):
            open_store(f"s3://{fixtures_s3.BUCKET}", {"AWS_ACCESS_KEY_ID": "AK"})

    def test_a_missing_bucket_is_an_access_error_everywhere(
        self,
        s3_server: SeaweedServer,
        tmp_path: Path,
    ) -> None:
        missing = open_store("s3://no-such-bucket", s3_server.credentials)
        for call in (
            lambda: missing.head("a"),
            lambda: missing.get("a"),
            lambda: missing.create("a", b""),
            lambda: missing.put_blob("a", b"x" * (34 << 20)),
            lambda: missing.download("a", tmp_path / "a"),
            lambda: list(missing.list("")),
            lambda: missing.delete(["a"]),
        ):
            with pytest.raises(StoreAccessError, match="bucket does not exist"):
                call()

    def test_a_bucket_is_made_once(self, s3_server: SeaweedServer) -> None:
        uri = f"s3://made-{os.getpid()}/any/prefix"
        assert ensure_bucket(uri, s3_server.credentials)
        assert not ensure_bucket(uri, s3_server.credentials)
        open_store(uri, s3_server.credentials).create("a", b"")
        with pytest.raises(StoreAccessError):
            ensure_bucket("s3://other-bucket", {**s3_server.credentials, "AWS_SECRET_ACCESS_KEY": "no"})

    def test_a_server_that_is_down_shows_within_seconds(
        self,
        s3_server: SeaweedServer,
        tmp_path: Path,
    ) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
            down = open_store("s3://bucket", {**s3_server.credentials, "AWS_ENDPOINT_URL": endpoint})
            for call in (
                lambda: down.create("a", b""),
                lambda: down.get("a"),
                lambda: down.head("a"),
                lambda: list(down.list("")),
                lambda: ensure_bucket("s3://bucket", {**s3_server.credentials, "AWS_ENDPOINT_URL": endpoint}),
            ):
                began = time.monotonic()
                with pytest.raises(StoreUnavailableError):
                    call()
                assert time.monotonic() - began < 12

    def test_clear_text_leaves_this_machine_only_on_demand(self) -> None:
        keys_of_somebody = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        endpoint = {**keys_of_somebody, "AWS_ENDPOINT_URL": "http://192.0.2.1:9000"}
        with pytest.raises(StoreUriError, match=r"in clear to 192\.0\.2\.1"):
            open_store("s3://bucket", endpoint)
        assert open_store("s3+http://bucket", endpoint).uri == "s3+http://bucket"
