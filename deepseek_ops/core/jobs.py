"""Records of work that runs outside the caller's process: what a launcher is given and what it reports."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, JsonValue

from deepseek_ops.core.records import Name, Record

JobKind = Literal["prepare", "train", "evaluate", "export", "serve"]
"""Sub-command of ``python -m deepseek_ops.jobs`` that does the work."""

EXIT_RETRY = 75
"""Exit status (sysexits EX_TEMPFAIL) of a job that may be tried again."""
EXIT_DO_NOT_RETRY = 78
"""Exit status (sysexits EX_CONFIG) of a job that would fail again."""


class JobSpec(Record):
    """One job. ``name`` is deterministic: submitting it twice finds the first one."""

    name: Name
    kind: JobKind
    payload: dict[str, JsonValue] = Field(description="Input of the job, a JSON object the kind defines.")
    num_ranks: int = Field(default=1, ge=1, description="Processes of a train job on each node.")
    num_nodes: int = Field(default=1, ge=1, description="Machines of a train job.")
    min_nodes: int | None = Field(
        default=None, ge=1, description="Fewest machines to go on with where an engine can; None = num_nodes."
    )
    hang_seconds: float | None = Field(
        default=None, ge=0, description="Silence of a training that counts as hang; None = from its steps, 0 = never."
    )
    max_restarts: int = Field(default=3, ge=0, description="Rank restarts from a checkpoint before the job is lost.")
    timeout_seconds: float = Field(default=7 * 24 * 3600, gt=0, description="Of one attempt.")
    budget_seconds: float | None = Field(
        default=None, gt=0, description="Of all attempts together, on all ranks at once; None = no limit."
    )
    grace_seconds: float = Field(default=30.0, ge=0, description="Between SIGTERM and SIGKILL: time to checkpoint.")
    lease_seconds: float = Field(
        default=0.0, ge=0, description="The job stops itself when its lease was not renewed for so long; 0 = no lease."
    )
    environment: dict[str, str] = Field(default_factory=dict, description="Variables that are not secret.")
    python: str = Field(default="", description="Interpreter of the job's environment; empty = the launcher's own.")
    environment_key: str | None = Field(
        default=None, description="Key of the environment it asks for, where an engine's image follows it."
    )
    memory_bytes: int | None = Field(default=None, gt=0, description="Address-space limit of sandboxed jobs.")


class JobRequest(Record):
    """What a person asks of a running training; rank 0 reads it, every rank acts on it in the same step."""

    number: int = Field(ge=1, description="Order in which the job's requests were made; each is obeyed once.")
    verb: Literal["checkpoint", "rewind"]
    step: int | None = Field(default=None, ge=0, description="For rewind: newest healthy checkpoint up to this step.")
    by: str = Field(default="", description="Who asked.")


class JobPhase(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """Ended with an error that would repeat."""
    LOST = "lost"
    """Ended without a result: another try can resume."""
    STOPPED = "stopped"
    """Somebody, or a rule, stopped it on purpose."""


class JobCause(StrEnum):
    """Why an attempt ended, where that is known. What is done about it depends on this, never on words of a reason."""

    PREEMPTED = "preempted"
    """Its machines were taken away: by the engine, or after a notice."""
    MACHINE_LOST = "machine_lost"
    """A machine of it fell silent or broke."""
    OUT_OF_MEMORY = "out_of_memory"
    """Memory did not suffice; the same work would run out of it again."""
    HUNG = "hung"
    """It got no further."""
    TIMED_OUT = "timed_out"
    """It ran longer than it may."""
    LEASE_EXPIRED = "lease_expired"
    """Nobody said any more that it is wanted."""


class JobStatus(Record):
    """What a launcher knows of a job now."""

    name: Name
    phase: JobPhase
    reason: str = ""
    cause: JobCause | None = Field(default=None, description="Of the end; None while it runs, or where nobody knows.")
    exit_status: int | None = None
    attempt: int = Field(default=1, ge=1, description="Fencing token: grows when a lost job is submitted again.")
    restarts: int = Field(default=0, ge=0)
    step: int | None = Field(default=None, description="Last step reported, of a train job.")
    wall_seconds: float = Field(default=0.0, ge=0, description="Since the attempt started.")
    device_seconds: float = Field(default=0.0, ge=0, description="wall_seconds x ranks, over all attempts.")
    pid: int | None = Field(default=None, description="Supervisor's process id where the launcher has one.")
    log: str = Field(default="", description="Where the log is: a path or a URI.")

    @property
    def settled(self) -> bool:
        return self.phase is not JobPhase.RUNNING

    @property
    def taken_away(self) -> bool:
        """Whether it was lost with its machines: nothing is wrong with it, and it goes on once there are others."""
        return self.phase is JobPhase.LOST and self.cause in (JobCause.PREEMPTED, JobCause.MACHINE_LOST)


class EngineJob(Record):
    """What a scheduler of machines is asked to run: one command on each of ``num_nodes`` machines.

    The command learns its node's number, and the address of the first node, from the variables of the engine.
    """

    id: Name = Field(description="Deterministic: the job's name and its attempt. Starting it twice finds the first.")
    command: tuple[str, ...] = Field(min_length=1, description="Argument list, never a shell string.")
    num_nodes: int = Field(default=1, ge=1)
    min_nodes: int | None = Field(
        default=None, ge=1, description="Fewest nodes to go on with, a divisor of num_nodes; None = no fewer."
    )
    ranks_per_node: int = Field(default=1, ge=1)
    gpus_per_node: int = Field(default=0, ge=0)
    cpus_per_node: int = Field(default=1, ge=1)
    memory_bytes: int | None = Field(default=None, gt=0, description="Per node.")
    timeout_seconds: float = Field(gt=0)
    grace_seconds: float = Field(ge=0)
    environment: dict[str, str] = Field(default_factory=dict, description="Variables that are not secret.")
    image: str = Field(default="", description="Container image where the engine runs containers.")


class EnginePhase(StrEnum):
    PENDING = "pending"
    """Accepted; waits for machines."""
    RUNNING = "running"
    ENDED = "ended"
    """Its processes have ended, with ``exit_status`` where the engine tells it."""
    PREEMPTED = "preempted"
    """The engine took its machines away."""
    CANCELLED = "cancelled"


class EngineState(Record):
    """What an engine knows of one of its jobs. How a training ended is told by the job itself, in the store."""

    id: Name
    phase: EnginePhase
    handle: str = Field(default="", description="The engine's own id, for people.")
    reason: str = ""
    cause: JobCause | None = Field(default=None, description="Of the end, where the engine knows more than the phase.")
    exit_status: int | None = None
    url: str = Field(default="", description="Page of the job in the engine's own interface.")

    @property
    def settled(self) -> bool:
        return self.phase not in (EnginePhase.PENDING, EnginePhase.RUNNING)


class TrafficPlan(Record):
    """Who gets the requests of one endpoint. Weights are percent and sum to 100."""

    endpoint: Name
    weights: dict[str, int] = Field(description="Version -> percent of requests.")
    backends: dict[str, str] = Field(description="Version -> host:port; every version of weights and mirrors is here.")
    mirrors: dict[str, int] = Field(default_factory=dict, description="Version -> percent of requests copied to it.")
    sticky_header: str = Field(default="x-user-id", description="Requests with an equal value get the same version.")
    models: dict[str, str] = Field(default_factory=dict, description="Version -> model name the backend expects.")


class TrafficStats(Record):
    """Counters of one version behind the gateway since it was configured."""

    requests: int = Field(ge=0)
    errors: int = Field(ge=0, description="5xx answers and failed connections.")
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
