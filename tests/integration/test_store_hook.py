"""The store hook with every kind of store: which field of a connection becomes what."""

from __future__ import annotations

import json

import fixtures_clouds
import pytest

from deepseek_ops.airflow.hooks import StoreHook


def connect(monkeypatch: pytest.MonkeyPatch, **fields: object) -> StoreHook:
    monkeypatch.setenv("AIRFLOW_CONN_STORE", json.dumps({"conn_type": "generic", **fields}))
    for name in ("AWS_ACCESS_KEY_ID", "AZURE_STORAGE_ACCOUNT_NAME", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    return StoreHook("store")


def test_azure_takes_account_and_key_and_sas_token(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = connect(
        monkeypatch, host="az://container/x", login="account", password="a2V5", extra={"sas_token": "sv=1&sig=2"}
    )
    assert hook.environment() == {
        "DEEPSEEK_OPS_STORE": "az://container/x",
        "AZURE_STORAGE_ACCOUNT_NAME": "account",
        "AZURE_STORAGE_ACCOUNT_KEY": "a2V5",
        "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=2",
    }
    assert hook.store.uri == "az://container/x"


def test_google_takes_a_service_account_as_text_or_as_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    account = {"client_email": "a@b", "private_key": "k"}
    for fields in ({"password": json.dumps(account)}, {"extra": {"keyfile_dict": account}}):
        hook = connect(monkeypatch, host="gs://bucket", **fields)
        assert json.loads(hook.environment()["GOOGLE_SERVICE_ACCOUNT_KEY"]) == account


def test_s3_takes_key_and_secret_and_nothing_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "not yours")
    extra = {"endpoint_url": "http://127.0.0.1:1", "region_name": "eu-west-1"}
    hook = connect(monkeypatch, host="s3://bucket", login="key", password="secret", extra=extra)
    assert hook.environment() == {
        "DEEPSEEK_OPS_STORE": "s3://bucket",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_REGION": "eu-west-1",
    }


def test_opens_what_it_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    base = fixtures_clouds.google_credentials()["GOOGLE_BASE_URL"]
    hook = connect(monkeypatch, host="gs://tests/hook", extra={"endpoint_url": base})
    hook.store.put_blob("a", b"1")
    assert hook.store.get("a") == b"1"
