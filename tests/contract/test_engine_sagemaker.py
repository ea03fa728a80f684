# ruff: noqa: N802  (operations keep the names of the service)
"""The SageMaker engine by real botocore clients: the service's model checks each request and reads each answer.

The other end is an account in miniature, put where botocore would send: it refuses a name that was used before, and
answers what it does not know as SageMaker does. moto accepts duplicate names and cannot stop a training job, so it
checks here no more than that a request has a shape it takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import cache
from io import BytesIO
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError

from deepseek_ops.adapters.engines.sagemaker import AwsClients, SageMakerEngine, SageMakerSettings
from deepseek_ops.adapters.engines.sagemaker.asking import ID_VARIABLE, SECRET_VARIABLE, request, training_job_name
from deepseek_ops.adapters.engines.sagemaker.errors import (
    ForeignTrainingJobError,
    SageMakerAccessError,
    SageMakerRefusedError,
    SageMakerUnavailableError,
    UnsentSecretsError,
)
from deepseek_ops.core.jobs import EngineJob, EnginePhase, JobCause
from deepseek_ops.jobs import secret_entry

REGION = "eu-central-1"
ROLE = "arn:aws:iam::123456789012:role/trainings"
SECRET = "open-sesame-7f3a9"
MISSING = (400, "ValidationException", "Requested resource not found.")
Reply = tuple[int, dict[str, Any]]


class FakeAccount:
    """Training jobs, secrets and logs of one account, as far as the engine sees them."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.secrets: dict[str, str] = {}
        self.logs: dict[str, list[str]] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.errors: list[Any] = []
        """For the next requests: (status, code, message), or an exception."""
        self.lose: str = ""
        """Operation whose next answer is lost after it was carried out."""

    def client(self, service: str) -> Any:
        CURRENT[:] = [self]
        return client_of(service)

    def clients(self) -> AwsClients:
        return AwsClients(*(self.client(name) for name in ("sagemaker", "secretsmanager", "logs")), region=REGION)

    def serve(self, request: Any, **_: Any) -> AWSResponse:
        operation = request.headers["X-Amz-Target"].decode().rpartition(".")[2]
        sent = json.loads(request.body)
        self.requests.append((operation, sent))
        if self.errors:
            planted = self.errors.pop(0)
            if isinstance(planted, Exception):
                raise planted
            status, body = failure(*planted)
        else:
            status, body = getattr(self, f"_{operation}")(sent)
            if operation == self.lose:
                self.lose = ""
                raise EndpointConnectionError(endpoint_url=request.url)
        raw = BytesIO(json.dumps(body).encode())
        raw.stream = lambda *_, **__: iter([raw.read()])  # type: ignore[attr-defined]
        return AWSResponse(request.url, status, {"Content-Type": "application/x-amz-json-1.1"}, raw)

    def _CreateTrainingJob(self, sent: dict[str, Any]) -> Reply:
        name = sent["TrainingJobName"]
        if name in self.jobs:
            return failure(400, "ResourceInUse", "Training job names must be unique within an AWS account and region")
        shown = {key: value for key, value in sent.items() if key != "Tags"}
        arn = f"arn:aws:sagemaker:{REGION}:123456789012:training-job/{name}"
        self.jobs[name] = shown | {"TrainingJobArn": arn, "CreationTime": time.time(), "LastModifiedTime": time.time()}
        self.become(name, "InProgress", "Starting")
        return 200, {"TrainingJobArn": arn}

    def _DescribeTrainingJob(self, sent: dict[str, Any]) -> Reply:
        shown = self.jobs.get(sent["TrainingJobName"])
        return failure(*MISSING) if shown is None else (200, shown)

    def _StopTrainingJob(self, sent: dict[str, Any]) -> Reply:
        shown = self.jobs[sent["TrainingJobName"]]
        if shown["TrainingJobStatus"] != "InProgress":
            message = f"The request was rejected because the training job is in status {shown['TrainingJobStatus']}."
            return failure(400, "ValidationException", message)
        self.become(sent["TrainingJobName"], "Stopping", "Stopping")
        return 200, {}

    def _ListTrainingJobs(self, sent: dict[str, Any]) -> Reply:
        names = sorted(name for name in self.jobs if sent["NameContains"] in name)
        begin = int(sent.get("NextToken", "0"))
        keys = ("TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingJobStatus")
        page = [{key: self.jobs[name][key] for key in keys} for name in names[begin : begin + 2]]
        more = {"NextToken": str(begin + 2)} if names[begin + 2 :] else {}
        return 200, {"TrainingJobSummaries": page, **more}

    def _CreateSecret(self, sent: dict[str, Any]) -> Reply:
        if sent["Name"] in self.secrets:
            return failure(400, "ResourceExistsException", "The operation failed because the secret already exists.")
        self.secrets[sent["Name"]] = sent["SecretString"]
        return 200, {"ARN": self.arn(sent["Name"]), "Name": sent["Name"]}

    def _DescribeSecret(self, sent: dict[str, Any]) -> Reply:
        return 200, {"ARN": self.arn(sent["SecretId"]), "Name": sent["SecretId"]}

    def _GetSecretValue(self, sent: dict[str, Any]) -> Reply:
        name = sent["SecretId"].split(":")[6].rpartition("-")[0]
        return 200, {"ARN": sent["SecretId"], "Name": name, "SecretString": self.secrets[name]}

    def _DeleteSecret(self, sent: dict[str, Any]) -> Reply:
        if self.secrets.pop(sent["SecretId"], None) is None:
            return failure(400, "ResourceNotFoundException", "Secrets Manager can't find the specified secret.")
        return 200, {"Name": sent["SecretId"]}

    def _DescribeLogStreams(self, sent: dict[str, Any]) -> Reply:
        found = [{"logStreamName": name} for name in self.logs if name.startswith(sent["logStreamNamePrefix"])]
        if not self.logs:
            return failure(400, "ResourceNotFoundException", "The specified log group does not exist.")
        return 200, {"logStreams": found}

    def _GetLogEvents(self, sent: dict[str, Any]) -> Reply:
        return 200, {"events": [{"timestamp": 1, "message": line} for line in self.logs[sent["logStreamName"]]]}

    def arn(self, name: str) -> str:
        return f"arn:aws:secretsmanager:{REGION}:123456789012:secret:{name}-AbCdEf"

    def become(self, name: str, status: str, *secondary: str, reason: str = "") -> None:
        """Take the job through secondary statuses to ``status``."""
        shown = self.jobs[name]
        passed = shown.setdefault("SecondaryStatusTransitions", [])
        passed += [{"Status": each, "StartTime": time.time(), "StatusMessage": f"{each} now"} for each in secondary]
        shown.update(TrainingJobStatus=status, SecondaryStatus=secondary[-1])
        if reason:
            shown["FailureReason"] = reason


