"""What a traffic plan must be before Envoy sees it, and the gateway's memory of the plans that Envoy took."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from deepseek_ops.adapters.envoy.errors import PlanError
from deepseek_ops.core.errors import LocalDiskError
from deepseek_ops.core.jobs import TrafficPlan
from deepseek_ops.core.records import Record


class GatewayState(Record):
    """What survives Envoy and this process: the port of each endpoint, and the last plan that Envoy accepted."""

    ports: dict[str, int] = Field(default_factory=dict, description="Endpoint -> loopback port, first endpoint first.")
    plans: dict[str, TrafficPlan] = Field(default_factory=dict, description="Endpoint -> effective plan.")


def check(plan: TrafficPlan) -> None:
    """Raise PlanError naming the field for weights that do not sum to 100 and versions that are nowhere."""
    for field, percents in (("weights", plan.weights), ("mirrors", plan.mirrors)):
        for version, percent in percents.items():
            if not 0 <= percent <= 100:
                raise PlanError(plan.endpoint, f"{field}.{version}", f"{percent} is no percentage.", "Use 0 to 100.")
            if version not in plan.backends:
                remedy = "Give its host:port, or leave the version out."
                raise PlanError(plan.endpoint, f"{field}.{version}", "the version has no backend.", remedy)
    total = sum(plan.weights.values())
    if total != 100:
        raise PlanError(plan.endpoint, "weights", f"they sum to {total}.", "Let them sum to 100.")
    for version in plan.models:
        if version not in plan.backends:
            remedy = "Give its host:port, or leave the model name out."
            raise PlanError(plan.endpoint, f"models.{version}", "the version has no backend.", remedy)
    for version in plan.backends:
        address(plan, version)
    if not plan.sticky_header:
        raise PlanError(plan.endpoint, "sticky_header", "it is empty.", "Name a header, such as x-user-id.")


def address(plan: TrafficPlan, version: str) -> tuple[str, int]:
    """Return host and port of a version's backend. Raises PlanError when it is not ``host:port``."""
    given = plan.backends[version]
    host, _, port = given.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        remedy = "Write host:port, such as 127.0.0.1:8000."
        raise PlanError(plan.endpoint, f"backends.{version}", f"{given!r} is no address.", remedy)
    return host, int(port)


def read_state(path: Path) -> GatewayState:
    """Return the recorded state; an empty one when there is none yet."""
    with disk(path):
        if not path.exists():
            return GatewayState()
        return GatewayState.load(json.loads(path.read_text()))


def write_file(path: Path, text: str) -> bool:
    """Replace the file durably and return whether its content changed: a reader sees the old text or the new one."""
    with disk(path):
        if path.exists() and path.read_text() == text:
            return False
        part = path.with_name(f".{path.name}.part")  # the gateway's lock is held: there is one writer
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    return True


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a file into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise LocalDiskError(str(path), error.strerror or str(error)) from error
