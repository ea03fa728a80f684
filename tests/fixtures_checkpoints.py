"""Work for train jobs that looks at checkpoints from the inside: small engines, no data set, no guardian, no loop."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fixtures_trainer import MODEL
from pydantic import JsonValue

from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.errors import StoreUnavailableError
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.core.records import DatasetVersion, Hyperparameters, TrainingPlan
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.training_checkpoint import Checkpoints, Progress
from deepseek_ops.jobs.training_engine import end_ranks, start_engine, start_ranks
from deepseek_ops.jobs.training_model import build_model, decay_groups
from deepseek_ops.jobs.training_ranks import Ranks
from deepseek_ops.jobs.training_store import StoredCheckpoints
from deepseek_ops.training.checkpoints import CheckpointName
from deepseek_ops.training.deepspeed_config import deepspeed_config

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

BATCH, LENGTH, EVERY = 4, 16, 4
KINDS = "DEEPSEEK_OPS_JOB_KINDS"


def small_plan(stage: int, precision: str, *, every: int | str = EVERY, nonce: str = "") -> TrainingPlan:
    """Return a plan whose data set is never read."""
    dataset = DatasetVersion(name="none", version="0" * 64, tree="0" * 64, num_files=0, num_bytes=0)
    return TrainingPlan.model_validate(
        {
            "dataset": dataset,
            "model": MODEL,
            "nproc_per_node": 2,
            "hyperparameters": Hyperparameters(
                learning_rate=0.01, batch_size=BATCH, max_steps=16, sequence_length=LENGTH
            ),
            "precision": precision,
            "zero_stage": stage,
            "checkpoint_steps": every,
            "nonce": nonce,
        }
    )


class Trained:
    """One engine and its checkpoints, driven step by step."""

    def __init__(self, context: JobContext, plan: TrainingPlan) -> None:
        self.plan, self.context = plan, context
        self.ranks = Ranks(context.rank, context.world_size, "cpu", lambda: False)
        self.said: list[tuple[str, dict[str, object]]] = []
        model = build_model(plan, None)
        config = deepspeed_config(plan, world_size=context.world_size)
        groups = decay_groups(model, plan.hyperparameters.weight_decay)
        self.engine: DeepSpeedEngine = start_engine(model, config, groups)
        self.checkpoints = Checkpoints.of(context, plan, self.ranks, say=self.say)
        self.losses: dict[int, float] = {}
        self.progress = Progress()

    def say(self, kind: str, **fields: object) -> None:
        """Remember an event."""
        self.said.append((kind, fields))
        if self.context.rank == 0:
            self.context.event(kind, **fields)

    def resume(self) -> int:
        """Load; return the step it goes on from."""
        self.progress = self.checkpoints.load(self.engine) or Progress()
        return self.progress.step

    def rewind(self, before: int) -> int | None:
        """Rewind; return the step it went to."""
        restored = self.checkpoints.rewind(self.engine, before=before)
        self.progress = restored or self.progress
        return None if restored is None else restored.step

    def train(self, upto: int, *, unclean: Sequence[int] = (), save: bool = True) -> None:
        """Train up to a step, saving when it is due."""
        for step in range(self.progress.step, upto):
            loss = self._step(step)
            self.losses[step + 1] = loss
            self.progress.step = step + 1
            self.progress.training.add(step + 1, loss)
            self.progress.history = [{"step": float(step + 1), "training_loss": loss}]
            self.checkpoints.observe(step + 1, step + 1 not in unclean, position=step, samples=BATCH)
            if save and self.checkpoints.due(step + 1):
                self.save()

    def save(self) -> Path:
        """Save now."""
        return self.checkpoints.save(self.engine, self.progress)

    def weights(self) -> str:
        """Return a digest of this rank's weights, optimiser state and buffers, to the last bit."""
        seen = hashlib.sha256()
        for tensor in _tensors(self.engine):
            seen.update(tensor.detach().float().numpy().tobytes())
        return seen.hexdigest()

    def biases(self) -> list[float]:
        """Return the experts' biases."""
        buffers = dict(self.engine.module.named_buffers())
        return [value for name in sorted(buffers) if "bias" in name for value in buffers[name].tolist()]

    def decays(self) -> list[float]:
        """Return the weight decay of each parameter group."""
        return [float(group["weight_decay"]) for group in self.engine.optimizer.param_groups]

    def counted(self) -> list[float]:
        """Return how many steps the optimiser believes to have made, for each tensor that it updates."""
        inner = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)
        return sorted({float(state["step"]) for state in inner.state.values() if "step" in state})

    def _step(self, step: int) -> float:
        import torch

        world = self.context.world_size
        generator = torch.Generator().manual_seed(step % 5)  # few batches, so that there is something to learn
        tokens = torch.randint(0, 512, (BATCH, LENGTH + 1), generator=generator)
        own = tokens[self.context.rank * BATCH // world : (self.context.rank + 1) * BATCH // world]
        logits = self.engine(input_ids=own[:, :-1]).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), own[:, 1:].flatten())
        self.engine.backward(loss)
        self.engine.step()
        with torch.no_grad():
            for name, buffer in self.engine.module.named_buffers():
                if "bias" in name:
                    buffer += 0.001 * torch.sign(torch.sin(torch.arange(buffer.numel()) + step)).view_as(buffer)
        return float(self.ranks.total(loss.detach().double().view(1))) / world


