"""Releases: whether a run may release, who has to approve, and the tag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.providers.standard.operators.branch import BaseBranchOperator
from airflow.sdk import Context
from pydantic import JsonValue

from deepseek_ops.airflow.hooks import FactsHook, StoreHook
from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator, as_object


class ReleaseWantedOperator(DeepSeekOpsOperator):
    """Skip what follows unless the run's branch may release (``release.branches`` of the pipeline file).

    :param run: what ``PlanRunOperator`` returned (templated).
    :param experiment: what ``RecordExperimentOperator`` returned (templated).
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "run", "experiment")

    def __init__(self, *, run: Any, experiment: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.experiment = experiment

    def execute(self, context: Context) -> bool:
        from airflow.sdk.exceptions import AirflowSkipException

        from deepseek_ops.pipeline.runs import RunPlan, releases_from

        run = RunPlan.load(as_object(self.run))
        if not releases_from(self.config(run), run.manifest.source):
            raise AirflowSkipException(f"branch {run.manifest.source.short} is not in release.branches")
        return True


class LoadModelVersionOperator(DeepSeekOpsOperator):
    """Return a registered version, verified by digest: what is released is what was registered.

    :param model: registered name (templated).
    :param version: such as 0.1.0 (templated).
    :return: a :class:`~deepseek_ops.core.records.ModelVersion` as JSON.
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "model", "version")

    def __init__(self, *, model: str, version: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.version = version

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.pipeline.registration import find_version

        _, found = find_version(self.store_hook, self.facts, name=self.model, version=self.version)
        self.log.info("%s %s, bundle %s, verified", found.name, found.version, found.bundle[:12])
        return found.dump()


class ApprovalNeededOperator(BaseBranchOperator):
    """Branch to the approval task, or past it, as ``release.approval`` of the version's pipeline file says.

    :param version: what ``LoadModelVersionOperator`` returned (templated).
    :param approve: task id of the approval.
    :param otherwise: task id to go on with.
    """

    template_fields: Sequence[str] = ("version",)

    def __init__(
        self,
        *,
        version: Any,
        approve: str,
        otherwise: str,
        store_conn_id: str = "deepseek_ops_store",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.version = version
        self.approve = approve
        self.otherwise = otherwise
        self.store_conn_id = store_conn_id

    def choose_branch(self, context: Context) -> str:
        from deepseek_ops.core.records import ModelVersion
        from deepseek_ops.pipeline.runs import config_of

        version = ModelVersion.load(as_object(self.version))
        config = config_of(StoreHook(self.store_conn_id).blobs, version.manifest)
        needed = config.release.approval == "required"
        self.log.info("approval is %s", "required" if needed else "not required")
        return self.approve if needed else self.otherwise


class CreateReleaseOperator(DeepSeekOpsOperator):
    """Push the annotated release tag with the version's metrics, and point the alias ``released`` at it.

    :param version: what ``LoadModelVersionOperator`` returned (templated).
    :param approval: what the approval task returned; None where none is asked for (templated).
    :return: a :class:`~deepseek_ops.core.records.Release` as JSON.
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "version", "approval")

    def __init__(
        self, *, version: Any, approval: Any = None, git_conn_id: str = "{{ params.repository }}", **kwargs: Any
    ) -> None:
        super().__init__(git_conn_id=git_conn_id, **kwargs)
        self.version = version
        self.approval = approval

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.core.records import ModelVersion
        from deepseek_ops.pipeline.own_pushes import note_own_tag
        from deepseek_ops.pipeline.releases import create_release
        from deepseek_ops.pipeline.tags import release_target

        version = ModelVersion.load(as_object(self.version))
        # Before it is pushed: the watcher of tags must never take it for somebody's.
        note_own_tag(self.facts, self.git.url, *release_target(self.store_hook, self.facts, version))
        answer = self.approval if isinstance(self.approval, dict) else {}
        person: Any = answer.get("responded_by_user") or {}
        release = create_release(
            self.git,
            self.store_hook,
            FactsHook(self.facts_conn_id).facts,
            version,
            approved_by=str(person.get("name") or person.get("id") or "") if isinstance(person, dict) else str(person),
        )
        self.log.info("released %s %s as %s", release.name, release.version, release.tag)
        for asset in self.outlets:
            context["outlet_events"][asset].extra = release.dump()
        return release.dump()
