"""A study whose trials are facts: every slot draws its values when it starts, knowing what the others have found.

No study object lives anywhere. The sampler is rebuilt from the trials in the database, so a lost worker loses nothing,
trials of an equal study are found again by later runs, and two slots that draw at the same moment settle it with a
create-only insert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from deepseek_ops.core.config import PipelineFile
from deepseek_ops.core.errors import ObjectExistsError, PermanentError
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.core.ports import Blobs, Facts
from deepseek_ops.core.records import DatasetVersion, Name, Record, TrainingPlan, Trial, canonical_json, digest_of
from deepseek_ops.pipeline.runs import RunPlan
from deepseek_ops.pipeline.trainings import as_of_script, training_job_name, training_script
from deepseek_ops.training import plan_trial
from deepseek_ops.tuning import best, search_space, suggest

TRIAL = "trial"
"""Kind of the facts that hold trials, keyed ``<study>/<number>``."""


class Study(Record):
    """The identity of a sweep: equal studies share their trials."""

    name: Name
    trials: int


@dataclass(eq=False)
class NoTrialCompletedError(PermanentError):
    """A sweep without a usable trial."""

    study: str
    states: str

    def __str__(self) -> str:
        return f"no trial of study {self.study} completed ({self.states}); read the trials' logs."


def study_of(config: PipelineFile, run: RunPlan, dataset: DatasetVersion, model: Mapping[str, JsonValue]) -> Study:
    """Return the study: everything that decides its trials goes into its name.

    The base is in it by its digest, because the name that the pipeline file has for it may come to mean another model;
    so is the commit's code where a script of it trains, because what the script imports decides as well.
    """
    identity: dict[str, JsonValue] = {
        "dataset": dataset.version,
        "environment": run.manifest.environment,
        "model": digest_of(canonical_json(dict(model))),
        "training": config.training.model_dump(mode="json", exclude={"seed", "budget", "min_nodes"}),
        "sweep": config.sweep.model_dump(mode="json", exclude={"parallel"}),
    }
    if run.manifest.base:
        identity["base"] = run.manifest.base
    if config.training.script is not None:
        identity["code"] = run.code
    return Study(name=f"{config.name}-{digest_of(canonical_json(identity))[:12]}", trials=config.num_trials)


def draw(facts: Facts, config: PipelineFile, study: Study, number: int, *, run: str) -> Trial:
    """Return the trial of slot ``number``: the one that is there, or a new one with values drawn now."""
    known = facts.get(TRIAL, _key(study, number))
    if known is not None:
        return Trial.load(known.body)
    values = suggest(
        search_space(config.training),
        trials_of(facts, study),
        number=number,
        sampler=config.sweep.sampler,
        seed=config.sweep.seed,
        direction=config.sweep.direction,
    )
    trial = Trial(study=study.name, number=number, values=values)
    try:
        facts.insert(TRIAL, _key(study, number), trial.dump(), run=run)
    except ObjectExistsError:
        return draw(facts, config, study, number, run=run)
    return trial


def settle(facts: Facts, study: Study, trial: Trial) -> Trial:
    """Store what came of a trial. A settled trial is left as it is, so a second run of the task changes nothing."""
    fact = facts.get(TRIAL, _key(study, trial.number))
    if fact is None or Trial.load(fact.body).state != "running":
        return trial if fact is None else Trial.load(fact.body)
    facts.update(fact, trial.dump())
    return trial


def trials_of(facts: Facts, study: Study) -> list[Trial]:
    """Return the study's trials by number."""
    found = [Trial.load(fact.body) for fact in facts.find(TRIAL, prefix=f"{study.name}/")]
    return sorted(found, key=lambda trial: trial.number)


def best_trial(config: PipelineFile, study: Study, trials: Sequence[Trial]) -> Trial:
    """Return the best completed trial. Raises NoTrialCompletedError."""
    winner = best(trials, direction=config.sweep.direction)
    if winner is None:
        states = ", ".join(f"#{trial.number} {trial.state}" for trial in trials) or "none was started"
        raise NoTrialCompletedError(study.name, states)
    return winner


def trial_job(config: PipelineFile, run: RunPlan, plan: TrainingPlan, *, blobs: Blobs) -> JobSpec:
    """Return the job that trains one trial, with the run's script where that trains it. Raises ConfigError."""
    payload: dict[str, JsonValue] = {"plan": plan.dump(), "alerts": []}
    if (script := training_script(config, run, plan, blobs)) is not None:
        payload["script"] = script.dump()
    return JobSpec(
        name=training_job_name(plan),
        kind="train",
        payload=payload,
        num_ranks=plan.nproc_per_node,
        timeout_seconds=24 * 3600,
        lease_seconds=120,
    )


def trial_plan(
    config: PipelineFile,
    run: RunPlan,
    dataset: DatasetVersion,
    model: Mapping[str, JsonValue],
    trial: Trial,
    *,
    replayed: Sequence[DatasetVersion] = (),
    blobs: Blobs,
) -> TrainingPlan:
    """Return the training of one trial: the same code path as the real one, shorter and on one rank.

    It goes on from the run's base; ``replayed`` is what ``replayed_datasets`` says of the run. ``blobs`` is asked for
    the commit's code, where a script of it trains. Raises ConfigError for a script that is not in the commit.
    """
    plan = plan_trial(
        config,
        dataset=dataset,
        model=model,
        values=trial.values,
        base=run.base,
        base_datasets=replayed,
        environment=run.manifest.environment,
    )
    # The sweep has a seed of its own: repeating the final training with another one keeps the trials.
    return as_of_script(config, run, plan.evolve(seed=config.sweep.seed), blobs)


def _key(study: Study, number: int) -> str:
    return f"{study.name}/{number:04d}"
