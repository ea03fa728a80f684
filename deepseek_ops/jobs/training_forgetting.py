"""What an incremental training forgets: the loss on old validation data, before it and while it goes on."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import TYPE_CHECKING

from deepseek_ops.core.errors import ObjectExistsError, ObjectNotFoundError
from deepseek_ops.core.records import canonical_json
from deepseek_ops.jobs.training_splits import OLD_VAL

if TYPE_CHECKING:
    from deepseek_ops.jobs.context import JobContext
    from deepseek_ops.jobs.training_loop import Loop


def loss_before(context: JobContext, loop: Loop) -> float | None:
    """Return the base's loss on the old validation data, nats per token; None without such data. All ranks call it.

    It is measured before the first step and kept in the store: a training that was resumed elsewhere has no base model
    in memory to measure it on. Lost with the store, it is not known again, and no forgetting is reported.
    """
    import torch

    split = loop.splits.get(OLD_VAL)
    if split is None:
        return None
    key = f"{loop.plan.run_prefix}/{OLD_VAL}_before.json"
    value = _stored(context, key) if loop.ranks.rank == 0 else 0.0
    value = float(loop.ranks.total(torch.tensor([value], dtype=torch.float64)))
    if math.isfinite(value):
        return value
    if loop.progress.step:
        return None
    value = loop.validate(split)
    if loop.ranks.rank == 0:
        with suppress(ObjectExistsError):  # a run of an equal plan measured the same base on the same data
            context.store.create(key, canonical_json({"val_loss_old": repr(value)}))
    return value


def _stored(context: JobContext, key: str) -> float:
    try:
        return float(json.loads(context.store.get(key))["val_loss_old"])
    except ObjectNotFoundError:
        return math.nan
