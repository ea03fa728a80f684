"""Serving a version and moving an endpoint's traffic to it.

The state of a rollout is a fact, changed by compare-and-swap after every look, and the gateway's plan is a function of
it. So a task that is killed at any point and started again goes on where it was, and moves nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx
from pydantic import Field, JsonValue

from deepseek_ops.core.config import Deployment as DeploymentRules
from deepseek_ops.core.errors import JobFailedError, JobLostError, ObjectExistsError, PermanentError
from deepseek_ops.core.jobs import JobPhase, JobSpec, TrafficStats
from deepseek_ops.core.ports import Fact, Facts, Launcher, TrafficGateway
from deepseek_ops.core.records import Deployment, FileSet, ModelVersion, Phase, Record, Rollout
from deepseek_ops.pipeline.registration import Stores, registry_named
from deepseek_ops.pipeline.runs import config_of
from deepseek_ops.rollout import Observation, first_rollout, next_step, observe, policy_for, traffic_plan

ROLLOUT = "rollout"
"""Kind of the facts that hold rollouts, keyed ``<endpoint>/<candidate>/<run>``: deploying an older version again, to
go back to it, is a rollout of its own."""
SERVING = "serving"
"""Kind of the facts that say which job serves a version, keyed ``<endpoint>/<version>``."""
START_SECONDS = 600.0
PROBES = 20
"""Requests of our own to each version at each look: an endpoint without traffic still proves itself step by step."""
HEALTH_TRIES = 3
VERSION_HEADER = "x-model-version"
"""Request header that the gateway obeys whatever the weights say."""


class Serving(Record):
    """A version that answers at an address of its own, behind no gateway."""

    endpoint: str
    version: str
    job: str
    address: str


class RolloutState(Record):
    """A rollout and the gateway's counters when its present step began."""

    rollout: Rollout
    since: dict[str, TrafficStats] = Field(default_factory=dict)


@dataclass(eq=False)
class RolledBackError(PermanentError):
    """The candidate did not hold what it has to hold."""

    endpoint: str
    version: str
    reason: str

    def __str__(self) -> str:
        return f"{self.endpoint}: {self.version} was rolled back: {self.reason}. The version before it serves."


