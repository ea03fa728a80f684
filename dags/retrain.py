"""Retrain a model from a commit: prepare its data, sweep, train, validate, export, register, and release if it may.

A run starts when a watched branch of the model repository moves, when new data was ingested, at the times of a
schedule, or when somebody presses **Trigger**. The triggers of the commit's own `deepseek.yaml` decide, main's for data
and schedules. What runs inside comes from that file too; this graph never changes.

- **Stop it**: mark the task failed; its job gets a stop signal, writes a checkpoint and ends.
- **Try again**: clear the failed task. Jobs are found by name: a running one is followed, a finished one is read.
- **See before you pay**: trigger with *dry run*; `plan_run` logs what would run, and why.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Param, dag

from deepseek_ops.airflow.assets import DATASET, MODEL, MODEL_REPOSITORY, MODEL_SCHEDULE
from deepseek_ops.airflow.deadlines import run_deadlines
from deepseek_ops.airflow.notifiers import ALERT_ON_FAILURE
from deepseek_ops.airflow.operators.data import PrepareDatasetOperator
from deepseek_ops.airflow.operators.export import ExportModelOperator
from deepseek_ops.airflow.operators.registry import RecordExperimentOperator, RegisterModelOperator
from deepseek_ops.airflow.operators.release import ReleaseWantedOperator
from deepseek_ops.airflow.operators.review import NOTE_FAILURE, ReportResultOperator, ReportStartedOperator
from deepseek_ops.airflow.operators.source import (
    OtherPushesOperator,
    PlanRunOperator,
    ProceedOperator,
    ResolveSourceOperator,
)
from deepseek_ops.airflow.operators.tracking import MirrorMetricsOperator
from deepseek_ops.airflow.operators.training import DeepSpeedTrainOperator, PlanTrainingOperator
from deepseek_ops.airflow.operators.tuning import PlanSweepOperator, RunTrialOperator
from deepseek_ops.airflow.operators.turn import AwaitTurnOperator
from deepseek_ops.airflow.operators.validation import EvaluateOperator, PlanValidationOperator, RequirePassOperator
from deepseek_ops.airflow.retry import RETRY_IF_TRANSIENT


@dag(
    schedule=(MODEL_REPOSITORY | MODEL_SCHEDULE | DATASET),
    catchup=False,
    max_active_runs=4,
    default_args={
        "owner": "ml-platform",
        "retries": 3,
        "retry_delay": timedelta(seconds=15),
        "retry_exponential_backoff": True,
        "retry_policy": RETRY_IF_TRANSIENT,
        "on_failure_callback": [ALERT_ON_FAILURE, NOTE_FAILURE],
    },
    params={
        "repository": Param(
            "deepseek_ops_git", type="string", title="Repository", description="Airflow connection of type git."
        ),
        "ref": Param(
            "", type="string", title="Ref", description="Branch, tag or commit; empty: what triggered, or main."
        ),
        "overrides": Param(
            {},
            type="object",
            title="Overrides",
            description='Dotted path in deepseek.yaml to value, such as {"training.seed": 7}.',
        ),
        "budget_usd": Param(
            None,
            type=["null", "number"],
            exclusiveMinimum=0,
            title="Budget (USD)",
            description="Ends training above it.",
        ),
        "dry_run": Param(False, type="boolean", title="Dry run", description="Plan and explain; start nothing."),
        "train_again": Param(
            False, type="boolean", title="Train again", description="Do not reuse the result of an equal training."
        ),
    },
    tags=["deepseek-ops", "training"],
    doc_md=__doc__,
    **run_deadlines(),
)
def retrain() -> None:
    source = ResolveSourceOperator(task_id="resolve_source", inlets=[MODEL_REPOSITORY])
    others = OtherPushesOperator(task_id="other_pushes", source=source.output)
    TriggerDagRunOperator.partial(
        task_id="retrain_other_pushes", trigger_dag_id="retrain", skip_when_already_exists=True
    ).expand_kwargs(others.output)

    run = PlanRunOperator(task_id="plan_run", source=source.output)
    started = ReportStartedOperator(task_id="report_started", source=source.output, run=run.output)
    turn = AwaitTurnOperator(task_id="await_turn", source=source.output, run=run.output)
    proceed = ProceedOperator(task_id="proceed", run=run.output)
    dataset = PrepareDatasetOperator(task_id="prepare_dataset", run=run.output)
    numbers = PlanSweepOperator(task_id="plan_sweep", run=run.output, dataset=dataset.output)
    trials = RunTrialOperator.partial(
        task_id="run_trial", run=run.output, dataset=dataset.output, max_active_tis_per_dagrun=2
    ).expand(number=numbers.output)
    plan = PlanTrainingOperator(
        task_id="plan_training",
        run=run.output,
        dataset=dataset.output,
        trials=trials.output,
        trigger_rule="none_failed_min_one_success",  # a run that ended before its plan has nothing to train
    )
    checkpoint = DeepSpeedTrainOperator(
        task_id="train",
        run=run.output,
        plan=plan.output,
        pool="gpu",
        retries=100,  # machines that are taken away cost one each; the operator bounds other losses by itself
        max_retry_delay=timedelta(minutes=5),
    )
    MirrorMetricsOperator(task_id="mirror_metrics", run=run.output, dataset=dataset.output, plan=plan.output)
    stages = PlanValidationOperator(task_id="plan_validation", run=run.output)
    evaluations = EvaluateOperator.partial(
        task_id="evaluate",
        run=run.output,
        dataset=dataset.output,
        checkpoint=checkpoint.output,
        max_active_tis_per_dagrun=1,
    ).expand(stage=stages.output)
    formats = RequirePassOperator(task_id="require_pass", run=run.output, evaluations=evaluations.output)
    exports = ExportModelOperator.partial(
        task_id="export", run=run.output, dataset=dataset.output, checkpoint=checkpoint.output
    ).expand(format=formats.output)
    version = RegisterModelOperator(
        task_id="register",
        run=run.output,
        dataset=dataset.output,
        checkpoint=checkpoint.output,
        evaluations=evaluations.output,
        exports=exports.output,
        outlets=[MODEL],
    )
    recorded = RecordExperimentOperator(
        task_id="record_experiment",
        dataset=dataset.output,
        plan=plan.output,
        checkpoint=checkpoint.output,
        version=version.output,
    )
    wanted = ReleaseWantedOperator(task_id="release_wanted", run=run.output, experiment=recorded.output)
    start_release = TriggerDagRunOperator(
        task_id="start_release",
        trigger_dag_id="release",
        trigger_run_id="{{ ti.xcom_pull('record_experiment')['release_run'] }}",
        conf={
            "repository": "{{ params.repository }}",
            "model": "{{ ti.xcom_pull('register')['name'] }}",
            "version": "{{ ti.xcom_pull('register')['version'] }}",
        },
        skip_when_already_exists=True,
    )
    reported = ReportResultOperator(
        task_id="report_result",
        source=source.output,
        dataset=dataset.output,
        checkpoint=checkpoint.output,
        evaluations=evaluations.output,
        version=version.output,
        recorded=recorded.output,
    )
    turn >> proceed >> dataset
    started >> reported
    checkpoint >> stages
    wanted >> start_release


retrain()