def _tensors(engine: DeepSpeedEngine) -> Iterator[object]:
    held = [getattr(engine.optimizer, name, None) for name in ("single_partition_of_fp32_groups",)]
    held.append(getattr(engine.optimizer, "fp32_partitioned_groups_flat", None))
    yield from (tensor for group in held if group for tensor in group)
    yield from engine.module.buffers()
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in inner.state.values():
        yield from (state[key] for key in sorted(state) if hasattr(state[key], "detach"))
    yield from (getattr(parameter, "ds_tensor", parameter) for parameter in engine.module.parameters())


class AwayStore(LocalStore):
    """A store that is away while a file is there."""

    def __init__(self, folder: Path, switch: Path) -> None:
        super().__init__(folder)
        self._switch = switch

    def put_blob(self, key: str, source: bytes | Path) -> None:
        """Store, or refuse while away."""
        if self._switch.exists():
            raise StoreUnavailableError(self.uri, "it is away for a minute")
        super().put_blob(key, source)


def _cases(context: JobContext) -> Iterator[tuple[str, TrainingPlan, JobContext]]:
    """Yield (label, plan, context with a folder of its own)."""
    root = Path(str(context.payload["root"]))
    for stage, precision in context.payload["cases"]:  # type: ignore[misc, union-attr]
        label = f"zero{stage}-{precision}"
        plan = small_plan(int(str(stage)), str(precision))
        spec = JobSpec.model_validate({"name": label, "kind": "train", "payload": {}})
        inner = JobContext(
            spec,
            root / label,
            attempt=context.attempt,
            rank=context.rank,
            world_size=context.world_size,
            store=LocalStore(root / "store"),
        )
        yield label, plan, inner


def exact(context: JobContext) -> dict[str, JsonValue]:
    """Compare a training that is left alone with one that is resumed, and with one that is rewound in place."""
    start_ranks(context.work, single_node=True)
    found: dict[str, JsonValue] = {}
    for label, plan, inner in _cases(context):
        alone = Trained(inner, plan.evolve(nonce="alone"))
        alone.train(10, save=False)
        first = Trained(inner, plan)
        first.resume()
        first.train(6, save=False)
        first.save()
        first.checkpoints.finish()
        second = Trained(inner, plan)
        from_step, biases = second.resume(), second.biases()
        second.train(9, save=False)
        went_to = second.rewind(before=8)  # 3 clean steps after step 6 make nothing healthy: 4 would
        second.train(10, save=False)
        healthy = second.rewind(before=8)
        second.train(10, save=False)
        second.checkpoints.finish(second.progress)
        found[label] = {
            "from_step": from_step,
            "too_early": went_to,
            "rewound_to": healthy,
            "losses": [alone.losses[step] == {**first.losses, **second.losses}[step] for step in range(1, 11)],
            "weights": alone.weights() == second.weights(),
            "straight": list(alone.losses.values()),
            "biases": biases,
            "rewinds": [fields["life"] for kind, fields in second.said if kind == "checkpoint_restored"],
        }
    end_ranks()
    return found


