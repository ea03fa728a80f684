"""The nouns of the product: frozen, strict, JSON.

A record says what a thing is, never when it was seen: a clock in a record would give the same data two identities,
and a retried task would train twice. The audit log knows when. ``fingerprint`` (SHA-256 of the canonical JSON) is the
idempotency key of whatever is made from the record.

One retraining run passes these on, each as plain JSON (``dump``/``load``)::

    GitRef -> RunManifest -> DatasetVersion -> TrainingPlan -> Checkpoint -> Evaluation -> ExportedModel
           -> ModelVersion -> Release -> Rollout -> Deployment
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError, field_validator

from deepseek_ops.core.digests import Digest as Digest  # noqa: PLC0414  (re-exported)
from deepseek_ops.core.digests import canonical_json as canonical_json  # noqa: PLC0414  (re-exported)
from deepseek_ops.core.digests import digest_of as digest_of  # noqa: PLC0414  (re-exported)
from deepseek_ops.core.errors import InvalidRecordError

CommitId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""A name that is safe as a path segment, an object key segment and a Git ref segment."""
SemVer = Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")]

_REF = re.compile(r"^refs/(heads|tags)/[^\x00-\x20~^:?*\[\\]+$")


class Record(BaseModel):
    """A frozen, strict value. A subclass raises ``schema_version`` when its stored form changes incompatibly."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_bytes="base64")
    schema_version: ClassVar[int] = 1

    def dump(self) -> dict[str, JsonValue]:
        """Return the record as plain JSON with its ``schema`` (``name/version``) inside: what XCom and S3 carry."""
        body: dict[str, JsonValue] = self.model_dump(mode="json", exclude_none=True)
        return {"schema": f"{type(self).__name__}/{self.schema_version}", **body}

    @classmethod
    def load(cls, data: Mapping[str, object]) -> Self:
        """Return the record that ``dump`` wrote. Raises InvalidRecordError naming the field and the value."""
        body = dict(data)
        schema = body.pop("schema", None)
        if schema is not None and str(schema).partition("/")[0] != cls.__name__:
            raise InvalidRecordError(cls.__name__, f"it is a {schema}")
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "(record)"
            raise InvalidRecordError(cls.__name__, f"{where}={first['input']!r}: {first['msg']}") from error

    @property
    def fingerprint(self) -> Digest:
        """SHA-256 of the canonical JSON: equal records, equal fingerprints, on every machine."""
        return digest_of(canonical_json(self.dump()))

    def evolve(self, **changes: object) -> Self:
        """Return a copy with ``changes``, checked again (``model_copy`` would not check)."""
        return self.model_validate({**self.model_dump(), **changes})


# --- source -----------------------------------------------------------------------------------------------------------


class GitRef(Record):
    """One ref of a model repository, resolved: names are never resolved again after this."""

    repository: str = Field(description="URL without credentials.")
    name: str = Field(description="Full ref name, such as refs/heads/exp/first.")
    commit: CommitId
    previous: CommitId | None = Field(default=None, description="What the ref pointed to before; None for a new ref.")
    move: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z.-]{1,64}$")] | None = Field(
        default=None, description="Which move of the ref a watcher announced: a ref may come back to a commit."
    )

    @field_validator("name")
    @classmethod
    def _full_name(cls, value: str) -> str:
        if not _REF.fullmatch(value) or ".." in value or value.endswith((".lock", "/")):
            raise ValueError("not a full ref name such as refs/heads/main")
        return value

    @property
    def short(self) -> str:
        """The branch or tag name without ``refs/heads/`` or ``refs/tags/``."""
        return self.name.split("/", 2)[2]


class RunManifest(Record):
    """The identity of a result: everything that made it, resolved to digests when the run starts and never after."""

    name: Name = Field(description="The pipeline's name: what the model is called in the registry.")
    source: GitRef
    tree: CommitId = Field(description="Tree id of the commit: survives rebase and squash.")
    patch_id: str = Field(default="", description="git patch-id of the commit: survives rebase.")
    config_digest: Digest = Field(description="Digest of the pipeline file as it stands in the commit.")
    overrides: dict[str, JsonValue] = Field(default_factory=dict, description="Dotted path -> value, from the form.")
    environment: str = Field(description="Environment key: digest of lock file, image and platform.")
    dataset: str = Field(default="", description="Dataset version id; empty until the data step has run.")
    base: str = Field(default="", description="Digest of the base model's bundle; empty when trained from scratch.")
    seed: int = 0
    hardware: str = Field(default="", description="What it ran on, such as 2x cpu.")
    software: str = Field(description="deepseek-ops version.")

    @field_validator("source")
    @classmethod
    def _whatever_announced_it(cls, value: GitRef) -> GitRef:
        """Return the source without its announcement: the same content is the same result."""
        return value if value.move is None else value.evolve(move=None)


# --- data -------------------------------------------------------------------------------------------------------------


class DatasetVersion(Record):
    """An immutable dataset version, addressed by the digest of its commit record."""

    name: Name
    version: Digest = Field(description="Digest of the commit record in the store.")
    tree: Digest = Field(description="Digest of the root manifest page: equal trees hold equal files.")
    num_files: int = Field(ge=0)
    num_bytes: int = Field(ge=0)
    splits: dict[str, int] = Field(default_factory=dict, description="Records per split.")


class FileEntry(Record):
    """One file of a dataset version, a checkpoint or a bundle."""

    path: str = Field(min_length=1, max_length=1024, description="Relative, POSIX, no '..' and no leading '/'.")
    size: int = Field(ge=0)
    digest: Digest

    @field_validator("path")
    @classmethod
    def _relative(cls, value: str) -> str:
        parts = value.split("/")
        if value.startswith("/") or "\\" in value or "\x00" in value or any(part in ("", ".", "..") for part in parts):
            raise ValueError("not a plain relative POSIX path")
        return value


# --- training ---------------------------------------------------------------------------------------------------------


class Hyperparameters(Record):
    """What a training is run with, after search. Tokens and samples are counted over all ranks."""

    learning_rate: float = Field(gt=0)
    batch_size: int = Field(gt=0, description="Samples per optimiser step over all ranks.")
    epochs: float | None = Field(default=None, gt=0)
    max_steps: int | None = Field(default=None, gt=0, description="Overrides epochs.")
    sequence_length: int = Field(default=128, gt=1, description="Tokens per sample.")
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.1, ge=0)
    adam_beta2: float = Field(default=0.95, gt=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    bias_update_rate: float = Field(default=1e-3, ge=0, description="Step of the router's correction bias.")


class LoraPlan(Record):
    """Low-rank adapters: what is trained instead of the weights (Hu et al. 2021, W + alpha / rank x B A)."""

    rank: int = Field(default=16, ge=1, le=4096)
    alpha: float = Field(default=32.0, gt=0, description="The adapter's product is scaled by alpha / rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(default=(), description="Names of linear layers; empty: those of the attention.")


class ReplayPlan(Record):
    """Old data that is mixed into every batch, so that new data does not make the model forget it."""

    datasets: tuple[DatasetVersion, ...] = Field(min_length=1, description="What the base was trained on.")
    share: float = Field(gt=0, lt=1, description="Share of old samples.")


def _unset(value: object) -> bool:
    """Return whether a later field says nothing, so that plans from before it keep their fingerprint."""
    return value is None or value is False


class TrainingPlan(Record):
    """Everything that decides the weights, and nothing else: its fingerprint is the run's prefix in the store.

    Two plans that are equal give the same weights, so a second training of an equal plan finds the first one's result.
    """

    purpose: Literal["train", "trial"] = "train"
    dataset: DatasetVersion
    model: dict[str, JsonValue] = Field(description="A transformers config, such as DeepseekV3Config as JSON.")
    base: FileSet | None = Field(default=None, description="Weights to start from; None trains from scratch.")
    method: Literal["pretrain", "sft", "lora"] = "pretrain"
    num_nodes: int = Field(default=1, ge=1)
    nproc_per_node: int = Field(default=1, ge=1)
    hyperparameters: Hyperparameters
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: int = Field(default=2, ge=0, le=3)
    deepspeed: dict[str, JsonValue] = Field(default_factory=dict, description="The user's own DeepSpeed keys.")
    environment: str = ""
    seed: int = 0
    checkpoint_steps: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default=50, description="Steps between two checkpoints; auto = from their measured cost and the failure rate."
    )
    eval_steps: int = Field(default=50, ge=1, description="Steps between two validation losses.")
    nonce: str = Field(default="", description="Set to train an equal plan again.")
    lora: LoraPlan | None = Field(default=None, description="Adapters of method lora.")
    replay: ReplayPlan | None = Field(default=None, description="Old data mixed in.")
    rewarm: float | None = Field(default=None, gt=0, le=1, description="Share of learning_rate to warm up to.")
    gradient_checkpointing: bool = Field(
        default=False, exclude_if=_unset, description="Compute activations again instead of keeping them."
    )

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.nproc_per_node

    @property
    def run_prefix(self) -> str:
        """Key prefix of the run's streams, checkpoints and result: ``runs/<fingerprint>``."""
        return f"runs/{self.fingerprint}"