CURRENT: list[FakeAccount] = []


@cache
def client_of(service: str) -> Any:
    """Return a client of the account that is current; making one reads the service's model, which takes a second."""
    session = boto3.Session(aws_access_key_id="AK", aws_secret_access_key="SK", region_name=REGION)
    client = session.client(service, config=Config(retries={"total_max_attempts": 1}))
    client.meta.events.register("before-send", lambda **sent: CURRENT[0].serve(**sent))
    return client


def failure(status: int, code: str, message: str) -> Reply:
    return status, {"__type": code, "message": message}


def settings(**fields: Any) -> SageMakerSettings:
    body = {"role_arn": ROLE, "output_uri": "s3://bucket/sagemaker", "instance_type": "ml.p5.48xlarge",
            "image": "123456789012.dkr.ecr.eu-central-1.amazonaws.com/trainer:1"}  # fmt: skip
    return SageMakerSettings.model_validate(body | fields)


def job(name: str = "Train_7B.v2-1-abcdef0123", **fields: Any) -> EngineJob:
    command = ("python3", "-m", "deepseek_ops.jobs", "attend", "--job", "train", "--attempt", "1")
    body = {"id": name, "command": command, "timeout_seconds": 3600.5, "grace_seconds": 30, "num_nodes": 2}
    return EngineJob.model_validate(body | fields)