def other_world(context: JobContext) -> dict[str, JsonValue]:
    """Go on with another number of ranks from what ``exact`` or another number of ranks has left."""
    start_ranks(context.work, single_node=True)
    found: dict[str, JsonValue] = {}
    for label, plan, inner in _cases(context):
        fresh = Trained(inner, plan.evolve(nonce="fresh"))
        trained = Trained(inner, plan)
        from_step = trained.resume()
        biases, decays = trained.biases(), trained.decays()
        trained.train(from_step + 2, save=False)
        trained.save()
        trained.checkpoints.finish(trained.progress)
        found[label] = {
            "from_step": from_step,
            "losses": trained.losses,
            "biases": biases,
            "decays_kept": decays == fresh.decays(),
            "counted": trained.counted(),
            "left": sorted(path.name for path in (inner.work / "checkpoints").iterdir()),
            "said": [kind for kind, _ in trained.said],
        }
    end_ranks()
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def troubles(context: JobContext) -> dict[str, JsonValue]:
    """Meet a full disk, a store that is away, a poisoned step, a damaged file and a lost machine; tell what came of it.

    The steps are small and the order matters: each trouble begins with what the one before has left.
    """
    start_ranks(context.work, single_node=True)
    root = Path(str(context.payload["root"]))
    plan = small_plan(2, "fp32")
    found: dict[str, JsonValue] = {}

    def life(attempt: int, folder: str = "machine", restarts: int = 0) -> Trained:
        spec = JobSpec.model_validate({"name": "troubles", "kind": "train", "payload": {}})
        store = AwayStore(root / "store", root / "away")
        inner = JobContext(
            spec, root / folder, attempt=attempt, rank=context.rank, world_size=2, restarts=restarts, store=store
        )
        return Trained(inner, plan)

    first = life(1)
    first.resume()
    first.train(4)
    folder = first.context.work / "checkpoints"
    full = folder / f"{str(first.save().name).replace('04.', '08.')}.partial"
    first.train(7)
    if context.rank == 1:  # every write to this file fails as on a disk that is full
        full.mkdir(parents=True)
        (full / "zero_pp_rank_1_mp_rank_00_optim_states.pt").symlink_to("/dev/full")
    first.ranks.barrier()
    first.train(11)
    first.checkpoints.finish()
    found["after_full_disk"] = _steps_in(folder)
    first.train(12)
    if context.rank == 0:
        (root / "away").touch()
    first.ranks.barrier()
    first.train(16)
    first.train(17)
    if context.rank == 0:
        deadline = time.monotonic() + 60
        while "checkpoint_upload_delayed" not in [kind for kind, _ in first.said] and time.monotonic() < deadline:
            time.sleep(0.02)
        (root / "away").unlink()
    first.checkpoints.finish()
    found["said"] = [kind for kind, _ in first.said]
    found["problem"] = [str(fields["problem"]) for kind, fields in first.said if kind == "checkpoint_failed"]
    found["before_poison"] = _steps_in(folder)

    second = life(2)
    found["resumed_from"] = second.resume()
    second.train(23, unclean=[21])
    second.checkpoints.finish()
    found["after_poison"] = _steps_in(folder)

    third = life(3)
    found["after_poison_from"] = third.resume()
    reference = third.weights()
    newest = max(path for path in folder.glob("step-*") if path.is_dir())
    found["same_life_as_newest"] = newest.name
    third.ranks.barrier()
    if context.rank == 0:
        path = newest / "mp_rank_00_model_states.pt"
        path.write_bytes(path.read_bytes()[:-5] + b"wrong")
    third.ranks.barrier()
    fourth = life(4)
    found["after_damage_from"] = fourth.resume()
    found["after_damage_said"] = [
        dict(fields)["source"] for kind, fields in fourth.said if kind == "checkpoint_restored"
    ]

    fifth = life(5, "another machine")
    found["elsewhere_from"] = fifth.resume()
    found["elsewhere_source"] = [fields["source"] for kind, fields in fifth.said if kind == "checkpoint_restored"]  # type: ignore[misc]
    found["elsewhere_equal"] = fifth.weights() == reference
    found["after_a_wiped_disk_from"] = life(5, "a wiped machine", restarts=1).resume()
    fifth.train(24)
    fifth.checkpoints.finish(fifth.progress)
    found["proof"] = [json.loads(json.dumps(fields)) for kind, fields in fifth.said if kind == "resume_proof"]
    fifth.checkpoints.clear()
    left = list(LocalStore(root / "store").list("runs/"))
    found["left"] = [info.key for info in left]
    found["left_on_disk"] = (fifth.context.work / "checkpoints").exists()
    found["automatic"] = _automatic(context, root)
    found["machines"] = _two_machines(context, root)
    end_ranks()
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def _automatic(context: JobContext, root: Path) -> JsonValue:
    """Train with an automatic interval; return the steps of the checkpoints and what was said of the interval."""
    spec = JobSpec.model_validate({"name": "automatic", "kind": "train", "payload": {}})
    store = LocalStore(root / "store")
    inner = JobContext(spec, root / "automatic", rank=context.rank, world_size=2, store=store)
    trained = Trained(inner, small_plan(2, "fp32", every="auto"))
    trained.resume()
    trained.train(14)
    trained.checkpoints.finish()
    intervals = [{**fields} for kind, fields in trained.said if kind == "checkpoint_interval"]
    return {"steps": _steps_in(inner.work / "checkpoints"), "intervals": json.loads(json.dumps(intervals))}


