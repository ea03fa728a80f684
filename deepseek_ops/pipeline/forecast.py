"""What a run will find and what it will have to do, looked up before anything is spent.

The change since an earlier commit explains the plan; whether work is done again is decided by fingerprints, the very
ones that the tasks look for. Nothing is written here, except the files of the commit to the blobs that are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic import JsonValue

from deepseek_ops.core.config import PipelineFile, load_pipeline
from deepseek_ops.core.errors import DeepSeekOpsError, PermanentError, RefNotFoundError
from deepseek_ops.core.ports import Facts, GitRemote
from deepseek_ops.core.records import DatasetVersion, FileSet, GitRef
from deepseek_ops.data import DatasetRepository
from deepseek_ops.data.content.lake import ingested
from deepseek_ops.pipeline.changes import PIPELINE_FILE, STAGES, ChangeSummary, classify
from deepseek_ops.pipeline.datasets import prepare_job, prepared, raw_name, raw_of
from deepseek_ops.pipeline.environment import committed_lock, environment_key
from deepseek_ops.pipeline.identity import content_identity, made_before
from deepseek_ops.pipeline.once import RESULT, remembered
from deepseek_ops.pipeline.pinning import held_to, is_used_as_it_is, pinned
from deepseek_ops.pipeline.registration import Stores
from deepseek_ops.pipeline.runs import RunPlan, Stage, code_of, config_of
from deepseek_ops.pipeline.sweeps import best_trial, study_of, trials_of
from deepseek_ops.pipeline.trainings import model_config, training_job_name, training_plan


@dataclass
class _Found:
    """What was looked up so far: stage -> what is there, and why something could not be looked up."""

    lines: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def change_of_run(git: GitRemote, run: RunPlan, config: PipelineFile, *, against: str = "") -> ChangeSummary:
    """Return what the run's commit changed since ``against``: a ref, else what its branch was before, else main."""
    ref = run.manifest.source
    old, shown = _before(git, ref, against)
    if not old:
        return ChangeSummary()
    try:
        paths = [] if old == ref.commit else git.changed_paths(old, ref.commit)
    except RefNotFoundError:  # after a forced push the server may have dropped the old commit
        if against:
            raise
        return ChangeSummary()
    return classify(paths, new=config, old=_pipeline_of(git, old), against=shown)


def forecast(
    git: GitRemote,
    run: RunPlan,
    change: ChangeSummary,
    *,
    stores: Stores | None = None,
    datasets: DatasetRepository | None = None,
    facts: Facts | None = None,
    against: str = "",
    newest: bool = False,
) -> RunPlan:
    """Return the plan with what each stage will find or do. Without stores and facts nothing of that is known.

    ``newest`` says that new data or a schedule starts the run: the commit's data pointer does not bind it.
    """
    config = _config(git, run, stores)
    found = _Found()
    _environment(git, run, found, against)
    if stores is not None and datasets is not None and facts is not None:
        try:
            _look(found, config, run, stores, datasets, facts, newest=newest)
        except DeepSeekOpsError as error:
            found.problems["data"] = f"cannot be looked up: {error}"
    rows = {stage.name: stage for stage in run.stages}
    environment = Stage(name="environment", runs=not run.dry_run, why=run.manifest.environment[:12])
    stages = [_told(environment, found, change), *(_told(stage, found, change) for stage in rows.values())]
    return run.evolve(stages=tuple(stages))


def explain_plan(run: RunPlan, change: ChangeSummary) -> str:
    """Return the plan as lines for people: what changed, what runs, what is found, what does not run, and why."""
    source = run.manifest.source
    lines = [f"{run.manifest.name}: {source.short} at {source.commit[:12]}", f"  {change.text()}"]
    lines += [f"  {_verb(stage):<6}{stage.name:<12} {stage.why}" for stage in run.stages]
    lines.append(f"  budget: {run.budget_usd:.2f} USD" if run.budget_usd else "  budget: none")
    return "\n".join(lines)


def _verb(stage: Stage) -> str:
    if stage.runs:
        return "run"
    return "reuse" if stage.why.startswith("found: ") else "skip"


def _told(stage: Stage, found: _Found, change: ChangeSummary) -> Stage:
    if line := found.lines.get(stage.name):
        return stage.evolve(runs=False, why=f"found: {line}")
    if not stage.runs or stage.name not in STAGES:
        return stage
    reason = found.problems.get(stage.name) or (change.reaches(stage.name) if change.known else "")
    return stage.evolve(why=f"{stage.why}; {reason}") if reason else stage


