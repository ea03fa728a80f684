"""From a pushed commit to a run: the commit's own pipeline file, resolved to digests before anything is spent."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue

import deepseek_ops
from deepseek_ops.core.config import GitPushTrigger, PipelineFile, load_pipeline, matches_ref
from deepseek_ops.core.errors import PermanentError, RefNotFoundError
from deepseek_ops.core.ports import Blobs, GitRemote
from deepseek_ops.core.records import Digest, FileSet, GitRef, Record, RunManifest
from deepseek_ops.pipeline.changes import PIPELINE_FILE as PIPELINE_FILE  # noqa: PLC0414  (re-exported)
from deepseek_ops.pipeline.environment import committed_lock, environment_key
from deepseek_ops.pipeline.environment_machine import Machine
from deepseek_ops.pipeline.policy import Policy
from deepseek_ops.pipeline.weight_pointers import take_pointers


class Stage(Record):
    """One stage of the run's plan, and why it runs or does not."""

    name: str
    runs: bool
    why: str


class RunPlan(Record):
    """What one run will do. Everything later reads the commit through the digests here, never by name."""

    manifest: RunManifest
    code: Digest = Field(description="Blob of the FileSet of the commit's files.")
    lock: str = Field(default="", description="Path of the lock file in the commit; empty when it has none.")
    base: FileSet | None = Field(default=None, description="Weights to go on from; ``manifest.base`` is their bundle.")
    base_dataset: str = Field(default="", description="Dataset version that the base was trained on: what is replayed.")
    budget_usd: float | None = Field(default=None, gt=0)
    dry_run: bool = False
    machine: Machine | None = Field(default=None, description="Where it was planned; None in plans of older releases.")
    nonce: str = Field(default="", description="Set when an equal training is to be done again.")
    stages: tuple[Stage, ...] = ()


@dataclass(eq=False)
class MissingPipelineFileError(PermanentError):
    """The commit has no pipeline file."""

    repository: str
    commit: str

    def __str__(self) -> str:
        return (
            f"commit {self.commit[:12]} of {self.repository} has no {PIPELINE_FILE}; "
            "add one (`deepseek-ops schema` prints its schema) and push again."
        )


@dataclass(eq=False)
class UnsupportedEngineError(PermanentError):
    """The pipeline file asks for several machines of an engine that has one."""

    nodes: int

    def __str__(self) -> str:
        return (
            f"{PIPELINE_FILE}: training.nodes={self.nodes} needs an engine with more than one machine; set "
            "training.engine to ray, slurm, kubernetes or sagemaker, or training.nodes to 1."
        )


@dataclass(frozen=True)
class Base:
    """The model that a run goes on from, resolved when the run starts."""

    bundle: Digest
    model: FileSet
    dataset: str = ""
    """Version id of what it was trained on."""


ResolveBase = Callable[[PipelineFile], Base | None]


