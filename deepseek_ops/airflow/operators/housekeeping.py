"""Housekeeping: reconcile jobs, verify what is stored, remove what is not needed any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.sdk import Context
from pydantic import JsonValue

from deepseek_ops.airflow.hooks import GitRemoteHook
from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator

SCALE_OUT = ("ray", "slurm", "kubernetes", "sagemaker")
"""Engines whose jobs may outlive what started them; a local job's supervisor reads its own lease."""


class SettleJobsOperator(DeepSeekOpsOperator):
    """Account jobs that ended with nobody following, and remove the folders of jobs that settled long ago.

    :param keep_days: age in days from which a settled job's folder is removed (templated).
    :return: ``{settled, retired}``: how many.
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "keep_days")

    def __init__(self, *, keep_days: Any = 14, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keep_days = keep_days

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.pipeline.housekeeping import settle_jobs

        report = settle_jobs(
            self.launcher, self.facts, keep_days=float(self.keep_days), run=str(context["run_id"]), say=self.log.info
        )
        return report.dump()


class ReapJobsOperator(DeepSeekOpsOperator):
    """End jobs on scale-out engines that nobody looks after any more: their lease died, or no attempt stands for them.

    Looks at the launcher's connection and those of each engine beside it (``<launcher>_ray`` and so on) that exist.

    :return: ``{launcher connection: [what was cleared away, ...]}``.
    """

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.adapters.remote_launcher import RemoteLauncher, reap
        from deepseek_ops.airflow.hooks import ConnectionMissingError, LauncherHook

        cleared: dict[str, JsonValue] = {}
        for conn_id in (self.launcher_conn_id, *(f"{self.launcher_conn_id}_{name}" for name in SCALE_OUT)):
            try:
                launcher = LauncherHook(conn_id).launcher
            except ConnectionMissingError:
                continue
            if isinstance(launcher, RemoteLauncher):
                found = reap(launcher)
                for one in found:
                    self.log.warning("%s: %s %s %s: %s", conn_id, one.action, one.job, one.engine_id, one.reason)
                cleared[conn_id] = [f"{one.action} {one.job or one.engine_id}: {one.reason}" for one in found]
        return cleared


class VerifyRegistryOperator(DeepSeekOpsOperator):
    """Read every registered version back and check every digest; fails when something is missing or changed.

    :return: ``{models, objects}``: how much was read.
    """

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.pipeline.housekeeping import verify_registries

        return verify_registries(self.store_hook, self.facts, say=self.log.info).dump()


class CollectGarbageOperator(DeepSeekOpsOperator):
    """Say what nothing names any more in the store; with ``delete``, plan its deletion and carry out the last plan.

    Facts, the registries they name and the model repositories are asked what they name. Whatever a repository that
    has no connection here could name stays, and the report says so.

    :param delete: whether to delete; otherwise nothing is written (templated).
    :param keep_days: versions that were the head of their branch so lately stay (templated).
    :param keep_versions: so many versions of each branch stay in any case (templated).
    :param git_conn_ids: connections of all model repositories with pointers into the store (templated).
    :return: a :class:`~deepseek_ops.pipeline.collection.CollectionOutcome` as JSON.
    """

    template_fields: Sequence[str] = (
        *DeepSeekOpsOperator.template_fields,
        "delete",
        "keep_days",
        "keep_versions",
        "git_conn_ids",
    )

    def __init__(
        self,
        *,
        delete: Any = False,
        keep_days: Any = 30,
        keep_versions: Any = 10,
        git_conn_ids: Sequence[str] = ("deepseek_ops_git",),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.delete = delete
        self.keep_days = keep_days
        self.keep_versions = keep_versions
        self.git_conn_ids = git_conn_ids

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.pipeline.housekeeping import tidy_store

        outcome = tidy_store(
            self.store_hook,
            self.facts,
            [GitRemoteHook(conn_id).remote for conn_id in self.git_conn_ids],
            delete=str(self.delete).lower() == "true",
            keep_days=float(self.keep_days),
            keep_versions=int(self.keep_versions),
            say=self.log.info,
        )
        return outcome.dump()


class VerifyAuditOperator(DeepSeekOpsOperator):
    """Check the hash chain of the audit log; fails naming the first event that was changed.

    :return: the number of events.
    """

    def execute(self, context: Context) -> int:
        return int(self.facts.verify_audit())