def _look(
    found: _Found,
    config: PipelineFile,
    run: RunPlan,
    stores: Stores,
    datasets: DatasetRepository,
    facts: Facts,
    *,
    newest: bool,
) -> None:
    """Look stage by stage, as the tasks will; what a stage would make anew ends the search."""
    dataset = _dataset(found, config, run, stores, datasets, facts, newest=newest)
    if dataset is None:
        return
    model = model_config(stores.blobs, config, run)
    values: dict[str, JsonValue] = {}
    if config.training.searched:
        study = study_of(config, run, dataset, model)
        trials = trials_of(facts, study)
        done = [trial for trial in trials if trial.state != "running"]
        if len(done) < study.trials:
            found.problems["sweep"] = f"{len(done)} of {study.trials} trials of study {study.name} are known"
            return
        found.lines["sweep"] = f"all {study.trials} trials of study {study.name}"
        values = best_trial(config, study, trials).values
    plan = training_plan(
        config, run, dataset=dataset, model=model, values=values, datasets=datasets, blobs=stores.blobs
    )
    fact = facts.get(RESULT, training_job_name(plan))
    if fact is None:
        return
    found.lines["train"] = f"equal training {plan.fingerprint[:12]} of run {fact.run}"
    same = made_before(facts, content_identity(config, run, code_of(stores.blobs, run), dataset))
    if same is not None:
        found.lines["register"] = same.text()


def _dataset(
    found: _Found,
    config: PipelineFile,
    run: RunPlan,
    stores: Stores,
    datasets: DatasetRepository,
    facts: Facts,
    *,
    newest: bool,
) -> DatasetVersion | None:
    """Return the dataset version that the run will find, or None when it will make one."""
    pin = pinned(config, run, stores.blobs, datasets, newest=newest)
    if pin is not None and is_used_as_it_is(config, pin):
        found.lines["data"] = f"dataset {pin.version.name} version {pin.version.version[:12]}, which the commit names"
        return pin.version
    raw = pin.raw if pin is not None and pin.raw is not None else _raw(config, run, stores, datasets)
    known = None if raw is None else remembered(facts, prepare_job(config, run, stores.blobs, raw, datasets))
    if known is None:
        return None
    dataset = prepared(known)
    if pin is not None:
        dataset, _ = held_to(config, run, pin, dataset, datasets)
    found.lines["data"] = f"dataset {dataset.name} version {dataset.version[:12]}"
    return dataset


def _raw(
    config: PipelineFile, run: RunPlan, stores: Stores, datasets: DatasetRepository
) -> DatasetVersion | FileSet | None:
    """Return the raw data that the run will read, where taking it in would change nothing."""
    raw = config.data.raw or ""
    if "://" not in raw:
        return raw_of(config, run, stores, datasets)
    return ingested(datasets, stores.at(raw), raw_name(config.data.dataset))


def _environment(git: GitRemote, run: RunPlan, found: _Found, against: str) -> None:
    """Say that the environment is the one of the commit before, where its key is."""
    old, shown = _before(git, run.manifest.source, against)
    before = _pipeline_of(git, old) if old else None
    if before is None:
        return
    try:
        key = environment_key(committed_lock(git, old, before), image=before.jobs.setup.container or "")
    except DeepSeekOpsError:  # what came before need not have been right
        return
    if key == run.manifest.environment:
        found.lines["environment"] = f"{key[:12]}, as at {shown}"


def _config(git: GitRemote, run: RunPlan, stores: Stores | None) -> PipelineFile:
    if stores is not None:
        return config_of(stores.blobs, run.manifest)
    config = load_pipeline(git.read_file(run.manifest.source.commit, PIPELINE_FILE), file=PIPELINE_FILE)
    return config.with_overrides(run.manifest.overrides) if run.manifest.overrides else config


def _before(git: GitRemote, ref: GitRef, against: str) -> tuple[str, str]:
    """Return the commit to compare with, and what it is called; two empty texts when there is none."""
    if against:
        commit = git.resolve(against).commit
        return commit, f"{against} ({commit[:12]})"
    for commit, name in _candidates(git, ref):
        if commit != ref.commit:
            return commit, f"{name} ({commit[:12]})"
    return "", ""


def _candidates(git: GitRemote, ref: GitRef) -> Iterator[tuple[str, str]]:
    if ref.previous:
        yield ref.previous, f"the push before to {ref.short}"
    try:
        yield git.resolve("main").commit, "main"
    except RefNotFoundError:
        return


def _pipeline_of(git: GitRemote, commit: str) -> PipelineFile | None:
    """Return the commit's pipeline file; None where it has none that can be read."""
    try:
        return load_pipeline(git.read_file(commit, PIPELINE_FILE), file=PIPELINE_FILE)
    except PermanentError:
        return None
