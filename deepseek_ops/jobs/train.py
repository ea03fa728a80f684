"""The train job: DeepSpeed ranks from a plan to a model in the store, resumable at every step.

Payload: ``{"plan": TrainingPlan, "alerts": [Alert, ...]}``. Result: a Checkpoint; its model is empty for a trial.
The same function runs in every rank. Called again after a rank was lost it goes on from the newest checkpoint in the
job's work folder, with losses equal to the last bit to those of a run that was never interrupted.
"""

from __future__ import annotations

import math
import os
from contextlib import nullcontext
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.core.config.alerts import Alert
from deepseek_ops.core.errors import JobStoppedError
from deepseek_ops.core.records import Checkpoint, FileSet, TrainingPlan
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.spot_notice import SpotWatch
from deepseek_ops.jobs.training_actions import Actions, Ending
from deepseek_ops.jobs.training_checkpoint import Checkpoints, Progress
from deepseek_ops.jobs.training_data import TOKENIZER, Inputs, fetch_inputs
from deepseek_ops.jobs.training_engine import device_of, end_ranks, start_engine, start_ranks
from deepseek_ops.jobs.training_forgetting import loss_before
from deepseek_ops.jobs.training_ledger import LedgerFile
from deepseek_ops.jobs.training_loop import Loop
from deepseek_ops.jobs.training_model import ExpertBalance, build_model, decay_groups
from deepseek_ops.jobs.training_publish import check_export, export_model
from deepseek_ops.jobs.training_ranks import Ranks
from deepseek_ops.jobs.training_result import known_result, store_result
from deepseek_ops.jobs.training_splits import open_samples
from deepseek_ops.jobs.training_streams import Streams
from deepseek_ops.jobs.training_task import mean_loss, open_task
from deepseek_ops.jobs.training_turn import take_turn
from deepseek_ops.jobs.training_verify import FreshProcess
from deepseek_ops.training.deepspeed_config import deepspeed_config
from deepseek_ops.training.guardian import Guardian
from deepseek_ops.training.guardian_defaults import default_alerts
from deepseek_ops.training.micro_batch import PAYLOAD_KEY, in_smaller_bites
from deepseek_ops.training.positions import count_of, position_of
from deepseek_ops.training.schedule import total_steps

CHECKED_SAMPLES = 8


def run(context: JobContext) -> dict[str, JsonValue]:
    """Return the Checkpoint of the plan as JSON: trained now, or found where an equal plan was trained before.

    Raises:
        JobStoppedError: A rule of the guardian ended the training; its weights are no model.
        PublishedModelError: The exported model is not the trained one.
        TooFewSamplesError, UnsupportedTrainingError, IndivisibleBatchError: The plan cannot be run.
    """
    if "script" in context.payload:
        from deepseek_ops.jobs.hf_script import run as run_script

        return run_script(context)
    plan = TrainingPlan.load(_object(context.payload["plan"]))
    found = known_result(context.store, plan)
    context.progress(0, "starting")
    start_ranks(context.work, single_node=plan.num_nodes == 1)
    try:
        ranks = _ranks(context)
        # Rank 0 may have looked a moment before another run stored its result, so its answer is everybody's.
        if (
            ranks.from_first(int(found is not None))
            and (found := found or known_result(context.store, plan)) is not None
        ):
            return found.dump()
        take_turn(context, plan.run_prefix, ranks)
        with SpotWatch.of(context), Streams(context, plan.run_prefix) as streams:
            return _train(context, plan, ranks, streams)
    finally:
        end_ranks()


def _train(context: JobContext, plan: TrainingPlan, ranks: Ranks, streams: Streams) -> dict[str, JsonValue]:
    paths = _inputs(context, plan, ranks)
    loop = _loop(context, plan, ranks, streams, paths)
    loop.loss_before = loss_before(context, loop)
    ending = loop.run()
    context.progress(loop.progress.step, "publishing")
    if ending is not None and ending.for_good:
        loop.checkpoints.clear()
    else:
        loop.checkpoints.finish(loop.progress)
    loop.actions.ledger.finish()
    if ending is not None:
        return _ended_early(context, loop, ending)
    if plan.purpose == "trial":
        checkpoint = _checkpoint(context, loop, FileSet(files=()))
    else:
        checkpoint = _publish(context, loop, paths.dataset / TOKENIZER)
    if ranks.rank == 0:
        checkpoint = store_result(context.store, plan, checkpoint)
        streams.event("finished", step=checkpoint.step, metrics=dict(checkpoint.metrics))
    ranks.barrier()
    loop.checkpoints.clear()
    return checkpoint.dump()


def _ranks(context: JobContext) -> Ranks:
    return Ranks(
        rank=context.rank,
        world_size=context.world_size,
        device=device_of(_local_rank(context)),
        stop_requested=lambda: context.stop_requested,
    )


def _local_rank(context: JobContext) -> int:
    return int(os.environ.get("LOCAL_RANK", context.rank))


def _inputs(context: JobContext, plan: TrainingPlan, ranks: Ranks) -> Inputs:
    """Return the plan's inputs on this node; its first rank fetches them, the others wait."""
    if _local_rank(context) == 0:
        with context.working():
            fetch_inputs(context, plan)
    ranks.barrier()
    return fetch_inputs(context, plan)


