"""A launcher whose connection names an AWS one acts in that account: its role, its region, its limits.

Real hooks of the Amazon provider and real clients; moto is the account. It accepts duplicate names and cannot stop a
training job, so it checks the shape of what is asked and by whom, and no more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto import mock_aws

from deepseek_ops.adapters.engines.sagemaker import SageMakerSettings
from deepseek_ops.adapters.engines.sagemaker.asking import request, training_job_name
from deepseek_ops.adapters.engines.sagemaker.errors import SageMakerAccessError
from deepseek_ops.airflow.hooks import ConnectionFieldError, ConnectionMissingError, LauncherHook
from deepseek_ops.core.jobs import EngineJob

REGION = "eu-west-3"
OPTIONS = {
    "role_arn": "arn:aws:iam::123456789012:role/trainings",
    "output_uri": "s3://bucket/sagemaker",
    "instance_type": "ml.p5.48xlarge",
    "image": "123456789012.dkr.ecr.eu-west-3.amazonaws.com/trainer:1",
}


@pytest.fixture(autouse=True)
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    connect(monkeypatch, "deepseek_ops_store", conn_type="deepseek_store", host=f"file://{tmp_path / 'store'}")
    with mock_aws(config={"core": {"mock_credentials": False}}):
        yield


def connect(monkeypatch: pytest.MonkeyPatch, conn_id: str, **fields: Any) -> None:
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))


def launcher_of(monkeypatch: pytest.MonkeyPatch, **aws: Any) -> Any:
    connect(monkeypatch, "account", conn_type="aws", login="AKIAOURS", password="secret", extra=aws)
    extra = {"engine": "sagemaker", "options": OPTIONS, "aws_conn_id": "account"}
    connect(monkeypatch, "cloud", conn_type="deepseek_launcher", extra=extra)
    return LauncherHook("cloud").launcher


def test_jobs_are_created_by_the_role_and_in_the_region_of_the_aws_connection(monkeypatch) -> None:
    role = "arn:aws:iam::123456789012:role/airflow"
    config = {"read_timeout": 7}
    launcher = launcher_of(monkeypatch, region_name=REGION, role_arn=role, config_kwargs=config)
    clients = launcher.engine._clients
    for client in (clients.sagemaker, clients.secrets, clients.logs):
        assert client.meta.region_name == REGION
        assert client._get_credentials().access_key.startswith("ASIA"), "an assumed role's, not the connection's own"
        assert (client.meta.config.connect_timeout, client.meta.config.read_timeout) == (10, 7)

    job = EngineJob(id="train-1", command=("python",), num_nodes=2, timeout_seconds=60, grace_seconds=1)
    clients.sagemaker.create_training_job(**request(job, SageMakerSettings.load(OPTIONS)))
    made = clients.sagemaker.describe_training_job(TrainingJobName=training_job_name(job.id, "dso"))
    assert (made["ResourceConfig"]["InstanceCount"], made["RoleArn"]) == (2, OPTIONS["role_arn"])
    assert REGION in made["TrainingJobArn"]


def test_the_launchers_own_region_goes_over_the_connections(monkeypatch) -> None:
    monkeypatch.setitem(OPTIONS, "region", "us-west-2")
    clients = launcher_of(monkeypatch, region_name=REGION).engine._clients
    assert clients.region == clients.logs.meta.region_name == "us-west-2"
    assert clients.sagemaker._get_credentials().access_key == "AKIAOURS"


def test_what_is_missing_of_the_account_is_named(monkeypatch) -> None:
    with pytest.raises(ConnectionFieldError, match=r"'account': region is empty: give extra region_name"):
        launcher_of(monkeypatch)
    monkeypatch.delenv("AIRFLOW_CONN_ACCOUNT")
    with pytest.raises(ConnectionMissingError, match=r"no connection 'account'.*--conn-type aws"):
        _ = LauncherHook("cloud").launcher


def test_a_role_that_may_not_be_assumed_is_no_reason_to_try_again(monkeypatch) -> None:
    from botocore.client import BaseClient
    from botocore.exceptions import ClientError

    def refused(*_: object, **__: object) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "not authorized"}}, "AssumeRole")

    monkeypatch.setattr(BaseClient, "_make_api_call", refused)
    with pytest.raises(SageMakerAccessError, match=r"open connection account.*not authorized"):
        launcher_of(monkeypatch, region_name=REGION, role_arn="arn:aws:iam::123456789012:role/other")
