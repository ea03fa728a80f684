"""From announcements of uploads to one run for each: none lost, none twice, each with exactly what was announced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, Context
from pydantic import JsonValue

from deepseek_ops.airflow.announced_lake import AnnouncedLake, UnknownPartitionError
from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator
from deepseek_ops.airflow.operators.data import IngestDatasetOperator
from deepseek_ops.airflow.triggers.uploads import DataArrival, folder_of
from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.records import digest_of
from deepseek_ops.pipeline.datasets import raw_name

if TYPE_CHECKING:
    from deepseek_ops.core.ports import ObjectStore

MEMORY_KEY = "announced"  # never rename: later runs look it up
REMEMBERED = 500
LONGEST_KEY = 200


def partition_of(arrival: DataArrival) -> str:
    """Return the partition key of an upload: equal announcements have equal ones, others differ."""
    digest = digest_of(f"{arrival.uri}\0{arrival.prefix}\0{arrival.digest}".encode())[:16]
    return f"{arrival.prefix.strip('/')[:LONGEST_KEY] or 'all'}@{digest}"


class AnnounceArrivalsOperator(DeepSeekOpsOperator):
    """Give each upload that the triggering events tell of a partition of the outlet, hence a run of its own.

    Airflow collapses events that come together into one run, and a watcher announces at least once: this task takes
    them apart and leaves out what it has announced before. A retry announces the same again, as it has to: events
    leave the task only when it succeeds.

    :param watched: asset whose watcher announces uploads.
    :return: the partition keys.
    """

    def __init__(self, *, watched: Asset, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.watched = watched

    def execute(self, context: Context) -> list[str]:
        (outlet,) = self.outlets
        arrivals = {partition_of(arrival): arrival for arrival in self._arrivals(context)}
        memory = self._memory(context, outlet)
        known: dict[str, JsonValue] = dict(memory.get(MEMORY_KEY, {})) if memory is not None else {}
        run = str(context["run_id"])
        fresh = {key: arrival for key, arrival in arrivals.items() if known.get(key, run) == run}
        if memory is not None:
            kept = {**known, **dict.fromkeys(fresh, run)}
            memory.set(MEMORY_KEY, dict(list(kept.items())[-REMEMBERED:]))
        self.log.info("%d uploads, %d of them new: %s", len(arrivals), len(fresh), ", ".join(fresh))
        if fresh:
            event = context["outlet_events"][outlet]
            event.extra = {"arrivals": {key: arrival.dump() for key, arrival in fresh.items()}}
            if hasattr(event, "add_partitions"):  # Airflow 3.2; before it one run takes what came together
                event.add_partitions(list(fresh))
        else:
            self.skip_outlets(context)
        return list(fresh)

    def skip_outlets(self, context: Context) -> None:
        """Skip, so that no event without a partition leaves the task."""
        from airflow.sdk.exceptions import AirflowSkipException

        raise AirflowSkipException("every upload was announced before")

    def _arrivals(self, context: Context) -> Iterable[DataArrival]:
        for event in context["triggering_asset_events"].get(self.watched, ()):
            payload = (event.extra or {}).get("payload")
            if isinstance(payload, Mapping):
                yield DataArrival.load(payload)

    def _memory(self, context: Context, outlet: Asset) -> Any:
        store: Any = context.get("asset_state_store")
        return None if store is None else store[outlet]


class IngestArrivalOperator(IngestDatasetOperator):
    """Ingest the upload of this run's partition: exactly what was announced, with what was ingested before it.

    A run that was started by hand has no partition and ingests what lies below ``uri``.
    """

    def lake(self, context: Context) -> ObjectStore:
        arrival = announced_in(context)
        if arrival is None:
            return super().lake(context)
        self.uri = arrival.uri
        depth = arrival.prefix.count("/")
        return AnnouncedLake(self.store_hook.at(arrival.uri), arrival, self._earlier(depth))

    def _earlier(self, depth: int) -> set[str]:
        """Return the folders that the raw dataset has already."""
        try:
            paths = self.store_hook.datasets.paths(raw_name(self.dataset))
        except DeepSeekOpsError:  # no version yet
            return set()
        return {folder_of(path, "", depth) for path in paths} - {""}


def announced_in(context: Context) -> DataArrival | None:
    """Return the upload that this run's partition key names, or None for a run that was started by hand.

    Raises UnknownPartitionError.
    """
    key = getattr(context["dag_run"], "partition_key", None)
    if not key:
        return None
    for events in context["triggering_asset_events"].values():
        for event in events:
            found = ((event.extra or {}).get("arrivals") or {}).get(key)
            if isinstance(found, Mapping):
                return DataArrival.load(found)
    raise UnknownPartitionError(str(key))
