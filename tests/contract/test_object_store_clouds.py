"""The promises of every ObjectStore, asked of Azure (Azurite), of Google's XML API, and of memory."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import fixtures_clouds
import pytest
from contract_object_store import BlobsContract, ObjectStoreContract

from deepseek_ops.adapters.stores import StoreUriError, ensure_bucket, open_store, store_environment
from deepseek_ops.adapters.stores.opening import STORE_VARIABLE
from deepseek_ops.core.errors import ObjectNotFoundError, StoreAccessError
from deepseek_ops.core.ports import ObjectStore


class TestMemoryStore(ObjectStoreContract, BlobsContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return open_store(f"memory://{secrets.token_hex(6)}")

    @pytest.fixture
    def environment(self, store: ObjectStore) -> dict[str, str]:
        return {STORE_VARIABLE: store.uri}

    @staticmethod
    def scribble(store: ObjectStore, key: str, data: bytes) -> None:
        store.create(key, data)

    def test_is_not_given_to_another_process(self, store: ObjectStore) -> None:
        with pytest.raises(StoreUriError, match="own memory"):
            store_environment(store.uri)

    def test_two_names_are_two_stores(self, store: ObjectStore) -> None:
        store.create("a", b"1")
        assert list(open_store(f"{store.uri}-other").list("")) == []
        assert open_store(store.uri).get("a") == b"1"


@pytest.mark.slow
class TestAzureStore(ObjectStoreContract, BlobsContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        uri = f"az://{fixtures_clouds.CONTAINER}/{secrets.token_hex(6)}"
        return open_store(uri, fixtures_clouds.azure_credentials())

    @pytest.fixture
    def environment(self, store: ObjectStore) -> dict[str, str]:
        return store_environment(store.uri, fixtures_clouds.azure_credentials())

    @staticmethod
    def scribble(store: ObjectStore, key: str, data: bytes) -> None:
        store.create(key, data)

    def test_a_missing_container_is_an_access_error_everywhere(self, tmp_path: Path) -> None:
        missing = open_store("az://no-such-container", fixtures_clouds.azure_credentials())
        for call in (
            lambda: missing.head("a"),
            lambda: missing.get("a"),
            lambda: missing.create("a", b""),
            lambda: missing.put_blob("a", b"x" * (34 << 20)),
            lambda: missing.download("a", tmp_path / "a"),
            lambda: list(missing.list("")),
            lambda: missing.delete(["a"]),
            lambda: ensure_bucket("az://no-such-container", fixtures_clouds.azure_credentials()),
        ):
            with pytest.raises(StoreAccessError, match="does not exist"):
                call()

    def test_wrong_keys_are_refused_and_not_shown(self, store: ObjectStore) -> None:
        wrong = open_store(
            store.uri, {**fixtures_clouds.azure_credentials(), "AZURE_STORAGE_ACCOUNT_KEY": "V1JPTkdXUk9ORw=="}
        )
        for call in (lambda: wrong.create("a", b""), lambda: wrong.get("a"), lambda: list(wrong.list(""))):
            with pytest.raises(StoreAccessError, match="403") as caught:
                call()
            assert "V1JPTkd" not in str(caught.value) + repr(wrong)

    def test_a_container_that_is_there_is_not_made(self, store: ObjectStore) -> None:
        assert not ensure_bucket(store.uri, fixtures_clouds.azure_credentials())


@pytest.mark.slow
class TestGoogleStore(ObjectStoreContract, BlobsContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return open_store(f"gs://tests/{secrets.token_hex(6)}", fixtures_clouds.google_credentials())

    @pytest.fixture
    def environment(self, store: ObjectStore) -> dict[str, str]:
        return store_environment(store.uri, fixtures_clouds.google_credentials())

    @staticmethod
    def scribble(store: ObjectStore, key: str, data: bytes) -> None:
        store.create(key, data)

    def test_a_missing_bucket_is_an_access_error(self) -> None:
        missing = open_store("gs://no-such-bucket", fixtures_clouds.google_credentials())
        for call in (lambda: missing.head("a"), lambda: missing.get("a"), lambda: missing.create("a", b"")):
            with pytest.raises(StoreAccessError, match="does not exist"):
                call()


class TestOpening:
    def test_an_account_that_is_not_named_is_refused_at_once(self) -> None:
        with pytest.raises(StoreAccessError, match="AZURE_STORAGE_ACCOUNT_NAME is not set"):
            open_store("az://container", {})

    def test_a_broken_service_account_is_refused_without_being_shown(self) -> None:
        with pytest.raises(StoreAccessError, match="service account JSON") as caught:
            open_store("gs://bucket", {"GOOGLE_SERVICE_ACCOUNT_KEY": '{"private_key": "SECRETSECRET"}'})
        assert "SECRET" not in str(caught.value)
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize(
        ("uri", "variable"), [("gs://bucket", "GOOGLE_BASE_URL"), ("az://container", "AZURE_ENDPOINT_URL")]
    )
    def test_clear_text_never_leaves_this_machine(self, uri: str, variable: str) -> None:
        with pytest.raises(StoreUriError, match=r"in clear to 192\.0\.2\.1"):
            open_store(uri, {"AZURE_STORAGE_ACCOUNT_NAME": "a", variable: "http://192.0.2.1:9000"})

    @pytest.mark.parametrize(
        ("uri", "problem"),
        [
            ("gcs://bucket", "gs:// is meant"),
            ("abfss://container", "az:// is meant"),
            ("s3a://bucket", "s3:// is meant"),
            ("ftp://host", "unknown scheme 'ftp'"),
            ("az://has_underscore", "no valid container"),
            ("gs://UPPER", "no valid bucket"),
            ("gs://bucket/../x", "'..' segment"),
            ("az://me@container", "carries credentials"),
        ],
    )
    def test_uris_that_name_no_store_say_why(self, uri: str, problem: str) -> None:
        with pytest.raises(StoreUriError, match=problem):
            open_store(uri, {"AZURE_STORAGE_ACCOUNT_NAME": "a"})

    def test_each_kind_takes_its_own_variables_along(self) -> None:
        everything = {
            "AWS_ACCESS_KEY_ID": "a",
            "GOOGLE_BASE_URL": "http://127.0.0.1:1",
            "AZURE_STORAGE_ACCOUNT_NAME": "me",
            "OTHER": "x",
        }
        assert set(store_environment("gs://bucket", everything)) == {STORE_VARIABLE, "GOOGLE_BASE_URL"}
        assert set(store_environment("az://container", everything)) == {STORE_VARIABLE, "AZURE_STORAGE_ACCOUNT_NAME"}
        assert set(store_environment("/folder", everything)) == {STORE_VARIABLE}

    def test_opening_imports_no_client_but_obstore(self) -> None:
        program = (
            "import sys; from deepseek_ops.adapters.stores import open_store\n"
            "open_store('s3://bucket', {'AWS_ACCESS_KEY_ID': 'a', 'AWS_SECRET_ACCESS_KEY': 'b'})\n"
            "print(sorted({'boto3', 'botocore', 'httpx', 'urllib.request'} & set(sys.modules)))\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_memory_forgets_nothing_but_what_is_deleted(self) -> None:
        store = open_store("memory://a-name")
        store.create("k", b"v")
        store.delete(["k"])
        with pytest.raises(ObjectNotFoundError):
            store.get("k")