def plan_run(
    git: GitRemote,
    blobs: Blobs,
    ref: GitRef,
    *,
    resolve_base: ResolveBase,
    overrides: Mapping[str, JsonValue],
    budget_usd: float | None = None,
    dry_run: bool = False,
    nonce: str = "",
    machine: Machine | None = None,
) -> RunPlan:
    """Read the commit's pipeline file and code, check them, and return the run they ask for.

    ``machine`` is the one whose environments are meant; None = this one.

    Raises the pipeline file's own errors (all of them at once), MissingPipelineFileError, UnsupportedEngineError,
    UnpinnedLockError and LockFileError for a lock that does not pin or cannot be read, and
    WeightNotPushedError for a Git LFS pointer whose object is not in the store.
    """
    try:
        text = git.read_file(ref.commit, PIPELINE_FILE)
    except RefNotFoundError as error:
        raise MissingPipelineFileError(ref.repository, ref.commit) from error
    config = _load(text, ref, overrides)
    if config.training.engine == "local" and config.training.nodes > 1:
        raise UnsupportedEngineError(config.training.nodes)
    lock = committed_lock(git, ref.commit, config)
    about = git.describe(ref.commit)
    with tempfile.TemporaryDirectory(prefix="deepseek-ops-code-") as folder:
        git.checkout(ref.commit, Path(folder) / "code")
        weights = take_pointers(Path(folder) / "code", blobs, store="the run's store")
        files = (*blobs.put_folder(Path(folder) / "code").files, *weights)
        code = FileSet(files=tuple(sorted(files, key=lambda entry: entry.path)))
    base = resolve_base(config)
    planner = machine or Machine.here()
    manifest = RunManifest(
        name=config.name,
        source=ref,
        tree=about["tree"],
        patch_id=about.get("patch_id", ""),
        config_digest=blobs.put(text),
        overrides=dict(overrides),
        environment=environment_key(lock, image=config.jobs.setup.container or "", machine=planner),
        base=base.bundle if base else "",
        seed=config.training.seed,
        hardware=f"{config.training.nodes}x{config.training.gpus_per_node} ranks, engine {config.training.engine}",
        software=deepseek_ops.__version__,
    )
    return RunPlan(
        manifest=manifest,
        code=blobs.put(json.dumps(code.dump()).encode()),
        lock=lock.file if lock else "",
        base=base.model if base else None,
        base_dataset=base.dataset if base else "",
        budget_usd=budget_usd if budget_usd is not None else _usd(config),
        dry_run=dry_run,
        machine=planner,
        nonce=nonce,
        stages=_stages(config, ref, dry_run=dry_run),
    )


def config_of(blobs: Blobs, manifest: RunManifest) -> PipelineFile:
    """Return the run's pipeline file, overrides applied."""
    return _load(blobs.get(manifest.config_digest), manifest.source, manifest.overrides)


def code_of(blobs: Blobs, run: RunPlan) -> FileSet:
    """Return the run's code as a set of blobs."""
    return FileSet.load(json.loads(blobs.get(run.code)))


def releases_from(config: PipelineFile, ref: GitRef) -> bool:
    """Return whether runs of this branch may release: ``release.branches`` of the pipeline file."""
    return config.deployment is not None and config.release.allows(ref.short)


def push_policy(config: PipelineFile, ref: GitRef) -> Policy:
    """Return the ``concurrency`` of the first push trigger that watches the branch; ``parallel`` without one."""
    if not ref.name.startswith("refs/heads/"):
        return "parallel"
    found = (one for one in config.triggers if isinstance(one, GitPushTrigger) and matches_ref(one.branches, ref.short))
    trigger = next(found, None)
    return trigger.concurrency if trigger else "parallel"


def _load(text: bytes, ref: GitRef, overrides: Mapping[str, JsonValue]) -> PipelineFile:
    config = load_pipeline(text, file=f"{PIPELINE_FILE}@{ref.commit[:12]}")
    return config.with_overrides(overrides) if overrides else config


def _usd(config: PipelineFile) -> float | None:
    return config.training.budget.usd


def _stages(config: PipelineFile, ref: GitRef, *, dry_run: bool) -> tuple[Stage, ...]:
    def stage(name: Literal["data", "sweep", "train", "validate", "export", "register", "release"], why: str) -> Stage:
        return Stage(name=name, runs=not dry_run, why=f"dry run: would {why}" if dry_run else why)

    searched = [one.name for one in config.training.searched]
    formats = config.deployment.formats if config.deployment else ()
    place = config.deployment.destination.path if config.deployment else "the store"
    rows = [
        stage("data", f"prepare {config.data.raw} with {config.data.prepare} as {config.data.dataset}"),
        stage("sweep", f"search {', '.join(searched)} in {config.num_trials} trials")
        if searched
        else Stage(name="sweep", runs=False, why="every hyperparameter is fixed"),
        stage("train", f"{config.training.method} on {config.training.gpus_per_node} ranks x {config.training.nodes}"),
        stage("validate", " then ".join(item.name for item in config.validation.stages) or "no stage"),
        stage("export", ", ".join(formats) or "no format"),
        stage("register", place),
    ]
    if releases_from(config, ref):
        rows.append(stage("release", f"branch {ref.short} may release"))
    else:
        rows.append(
            Stage(
                name="release", runs=False, why=f"branch {ref.short} is not in release.branches, or nothing is deployed"
            )
        )
    return tuple(rows)