class PatientStore(LocalStore):
    """A store that takes the second machine's parts when a file is there."""

    def __init__(self, folder: Path, switch: Path) -> None:
        super().__init__(folder)
        self._switch = switch

    def create(self, key: str, data: bytes) -> None:
        """Store, late where it is such a part."""
        deadline = time.monotonic() + 60
        while key.endswith("/node-001.json") and not self._switch.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        super().create(key, data)


def _two_machines(context: JobContext, root: Path) -> JsonValue:
    """Train as two machines of one rank, of which the second sends slowly; return what became whole, and the proof."""
    os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    spec = JobSpec.model_validate({"name": "machines", "kind": "train", "payload": {}})
    store = PatientStore(root / "machines-store", root / "arrive")
    inner = JobContext(spec, root / f"machine-{context.rank}", rank=context.rank, world_size=2, store=store)
    plan = small_plan(2, "fp32")
    trained = Trained(inner, plan)
    trained.resume()
    trained.train(13)
    if context.rank == 0:
        (root / "arrive").touch()
        names = StoredCheckpoints(store, plan.run_prefix, plan=plan.fingerprint)
        deadline = time.monotonic() + 60
        while not names.candidates() and time.monotonic() < deadline:
            time.sleep(0.05)
        while trained.checkpoints._keeper._uploads._open and time.monotonic() < deadline:
            time.sleep(0.05)
    trained.ranks.barrier()
    trained.train(16)
    trained.checkpoints.finish(trained.progress)
    sent = sorted({info.key.split("/")[3][5:13] for info in store.list(f"{plan.run_prefix}/checkpoints/")})
    whole = [int(str(fields["step"])) for kind, fields in trained.said if kind == "checkpoint_uploaded"]
    return {"whole": whole, "sent": [int(step) for step in sent]}


def _steps_in(folder: Path) -> list[JsonValue]:
    names = (CheckpointName.parse(path.name) for path in folder.iterdir())
    return sorted(name.step for name in names if name is not None)  # type: ignore[return-value]


def environment(work: str) -> dict[str, str]:
    """Return the variables that make a train job do ``work`` of this module."""
    here = os.pathsep.join([str(Path(__file__).parent)])
    return {KINDS: f"train=fixtures_checkpoints:{work}", "PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