class FileSet(Record):
    """A folder of content-addressed files: a model, a checkpoint, an export."""

    files: tuple[FileEntry, ...]

    @property
    def num_bytes(self) -> int:
        return sum(entry.size for entry in self.files)


class Checkpoint(Record):
    """A trained model in the hub layout (config, tokenizer, per-expert safetensors) and how its training ended."""

    plan: Digest = Field(description="Fingerprint of the TrainingPlan.")
    step: int = Field(ge=0)
    tokens: int = Field(ge=0, description="Tokens trained on, over all ranks.")
    model: FileSet
    metrics: dict[str, float] = Field(default_factory=dict, description="Last values: training_loss, val_loss, ...")
    curve: tuple[tuple[int, float], ...] = Field(default=(), description="(step, loss) thinned to at most 64 points.")
    restarts: int = Field(default=0, ge=0, description="How often the ranks were restarted from a checkpoint.")


class Trial(Record):
    """One trial of a study: a slot, the values it drew, and what came of it."""

    study: Name
    number: int = Field(ge=0)
    values: dict[str, JsonValue] = Field(default_factory=dict)
    state: Literal["running", "complete", "pruned", "failed"] = "running"
    objective: float | None = None
    curve: tuple[tuple[int, float], ...] = Field(default=(), description="(step, metric), the rungs a pruner sees.")
    plan: str = Field(default="", description="Fingerprint of the trial's TrainingPlan.")
    reused: bool = Field(default=False, description="An equal plan had been trained before.")