def _loop(context: JobContext, plan: TrainingPlan, ranks: Ranks, streams: Streams, paths: Inputs) -> Loop:
    hyper = plan.hyperparameters
    samples = open_samples(plan, paths)
    divisor = context.payload.get(PAYLOAD_KEY, 1)
    sized = in_smaller_bites(plan, ranks.world_size, divisor if isinstance(divisor, int) else 1)
    batches = samples.batches(sized, ranks.world_size)
    model = build_model(plan, paths.base).to(ranks.device)
    engine = start_engine(
        model, deepspeed_config(sized, world_size=ranks.world_size), decay_groups(model, hyper.weight_decay)
    )
    balance = ExpertBalance(engine.module, 0.0 if plan.lora is not None else hyper.bias_update_rate)
    ledger = LedgerFile(context, plan.run_prefix)

    def settle() -> None:
        streams.settle()
        ledger.settle()

    actions = Actions(
        guardian=_guardian(context, plan, balance),
        ledger=ledger,
        checkpoints=Checkpoints.of(context, plan, ranks, say=streams.event, settle=settle),
        engine=engine,
        streams=streams,
        ranks=ranks,
        requests=context.requests,
        samples=hyper.batch_size,
    )
    progress = actions.resume()
    steps = total_steps(
        max_steps=hyper.max_steps, epochs=hyper.epochs, num_samples=batches.epoch_samples, batch_size=hyper.batch_size
    )
    facts = {
        "total_steps": steps,
        "num_samples": batches.num_samples,
        "ranks": ranks.world_size,
        "purpose": plan.purpose,
        "dataset": plan.dataset.name,
    }
    if progress is None:
        streams.event("started", parameters=model.num_parameters(), **facts)
        for packed in samples.packing():
            streams.event("packed", **packed)
    else:
        behind = position_of(progress.step, progress.skipped)
        left_out = count_of(progress.skipped, below=behind) * hyper.batch_size
        streams.event("resumed", from_step=progress.step, samples_skipped=left_out, **facts)
    context.progress(0 if progress is None else progress.step)
    return Loop(
        plan,
        engine,
        open_task(samples, ranks.device, balance),
        balance,
        batches,
        samples.splits,
        ranks,
        total_steps=steps,
        actions=actions,
        context=context,
        progress=progress or Progress(),
    )


def _guardian(context: JobContext, plan: TrainingPlan, balance: ExpertBalance) -> Guardian:
    """Return the guardian of the pipeline file's rules and of those defaults that they leave in force."""
    own = [Alert.model_validate(alert) for alert in _alerts(context.payload.get("alerts"))]
    visited = plan.model.get("num_experts_per_tok")
    defaults = default_alerts(
        own,
        recovers=plan.purpose == "train",
        experts=max(balance.sizes, default=0),
        experts_per_token=visited if isinstance(visited, int) else 0,
        layers=len(balance.sizes),
    )
    return Guardian(own, defaults)


def _ended_early(context: JobContext, loop: Loop, ending: Ending) -> dict[str, JsonValue]:
    """Return what a stopped training has come to. Raises JobStoppedError when a rule stopped it."""
    step = loop.progress.step
    if ending.asked:
        loop.streams.event("stopped", step=step, reason=context.stop_reason)
        return _checkpoint(context, loop, FileSet(files=())).dump()
    if loop.ranks.rank != 0:
        return {}  # rank 0 knows the rule, and its error is the job's
    reason = "; ".join(decision.reason for decision in ending.decisions)
    loop.streams.event("stopped", step=step, reason=reason)
    raise JobStoppedError(context.spec.name, f"at step {step} by an alert rule: {reason}")


def _publish(context: JobContext, loop: Loop, tokenizer: Path) -> Checkpoint:
    """Return the checkpoint with its model stored; every rank calls it, rank 0 writes, checks and uploads."""
    folder = context.work / "model"
    with FreshProcess() if loop.ranks.rank == 0 else nullcontext() as fresh:
        export_model(loop.engine, loop.plan, tokenizer, folder, rank=loop.ranks.rank)
        held = loop.val or loop.train
        batch = loop.task.batch(held, range(min(CHECKED_SAMPLES, len(held))))
        loop.engine.eval()
        expected = mean_loss(loop.engine, batch)  # by every rank: ZeRO-3 gathers the weights for it
        if fresh is None:
            return _checkpoint(context, loop, FileSet(files=()))
        check_export(fresh, folder, loop.plan, batch, expected)
    with context.working():
        files = context.blobs.put_folder(folder)
    loop.streams.event("published", files=len(files.files), bytes=files.num_bytes, model=files.fingerprint)
    return _checkpoint(context, loop, files)


def _checkpoint(context: JobContext, loop: Loop, model: FileSet) -> Checkpoint:
    hyper, progress = loop.plan.hyperparameters, loop.progress
    last = progress.history[-1] if progress.history else {}
    rates = [row["tokens_per_second"] for row in progress.history]
    metrics = {
        **{key: value for key, value in last.items() if key != "step"},
        **({"val_loss": progress.validation.last} if progress.validation.last is not None else {}),
        **({"tokens_per_second": sorted(rates)[len(rates) // 2]} if rates else {}),
    }
    curve = progress.validation if loop.plan.purpose == "trial" else progress.training
    return Checkpoint(
        plan=loop.plan.fingerprint,
        step=progress.step,
        tokens=progress.step * hyper.batch_size * hyper.sequence_length,
        model=model,
        metrics={key: float(value) for key, value in metrics.items() if math.isfinite(value)},
        curve=tuple((step, value) for step, value in curve.points() if math.isfinite(value)),
        restarts=context.restarts,
    )


def _alerts(value: JsonValue) -> list[dict[str, JsonValue]]:
    return [_object(item) for item in value] if isinstance(value, list) else []


def _object(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}
