"""The train job whose training is a script for the Trainer of Hugging Face or for TRL, run unchanged by our ranks.

Payload: ``{"plan": TrainingPlan, "alerts": [Alert, ...], "script": TrainingScript}``; the plan is made by
``training.script.scripted``. Result: a Checkpoint, as of our own trainer. A job is sent here by the environment of its
spec: ``DEEPSEEK_OPS_JOB_KINDS=train=deepseek_ops.jobs.hf_script:run``.

The script runs in every rank, in the rank's process, with torchrun's variables and the job's work folder as working
directory. Its Trainer gets our streams and guardian (``hf_callback.py``), checkpoints at the plan's interval beside its
own, and resumes from the newest whole one when ranks are started again, here or on another machine
(``hf_checkpoints.py``), with the batch it began with however many ranks there are then (``hf_batch.py``). It ends at a
request to stop or when its machine is taken away, and what its Trainer holds in the end is published. Nothing of it
needs this package: outside of our ranks it runs as before.
"""

from __future__ import annotations

import math
import os
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.core.config.alerts import Alert
from deepseek_ops.core.errors import JobStoppedError, PermanentError
from deepseek_ops.core.records import Checkpoint, FileSet, TrainingPlan
from deepseek_ops.jobs.hf_batch import Batches
from deepseek_ops.jobs.hf_checkpoints import ScriptCheckpoints
from deepseek_ops.jobs.hf_watch import Watch
from deepseek_ops.jobs.pruned import is_pruned
from deepseek_ops.jobs.spot_notice import SpotWatch
from deepseek_ops.jobs.training_checkpoint import DRAIN_SECONDS
from deepseek_ops.jobs.training_data import DOCUMENTS, TOKENIZER, local_dataset, local_files
from deepseek_ops.jobs.training_engine import device_of, end_ranks, start_ranks
from deepseek_ops.jobs.training_ledger import LedgerFile
from deepseek_ops.jobs.training_ranks import Ranks
from deepseek_ops.jobs.training_result import known_result, store_result
from deepseek_ops.jobs.training_streams import Streams
from deepseek_ops.jobs.training_turn import take_turn
from deepseek_ops.training.guardian import Guardian
from deepseek_ops.training.guardian_defaults import default_alerts
from deepseek_ops.training.script import TrainingScript, arguments, require_linked

if TYPE_CHECKING:
    from deepseek_ops.jobs.agreement import Peers
    from deepseek_ops.jobs.context import JobContext
    from deepseek_ops.jobs.hf_callback import Foreign

OUTPUT = "output"
DEFAULT_SAVE_STEPS = 200
"""Steps between two checkpoints where the plan leaves the interval to measurement, which a script's Trainer cannot."""


class IdleScriptError(PermanentError):
    """A script ended well and has trained nothing that could be published."""


def run(context: JobContext) -> dict[str, JsonValue]:
    """Return the Checkpoint of the script's training: trained now, or found where the same was trained before.

    Raises:
        JobStoppedError: A rule of the guardian ended the training.
        UnlinkedScriptError, IdleScriptError, PublishedModelError: There is nothing to publish, and why.
    """
    plan = TrainingPlan.load(_object(context.payload["plan"]))
    script = TrainingScript.load(_object(context.payload["script"]))
    require_linked(plan, script)
    found = known_result(context.store, plan)
    start_ranks(context.work, single_node=plan.num_nodes == 1)
    try:
        rank = int(os.environ.get("LOCAL_RANK", context.rank))
        peers = Ranks(context.rank, context.world_size, device_of(rank), lambda: context.stop_requested)
        if (
            peers.from_first(int(found is not None))
            and (found := found or known_result(context.store, plan)) is not None
        ):
            return found.dump()
        take_turn(context, plan.run_prefix, peers)
        with SpotWatch.of(context), Streams(context, plan.run_prefix) as streams:
            return _train(context, plan, script, _watch(context, plan, peers, streams))
    finally:
        end_ranks()


def _watch(context: JobContext, plan: TrainingPlan, peers: Ranks, streams: Streams) -> Watch:
    alerts = context.payload.get("alerts")
    own = [Alert.model_validate(item) for item in alerts] if isinstance(alerts, list) else []
    return Watch(
        peers,
        streams,
        Guardian(own, default_alerts(own, recovers=plan.purpose == "train")),
        ledger=LedgerFile(context, plan.run_prefix),
        requests=context.requests,
        stop_requested=lambda: context.stop_requested,
        progress=context.progress,
        save_every=getattr(plan, "checkpoint_steps", None) or DEFAULT_SAVE_STEPS,
        for_good=lambda: is_pruned(context, plan),
    )


