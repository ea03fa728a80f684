"""Housekeeping: reconcile jobs, verify what is stored, remove what is not needed any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.sdk import Context
from pydantic import JsonValue

from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator


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


class VerifyRegistryOperator(DeepSeekOpsOperator):
    """Read every registered version back and check every digest; fails when something is missing or changed.

    :return: ``{models, objects}``: how much was read.
    """

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.pipeline.housekeeping import verify_registries

        return verify_registries(self.store_hook, self.facts, say=self.log.info).dump()


class VerifyAuditOperator(DeepSeekOpsOperator):
    """Check the hash chain of the audit log; fails naming the first event that was changed.

    :return: the number of events.
    """

    def execute(self, context: Context) -> int:
        return int(self.facts.verify_audit())
