"""Ray as an engine: a job is a submission to its Jobs API, whose id is ours, so that a second one is refused.

What is submitted is the driver ``python -m deepseek_ops.jobs.ray_driver``. It has Ray Train place one worker on each
machine, and each worker runs the job's command there; see that module for what happens when a machine is lost.

Ray takes the grace of a stop from the environment of the job's supervisor, so it is the job's ``grace_seconds``, set
when it starts; ``cancel`` cannot give it another.
"""

from __future__ import annotations

import base64
import math
import shlex
import time
from collections.abc import Collection, Mapping

from pydantic import JsonValue

from deepseek_ops.adapters.engines.ray.api import RayJobsApi
from deepseek_ops.adapters.engines.ray.errors import ForeignRayJobError, RayRefusedError, UnsealedSecretsError
from deepseek_ops.adapters.engines.ray.sealing import KEY_VARIABLE, seal
from deepseek_ops.core.jobs import EngineJob, EnginePhase, EngineState, JobCause
from deepseek_ops.core.records import canonical_json

JOB_VARIABLE = "DEEPSEEK_OPS_RAY_JOB"
"""Variable in which the driver finds the EngineJob, as JSON or as base64 of it: Ray expands ``$`` in values."""
SECRETS_VARIABLE = "DEEPSEEK_OPS_RAY_SECRETS"
"""Variable in which the driver finds the sealed secrets, see ``sealing``."""
NEEDED_VARIABLE = "DEEPSEEK_OPS_RAY_NEEDS"
"""Variable in which the nodes find the names, separated by commas, of variables that they must have themselves."""
MARK = "deepseek-ops"
"""Key of the metadata by which we know our jobs; its value is the fingerprint of the EngineJob."""
DRIVER_MARGIN_SECONDS = 15
"""What the driver may take to tell the nodes and to hear from them, on top of the grace of the command."""
EXIT_OUT_OF_MEMORY = 71
"""Exit status (sysexits EX_OSERR) of a driver whose workers Ray ended because a machine ran out of memory."""
TAIL_CHARACTERS = 16_000
CANCEL_TRIES = 5
CANCEL_PAUSE_SECONDS = 0.5
_PHASES = {
    "PENDING": EnginePhase.PENDING,
    "RUNNING": EnginePhase.RUNNING,
    "STOPPED": EnginePhase.CANCELLED,
    "SUCCEEDED": EnginePhase.ENDED,
    "FAILED": EnginePhase.ENDED,
}


