"""Which of a job's machines this process is on: read from the variables that each engine sets on them.

==============  ====================================================================================================
explicit        ``DEEPSEEK_OPS_NODE_RANK``, ``_COUNT``, ``_ADDRESS``, ``_INSTANCE``, ``_HOST``; they go before the rest
Slurm           ``SLURM_NODEID``, ``SLURM_NNODES``, ``SLURM_JOB_NODELIST``; job id and requeue count name the instance
Kubernetes      ``PET_NODE_RANK``, ``PET_NNODES``, ``PET_MASTER_ADDR`` (TrainJob); ``JOB_COMPLETION_INDEX`` (JobSet)
SageMaker       ``SM_HOSTS``, ``SM_CURRENT_HOST``; without the toolkit ``/opt/ml/input/config/resourceconfig.json``
==============  ====================================================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.core.errors import PermanentError

RANK_VARIABLE = "DEEPSEEK_OPS_NODE_RANK"
COUNT_VARIABLE = "DEEPSEEK_OPS_NODE_COUNT"
ADDRESS_VARIABLE = "DEEPSEEK_OPS_NODE_ADDRESS"
INSTANCE_VARIABLE = "DEEPSEEK_OPS_NODE_INSTANCE"
HOST_VARIABLE = "DEEPSEEK_OPS_NODE_HOST"
SAGEMAKER_RESOURCES = Path("/opt/ml/input/config/resourceconfig.json")


@dataclass(eq=False)
class BadPlaceError(PermanentError):
    """The engine's variables do not say which node this is."""

    variable: str
    value: str
    problem: str

    def __str__(self) -> str:
        return (
            f"{self.variable}={self.value!r} {self.problem}; set {RANK_VARIABLE}, {COUNT_VARIABLE} and "
            f"{ADDRESS_VARIABLE} on every node of the job."
        )


@dataclass(frozen=True, slots=True)
class NodePlace:
    """One machine of a job."""

    rank: int = 0
    """Number of this node among ``count``."""
    count: int = 1
    address: str = "127.0.0.1"
    """Host name or address of node 0, as the other nodes reach it."""
    instance: str = ""
    """Names one run of the engine's job: a job that the engine starts again by itself gets another. "" = unknown."""
    host: str = ""
    """This node's own name or address as the others reach it, where the engine tells it."""


def node_place(environment: Mapping[str, str], *, resources: Path = SAGEMAKER_RESOURCES) -> NodePlace:
    """Return where this process is, from its environment; the only node of its job where nothing else is said.

    Raises BadPlaceError when the variables contradict each other.
    """
    for read in (_explicit, _slurm, _kubernetes, lambda env: _sagemaker(env, resources)):
        place = read(environment)
        if place is not None:
            return _checked(place)
    return NodePlace()


def first_host(nodes: str) -> str:
    """Return the first name of Slurm's compressed list: ``gpu[003-006,9],login`` -> ``gpu003``."""
    match = re.match(r"([^\[,]+)(?:\[([^\]]+)\])?([^,\[]*)", nodes)
    if match is None:
        raise BadPlaceError("SLURM_JOB_NODELIST", nodes, "names no node")
    prefix, numbers, suffix = match[1], match[2], match[3]
    return prefix + (re.split(r"[-,]", numbers)[0] if numbers else "") + suffix


def _explicit(environment: Mapping[str, str]) -> NodePlace | None:
    if RANK_VARIABLE not in environment:
        return None
    return NodePlace(
        rank=_number(environment, RANK_VARIABLE),
        count=_number(environment, COUNT_VARIABLE, default=1),
        address=environment.get(ADDRESS_VARIABLE, "127.0.0.1"),
        instance=environment.get(INSTANCE_VARIABLE, ""),
        host=environment.get(HOST_VARIABLE, ""),
    )


def _slurm(environment: Mapping[str, str]) -> NodePlace | None:
    if "SLURM_JOB_ID" not in environment or "SLURM_NODEID" not in environment:
        return None
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    count = "SLURM_STEP_NUM_NODES" if "SLURM_STEP_NUM_NODES" in environment else "SLURM_NNODES"
    return NodePlace(
        rank=_number(environment, "SLURM_NODEID"),
        count=_number(environment, count, default=1),
        address=first_host(nodes) if nodes else "127.0.0.1",
        instance=f"{environment['SLURM_JOB_ID']}.{environment.get('SLURM_RESTART_COUNT', '0')}",
        host=environment.get("SLURMD_NODENAME", ""),
    )


def _kubernetes(environment: Mapping[str, str]) -> NodePlace | None:
    rank = next((name for name in ("PET_NODE_RANK", "JOB_COMPLETION_INDEX") if name in environment), None)
    if rank is None:
        return None
    return NodePlace(
        rank=_number(environment, rank),
        count=_number(environment, "PET_NNODES", default=1),
        address=environment.get("PET_MASTER_ADDR", "127.0.0.1"),
        instance=environment.get(INSTANCE_VARIABLE, ""),
    )


def _sagemaker(environment: Mapping[str, str], resources: Path) -> NodePlace | None:
    here, hosts = environment.get("SM_CURRENT_HOST", ""), environment.get("SM_HOSTS", "")
    if not hosts and resources.is_file():
        body = json.loads(resources.read_bytes())
        here, hosts = str(body.get("current_host", "")), json.dumps(body.get("hosts", []))
    if not hosts:
        return None
    try:
        names = sorted(str(name) for name in json.loads(hosts))
        rank = names.index(here)
    except (ValueError, TypeError):
        raise BadPlaceError("SM_HOSTS", hosts, f"is no JSON list with SM_CURRENT_HOST={here!r} in it") from None
    return NodePlace(rank, len(names), names[0], environment.get("TRAINING_JOB_NAME", ""), here)


def _number(environment: Mapping[str, str], name: str, *, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise BadPlaceError(name, text, "is no number")
    return int(text)


def _checked(place: NodePlace) -> NodePlace:
    if place.rank >= place.count:
        raise BadPlaceError("node", str(place.rank), f"is not below the number of nodes, {place.count}")
    return place
