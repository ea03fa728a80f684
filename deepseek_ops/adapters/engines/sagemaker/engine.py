"""SageMaker as an engine: a job is a training job of our own image, whose name is never free again in the account.

What SageMaker decides and we cannot: 120 s between SIGTERM and SIGKILL whatever grace is asked for, and that nothing is
ever forgotten. Managed spot starts an interrupted job again by itself; an attempt runs once, so the engine stops it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from deepseek_ops.adapters.engines.sagemaker.asking import ID_VARIABLE, request, training_job_name
from deepseek_ops.adapters.engines.sagemaker.clients import Answer, AwsClients, asked
from deepseek_ops.adapters.engines.sagemaker.errors import (
    ForeignTrainingJobError,
    SageMakerRefusedError,
    SageMakerUnavailableError,
    UnsentSecretsError,
)
from deepseek_ops.adapters.engines.sagemaker.reading import cause_of, text, verdict, was_interrupted
from deepseek_ops.adapters.engines.sagemaker.settings import SageMakerSettings
from deepseek_ops.core.jobs import EngineJob, EnginePhase, EngineState

log = logging.getLogger(__name__)

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
LISTED_DAYS = 35
"""How old a job may be to be listed: the longest runs 28 days."""
TAIL_CHARACTERS = 16_000
TAIL_LINES = 200
TAIL_NODES = 4
_MISSING = ("ResourceNotFound", "ResourceNotFoundException", "Requested resource not found")


class SageMakerEngine:
    """Training jobs of one installation in one account and region.

    Args:
        clients: What is called, see ``open_clients``.
        settings: What the jobs are created with.
    """

    def __init__(self, clients: AwsClients, settings: SageMakerSettings) -> None:
        self._clients = clients
        self._settings = settings
        self._final: dict[str, EngineState] = {}
        """States that cannot change any more, by the name of the training job."""

    def start(self, job: EngineJob, *, secrets: Mapping[str, str] | None = None) -> EngineState:
        """Create the training job unless there is one of its id, and return its state.

        Raises ForeignTrainingJobError, UnsentSecretsError, SageMakerRefusedError, SageMakerAccessError, and
        SageMakerUnavailableError when it is not known whether it was created: starting again finds out.
        """
        known = self.state(job.id)
        if known is not None:
            return known
        given = {key: value for key, value in (secrets or {}).items() if key not in self._settings.role_provides}
        if given and not self._settings.secret_prefix:
            raise UnsentSecretsError(tuple(sorted(given)))
        name = self._name(job.id)
        body = request(job, self._settings)  # what cannot be asked for is refused before anything is created
        if given:
            body = request(job, self._settings, secret_arn=self._keep(name, given))
        created = asked(
            f"create {name}", lambda: self._clients.sagemaker.create_training_job(**body), otherwise=("ResourceInUse",)
        )
        if created is not None:
            log.info("sagemaker: created %s for %s", name, job.id)
        found = self.state(job.id)
        return found or EngineState(id=job.id, phase=EnginePhase.PENDING, handle=name, url=self._url(name))

    def state(self, name: str) -> EngineState | None:
        """Return the job's state. One whose spot machines were taken is stopped, lest SageMaker start it again."""
        shown = self._describe(self._name(name))
        if shown is None:
            return None
        self._check(shown, name)
        if was_interrupted(shown) and text(shown, "TrainingJobStatus") == "InProgress":
            self._stop(self._name(name))
        return self._state(shown, name)

    def cancel(self, name: str, *, grace_seconds: float) -> None:  # noqa: ARG002  (SageMaker's own, see above)
        """Have the job's processes told by SIGTERM and killed after 120 s. Settled and unknown jobs are left alone."""
        shown = self._describe(self._name(name))
        if shown is None:
            return
        self._check(shown, name)
        if text(shown, "TrainingJobStatus") == "InProgress":
            self._stop(self._name(name))

    def retire(self, name: str) -> None:
        """Delete the secret of a settled job; SageMaker keeps the job itself."""
        known = self.state(name)
        if known is None or not known.settled or not self._settings.secret_prefix:
            return
        where = self._secret_name(self._name(name))
        asked(
            f"delete secret {where}",
            lambda: self._clients.secrets.delete_secret(SecretId=where, ForceDeleteWithoutRecovery=True),
            otherwise=_MISSING,
        )

    def tail(self, name: str) -> str:
        """Return the last lines that CloudWatch has of the job's first nodes, marked where there are several."""
        begin = self._name(name) + "/"
        found = asked(
            f"list logs of {begin}",
            lambda: self._clients.logs.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=begin),
            otherwise=_MISSING,
        )
        streams = sorted(text(item, "logStreamName") for item in _items(found, "logStreams"))[:TAIL_NODES]
        lines: Sequence[str] = []
        for stream in streams:
            node = f"[{stream.removeprefix(begin).rpartition('-')[0]}] " if len(streams) > 1 else ""
            lines = [*lines, *(node + line for line in self._lines(stream))]
        return "\n".join(lines)[-TAIL_CHARACTERS:]

    def list(self) -> list[EngineState]:
        """Return the jobs of this installation that were created in the last 35 days, the newest first.

        SageMaker's list has no ids of ours, so each job is described; one that has ended only once.
        """
        begin = f"{self._settings.prefix}-"
        since = datetime.now(UTC) - timedelta(days=LISTED_DAYS)
        chosen: dict[str, object] = {
            "NameContains": begin,
            "CreationTimeAfter": since,
            "SortBy": "CreationTime",
            "SortOrder": "Descending",
            "MaxResults": 100,
        }
        states: list[EngineState] = []
        while True:
            page = asked("list jobs", lambda: self._clients.sagemaker.list_training_jobs(**chosen))
            names = [text(item, "TrainingJobName") for item in _items(page, "TrainingJobSummaries")]
            states += [state for name in names if name.startswith(begin) and (state := self._listed(name))]
            following = text(page or {}, "NextToken")
            if not following:
                return states
            chosen["NextToken"] = following

    # --- looking ------------------------------------------------------------------------------------------------------

    def _listed(self, name: str) -> EngineState | None:
        if name in self._final:
            return self._final[name]
        shown = self._describe(name)
        job = _id_of(shown) if shown is not None else ""
        if shown is None or not job or self._name(job) != name:
            return None
        return self._state(shown, job)

    def _describe(self, name: str) -> Answer | None:
        return asked(
            f"describe {name}",
            lambda: self._clients.sagemaker.describe_training_job(TrainingJobName=name),
            otherwise=_MISSING,
        )

    def _check(self, shown: Answer, job: str) -> None:
        if _id_of(shown) != job:
            raise ForeignTrainingJobError(self._name(job), job)

    def _state(self, shown: Answer, job: str) -> EngineState:
        name = self._name(job)
        phase, reason, status = verdict(shown)
        state = EngineState(
            id=job,
            phase=phase,
            handle=name,
            reason=reason[:1000],
            cause=cause_of(shown),
            exit_status=status,
            url=self._url(name),
        )
        if text(shown, "TrainingJobStatus") in ("Completed", "Failed", "Stopped"):
            self._final[name] = state
        return state

    def _lines(self, stream: str) -> Sequence[str]:
        found = asked(
            f"read log {stream}",
            lambda: self._clients.logs.get_log_events(
                logGroupName=LOG_GROUP, logStreamName=stream, limit=TAIL_LINES, startFromHead=False
            ),
            otherwise=_MISSING,
        )
        return [text(item, "message") for item in _items(found, "events")]

    def _name(self, job: str) -> str:
        return training_job_name(job, self._settings.prefix)

    def _url(self, name: str) -> str:
        region = self._clients.region
        return f"https://{region}.console.aws.amazon.com/sagemaker/home?region={region}#/jobs/{name}"

    # --- acting -------------------------------------------------------------------------------------------------------

    def _stop(self, name: str) -> None:
        """Stop a job; one that ended meanwhile is no error."""
        try:
            asked(
                f"stop {name}",
                lambda: self._clients.sagemaker.stop_training_job(TrainingJobName=name),
                otherwise=_MISSING,
            )
        except SageMakerRefusedError:
            shown = self._describe(name)
            if shown is not None and text(shown, "TrainingJobStatus") == "InProgress":
                raise

    def _keep(self, name: str, secrets: Mapping[str, str]) -> str:
        """Return the ARN under which the job's secrets are kept; the first start's stay."""
        where = self._secret_name(name)
        body: dict[str, object] = {"Name": where, "SecretString": json.dumps(dict(secrets))}
        if self._settings.secret_kms_key:
            body["KmsKeyId"] = self._settings.secret_kms_key
        made = asked(
            f"create secret {where}",
            lambda: self._clients.secrets.create_secret(**body),
            otherwise=("ResourceExistsException",),
        )
        made = made or asked(f"look up secret {where}", lambda: self._clients.secrets.describe_secret(SecretId=where))
        arn = text(made or {}, "ARN")
        if not arn:
            raise SageMakerUnavailableError(f"create secret {where}", "the answer has no ARN")
        return arn

    def _secret_name(self, name: str) -> str:
        return f"{self._settings.secret_prefix.rstrip('/')}/{name}"


def _id_of(shown: Answer) -> str:
    environment = shown.get("Environment")
    return text(environment, ID_VARIABLE) if isinstance(environment, Mapping) else ""


def _items(page: Answer | None, key: str) -> list[Answer]:
    found = (page or {}).get(key)
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []
