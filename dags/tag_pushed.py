"""Start what a pushed tag asks for: the release of the version it names, or a training of its commit.

Starts when somebody pushes a tag that a `git-tag` trigger of the tagged commit's own `deepseek.yaml` wants. A tag on
the commit of an experiment releases the version that it became; tags that runs and releases push start nothing.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import dag

from deepseek_ops.airflow.assets import MODEL_TAGS
from deepseek_ops.airflow.notifiers import ALERT_ON_FAILURE
from deepseek_ops.airflow.operators.tags import ReadTagsOperator, ResolveTagOperator
from deepseek_ops.airflow.retry import RETRY_IF_TRANSIENT


@dag(
    schedule=[MODEL_TAGS],
    max_active_runs=1,
    default_args={
        "owner": "release-managers",
        "retries": 3,
        "retry_delay": timedelta(seconds=15),
        "retry_policy": RETRY_IF_TRANSIENT,
        "on_failure_callback": ALERT_ON_FAILURE,
    },
    tags=["deepseek-ops", "release"],
    doc_md=__doc__,
)
def tag_pushed() -> None:
    tags = ReadTagsOperator(task_id="read_tags")
    starts = ResolveTagOperator.partial(task_id="resolve_tag").expand(tag=tags.output)
    TriggerDagRunOperator.partial(
        task_id="start",
        skip_when_already_exists=True,
        trigger_rule="all_done",  # one tag that names nothing keeps no other one from its release
    ).expand_kwargs(starts.output)


tag_pushed()