def _train(context: JobContext, plan: TrainingPlan, script: TrainingScript, watch: Watch) -> dict[str, JsonValue]:
    from deepseek_ops.jobs.hf_callback import Foreign, ScriptEnded, installed

    dataset, folders = _inputs(context, plan, watch.peers)
    code = local_files(context, script.code, "code")

    def checkpoints(number: int) -> ScriptCheckpoints:
        return ScriptCheckpoints(
            context, plan, watch.peers, number=number, say=watch.streams.event, settle=watch.settle
        )

    batches = Batches(plan, script.path, watch.streams.event)
    foreign = Foreign(watch, checkpoints, name=script.path, batches=batches, bias_update_rate=script.bias_update_rate)
    with installed(foreign):
        try:
            _execute(code / script.path, arguments(script, plan, folders))
        except (ScriptEnded, JobStoppedError) as ending:
            _finish(context, foreign)
            if isinstance(ending, JobStoppedError):
                raise
            watch.streams.event("stopped", step=watch.seen.step, reason=context.stop_reason)
            if watch.peers.from_first(int(is_pruned(context, plan))):
                for begun in foreign.trainings:
                    begun.clear(output=True)
            return _checkpoint(context, plan, watch, FileSet(files=())).dump()
    _finish(context, foreign)
    checkpoint = _published(context, plan, foreign, dataset / TOKENIZER)
    if context.rank == 0:
        checkpoint = store_result(context.store, plan, checkpoint)
        watch.streams.event("finished", step=checkpoint.step, metrics=dict(checkpoint.metrics))
    watch.peers.barrier()
    for done in foreign.trainings:
        done.clear()
    return checkpoint.dump()


def _finish(context: JobContext, foreign: Foreign) -> None:
    """Wait for the store to have what it should: while there is time, if the job was told to stop."""
    seconds = 0.5 * context.spec.grace_seconds if context.stop_requested else DRAIN_SECONDS
    for training in foreign.trainings:
        training.finish(seconds)
    foreign.watch.finish()


def _inputs(context: JobContext, plan: TrainingPlan, peers: Peers) -> tuple[Path, dict[str, str]]:
    """Return the dataset's folder and the words of the script's arguments; the first rank of a node fetches."""

    def fetch() -> tuple[Path, dict[str, str]]:
        base = local_files(context, plan.base, "base") if plan.base is not None else None
        dataset = local_dataset(context, plan.dataset, DOCUMENTS, TOKENIZER)
        script = TrainingScript.load(_object(context.payload["script"]))
        local_files(context, script.code, "code")
        output = context.work / OUTPUT
        output.mkdir(exist_ok=True)
        return dataset, {"dataset": str(dataset), "base": str(base or ""), "output": str(output)}

    if int(os.environ.get("LOCAL_RANK", context.rank)) == 0:
        with context.working():
            fetch()
    peers.barrier()
    return fetch()


def _execute(script: Path, args: list[str]) -> None:
    """Run the script as ``python script args`` would."""
    sys.argv = [str(script), *args]
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise


def _published(context: JobContext, plan: TrainingPlan, foreign: Foreign, tokenizer: Path) -> Checkpoint:
    from deepseek_ops.jobs.hf_publish import publish

    if foreign.trainer is None or not foreign.finished or foreign.sample is None:
        raise IdleScriptError(
            f"{foreign.name} ended without having trained: call train() of a transformers.Trainer or a Trainer of TRL."
        )
    if plan.purpose == "trial":  # its answer is a number
        return _checkpoint(context, plan, foreign.watch, FileSet(files=()))
    folder = context.work / "model"
    held = tokenizer if tokenizer.is_dir() else None
    publish(foreign.trainer, foreign.sample, folder, rank=context.rank, tokenizer=held)
    if context.rank != 0:
        return _checkpoint(context, plan, foreign.watch, FileSet(files=()))
    with context.working():
        files = context.blobs.put_folder(folder)
    foreign.watch.streams.event("published", files=len(files.files), bytes=files.num_bytes, model=files.fingerprint)
    return _checkpoint(context, plan, foreign.watch, files)


def _checkpoint(context: JobContext, plan: TrainingPlan, watch: Watch, model: FileSet) -> Checkpoint:
    seen = watch.seen
    rates = sorted(seen.rates)
    metrics = {**seen.last, **({"tokens_per_second": rates[len(rates) // 2]} if rates else {})}
    return Checkpoint(
        plan=plan.fingerprint,
        step=seen.step,
        tokens=seen.tokens,
        model=model,
        metrics={key: value for key, value in metrics.items() if math.isfinite(value)},
        curve=tuple((step, value) for step, value in seen.training.points() if math.isfinite(value)),
        restarts=context.restarts,
    )


def _object(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}
