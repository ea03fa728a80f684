"""From announcements of uploads to one run for each: none lost, none twice, each with exactly what was announced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, Context
from airflow.sdk.exceptions import AirflowSkipException

from deepseek_ops.airflow.announced_lake import AnnouncedLake, UnknownPartitionError
from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator
from deepseek_ops.airflow.operators.data import IngestDatasetOperator
from deepseek_ops.airflow.triggers.uploads import DataArrival, folder_of
from deepseek_ops.core.errors import DeepSeekOpsError

if TYPE_CHECKING:
    from deepseek_ops.core.ports import ObjectStore

MEMORY_KEY = "announced"  # never rename: later runs look it up
REMEMBERED = 800
"""Uploads that are known to be announced: what a value of the state store has room for."""
OVERLAP = timedelta(minutes=10)
"""An event can be stored a little after one with a later time."""
LONGEST_KEY = 200


def partition_of(arrival: DataArrival) -> str:
    """Return the partition key of an upload: equal announcements have equal ones, others differ."""
    from deepseek_ops.core.records import digest_of

    digest = digest_of(f"{arrival.uri}\0{arrival.prefix}\0{arrival.digest}".encode())[:16]
    return f"{arrival.prefix.strip('/')[:LONGEST_KEY] or 'all'}@{digest}"


class AnnounceArrivalsOperator(DeepSeekOpsOperator):
    """Give each upload that the watcher told of a partition of the outlet, hence a run of its own.

    Airflow collapses events that come together into one run, leaves out those that come while it makes that run, and a
    watcher announces at least once. So this task goes by the events themselves, those since its last success, and by
    what it announced before; it also runs by the clock, for events that started nothing. A retry announces the same
    again, as it has to: events leave the task only when it succeeds.

    :param watched: asset whose watcher announces uploads; also an inlet of the task.
    :return: the partition keys.
    """

    def __init__(self, *, watched: Asset, **kwargs: Any) -> None:
        super().__init__(**{"inlets": [watched], **kwargs})
        self.watched = watched

    def execute(self, context: Context) -> list[str]:
        from deepseek_ops.core.records import digest_of

        (outlet,) = self.outlets
        store: Any = context.get("asset_state_store")
        memory: Any = None if store is None else store[outlet]
        known: dict[str, Any] = (memory.get(MEMORY_KEY, None) if memory is not None else None) or {}
        told: dict[str, str] = dict(known.get("partitions", {}))
        run = digest_of(str(context["run_id"]).encode())[:12]
        since = str(known.get("since", ""))
        arrivals: dict[str, DataArrival] = {}
        for event in self._events(context, since):
            payload = (event.extra or {}).get("payload")
            if isinstance(payload, Mapping):
                arrival = DataArrival.load(payload)
                arrivals[partition_of(arrival)] = arrival
                since = max(since, event.timestamp.isoformat())
        fresh = {key: arrival for key, arrival in arrivals.items() if told.get(key, run) == run}
        if memory is not None:
            kept = list({**told, **dict.fromkeys(fresh, run)}.items())[-REMEMBERED:]
            memory.set(MEMORY_KEY, {"since": since, "partitions": dict(kept)})
        self.log.info("%d uploads, %d of them new: %s", len(arrivals), len(fresh), ", ".join(fresh))
        if not fresh:
            raise AirflowSkipException("every upload was announced before")  # or an event without partition would leave
        announced = context["outlet_events"][outlet]
        announced.extra = {"arrivals": {key: arrival.dump() for key, arrival in fresh.items()}}
        if hasattr(announced, "add_partitions"):  # Airflow 3.2; before it one run takes what came together
            announced.add_partitions(list(fresh))
        return list(fresh)

    def _events(self, context: Context, since: str) -> Iterable[Any]:
        """Yield the events that started this run and all since the last one that was handled, oldest first."""
        triggering = list(context["triggering_asset_events"].get(self.watched, ()))
        yield from triggering
        begin = since or min((event.timestamp.isoformat() for event in triggering), default="")
        stored: Any = context["inlet_events"][self.watched]
        if begin and hasattr(stored, "after"):  # Airflow 3.1
            yield from stored.after((datetime.fromisoformat(begin) - OVERLAP).isoformat())


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
        from deepseek_ops.pipeline.datasets import raw_name

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
