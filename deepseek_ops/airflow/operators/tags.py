"""What a pushed tag starts: the release of the version it names, or a training of its commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException
from pydantic import JsonValue

from deepseek_ops.airflow.assets import MODEL_TAGS
from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator, as_object
from deepseek_ops.airflow.operators.source import payloads


class ReadTagsOperator(DeepSeekOpsOperator):
    """Return the tags whose events started this run, each as a :class:`~deepseek_ops.core.records.GitRef`; not ours.

    A tag that another run has taken is left out: watchers announce at least once.
    """

    def execute(self, context: Context) -> list[dict[str, JsonValue]]:
        from deepseek_ops.pipeline.own_pushes import is_own_tag
        from deepseek_ops.pipeline.pushes import pushes_of, unclaimed

        pushed = pushes_of(payloads(context, MODEL_TAGS))
        foreign = [ref for ref in pushed if not is_own_tag(self.facts, ref)]
        return [ref.dump() for ref in unclaimed(self.facts, foreign, run=str(context["run_id"]))]


class ResolveTagOperator(DeepSeekOpsOperator):
    """Return what a tag starts, as arguments of a ``TriggerDagRunOperator``.

    A tag of an experiment's commit is resolved to the version it became. A tag that names no registered version fails
    with one message, unless its trigger says ``run: retrain``.

    :param tag: the tag, resolved to its commit.
    :return: ``{trigger_dag_id, trigger_run_id, conf}``.
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "tag")

    def __init__(self, *, tag: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tag = tag

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.core.records import GitRef
        from deepseek_ops.pipeline.tags import start_of

        ref = GitRef.load(as_object(self.tag))
        start = start_of(self.git, self.store_hook, self.facts, ref, repository=self.git_conn_id)
        if start is None:
            raise AirflowSkipException(f"no git-tag trigger of the commit's own pipeline file wants tag {ref.short}")
        self.log.info("tag %s on %s starts %s %s", ref.short, ref.commit[:12], start.dag, start.run_id)
        return {"trigger_dag_id": start.dag, "trigger_run_id": start.run_id, "conf": {**start.conf}}