# --- validation and export --------------------------------------------------------------------------------------------


class Verdict(StrEnum):
    """What a gate says. Inconclusive is an answer: it names how much evidence is missing."""

    PASS = "pass"  # noqa: S105  (a verdict)
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Evaluation(Record):
    """One stage's result for one model. Per-item results are stored beside it, so that comparisons can be paired."""

    stage: Name
    model: Digest = Field(description="Fingerprint of the model's FileSet.")
    dataset: str = Field(description="Dataset version and selection, so that unequal tests are never compared.")
    metrics: dict[str, float]
    num_items: int = Field(ge=0)
    items: FileEntry | None = Field(default=None, description="Per-item results (JSON lines) in the store.")
    verdict: Verdict
    reason: str = Field(description="One sentence a release manager can read.")
    champion: str = Field(default="", description="Version compared with; empty when there was none.")
    delta: float | None = Field(default=None, description="Mean paired difference to the champion, metric units.")
    interval: tuple[float, float] | None = Field(default=None, description="Confidence interval of delta.")


class ExportStatus(StrEnum):
    VERIFIED = "verified"
    BUILT_UNVERIFIED = "built_unverified"


class Parity(Record):
    """How an exported model agrees with its checkpoint, measured in the export's own runtime."""

    runtime: str = Field(description="Such as onnxruntime 1.31.1.")
    max_abs_error: float = Field(ge=0)
    top1_agreement: float = Field(ge=0, le=1)
    num_tokens: int = Field(ge=0)


class ExportedModel(Record):
    """One format of one model. Only a verified export has been loaded and compared."""

    format: Literal["onnx", "tensorrt", "torchscript", "safetensors"]
    model: Digest = Field(description="Fingerprint of the source FileSet.")
    status: ExportStatus
    reason: str = Field(default="", description="Why it is not verified.")
    files: FileSet
    parity: Parity | None = None
    details: dict[str, JsonValue] = Field(default_factory=dict, description="Opset, precision, flavour, versions.")


# --- registry, release, delivery --------------------------------------------------------------------------------------


class ModelVersion(Record):
    """A registered version: its bundle in the store is self-contained."""

    name: Name
    version: SemVer
    bundle: Digest = Field(description="Digest of bundle.json.")
    bundle_key: str = Field(description="Key of bundle.json in the registry's store.")
    manifest: RunManifest
    metrics: dict[str, float] = Field(default_factory=dict)


class Release(Record):
    """A version that may be deployed: an annotated tag in the model repository."""

    name: Name
    version: SemVer
    bundle: Digest
    tag: str
    tag_object: CommitId
    commit: CommitId
    approved_by: str = Field(default="", description="Empty when the policy asks for no approval.")


class Phase(StrEnum):
    PROGRESSING = "progressing"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


class Rollout(Record):
    """The state of one rollout; ``rollout.next_step`` is the only thing that moves it."""

    endpoint: Name
    stable: str = Field(default="", description="Version that serves now; empty for the first deployment.")
    candidate: str
    strategy: Literal["blue-green", "canary", "shadow"]
    steps: tuple[int, ...] = (100,)
    percent: int = Field(default=0, ge=0, le=100)
    phase: Phase = Phase.PROGRESSING
    reason: str = ""


class Deployment(Record):
    """A version that answers requests at a URL."""

    endpoint: Name
    version: SemVer
    url: str
    strategy: str
    evidence: dict[str, JsonValue] = Field(default_factory=dict, description="Requests seen, probe answer, revision.")


# --- accounts ---------------------------------------------------------------------------------------------------------


class CostEntry(Record):
    """Device-seconds of one job, labelled: what they bought."""

    run: str = Field(description="Airflow run or other owner.")
    job: str
    label: Literal["productive", "checkpoint", "recompute", "stalled", "failed", "pruned", "startup", "serving"]
    device: str = Field(description="Key of the price list, such as cpu or h100.")
    device_seconds: float = Field(ge=0)
    usd: float = Field(ge=0)


class AuditEvent(Record):
    """Who did what to which thing. The log adds the time, the sequence and the hash chain."""

    actor: str
    action: str = Field(description="Verb in the past tense: registered, promoted, rolled_back, ...")
    subject: str
    details: dict[str, JsonValue] = Field(default_factory=dict)


TrainingPlan.model_rebuild()