class RayEngine:
    """One Ray cluster.

    Args:
        api: The cluster's Jobs API.
        python: Interpreter with deepseek-ops[ray] on every node of the cluster.
        seal_key: Passphrase that the nodes have in ``DEEPSEEK_OPS_SEAL_KEY``; secrets are sent sealed with it.
        cluster_provides: Names of secrets that are not sent, because every node has them in its own environment.
        max_failures: How often a training's machines are gathered anew after a worker process of Ray died.
            Machines that are taken away are replaced without a limit.
    """

    def __init__(
        self,
        api: RayJobsApi,
        *,
        python: str = "python",
        seal_key: str = "",
        cluster_provides: Collection[str] = (),
        max_failures: int = 3,
    ) -> None:
        self._api = api
        self._python = python
        self._seal_key = seal_key
        self._provided = frozenset(cluster_provides)
        self._max_failures = max_failures

    def start(self, job: EngineJob, *, secrets: Mapping[str, str] | None = None) -> EngineState:
        """Submit the job unless Ray has one of its id, and return its state.

        Raises ForeignRayJobError when somebody else submitted that one, UnsealedSecretsError when there are secrets
        and no way to send them unread.
        """
        known = self.state(job.id)
        if known is not None:
            return known
        self._api.submit(self._submission(job, dict(secrets or {})))
        found = self.state(job.id)  # ours, or the one of somebody who was faster
        return found or EngineState(id=job.id, phase=EnginePhase.PENDING, handle=job.id, url=self._url(job.id))

    def state(self, name: str) -> EngineState | None:
        """Return the job's state. Raises ForeignRayJobError for a job that is not ours."""
        found = self._api.job(name)
        if found is None:
            return None
        if not _is_ours(found):
            raise ForeignRayJobError(self._api.address, name)
        return self._state(found)

    def cancel(self, name: str, *, grace_seconds: float) -> None:  # noqa: ARG002  (Ray has the job's own, see above)
        """Have the driver told to end, which tells every node. Settled and unknown jobs are left alone.

        A job whose supervisor is only being created has nobody to tell for a moment: then it is told again.
        """
        for _ in range(CANCEL_TRIES):
            known = self.state(name)
            if known is None or known.settled or self._api.stop(name):
                return
            time.sleep(CANCEL_PAUSE_SECONDS)

    def retire(self, name: str) -> None:
        """Delete what Ray keeps of a settled job; a running one stays."""
        known = self.state(name)
        if known is not None and known.settled:
            try:
                self._api.delete(name)
            except RayRefusedError:
                if self._api.job(name) is not None:  # somebody else deleted it first
                    raise

    def tail(self, name: str) -> str:
        """Return the end of what the driver printed, the output of every node included."""
        return self._api.logs(name)[-TAIL_CHARACTERS:]

    def list(self) -> list[EngineState]:
        """Return the jobs of the cluster that bear our mark."""
        return [self._state(found) for found in self._api.jobs() if _is_ours(found)]

    def _submission(self, job: EngineJob, secrets: dict[str, str]) -> dict[str, JsonValue]:
        variables: dict[str, JsonValue] = {
            JOB_VARIABLE: base64.b64encode(canonical_json(job.dump())).decode(),
            "RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(job.grace_seconds) + DRIVER_MARGIN_SECONDS),
        }
        sent = {name: value for name, value in secrets.items() if name not in self._provided}
        if sent:
            if not self._seal_key:
                raise UnsealedSecretsError(tuple(sorted(sent)), KEY_VARIABLE)
            variables[SECRETS_VARIABLE] = seal(sent, self._seal_key, job=job.id)
        if self._provided:
            variables[NEEDED_VARIABLE] = ",".join(sorted(self._provided & secrets.keys()))
        environment: dict[str, JsonValue] = {"env_vars": variables}
        if job.image:
            environment["image_uri"] = job.image
        driver = [self._python, "-m", "deepseek_ops.jobs.ray_driver", "--job", job.id]
        driver += ["--max-failures", str(self._max_failures)]
        return {
            # Ray hands it to a shell: quoted here, and replaced by the driver so that no shell stays in between.
            "entrypoint": f"exec {shlex.join(driver)}",
            "submission_id": job.id,
            "runtime_env": environment,
            "metadata": {MARK: job.fingerprint},
        }

    def _state(self, found: Mapping[str, JsonValue]) -> EngineState:
        name = str(found.get("submission_id"))
        phase = _PHASES.get(str(found.get("status")), EnginePhase.RUNNING)
        code = found.get("driver_exit_code")
        starved = phase is EnginePhase.ENDED and code == EXIT_OUT_OF_MEMORY
        return EngineState(
            id=name,
            phase=phase,
            handle=str(found.get("job_id") or name),
            reason=_reason(found) if phase is not EnginePhase.RUNNING else "",
            cause=JobCause.OUT_OF_MEMORY if starved else None,
            exit_status=code if isinstance(code, int) and phase is EnginePhase.ENDED else None,
            url=self._url(name),
        )

    def _url(self, name: str) -> str:
        return f"{self._api.address}/#/jobs/{name}"


def _is_ours(found: Mapping[str, JsonValue]) -> bool:
    metadata = found.get("metadata")
    return found.get("type") == "SUBMISSION" and isinstance(metadata, dict) and MARK in metadata


def _reason(found: Mapping[str, JsonValue]) -> str:
    """Return Ray's words without the log that it adds to them: that is what ``tail`` is for."""
    message = str(found.get("message") or "").split(", last available logs", 1)[0]
    kind = str(found.get("error_type") or "")
    said = " ".join(message.split())[:500]
    return f"{kind}: {said}" if kind and kind != "JOB_ENTRYPOINT_COMMAND_ERROR" else said
