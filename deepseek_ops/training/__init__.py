"""What decides a training before it runs: plans, batches, schedules, DeepSpeed keys and the guardian's rules.

Pure Python, no torch: planning happens on the scheduler's side. ``deepseek_ops.jobs.train`` runs the plans.
"""

from deepseek_ops.training.batches import BatchPlan
from deepseek_ops.training.deepspeed_config import deepspeed_config
from deepseek_ops.training.guardian import Decision, Guardian
from deepseek_ops.training.plan import plan_training, plan_trial

__all__ = ["BatchPlan", "Decision", "Guardian", "deepspeed_config", "plan_training", "plan_trial"]
