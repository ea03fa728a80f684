"""The training pages inside Airflow's API server, for people who are logged in there and may see the store."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from deepseek_ops.airflow.hooks import LauncherHook, StoreHook
from deepseek_ops.core.errors import DeepSeekOpsError

if TYPE_CHECKING:
    from pydantic import JsonValue

    from deepseek_ops.core.ports import ObjectStore

log = logging.getLogger(__name__)

_ENGINES = ("ray", "slurm", "kubernetes", "sagemaker")
MAX_KEPT = 32
"""Jobs whose events are kept, so that each look reads only what is new."""


def build_training_app() -> Any:
    """Return the application over the store of ``deepseek_ops_store``; it is opened by the first request."""
    from deepseek_ops.airflow.ui.lfs import airflow_person
    from deepseek_ops.web.training_pages import training_app

    return training_app(_opened, authorise=airflow_person("read"), supervised=JobEvents(_opened))


class JobEvents:
    """What a training's job told outside its ranks (hangs, stacks, restarts), from the engine that runs it.

    A launcher that is away, or that has forgotten the job, has nothing to tell: the page shows what the store holds.
    """

    def __init__(self, opened: Callable[[], ObjectStore]) -> None:
        self._opened = opened
        self._kept: dict[str, tuple[LauncherHook, str, int, list[dict[str, JsonValue]]]] = {}

    def __call__(self, plan: str) -> Iterable[dict[str, JsonValue]]:
        """Return the newest such events of the plan's job, oldest first."""
        from deepseek_ops.web.training_runs import MAX_EVENTS, SUPERVISED

        try:
            found = self._kept.get(plan) or self._job(plan)
            if found is None:
                return ()
            hook, job, after, kept = found
            new = hook.launcher.events(job, after)
        except DeepSeekOpsError as error:
            log.info("the events of run %s are not known here: %s", plan[:12], error)
            return ()
        kept = [*kept, *(event for event in new if event.get("kind") in SUPERVISED)][-MAX_EVENTS:]
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        self._kept[plan] = (hook, job, after + len(new), kept)
        return kept

    def _job(self, plan: str) -> tuple[LauncherHook, str, int, list[dict[str, JsonValue]]] | None:
        """Return the hook and the job's name, from what was kept when the training was planned."""
        from deepseek_ops.pipeline.lineage_records import TrainingEvidence
        from deepseek_ops.pipeline.trainings import training_job_name

        store = self._opened()
        info = next(iter(store.list(f"runs/{plan}/lineage/", limit=1)), None)
        if info is None:
            return None
        evidence = TrainingEvidence.load(json.loads(store.get(info.key)))
        job = training_job_name(evidence.plan)
        return next(((hook, job, 0, []) for hook in _hooks() if _knows(hook, job)), None)


def _opened() -> ObjectStore:
    return StoreHook().store


def _hooks() -> list[LauncherHook]:
    """Return the hooks of the connections that trainings may go to."""
    first = LauncherHook.default_conn_name
    return [LauncherHook(name) for name in (first, *(f"{first}_{engine}" for engine in _ENGINES))]


def _knows(hook: LauncherHook, job: str) -> bool:
    try:
        return hook.launcher.status(job) is not None
    except DeepSeekOpsError:  # no such connection, or an engine that is away
        return False
