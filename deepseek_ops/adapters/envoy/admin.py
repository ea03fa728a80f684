"""Asking Envoy itself, through its admin socket, which only this user can open."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from pydantic import JsonValue

from deepseek_ops.adapters.envoy.resources import STAT_PREFIX, stat_name
from deepseek_ops.core.jobs import TrafficStats

TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Intake:
    """What Envoy has taken of the files: accepted version per file, and how many it has refused so far."""

    versions: dict[str, str] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    warming: int = 0
    """Listeners that do not accept connections yet."""


class Admin:
    """The admin interface of the Envoy below ``root``. Every call returns None when no Envoy answers."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def ready(self) -> bool:
        """Return whether Envoy has read all of its configuration and serves."""
        answer = self._get("/ready")
        return answer is not None and answer[0] == 200

    def dump(self, resource: str) -> list[dict[str, JsonValue]] | None:
        """Return Envoy's current resources of a kind, such as ``dynamic_active_clusters``."""
        body = self._json("/config_dump?" + urlencode({"resource": resource}))
        configs = body.get("configs") if body is not None else None
        if body is None:
            return None
        return [one for one in configs if isinstance(one, dict)] if isinstance(configs, list) else []

    def intake(self) -> Intake | None:
        """Return which versions of which files are effective."""
        wanted = r"(version_text|update_rejected|update_failure|total_listeners_warming)$"
        values = self._stats(wanted)
        if values is None:
            return None
        versions: dict[str, str] = {}
        refused: dict[str, int] = {}
        for name, value in values.items():
            owner, _, what = name.rpartition(".")
            if (file := _file_of(owner)) is None:
                continue
            if what == "version_text":
                versions[file] = str(value)
            elif isinstance(value, int):
                refused[file] = refused.get(file, 0) + value
        warming = values.get("listener_manager.total_listeners_warming", 0)
        return Intake(versions, refused, warming if isinstance(warming, int) else 0)

    def traffic(self, endpoint: str, versions: list[str]) -> dict[str, TrafficStats] | None:
        """Return counters per version. An error is a final answer of 5xx, Envoy's own 503 for a dead backend too."""
        prefix = f"cluster.{stat_name(endpoint)}"
        wanted = rf"^{re.escape(prefix)}[0-9a-f]+\.(upstream_rq_completed|upstream_rq_5xx|upstream_rq_time)$"
        values = self._stats(wanted)
        if values is None:
            return None
        return {version: _counters(values, f"cluster.{stat_name(endpoint, version)}") for version in versions}

    def _stats(self, wanted: str) -> dict[str, JsonValue] | None:
        """Return name -> value; a histogram's value is its list of cumulative percentiles by name."""
        body = self._json("/stats?" + urlencode({"format": "json", "filter": wanted}))
        if body is None:
            return None
        values: dict[str, JsonValue] = {}
        stats = body.get("stats")
        for one in stats if isinstance(stats, list) else []:
            if not isinstance(one, dict):
                continue
            if isinstance(one.get("name"), str):
                values[str(one["name"])] = one.get("value", 0)
            else:
                values |= _percentiles(one.get("histograms"))
        return values

    def _json(self, path: str) -> dict[str, JsonValue] | None:
        answer = self._get(path)
        if answer is None or answer[0] != 200:
            return None
        body = json.loads(answer[1])
        return body if isinstance(body, dict) else None

    def _get(self, path: str) -> tuple[int, bytes] | None:
        connection = _SocketConnection(self._root)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over ``<folder>/admin.sock``, however long the folder's name is: a socket's path may have 107 bytes only."""

    def __init__(self, folder: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._folder = folder

    def connect(self) -> None:
        folder = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(TIMEOUT_SECONDS)
            self.sock.connect(f"/proc/self/fd/{folder}/admin.sock")
        finally:
            os.close(folder)


def _file_of(owner: str) -> str | None:
    if owner == "cluster_manager.cds":
        return "clusters.json"
    if owner == "listener_manager.lds":
        return "listeners.json"
    routes = f"http.{STAT_PREFIX}.rds."
    return f"routes-{owner.removeprefix(routes)}.json" if owner.startswith(routes) else None


def _percentiles(histograms: JsonValue) -> dict[str, JsonValue]:
    if not isinstance(histograms, dict):
        return {}
    points = histograms.get("supported_quantiles")
    computed = histograms.get("computed_quantiles")
    found: dict[str, JsonValue] = {}
    for one in computed if isinstance(computed, list) else []:
        if isinstance(one, dict) and isinstance(points, list) and isinstance(values := one.get("values"), list):
            found[str(one["name"])] = {
                f"p{point:g}": value.get("cumulative")
                for point, value in zip(points, values, strict=True)
                if isinstance(point, int | float) and isinstance(value, dict)
            }
    return found


def _counters(values: dict[str, JsonValue], prefix: str) -> TrafficStats:
    times = values.get(f"{prefix}.upstream_rq_time")
    points = times if isinstance(times, dict) else {}

    def count(name: str) -> int:
        value = values.get(f"{prefix}.{name}", 0)
        return value if isinstance(value, int) else 0

    def milliseconds(point: str) -> float | None:
        value = points.get(point)
        return float(value) if isinstance(value, int | float) else None

    return TrafficStats(
        requests=count("upstream_rq_completed"),
        errors=count("upstream_rq_5xx"),
        latency_p50_ms=milliseconds("p50"),
        latency_p99_ms=milliseconds("p99"),
    )
