"""A trigger that fires for tags that people push: our own, which releases make, are left out."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from deepseek_ops.airflow.hooks import FactsHook
from deepseek_ops.airflow.triggers.git import GitRefTrigger

if TYPE_CHECKING:
    from deepseek_ops.airflow.triggers.git_stream import RefSnapshot
    from deepseek_ops.airflow.triggers.wanted import Wish
    from deepseek_ops.core.records import GitRef

log = logging.getLogger(__name__)


class PushedTagTrigger(GitRefTrigger):
    """Fire for every tag that the filters want and that no release of ours has pushed; else as its base."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "deepseek_ops.airflow.triggers.tags.PushedTagTrigger", super().serialize()[1]

    async def _wish(self, snapshot: RefSnapshot, ref: GitRef) -> Wish | None:
        from deepseek_ops.airflow.triggers.wanted import Wish

        try:
            if await asyncio.to_thread(self._is_own, ref):
                return Wish(False)
        except Exception as error:  # noqa: BLE001  (facts that are away for a while must not lose a tag)
            log.warning("cannot tell whose tag %s is yet: %s", ref.short, error)
            return None
        return await super()._wish(snapshot, ref)

    def _is_own(self, ref: GitRef) -> bool:
        from deepseek_ops.pipeline.own_pushes import is_own_tag

        return is_own_tag(FactsHook(self.facts_conn_id).facts, ref)
