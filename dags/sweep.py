"""Sweep only: search the hyperparameters of a ref's `deepseek.yaml` and show the best trial. Trains nothing else.

Trials are remembered: `retrain` finds the ones of an equal sweep and does not train them again.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag

from deepseek_ops.airflow.notifiers import ALERT_ON_FAILURE
from deepseek_ops.airflow.operators.data import PrepareDatasetOperator
from deepseek_ops.airflow.operators.source import PlanRunOperator, ResolveSourceOperator
from deepseek_ops.airflow.operators.training import PlanTrainingOperator
from deepseek_ops.airflow.operators.tuning import PlanSweepOperator, RunTrialOperator
from deepseek_ops.airflow.retry import RETRY_IF_TRANSIENT


@dag(
    schedule=None,
    max_active_runs=2,
    default_args={
        "owner": "ml-platform",
        "retries": 3,
        "retry_delay": timedelta(seconds=15),
        "retry_policy": RETRY_IF_TRANSIENT,
        "on_failure_callback": ALERT_ON_FAILURE,
    },
    params={
        "repository": Param(
            "deepseek_ops_git", type="string", title="Repository", description="Airflow connection of type git."
        ),
        "ref": Param("main", type="string", title="Ref", description="Branch, tag, or branch@commit."),
        "overrides": Param(
            {},
            type="object",
            title="Overrides",
            description='Dotted path in deepseek.yaml to value, such as {"sweep.trials": 30}.',
        ),
    },
    tags=["deepseek-ops", "training"],
    doc_md=__doc__,
)
def sweep() -> None:
    source = ResolveSourceOperator(task_id="resolve_source")
    run = PlanRunOperator(task_id="plan_run", source=source.output)
    dataset = PrepareDatasetOperator(task_id="prepare_dataset", run=run.output)
    numbers = PlanSweepOperator(task_id="plan_sweep", run=run.output, dataset=dataset.output)
    trials = RunTrialOperator.partial(
        task_id="run_trial", run=run.output, dataset=dataset.output, max_active_tis_per_dagrun=2
    ).expand(number=numbers.output)
    PlanTrainingOperator(task_id="best_training", run=run.output, dataset=dataset.output, trials=trials.output)


sweep()