@pytest.fixture
def account() -> FakeAccount:
    return FakeAccount()


@pytest.fixture
def engine(account: FakeAccount) -> SageMakerEngine:
    return SageMakerEngine(account.clients(), settings(secret_prefix="deepseek-ops"))


# --- starting ---------------------------------------------------------------------------------------------------------


def test_what_is_created_is_the_command_on_the_machines(account: FakeAccount, engine: SageMakerEngine) -> None:
    asked = job(environment={"A": "ü $x"})
    state = engine.start(asked)
    assert (state.id, state.phase) == (asked.id, EnginePhase.PENDING)
    shown = account.jobs[training_job_name(asked.id, "dso")]
    algorithm = shown["AlgorithmSpecification"]
    assert (*algorithm["ContainerEntrypoint"], *algorithm["ContainerArguments"]) == asked.command
    assert shown["ResourceConfig"] == {"InstanceType": "ml.p5.48xlarge", "InstanceCount": 2, "VolumeSizeInGB": 500}
    assert shown["StoppingCondition"] == {"MaxRuntimeInSeconds": 3601}
    assert shown["Environment"] == {"A": "ü $x", ID_VARIABLE: asked.id}
    assert "CheckpointConfig" not in shown
    assert "RetryStrategy" not in shown


def test_spot_waits_beyond_the_jobs_own_limit(account: FakeAccount) -> None:
    SageMakerEngine(account.clients(), settings(spot=True, max_wait_seconds=600)).start(job())
    (shown,) = account.jobs.values()
    assert shown["EnableManagedSpotTraining"] is True
    assert shown["StoppingCondition"] == {"MaxRuntimeInSeconds": 3601, "MaxWaitTimeInSeconds": 4201}


def test_of_two_starts_that_race_one_creates_and_both_see_it(account: FakeAccount) -> None:
    first, second = (SageMakerEngine(account.clients(), settings()) for _ in range(2))
    account.errors[:] = [MISSING]  # the second looks before the first has created
    described = account._DescribeTrainingJob

    def create_first(sent: dict[str, Any]) -> Reply:
        account._DescribeTrainingJob = described  # type: ignore[method-assign]
        account.errors.clear()
        first.start(job())
        return failure(*MISSING)

    account.errors.clear()
    account._DescribeTrainingJob = create_first  # type: ignore[method-assign]
    assert second.start(job()).phase is EnginePhase.PENDING
    assert [operation for operation, _ in account.requests].count("CreateTrainingJob") == 2
    assert len(account.jobs) == 1


def test_a_create_whose_answer_was_lost_is_found_by_the_next_start(account, engine) -> None:
    account.lose = "CreateTrainingJob"
    with pytest.raises(SageMakerUnavailableError):
        engine.start(job())
    assert engine.start(job()).phase is EnginePhase.PENDING
    assert [operation for operation, _ in account.requests].count("CreateTrainingJob") == 1


def test_an_ended_job_is_not_started_again(account, engine) -> None:
    engine.start(job())
    account.become(training_job_name(job().id, "dso"), "Completed", "Training", "Completed")
    state = engine.start(job())
    assert (state.phase, state.exit_status) == (EnginePhase.ENDED, 0)


def test_a_job_of_somebody_else_is_left_alone(account, engine) -> None:
    engine.start(job())
    (shown,) = account.jobs.values()
    shown["Environment"] = {}
    for act in (
        engine.start,
        lambda asked: engine.state(asked.id),
        lambda asked: engine.cancel(asked.id, grace_seconds=1),
    ):
        with pytest.raises(ForeignTrainingJobError, match="dso-Train-7B"):
            act(job())
    assert engine.list() == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"command": ("x" * 257,)}, "longer than 256"),
        ({"environment": {"A": "x" * 513}}, "variable A is longer than 512"),
        ({"environment": {f"A{n}": "" for n in range(100)}}, "101 variables"),
    ],
    ids=["word", "value", "many"],
)
def test_what_the_api_cannot_carry_is_refused_before_anything_is_created(account, engine, fields, message) -> None:
    with pytest.raises(SageMakerRefusedError, match=message):
        engine.start(job(**fields), secrets={"TOKEN": SECRET})
    assert not account.jobs
    assert not account.secrets


