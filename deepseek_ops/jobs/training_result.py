"""The result of a plan in the store: written once, found by every later training of an equal plan."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from deepseek_ops.core.errors import ObjectExistsError, ObjectNotFoundError
from deepseek_ops.core.records import Checkpoint, TrainingPlan, canonical_json

if TYPE_CHECKING:
    from deepseek_ops.core.ports import ObjectStore


def known_result(store: ObjectStore, plan: TrainingPlan) -> Checkpoint | None:
    """Return what an equal plan came to, or None. A plan with another nonce is not equal: it is trained again."""
    try:
        return Checkpoint.load(json.loads(store.get(_key(plan))))
    except ObjectNotFoundError:
        return None


def store_result(store: ObjectStore, plan: TrainingPlan, checkpoint: Checkpoint) -> Checkpoint:
    """Return the result of the plan: this one, or the one an equal plan stored first."""
    try:
        store.create(_key(plan), canonical_json(checkpoint.dump()))
    except ObjectExistsError:
        return known_result(store, plan) or checkpoint
    return checkpoint


def _key(plan: TrainingPlan) -> str:
    return f"{plan.run_prefix}/result.json"
