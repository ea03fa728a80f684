"""Runs in MLflow, over its REST interface: its client does not install beside Airflow, and none is needed.

MLflow keeps one row for each (metric, step, time, value), so sending points again adds nothing; parameters cannot
change, so those of a run that is found are left as they are. Runs are found by our tag.
"""

from __future__ import annotations

import base64
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence

from pydantic import JsonValue

from deepseek_ops.adapters.rest import RestApi
from deepseek_ops.core.reporting import (
    MetricPoint,
    RunEnd,
    ServiceAccessError,
    ServiceRefusedError,
    ServiceUnavailableError,
    TrackedRun,
    TrackerRun,
)

KEY_TAG = "deepseek_ops.key"
BATCH = 500
"""Points in a request; MLflow takes 1,000."""
_KIND: JsonValue = {"key": "mlflow.experimentKind", "value": "custom_model_development"}
"""MLflow's own mark of an experiment that trains models, beside those that evaluate prompts."""
_TRIES = 3
_ENDS: dict[RunEnd, str] = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_PARAM_CHARACTERS, _TAG_CHARACTERS, _SETTINGS = 500, 5000, 100


class MLflowTracker:
    """The ``Tracker`` of one MLflow server.

    Args:
        url: Where the server is, such as ``https://mlflow.corp``.
        username: For basic authentication; empty: ``password`` is a bearer token.
        password: Password or token; empty for a server that asks for neither.
    """

    name = "mlflow"

    def __init__(
        self, url: str, *, username: str = "", password: str = "", sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._url = url.rstrip("/")
        headers = {"User-Agent": "deepseek-ops", **_authorisation(username, password)}
        secrets = (password, *headers.get("Authorization", "").split(" ")[1:])
        self._api = RestApi(f"{self._url}/api/2.0/mlflow", headers=headers, secrets=secrets, sleep=sleep)

    def start(self, run: TrackedRun) -> TrackerRun:
        """Find the run with this key or make it, and set its parameters and tags; see the port."""
        experiment = self._experiment(run.experiment)
        run_id = self._found(experiment, run.key) or self._made(experiment, run)
        self._set(run_id, {**run.tags, KEY_TAG: key_tag(run.key)}, self._new_params(run_id, run.params))
        self._use_dataset(run_id, run.tags)
        self._send("POST", "/runs/update", {"run_id": run_id, "status": "RUNNING", "run_name": run.name})
        return TrackerRun(run_id, f"{self._url}/#/experiments/{experiment}/runs/{run_id}")

    def log(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Add points, some hundred in a request."""
        for start in range(0, len(points), BATCH):
            metrics: list[JsonValue] = [
                {"key": point.name, "value": _number(point.value), "timestamp": point.time_ms, "step": point.step}
                for point in points[start : start + BATCH]
            ]
            self._send("POST", "/runs/log-batch", {"run_id": run_id, "metrics": metrics})

    def finish(self, run_id: str, end: RunEnd, tags: Mapping[str, str]) -> None:
        """Set how the run ended; the time of the end is that of the first call that says so."""
        self._set(run_id, tags, {})
        status = _ENDS[end]
        if self._info(run_id).get("status") != status:
            self._send(
                "POST", "/runs/update", {"run_id": run_id, "status": status, "end_time": int(time.time() * 1000)}
            )

    def _experiment(self, name: str) -> str:
        for attempt in range(_TRIES):
            try:
                found = self._api.get("/experiments/get-by-name", experiment_name=name)
                return _text(found, "experiment", "experiment_id")
            except ServiceAccessError as error:
                if not error.problem.startswith("404"):
                    raise
            try:
                body: dict[str, JsonValue] = {"name": name, "tags": [_KIND]}
                return _text(self._api.send("POST", "/experiments/create", body, again=True), "experiment_id")
            except ServiceRefusedError:  # somebody was faster, or people deleted it
                if attempt == _TRIES - 1:
                    raise
        raise AssertionError("the last attempt returned or raised")

    def _found(self, experiment: str, key: str) -> str:
        """Return the oldest run with the key, or an empty text."""
        body: dict[str, JsonValue] = {
            "experiment_ids": [experiment],
            "filter": f"tags.`{KEY_TAG}` = '{key_tag(key)}'",
            "order_by": ["attributes.start_time ASC", "attributes.run_id ASC"],
            "max_results": 1,
        }
        found = self._api.send("POST", "/runs/search", body, again=True)
        runs = found.get("runs") if isinstance(found, dict) else None
        return _text(runs[0], "info", "run_id") if isinstance(runs, list) and runs else ""

    def _made(self, experiment: str, run: TrackedRun) -> str:
        body: dict[str, JsonValue] = {
            "experiment_id": experiment,
            "run_name": run.name,
            "start_time": int(time.time() * 1000),
            "tags": [{"key": KEY_TAG, "value": key_tag(run.key)}],
        }
        for attempt in range(_TRIES):
            try:
                made = _text(self._api.send("POST", "/runs/create", body, again=False), "run", "info", "run_id")
            except ServiceUnavailableError:  # it may have been made before the answer was lost
                if found := self._found(experiment, run.key):
                    return found
                if attempt == _TRIES - 1:
                    raise
                continue
            first = self._found(experiment, run.key) or made
            if first != made:  # somebody made it at the same time; both keep the older one
                self._send("POST", "/runs/delete", {"run_id": made})
            return first
        raise AssertionError("the last attempt returned or raised")

    def _new_params(self, run_id: str, params: Mapping[str, str]) -> dict[str, str]:
        data = self._run(run_id).get("data")
        listed = data.get("params", []) if isinstance(data, dict) else []
        there = {str(one.get("key")) for one in listed if isinstance(one, dict)} if isinstance(listed, list) else set()
        return {key: value for key, value in params.items() if key not in there}

    def _set(self, run_id: str, tags: Mapping[str, str], params: Mapping[str, str]) -> None:
        for field, values, most in (("tags", tags, _TAG_CHARACTERS), ("params", params, _PARAM_CHARACTERS)):
            rows: list[JsonValue] = [{"key": key, "value": value[:most]} for key, value in sorted(values.items())]
            for start in range(0, len(rows), _SETTINGS):
                self._send("POST", "/runs/log-batch", {"run_id": run_id, field: rows[start : start + _SETTINGS]})

    def _use_dataset(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Show the dataset version where MLflow shows what a run was trained on."""
        name, version = tags.get("deepseek_ops.dataset"), tags.get("deepseek_ops.dataset_version")
        if not name or not version:
            return
        dataset: dict[str, JsonValue] = {
            "name": name,
            "digest": version[:36],  # as long as MLflow allows
            "source_type": "deepseek-ops",
            "source": f"{name}@{version}",
        }
        context: list[JsonValue] = [{"key": "mlflow.data.context", "value": "training"}]
        body: dict[str, JsonValue] = {"run_id": run_id, "datasets": [{"dataset": dataset, "tags": context}]}
        self._send("POST", "/runs/log-inputs", body)

    def _run(self, run_id: str) -> dict[str, JsonValue]:
        body = self._api.get("/runs/get", run_id=run_id)
        run = body.get("run") if isinstance(body, dict) else None
        return run if isinstance(run, dict) else {}

    def _info(self, run_id: str) -> dict[str, JsonValue]:
        info = self._run(run_id).get("info")
        return info if isinstance(info, dict) else {}

    def _send(self, method: str, path: str, body: dict[str, JsonValue]) -> None:
        self._api.send(method, path, body, again=True)


def key_tag(key: str) -> str:
    """Return what a run is found by: a digest, because MLflow's filters cannot quote every text."""
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _authorisation(username: str, password: str) -> dict[str, str]:
    if not password:
        return {}
    if not username:
        return {"Authorization": f"Bearer {password}"}
    return {"Authorization": f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"}


def _number(value: float) -> float | str:
    """Return a number as the JSON of protocol buffers has it: what is not finite is a text there."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _text(body: JsonValue, *path: str) -> str:
    for name in path:
        body = body.get(name) if isinstance(body, dict) else None
    if not isinstance(body, str) or not body:
        raise ServiceRefusedError("MLflow", "/".join(path), "the answer has no such field; is this an MLflow server?")
    return body
