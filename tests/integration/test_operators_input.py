"""Operators on bad input: one clear error each, of the right family, and nothing half-written."""

from __future__ import annotations

import json
import socket

import pydantic
import pytest
from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher import LocalLauncher
from deepseek_ops.airflow.operators.data import PrepareDatasetOperator
from deepseek_ops.airflow.operators.source import PlanRunOperator, ResolveSourceOperator
from deepseek_ops.airflow.retry import RETRY_IF_TRANSIENT
from deepseek_ops.core.errors import (
    GitAccessError,
    GitUnreachableError,
    PermanentError,
    RefNotFoundError,
    StoreUnavailableError,
    TransientError,
)
from deepseek_ops.embedded.git_server import GitServer
from deepseek_ops.pipeline.datasets import MissingDatasetError
from deepseek_ops.pipeline.environment import UnpinnedLockError
from deepseek_ops.pipeline.runs import MissingPipelineFileError, RunPlan, UnsupportedEngineError
from deepseek_ops.registry import VersionNotFoundError

TOKEN = "test-token-of-the-operators"
MODEL = json.dumps({"model_type": "deepseek_v3", "vocab_size": 512})


def context(**params: JsonValue) -> dict[str, object]:
    return {"params": {"repository": "repo", "ref": "", **params}, "run_id": "manual__1"}


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Real places behind real connections: a folder store, SQLite, a Git server, a launcher's folder."""
    with GitServer(tmp_path / "git", token=TOKEN) as server:
        url = server.create_repository("model")

        def connection(name, **fields):
            monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(fields))

        connection("repo", conn_type="git", host=url, login="git", password=TOKEN)
        connection("deepseek_ops_store", conn_type="deepseek_store", host=f"file://{tmp_path / 'store'}")
        connection("deepseek_ops_facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db'}")
        connection("deepseek_ops_launcher", conn_type="deepseek_launcher", host=str(tmp_path / "jobs"))
        monkeypatch.setenv("DEEPSEEK_OPS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("DEEPSEEK_OPS_PRELOAD", "")  # what is planned here is not trained
        yield Places(url, tmp_path, connection)
    LocalLauncher(tmp_path / "jobs").shutdown(grace_seconds=5)  # the warm host that planning starts


class Places:
    def __init__(self, url, folder, connection):
        self.url = url
        self.folder = folder
        self.connection = connection

    def push(self, **files: str) -> str:
        """Push one commit of these files to main and return its id; double underscores stand for slashes."""
        from deepseek_ops.adapters.git import open_git
        from deepseek_ops.core.ports import NewCommit

        remote = open_git(self.url, username="git", password=TOKEN, cache=self.folder / "push-cache")
        parent = remote.refs().get("refs/heads/main", "")
        content = {name.replace("__", "/").replace("_dot_", "."): text.encode() for name, text in files.items()}
        return remote.publish(commit=NewCommit("main", parent, "Change", content))["main"]

    def plan(self, **params: JsonValue):
        source = ResolveSourceOperator(task_id="s", git_conn_id="repo").execute(context(**params))
        return PlanRunOperator(task_id="p", source=source, git_conn_id="repo").execute(context(**params))


def raises_without_retry(error: type[PermanentError], match: str):
    assert issubclass(error, PermanentError)
    return pytest.raises(error, match=match)


def test_a_commit_becomes_a_plan_and_the_same_commit_the_same_plan(places):
    places.push(
        deepseek_dot_yaml="name: tiny\ndata: {raw: corpus}\n",
        requirements_dot_txt=f"pydantic=={pydantic.VERSION}\n",
        deepseek__model_dot_json=MODEL,
    )
    plan = RunPlan.load(places.plan())
    assert plan.manifest.name == "tiny"
    assert plan == RunPlan.load(places.plan())
    assert plan.manifest.source.name == "refs/heads/main"


def test_every_mistake_of_the_pipeline_file_is_named_with_its_line(places):
    places.push(deepseek_dot_yaml="name: tiny\ntraining:\n  nodess: 2\n  seed: many\n", requirements_dot_txt="")
    with pytest.raises(PermanentError) as caught:
        places.plan()
    text = str(caught.value)
    assert ":3: training.nodess" in text
    assert ":4: training.seed" in text


def test_an_override_that_does_not_exist_is_refused_by_its_path(places):
    places.push(deepseek_dot_yaml="name: tiny\n", requirements_dot_txt="")
    with pytest.raises(PermanentError, match=r"training\.sed"):
        places.plan(overrides={"training.sed": 2})


def test_a_commit_without_a_pipeline_file_says_what_to_add(places):
    places.push(readme_dot_md="nothing")
    with raises_without_retry(MissingPipelineFileError, "has no deepseek.yaml"):
        places.plan()


def test_a_lock_that_does_not_pin_is_refused_with_its_lines(places):
    places.push(deepseek_dot_yaml="name: tiny\n", requirements_dot_txt="torch>=2\n")
    with raises_without_retry(UnpinnedLockError, "line 1: 'torch>=2'"):
        places.plan()


def test_a_lock_that_is_not_what_is_installed_is_planned_under_a_key_of_its_own(places):
    places.push(deepseek_dot_yaml="name: tiny\n", requirements_dot_txt=f"pydantic=={pydantic.VERSION}\n")
    before = places.plan()["manifest"]["environment"]
    places.push(deepseek_dot_yaml="name: tiny\n", requirements_dot_txt="pydantic==2.11.0\n")
    assert places.plan()["manifest"]["environment"] != before


def test_a_lock_that_is_named_and_missing_is_refused(places):
    places.push(deepseek_dot_yaml="name: tiny\njobs: {setup: {requirements: lock.txt}}\n")
    with raises_without_retry(RefNotFoundError, "lock.txt"):
        places.plan()


def test_more_machines_than_the_engine_has_are_refused_before_anything_starts(places):
    places.push(deepseek_dot_yaml="name: tiny\ntraining: {nodes: 2}\n")
    with raises_without_retry(UnsupportedEngineError, "training.nodes=2"):
        places.plan()


def test_a_base_model_that_was_never_registered_is_named(places):
    places.push(deepseek_dot_yaml="name: tiny\ntraining: {base: 'model://tiny/champion'}\n")
    with raises_without_retry(VersionNotFoundError, "tiny"):
        places.plan()


def test_a_ref_that_does_not_exist_is_named(places):
    places.push(deepseek_dot_yaml="name: tiny\n", requirements_dot_txt="")
    with raises_without_retry(RefNotFoundError, "exp/nothing"):
        places.plan(ref="exp/nothing")


def test_an_empty_lake_is_a_missing_dataset_and_starts_no_job(places):
    places.push(
        deepseek_dot_yaml=f"name: tiny\ndata: {{raw: 'file://{places.folder}/lake/'}}\n", requirements_dot_txt=""
    )
    run = places.plan()
    (places.folder / "lake").mkdir()
    with raises_without_retry(MissingDatasetError, "no raw data below"):
        PrepareDatasetOperator(task_id="d", run=run).execute(context())
    assert not (places.folder / "jobs" / "jobs").exists()


def test_an_unreachable_repository_may_be_tried_again(places):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        places.connection("repo", conn_type="git", host=f"http://127.0.0.1:{taken.getsockname()[1]}/model.git")
        with pytest.raises(GitUnreachableError, match="cannot be reached"):
            places.plan()
    assert issubclass(GitUnreachableError, TransientError)


def test_wrong_credentials_are_not_tried_again_and_not_shown(places):
    places.connection("repo", conn_type="git", host=places.url, login="git", password="wrong-and-secret")
    with raises_without_retry(GitAccessError, "refuses access") as caught:
        places.plan()
    assert "wrong-and-secret" not in str(caught.value)


def test_a_store_that_is_down_may_be_tried_again(places):
    places.push(deepseek_dot_yaml="name: tiny\n", requirements_dot_txt="")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        places.connection(
            "deepseek_ops_store",
            conn_type="deepseek_store",
            host="s3://bucket/store",
            login="key",
            password="secret",
            extra={"endpoint_url": endpoint, "region_name": "us-east-1"},
        )
        with pytest.raises(StoreUnavailableError, match="is not available"):
            places.plan()


def test_the_retry_policy_fails_at_once_what_would_fail_again():
    from airflow.sdk import RetryAction

    def decide(error):
        return RETRY_IF_TRANSIENT.evaluate(error, try_number=1, max_tries=3, context=None).action

    assert decide(MissingDatasetError("s3://lake/")) is RetryAction.FAIL
    assert decide(GitUnreachableError("https://host", "refused")) is RetryAction.RETRY
