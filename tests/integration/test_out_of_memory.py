"""A real training under a real limit of memory: it ends at once, and with half the micro-batch it comes through."""

from __future__ import annotations

import pytest
from fixtures_trainer import MODEL, dataset, lab  # noqa: F401  (pytest fixtures)

from deepseek_ops.core.jobs import JobCause, JobPhase
from deepseek_ops.training.losses import Losses
from deepseek_ops.training.micro_batch import PAYLOAD_KEY

pytestmark = pytest.mark.slow

LIMIT_BYTES = 4500 << 20
"""64 samples take about 4900 MiB beside what does not depend on them, 32 half of that; the rest is 700 to 1400 MiB."""


def test_half_the_micro_batch_of_the_same_global_batch_fits(lab, dataset) -> None:  # noqa: F811
    plan = lab.plan(
        dataset,
        ranks=1,
        purpose="trial",
        model={**MODEL, "vocab_size": 65536},
        hyperparameters={"batch_size": 64, "max_steps": 2, "sequence_length": 128},
        deepspeed={"zero_optimization": {"allgather_bucket_size": 1_000_000, "reduce_bucket_size": 1_000_000}},
    )
    losses, payload = Losses(), {"plan": plan.dump(), "alerts": []}
    lab.submit("train", "hungry", payload, memory_bytes=LIMIT_BYTES, max_restarts=3)
    first = lab.settle("hungry")
    assert (first.phase, first.cause) == (JobPhase.LOST, JobCause.OUT_OF_MEMORY), first.reason
    assert (first.restarts, first.step) == (0, None), "not started again with the same batch"
    losses = losses.after(first)
    lab.submit("train", "hungry", {**payload, PAYLOAD_KEY: losses.divisor}, memory_bytes=LIMIT_BYTES, max_restarts=3)
    second = lab.settle("hungry")
    assert (second.phase, second.step, second.attempt) == (JobPhase.SUCCEEDED, 2, 2), second.reason
    assert lab.launcher.result("hungry")["tokens"] == 2 * 64 * 128, "the global batch is the same"
