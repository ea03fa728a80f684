"""What a run will find and what it will have to do, looked up before anything is spent.

The change since an earlier commit explains the plan; whether work is done again is decided by fingerprints, the very
ones that the tasks look for. Nothing is written here, except the files of the commit to the blobs that are given.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from deepseek_ops.core.config import PipelineFile, load_pipeline
from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.ports import Facts, GitRemote
from deepseek_ops.core.records import DatasetVersion, FileSet
from deepseek_ops.data import DatasetRepository
from deepseek_ops.data.content.lake import ingested
from deepseek_ops.pipeline.changes import PIPELINE_FILE, STAGES, ChangeSummary
from deepseek_ops.pipeline.datasets import prepare_job, prepared, raw_name, raw_of
from deepseek_ops.pipeline.environment import committed_lock, environment_key
from deepseek_ops.pipeline.forecast_change import Before, moved_since
from deepseek_ops.pipeline.identity import content_identity, made_before
from deepseek_ops.pipeline.once import RESULT, remembered
from deepseek_ops.pipeline.pinning import held_to, is_used_as_it_is, pinned
from deepseek_ops.pipeline.push_verdict import PushVerdict
from deepseek_ops.pipeline.registration import Stores
from deepseek_ops.pipeline.runs import RunPlan, Stage, code_of, config_of
from deepseek_ops.pipeline.sweeps import best_trial, study_of, trials_of
from deepseek_ops.pipeline.trainings import model_config, training_job_name, training_plan


@dataclass
class _Found:
    """What was looked up so far: stage -> what is there, and why something could not be looked up."""

    lines: dict[str, str] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    """Stage -> why it is what it was, which is no proof that anything of it is there."""
    problems: dict[str, str] = field(default_factory=dict)


def change_of_run(git: GitRemote, run: RunPlan, config: PipelineFile, *, against: str = "") -> ChangeSummary:
    """Return what the run's commit changed since ``against``: a ref, else what its branch was before; see there."""
    return moved_since(git, run.manifest.source, config, against=against).summary


def forecast(
    git: GitRemote,
    run: RunPlan,
    change: ChangeSummary,
    *,
    stores: Stores | None = None,
    datasets: DatasetRepository | None = None,
    facts: Facts | None = None,
    against: str = "",
    before: Before | None = None,
    newest: bool = False,
) -> RunPlan:
    """Return the plan with what each stage will find or do.

    Without stores and facts nothing of that is known: what the change does not reach is told to be the same, and
    whether a run has left it is not. ``before`` is what ``change`` is since, where that is known already. ``newest``
    says that new data or a schedule starts the run: the commit's data pointer does not bind it.
    """
    config = _config(git, run, stores)
    found = _Found()
    _environment(git, run, found, before or moved_since(git, run.manifest.source, config, against=against).before)
    looked = stores is not None and datasets is not None and facts is not None
    if not looked and change.known:
        found.same |= {name: f"as at {change.against}" for name in STAGES[1:] if not change.reaches(name)}
    if stores is not None and datasets is not None and facts is not None:
        try:
            _look(found, config, run, stores, datasets, facts, newest=newest)
        except DeepSeekOpsError as error:
            found.problems["data"] = f"cannot be looked up: {error}"
    rows = {stage.name: stage for stage in run.stages}
    environment = Stage(name="environment", runs=not run.dry_run, why=run.manifest.environment[:12])
    stages = [_told(environment, found, change), *(_told(stage, found, change) for stage in rows.values())]
    return run.evolve(stages=tuple(stages))


def explain_plan(run: RunPlan, change: ChangeSummary, push: PushVerdict | None = None) -> str:
    """Return the plan as lines for people: what changed, what runs, what is found, what does not run, and why.

    ``push`` adds whether a push would start it.
    """
    source = run.manifest.source
    text = change.text() if change.known or push is None else "nothing to compare with: name a commit with --against"
    lines = [f"{run.manifest.name}: {source.short} at {source.commit[:12]}", f"  {text}"]
    lines += [f"  {push.text()}"] if push else []
    if (
        push
        and change.known
        and not any(change.reaches(stage) for stage in STAGES)
        and any(stage.runs for stage in run.stages if stage.name in STAGES)
    ):
        lines.append(f"  what is to run is not asked for by the change: no run of {change.against} has left it")
    lines += [f"  {_verb(stage):<6}{stage.name:<12} {stage.why}" for stage in run.stages]
    lines.append(f"  budget: {run.budget_usd:.2f} USD" if run.budget_usd else "  budget: none")
    return "\n".join(lines)


def _verb(stage: Stage) -> str:
    if stage.runs:
        return "run"
    if stage.why.startswith("as at "):
        return "same"
    return "reuse" if stage.why.startswith("found: ") else "skip"


def _told(stage: Stage, found: _Found, change: ChangeSummary) -> Stage:
    if line := found.lines.get(stage.name):
        return stage.evolve(runs=False, why=f"found: {line}")
    if not stage.runs or stage.name not in STAGES:
        return stage
    if same := found.same.get(stage.name):
        return stage.evolve(runs=False, why=same)
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


def _environment(git: GitRemote, run: RunPlan, found: _Found, before: Before | None) -> None:
    """Say that the environment is the one of the commit before, where its key is."""
    if before is None or before.pipeline is None:
        return
    image = before.pipeline.jobs.setup.container or ""
    try:
        key = environment_key(committed_lock(git, before.commit, before.pipeline), image=image, machine=run.machine)
    except DeepSeekOpsError:  # what came before need not have been right
        return
    if key == run.manifest.environment:
        found.same["environment"] = f"as at {before.shown}: {key[:12]}"


def _config(git: GitRemote, run: RunPlan, stores: Stores | None) -> PipelineFile:
    if stores is not None:
        return config_of(stores.blobs, run.manifest)
    config = load_pipeline(git.read_file(run.manifest.source.commit, PIPELINE_FILE), file=PIPELINE_FILE)
    return config.with_overrides(run.manifest.overrides) if run.manifest.overrides else config