@dataclass
class Delivery:
    """One version on its way to one endpoint."""

    version: ModelVersion
    stores: Stores
    facts: Facts
    launcher: Launcher
    gateway: TrafficGateway
    run: str
    """The Airflow run: what makes this rollout another one than the last of the same version."""
    progress: Callable[[str], None] = lambda _line: None

    @property
    def rules(self) -> DeploymentRules:
        """The ``deployment`` section of the version's own pipeline file. Raises PermanentError without one."""
        rules = config_of(self.stores.blobs, self.version.manifest).deployment
        if rules is None:
            raise NotDeployableError(self.version.name, self.version.version)
        return rules

    def start(self, *, secrets: Mapping[str, str]) -> Serving:
        """Return the version's serving job once it answers a completion request; started now or before."""
        rules = self.rules
        job = serving_job(rules.endpoint, self.version, self._model())
        status = self.launcher.submit(job, secrets=secrets)
        deadline = time.monotonic() + START_SECONDS
        while True:
            ready = [event for event in self.launcher.events(job.name) if event.get("kind") == "ready"]
            ready = [event for event in ready if event.get("attempt") == status.attempt]
            if ready:
                break
            found = self.launcher.status(job.name) or status
            if found.phase is JobPhase.FAILED:
                raise JobFailedError(job.name, found.reason, found.log)
            if found.settled or time.monotonic() > deadline:
                raise JobLostError(job.name, found.reason or "it did not answer in time", found.log)
            time.sleep(0.3)
        serving = Serving(
            endpoint=rules.endpoint,
            version=self.version.version,
            job=job.name,
            address=str(ready[-1]["url"]).removeprefix("http://").rstrip("/"),
        )
        self._remember(serving)
        self.progress(f"{serving.version} answers at {serving.address}")
        return serving

    def roll_out(self, candidate: Serving, *, poll_seconds: float) -> Rollout:
        """Move the traffic look by look and return the settled rollout."""
        rules = self.rules
        policy = policy_for(rules)
        fact = self._begun(candidate)
        state = RolloutState.load(fact.body)
        stable = self._serving(state.rollout.stable)
        backends = {serving.version: serving.address for serving in (stable, candidate) if serving is not None}
        while state.rollout.phase is Phase.PROGRESSING:
            seen = self._look(state, candidate)
            moved = next_step(state.rollout, seen, policy)
            if moved != state.rollout:
                # The fact first: whoever goes on after a crash applies the plan of the state it finds.
                state = RolloutState(rollout=moved, since=self.gateway.stats(moved.endpoint))
                fact = self.facts.update(fact, state.dump())
                self.progress(f"{moved.endpoint}: {moved.candidate} at {moved.percent} %, {moved.phase} {moved.reason}")
            self.gateway.apply(traffic_plan(moved, backends))
            if moved.phase is Phase.PROGRESSING:
                time.sleep(poll_seconds)
        if state.rollout.phase is Phase.PROMOTED or state.rollout.stable:
            self.gateway.apply(traffic_plan(state.rollout, backends))
        return state.rollout

    def promote(self, rollout: Rollout) -> Deployment:
        """Let ``champion`` name the version, end the jobs that serve nobody any more, and return the deployment."""
        registry = registry_named(self.stores, self.facts, self.version.name)
        registry.set_alias(
            self.version.name,
            "champion",
            self.version.version,
            actor=f"rollout {rollout.endpoint}",
            reason=rollout.reason,
            operation=f"{self.run}/champion",
        )
        self.end_replaced(rollout.endpoint)
        plan = self.gateway.observed(rollout.endpoint)
        stats = self.gateway.stats(rollout.endpoint).get(self.version.version)
        return Deployment(
            endpoint=rollout.endpoint,
            version=self.version.version,
            url=self.gateway.url(rollout.endpoint),
            strategy=rollout.strategy,
            evidence={
                "weights": dict(plan.weights) if plan else {},
                "requests": stats.requests if stats else 0,
                "errors": stats.errors if stats else 0,
            },
        )

    def end_replaced(self, endpoint: str) -> None:
        """End the jobs that serve another version; those that ended before, or are forgotten, are left."""
        for fact in self.facts.find(SERVING, prefix=f"{endpoint}/"):
            serving = Serving.load(fact.body)
            status = self.launcher.status(serving.job)
            if serving.version != self.version.version and status is not None and not status.settled:
                self.launcher.stop(serving.job, f"replaced by {self.version.version}")

    def _model(self) -> FileSet:
        registry = registry_named(self.stores, self.facts, self.version.name)
        return registry.read_bundle(self.version.version, digest=self.version.bundle).checkpoint.model

    def _remember(self, serving: Serving) -> None:
        key = f"{serving.endpoint}/{serving.version}"
        fact = self.facts.get(SERVING, key)
        if fact is None:
            self.facts.insert(SERVING, key, serving.dump())
        elif fact.body != serving.dump():
            self.facts.update(fact, serving.dump())

    def _serving(self, version: str) -> Serving | None:
        """Return the running job of a version, or None when it serves no more."""
        fact = self.facts.get(SERVING, f"{self.rules.endpoint}/{version}") if version else None
        if fact is None:
            return None
        serving = Serving.load(fact.body)
        status = self.launcher.status(serving.job)
        return serving if status is not None and status.phase is JobPhase.RUNNING else None

    def _begun(self, candidate: Serving) -> Fact:
        """Return the rollout of this candidate, begun now or before."""
        key = f"{candidate.endpoint}/{candidate.version}/{self.run}"
        known = self.facts.get(ROLLOUT, key)
        if known is not None:
            return known
        plan = self.gateway.observed(candidate.endpoint)
        serves = [version for version, weight in (plan.weights if plan else {}).items() if weight > 0]
        stable = next((version for version in serves if version != candidate.version and self._serving(version)), "")
        rollout = first_rollout(candidate.endpoint, stable, candidate.version, self.rules)
        try:
            return self.facts.insert(ROLLOUT, key, RolloutState(rollout=rollout).dump())
        except ObjectExistsError:
            return self._begun(candidate)

    def _look(self, state: RolloutState, candidate: Serving) -> Observation:
        """Send requests of our own to both versions, then read the gateway's counters.

        One missed answer is no verdict: the probe is tried again before the candidate counts as unhealthy.
        """
        rollout, model = state.rollout, self.version.name
        healthy = any(_answers(f"http://{candidate.address}", model) for _ in range(HEALTH_TRIES))
        if healthy and rollout.percent and rollout.stable:
            url = self.gateway.url(rollout.endpoint)
            for version in (rollout.stable, rollout.candidate):
                for _ in range(PROBES):
                    _answers(url, model, {VERSION_HEADER: version})
        stats = self.gateway.stats(rollout.endpoint) if rollout.percent else {}
        return observe(rollout, stats, healthy=healthy, since=state.since)


@dataclass(eq=False)
class NotDeployableError(PermanentError):
    """The version's pipeline file has no deployment section."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} says nothing of deployment; add the section to deepseek.yaml and retrain."


def serving_job(endpoint: str, version: ModelVersion, model: FileSet) -> JobSpec:
    """Return the long-running job that serves a version. It has no lease: it outlives the task that starts it."""
    payload: dict[str, JsonValue] = {"model": model.dump(), "name": version.name, "host": "127.0.0.1", "port": 0}
    return JobSpec(
        name=f"serve-{endpoint}-{version.version}-{version.bundle[:12]}",
        kind="serve",
        payload=payload,
        max_restarts=3,
        timeout_seconds=10 * 365 * 24 * 3600.0,
        grace_seconds=20,
    )


def _answers(url: str, model: str, headers: Mapping[str, str] | None = None) -> bool:
    """Return whether a one-token completion is answered."""
    body = {"model": model, "prompt": "The", "max_tokens": 1, "temperature": 0}
    try:
        answer = httpx.post(f"{url}/v1/completions", json=body, headers=dict(headers or {}), timeout=60)
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK
