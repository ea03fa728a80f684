"""Hooks read Airflow connections late, and say clearly what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures_git import TOKEN, USER, Developer, git_server, http_developer  # noqa: F401

from deepseek_ops.airflow.hooks import (
    ConnectionFieldError,
    ConnectionMissingError,
    FactsHook,
    GatewayHook,
    GitRemoteHook,
    LauncherHook,
    StoreHook,
)
from deepseek_ops.core.errors import GitAccessError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSEEK_OPS_CACHE", str(tmp_path / "hook-cache"))


def connect(monkeypatch: pytest.MonkeyPatch, conn_id: str, **fields: object) -> None:
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))


@pytest.mark.parametrize(
    ("hook", "port"),
    [
        (GitRemoteHook(), "remote"),
        (StoreHook(), "store"),
        (FactsHook(), "facts"),
        (LauncherHook(), "launcher"),
        (GatewayHook(), "gateway"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_a_missing_connection_is_named_with_the_command_that_adds_it(hook: object, port: str) -> None:
    with pytest.raises(ConnectionMissingError, match=f"airflow connections add {hook.conn_id} --conn-type"):  # type: ignore[attr-defined]
        getattr(hook, port)


def test_the_git_hook_logs_in_with_the_connection(http_developer: Developer, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    commit = http_developer.push_commit({"deepseek.yaml": "name: x\n"})
    connect(monkeypatch, "here", conn_type="git", host=http_developer.remote.url, login=USER, password=TOKEN)
    connect(monkeypatch, "wrong", conn_type="git", host=http_developer.remote.url, login=USER, password="no")
    hook = GitRemoteHook("here")
    assert hook.remote is hook.remote
    assert hook.remote.read_file(commit, "deepseek.yaml") == b"name: x\n"
    for ask in (lambda: GitRemoteHook("wrong").remote.refs(), lambda: GitRemoteHook("wrong").remote.describe(commit)):
        with pytest.raises(GitAccessError):
            ask()


def test_a_field_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "empty", conn_type="git")
    connect(monkeypatch, "phrase", conn_type="git", host="git@h:r.git", extra={"private_key_passphrase": "x"})
    connect(monkeypatch, "facts", conn_type="deepseek_facts", host="nonsense")
    connect(monkeypatch, "abacus", conn_type="deepseek_launcher", host="/x", extra={"engine": "abacus"})
    for ask, words in (
        (lambda: GitRemoteHook("empty").remote, "'empty': host is empty"),
        (lambda: GitRemoteHook("phrase").remote, "private_key_passphrase is not supported"),
        (lambda: FactsHook("facts").facts, "host is no DSN"),
        (lambda: LauncherHook("abacus").launcher, "extra cannot be used: engine"),
    ):
        with pytest.raises(ConnectionFieldError, match=words):
            ask()


def test_the_store_hook_gives_jobs_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(
        monkeypatch,
        "lake",
        conn_type="aws",
        login="key",
        password="secret",
        extra={"uri": "s3://bucket/prefix", "endpoint_url": "http://127.0.0.1:9", "region_name": "eu-1"},
    )
    assert StoreHook("lake").environment() == {
        "DEEPSEEK_OPS_STORE": "s3://bucket/prefix",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "eu-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    }
    connect(monkeypatch, "disk", conn_type="deepseek_store", host=f"file://{tmp_path / 'store'}")
    hook = StoreHook("disk")
    digest = hook.blobs.put(b"x")
    assert StoreHook("disk").blobs.get(digest) == b"x"
    assert hook.at(f"file://{tmp_path / 'other'}").head("x") is None


def test_the_facts_hook_opens_the_database_with_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db'}")
    assert FactsHook("facts").facts.get("run", "none") is None
    connect(monkeypatch, "pg", conn_type="deepseek_facts", host="postgresql+psycopg://me@h/db", password="p@ss")
    assert FactsHook("pg")._dsn() == "postgresql+psycopg://me:p%40ss@h/db"


def test_the_launcher_hook_opens_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "jobs", conn_type="deepseek_launcher", host=str(tmp_path / "jobs"))
    assert LauncherHook("jobs").launcher.list() == []
