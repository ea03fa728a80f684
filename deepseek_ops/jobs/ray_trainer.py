"""Ray Train's trainer, changed where a training's worker is a whole machine.

Its elastic policy counts how many workers fit into the resources that are reserved for the job, and reserves several
on one machine where that has room. Ours are placed one on each machine, so it would wait for a size that cannot be,
or begin on one machine beside an idle one. ``MachinesPolicy`` counts machines.

Its trainer also starts a detached actor, with all imports of Ray Train, that removes placement groups when the
controller is gone. Here the controller does not outlive the driver, and the placement groups of a job go with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ray._private.state import available_resources_per_node
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from deepseek_ops.jobs.ray_workers import usable_nodes

if TYPE_CHECKING:
    from ray.train import Result, ScalingConfig
    from ray.train.v2._internal.execution.scaling_policy import ScalingDecision
    from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
    from ray.train.v2.api.callback import RayTrainCallback

FIRST_SECONDS = 300.0
"""How long a job waits for all its machines before it begins with fewer: an autoscaler may be starting them."""
AGAIN_SECONDS = 20.0
"""The same after a machine was lost: long enough for the resources of the others to be free again."""


class MachinesPolicy(ElasticScalingPolicy):
    """Decides with how many machines an elastic job goes on: all, or the most that divide all."""

    def __init__(self, scaling_config: ScalingConfig) -> None:
        super().__init__(scaling_config)
        self._waiting_since = time.monotonic()
        self._patience = FIRST_SECONDS
        self._ours: set[str] = set()

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Return the size to start with, or wait."""
        if self._ours:
            self._ours, self._waiting_since, self._patience = set(), time.monotonic(), AGAIN_SECONDS
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """Return the size to restart with, or go on."""
        self._ours = {worker.metadata.node_id for worker in worker_group_state.workers}
        return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)

    def _count_possible_workers(self, reserved_resources: object) -> int:  # noqa: ARG002  (see above)
        wanted = self.scaling_config.max_workers
        free = [found for machine, found in available_resources_per_node().items() if machine not in self._ours]
        count = usable_nodes(len(self._ours) + machines_with(self._needed(), free), wanted)
        hurried = self._ours or time.monotonic() - self._waiting_since > self._patience
        return count if count == wanted or hurried else 0

    def _needed(self) -> Mapping[str, float]:
        needed: Mapping[str, float] = self.scaling_config._resources_per_worker_not_none
        return needed


class MachinesTrainer(DataParallelTrainer):
    """One worker on each machine, and no more processes than that needs."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks: list[RayTrainCallback] = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    def _initialize_and_run_controller(self, **parts: object) -> Result:
        if self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = MachinesPolicy(self.scaling_config)
        return super()._initialize_and_run_controller(**parts)


def machines_with(needed: Mapping[str, float], machines: Iterable[Mapping[str, float]]) -> int:
    """Return how many of the machines have what a node of the job needs."""
    return sum(all(machine.get(name, 0.0) >= amount for name, amount in needed.items()) for machine in machines)