def test_names_fit_differ_and_are_the_same_every_time() -> None:
    ids = ["a.b", "a-b", "A-b", "x" * 100, "x" * 99 + "y", "-".join("a" * 1 for _ in range(40)), "0"]
    names = [training_job_name(each, "dso") for each in ids]
    assert len(set(names)) == len(ids)
    for name in names:
        assert len(name) <= 63
        assert "--" not in name
        assert name.replace("-", "").isalnum()
    assert names == [training_job_name(each, "dso") for each in ids]


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_secrets_are_in_no_request_to_sagemaker_and_in_nothing_it_shows(account, engine) -> None:
    engine.start(job(), secrets={"TOKEN": SECRET})
    shown = account.client("sagemaker").describe_training_job(TrainingJobName=training_job_name(job().id, "dso"))
    assert SECRET not in str(shown)
    for operation, sent in account.requests:
        assert (SECRET in str(sent)) == (operation == "CreateSecret")
    assert SECRET not in str(engine.list()) + engine.tail(job().id)


def test_the_command_gets_its_secrets_on_the_machine_and_not_their_name(account, engine, monkeypatch) -> None:
    engine.start(job(), secrets={"TOKEN": SECRET, "OTHER": "ü"})
    (shown,) = account.jobs.values()
    algorithm, environment = shown["AlgorithmSpecification"], shown["Environment"]
    entry = [*algorithm["ContainerEntrypoint"], *algorithm["ContainerArguments"]]
    assert entry[:3] == ["python3", "-m", secret_entry.__name__]
    assert tuple(entry[3:]) == job().command
    monkeypatch.setattr(boto3, "client", lambda service, **_: account.client(service))
    found = secret_entry.variables(environment)
    assert (found["TOKEN"], found["OTHER"]) == (SECRET, "ü")
    assert SECRET_VARIABLE not in found


def test_the_entry_becomes_the_command_with_its_arguments_as_they_are() -> None:
    words = [sys.executable, "-c", "import sys; print(sys.argv[1:])", "two words", "$HOME"]
    environment = {key: value for key, value in os.environ.items() if key != SECRET_VARIABLE}
    done = subprocess.run([sys.executable, "-m", secret_entry.__name__, *words], env=environment, capture_output=True,
                          text=True, check=True, timeout=60)  # fmt: skip
    assert done.stdout.strip() == "['two words', '$HOME']"
    bad = subprocess.run([sys.executable, "-m", secret_entry.__name__, *words], capture_output=True, text=True,
                         env=environment | {SECRET_VARIABLE: "nonsense"}, check=False, timeout=60)  # fmt: skip
    assert bad.returncode == 78
    assert "is no ARN of a secret" in bad.stderr


def test_without_a_place_for_them_secrets_are_refused_unless_the_role_makes_them_needless(account) -> None:
    with pytest.raises(UnsentSecretsError, match="TOKEN"):
        SageMakerEngine(account.clients(), settings()).start(job(), secrets={"TOKEN": SECRET})
    assert not account.jobs
    SageMakerEngine(account.clients(), settings(role_provides=("TOKEN",))).start(job(), secrets={"TOKEN": SECRET})
    assert SECRET not in str(account.requests)


def test_a_start_that_died_after_the_secret_uses_it(account, engine) -> None:
    account.errors[:] = []
    account.lose = "CreateSecret"
    with pytest.raises(SageMakerUnavailableError):
        engine.start(job(), secrets={"TOKEN": SECRET})
    engine.start(job(), secrets={"TOKEN": SECRET})
    (shown,) = account.jobs.values()
    (name,) = account.secrets
    assert shown["Environment"][SECRET_VARIABLE] == account.arn(name)


