"""The rollout state machine: a pure function of state and observation.

Whoever drives a rollout repeats three calls: look (``observe``), decide (``next_step``), act (apply ``traffic_plan``).
Only the ``Rollout`` between them is state, so a driver may be killed anywhere and started again. Rules: a breach rolls
back at once; a step is left only on requests of its own; a settled rollout never moves again.
"""

from deepseek_ops.rollout.errors import MissingBackendError, NobodyToServeError, StrategyMismatchError
from deepseek_ops.rollout.observation import Observation, observe
from deepseek_ops.rollout.policies import BlueGreenPolicy, CanaryPolicy, RolloutPolicy, ShadowPolicy, policy_for
from deepseek_ops.rollout.steps import first_rollout, next_step
from deepseek_ops.rollout.traffic import traffic_plan

__all__ = [
    "BlueGreenPolicy",
    "CanaryPolicy",
    "MissingBackendError",
    "NobodyToServeError",
    "Observation",
    "RolloutPolicy",
    "ShadowPolicy",
    "StrategyMismatchError",
    "first_rollout",
    "next_step",
    "observe",
    "policy_for",
    "traffic_plan",
]
