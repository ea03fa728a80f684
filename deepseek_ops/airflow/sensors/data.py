"""Wait for data inside a DAG."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from airflow.providers.common.compat.sdk import PokeReturnValue
from airflow.sdk import Context

from deepseek_ops.airflow.hooks import StoreHook
from deepseek_ops.airflow.sensors.waiting import WaitSensor
from deepseek_ops.airflow.triggers.data import ManifestTrigger
from deepseek_ops.airflow.triggers.uploads import MARKERS, NOTHING, fulfilled, survey


class DatasetArrivalSensor(WaitSensor):
    """Wait until a complete upload lies below a prefix, and return it as a ``DataArrival``.

    :param store_conn_id: connection of the store (templated).
    :param prefix: key prefix within the connection's store (templated).
    :param settle: seconds without new objects after which an upload is complete.
    :param markers: names of objects that complete an upload at once.
    :param after: digest of the listing that is old; empty takes what exists as new; None: what exists when the first
        try starts is old (templated).
    :param poll_interval: seconds between two looks while deferred.
    :param queue: URL of an SQS queue with the bucket's notifications, which end the wait at once while deferred.
    :param queue_conn_id: AWS connection of the queue.
    """

    template_fields: Sequence[str] = ("store_conn_id", "prefix", "after", "queue")

    def __init__(
        self,
        *,
        store_conn_id: str = StoreHook.default_conn_name,
        prefix: str = "",
        settle: float = 300.0,
        markers: Sequence[str] = MARKERS,
        after: str | None = None,
        poll_interval: float = 60.0,
        queue: str = "",
        queue_conn_id: str = "aws_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.store_conn_id = store_conn_id
        self.prefix = prefix
        self.settle = settle
        self.markers = markers
        self.after = after
        self.poll_interval = poll_interval
        self.queue = queue
        self.queue_conn_id = queue_conn_id
        self._quiet: tuple[str, float] = ("", 0.0)

    def execute(self, context: Context) -> Any:
        if not self.deferrable:
            return super().execute(context)
        return self.wait_for(
            ManifestTrigger(
                store_conn_id=self.store_conn_id,
                prefix=self.prefix,
                settle=self.settle,
                markers=self.markers,
                poll_interval=self.poll_interval,
                after=self._known(context),
                queue=self.queue,
                queue_conn_id=self.queue_conn_id,
            )
        )

    def poke(self, context: Context) -> PokeReturnValue:
        known = self._known(context)
        store = StoreHook(self.store_conn_id).store
        there = survey(store, self.prefix, markers=self.markers)
        if there.digest == known:
            return PokeReturnValue(is_done=False)
        if self._quiet[0] != there.digest:
            self._quiet = (there.digest, time.monotonic())
        quiet = time.monotonic() - self._quiet[1] >= self.settle
        if not quiet and not (there.marked and known == NOTHING):
            return PokeReturnValue(is_done=False)
        if not fulfilled(store, there.manifests):
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=there.arrival(store, self.prefix).dump())

    def _known(self, context: Context) -> str:
        if self.after is None:
            store = StoreHook(self.store_conn_id).store
            self.after = str(self.baseline(context, lambda: survey(store, self.prefix).digest))
        return self.after or NOTHING