def test_retiring_deletes_the_secret_of_a_settled_job_only(account, engine) -> None:
    engine.start(job(), secrets={"TOKEN": SECRET})
    engine.retire(job().id)
    assert account.secrets
    account.become(training_job_name(job().id, "dso"), "Failed", "Failed", reason="AlgorithmError: exit code: 1")
    for _ in range(2):
        engine.retire(job().id)
    assert not account.secrets


# --- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "secondary", "reason", "phase", "code", "said"),
    [
        ("InProgress", ("Starting", "Pending"), "", EnginePhase.PENDING, None, "Pending now"),
        ("InProgress", ("Starting", "Downloading"), "", EnginePhase.PENDING, None, "Downloading"),
        ("InProgress", ("Starting", "Training"), "", EnginePhase.RUNNING, None, ""),
        ("Stopping", ("Training", "Stopping"), "", EnginePhase.RUNNING, None, "is ending"),
        ("Completed", ("Training", "Completed"), "", EnginePhase.ENDED, 0, ""),
        ("Stopped", ("Training", "Stopped"), "", EnginePhase.CANCELLED, None, "stopped"),
        ("Stopped", ("Training", "MaxRuntimeExceeded"), "", EnginePhase.ENDED, None, "longer than its limit"),
        ("Stopped", ("Starting", "MaxWaitTimeExceeded"), "", EnginePhase.PREEMPTED, None, "no spot capacity"),
        ("Stopped", ("Training", "Interrupted", "Stopped"), "", EnginePhase.PREEMPTED, None, "spot"),
        ("Failed", ("Training", "Interrupted", "Starting", "Failed"), "AlgorithmError: exit code: 78",
         EnginePhase.PREEMPTED, None, "spot"),
        ("Completed", ("Training", "Interrupted", "Training", "Completed"), "", EnginePhase.ENDED, 0, ""),
        ("Failed", ("Training", "Failed"), "AlgorithmError: , exit code: 75", EnginePhase.ENDED, 75, "AlgorithmError"),
        ("Failed", ("Starting", "Failed"), "CapacityError: Unable to provision requested ML compute capacity.",
         EnginePhase.PREEMPTED, None, "Unable to provision"),
        ("Failed", ("Training", "Failed"), "InternalServerError: We encountered an internal error.",
         EnginePhase.ENDED, None, "internal error"),
    ],
)  # fmt: skip
def test_what_sagemaker_says_becomes_a_state(account, engine, status, secondary, reason, phase, code, said) -> None:
    engine.start(job())
    account.become(training_job_name(job().id, "dso"), status, *secondary, reason=reason)
    state = engine.state(job().id)
    assert (state.phase, state.exit_status) == (phase, code)
    assert said in state.reason


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("AlgorithmError: CUDA out of memory, exit code: 1", JobCause.OUT_OF_MEMORY),
        ("ClientError: Please use an instance type with more memory", JobCause.OUT_OF_MEMORY),
        ("InternalServerError: We encountered an internal error.", None),
    ],
)
def test_too_little_memory_is_told_by_the_words_of_sagemaker(account, engine, reason, cause) -> None:
    engine.start(job())
    account.become(training_job_name(job().id, "dso"), "Failed", "Training", "Failed", reason=reason)
    assert engine.state(job().id).cause is cause


def test_a_job_whose_spot_machines_were_taken_is_stopped_lest_it_starts_again(account) -> None:
    engine = SageMakerEngine(account.clients(), settings(spot=True))
    engine.start(job())
    name = training_job_name(job().id, "dso")
    account.become(name, "InProgress", "Training", "Interrupted")
    assert engine.state(job().id).phase is EnginePhase.PREEMPTED
    assert account.jobs[name]["TrainingJobStatus"] == "Stopping"
    assert engine.state(job().id).phase is EnginePhase.PREEMPTED


def test_cancel_stops_a_running_job_once_and_leaves_others_alone(account, engine) -> None:
    engine.cancel("nobody-1-0", grace_seconds=1)
    engine.start(job())
    for _ in range(2):
        engine.cancel(job().id, grace_seconds=1)
    assert [operation for operation, _ in account.requests].count("StopTrainingJob") == 1
    account.become(training_job_name(job().id, "dso"), "Stopped", "Stopped")
    assert engine.state(job().id).phase is EnginePhase.CANCELLED
    assert engine.start(job()).phase is EnginePhase.CANCELLED


def test_a_job_that_ends_while_it_is_being_stopped_is_no_error(account, engine) -> None:
    engine.start(job())
    name, real = training_job_name(job().id, "dso"), account._StopTrainingJob

    def too_late(sent: dict[str, Any]) -> Reply:
        account.become(name, "Completed", "Completed")
        return real(sent)

    account._StopTrainingJob = too_late
    engine.cancel(job().id, grace_seconds=1)
    assert engine.state(job().id).exit_status == 0


def test_all_pages_are_listed_other_installations_are_not_and_the_ended_are_described_once(account, engine) -> None:
    ids = [f"job-{n}-1-abcdef0123" for n in range(5)]
    for each in ids:
        engine.start(job(each))
    SageMakerEngine(account.clients(), settings(prefix="staging-dso")).start(job("theirs-1-abcdef0123"))
    account.become(training_job_name(ids[0], "dso"), "Completed", "Completed")
    for _ in range(2):
        account.requests.clear()
        states = {state.id: state.phase for state in engine.list()}
        assert states == {each: EnginePhase.ENDED if each == ids[0] else EnginePhase.PENDING for each in ids}
    assert [operation for operation, _ in account.requests].count("DescribeTrainingJob") == 4


def test_the_last_lines_come_from_cloudwatch_with_their_node(account, engine) -> None:
    assert engine.tail("nobody-1-0") == ""
    engine.start(job())
    name = training_job_name(job().id, "dso")
    account.logs = {f"{name}/algo-2-170": ["two"], f"{name}/algo-1-170": ["one", "more"], "other/algo-1-1": ["no"]}
    assert engine.tail(job().id).splitlines() == ["[algo-1] one", "[algo-1] more", "[algo-2] two"]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("planted", "error"),
    [
        ((400, "ThrottlingException", "Rate exceeded"), SageMakerUnavailableError),
        ((503, "ServiceUnavailable", "later"), SageMakerUnavailableError),
        ((400, "ResourceLimitExceeded", "ml.p5.48xlarge: 0 instances"), SageMakerUnavailableError),
        (EndpointConnectionError(endpoint_url="https://x"), SageMakerUnavailableError),
        ((400, "AccessDeniedException", "not authorized to perform iam:PassRole"), SageMakerAccessError),
        ((403, "ExpiredTokenException", "expired"), SageMakerAccessError),
        ((400, "ValidationException", "No S3 objects found"), SageMakerRefusedError),
    ],
    ids=["throttled", "away", "quota", "network", "rights", "expired", "value"],
)
def test_errors_of_aws_are_told_apart(account, engine, planted, error) -> None:
    described = account._DescribeTrainingJob

    def then_fail(sent: dict[str, Any]) -> Reply:
        account.errors.append(planted)
        account._DescribeTrainingJob = described
        return failure(*MISSING)

    account._DescribeTrainingJob = then_fail
    with pytest.raises(error) as raised:
        engine.start(job())
    assert "create dso-Train-7B" in str(raised.value)


def test_a_value_that_the_services_model_refuses_is_permanent(account) -> None:
    wrong = settings(tags={"": "no key"})
    with pytest.raises(SageMakerRefusedError, match="Tags"):
        SageMakerEngine(account.clients(), wrong).start(job())


def test_moto_takes_the_shape_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """moto accepts duplicate names and cannot stop: it says nothing of either."""
    moto = pytest.importorskip("moto")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "testing")
    full = settings(spot=True, subnets=("subnet-1",), security_groups=("sg-1",), volume_kms_key="k", tags={"team": "a"})
    with moto.mock_aws():
        client = boto3.client("sagemaker", region_name=REGION)
        client.create_training_job(**request(job(), full, secret_arn="arn:aws:secretsmanager:x:1:secret:y-AbCdEf"))
        shown = client.describe_training_job(TrainingJobName=training_job_name(job().id, "dso"))
    assert shown["ResourceConfig"]["InstanceCount"] == 2
