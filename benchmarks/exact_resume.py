"""Is a resume exact? One command prints the answer: a matrix of killed trainings beside ones that were left alone.

    python benchmarks/exact_resume.py [--steps 100] [--stages 1 2 3] [--precisions fp32 bf16] [--json FILE]

Each case trains the tests' small DeepSeek-V3 on two real ranks with the product's own trainer, once alone, and once
with a ``kill -9`` of a random rank after half of the steps. Every loss is compared, and the published weights by their
digest. The last case trains on 2, then 1, then 2 ranks, and adds the largest difference of any loss. The proof that the
trainer itself prints about samples is repeated here. Nothing is timed for its own sake: recovery is reported, loaded
machines make it slow.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fixtures_launcher import settled
from fixtures_trainer import Lab, lab
from pydantic import JsonValue

from deepseek_ops.core.jobs import JobPhase
from deepseek_ops.core.records import DatasetVersion, TrainingPlan

Row = dict[str, JsonValue]


@contextmanager
def laboratory(folder: Path) -> Iterator[tuple[Lab, DatasetVersion]]:
    """Give the tests' laboratory and its data set."""

    class Factory:
        def mktemp(self, name: str) -> Path:
            path = folder / name
            path.mkdir()
            return path

    made = lab.__wrapped__(Factory())  # type: ignore[attr-defined]  # the function behind the pytest fixture
    one = next(made)
    try:
        found = result(one, one.prepare("prepare"))["dataset"]
        assert isinstance(found, dict)
        yield one, DatasetVersion.load(found)
    finally:
        made.close()


PATIENCE_SECONDS = 3600.0


def result(one: Lab, name: str) -> dict[str, JsonValue]:
    """Return what a job came to, however slow this machine is."""
    status = settled(one.launcher, name, within=PATIENCE_SECONDS)
    if status.phase is not JobPhase.SUCCEEDED:
        raise SystemExit(f"{status}\n{one.launcher.logs(name)[0][-4000:]}")
    return one.launcher.result(name)


def reached(one: Lab, name: str, step: int) -> None:
    """Wait until a training has done a step."""
    while True:
        status = one.launcher.status(name)
        if status is None or status.settled:
            raise SystemExit(f"{status}\n{one.launcher.logs(name)[0][-4000:]}")
        if (status.step or 0) >= step:
            return
        time.sleep(0.01)


def kill(one: Lab, name: str, rank: int) -> None:
    """Kill -9 a rank."""
    group = json.loads((one.root / "jobs" / name / "ranks.json").read_text())
    os.kill(group["pids"][rank], signal.SIGKILL)


def losses(one: Lab, name: str) -> list[float]:
    """Return the loss of each step, by step."""
    rows = one.rows(name)
    return [rows[step]["training_loss"] for step in sorted(rows)]


def proof_of(one: Lab, name: str) -> Row:
    """Return the trainer's own proof."""
    proof = one.events(name, "resume_proof")[-1]
    return {key: proof[key] for key in ("exact", "samples_repeated", "samples_skipped", "steps_recomputed")}


def killed(one: Lab, label: str, plan: TrainingPlan, steps: int) -> Row:
    """Return the row of one killed training."""
    alone, name = f"{label}-alone", f"{label}-killed"
    expected = result(one, one.train(alone, plan.evolve(nonce="alone")))
    rank = random.Random(label).randrange(plan.nproc_per_node)  # noqa: S311  (which rank dies is no secret)
    one.train(name, plan.evolve(nonce="killed"))
    reached(one, name, steps // 2 + 1)
    kill(one, name, rank)
    at = time.monotonic()
    seen = len(one.events(name, "metric"))
    while len(one.events(name, "metric")) <= seen and not one.launcher.status(name).settled:  # type: ignore[union-attr]
        time.sleep(0.02)
    recovery = time.monotonic() - at
    found = result(one, name)
    first, second = losses(one, alone), losses(one, name)
    return {
        "case": label,
        "killed_rank": rank,
        "resumed_from": one.events(name, "resumed")[0]["from_step"],
        "steps": len(second),
        "equal_losses": sum(a == b for a, b in zip(first, second, strict=True)),
        "equal_weights": found["model"] == expected["model"],
        "recovery_seconds": round(recovery, 2),
        **proof_of(one, name),
    }


def resized(one: Lab, label: str, plan: TrainingPlan, steps: int) -> Row:
    """Return the row of a training on 2, then 1, then 2 ranks."""
    alone, name = f"{label}-alone", f"{label}-resized"
    result(one, one.train(alone, plan.evolve(nonce="alone")))
    payload: dict[str, JsonValue] = {"plan": plan.evolve(nonce="resized").dump(), "alerts": []}
    for ranks, upto in ((2, steps // 3), (1, 2 * steps // 3), (2, None)):
        one.submit("train", name, payload, num_ranks=ranks)
        if upto is None:
            result(one, name)
            continue
        reached(one, name, upto)
        one.launcher.stop(name, "other ranks")
        settled(one.launcher, name, within=PATIENCE_SECONDS)
    first, second = losses(one, alone), losses(one, name)
    restored = one.events(name, "checkpoint_restored")
    return {
        "case": label,
        "ranks": [2, *(event["ranks"] for event in restored)],
        "steps": len(second),
        "max_difference": max(abs(a - b) for a, b in zip(first, second, strict=True)),
        **proof_of(one, name),
    }


def main() -> int:
    """Run the matrix; return 1 when anything is not exact."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    settings = {"checkpoint_steps": max(2, options.steps // 8), "eval_steps": options.steps}
    with tempfile.TemporaryDirectory() as folder, laboratory(Path(folder)) as (one, dataset):
        for stage in options.stages:
            for precision in options.precisions:
                hyper = {"max_steps": options.steps}
                plan = one.plan(dataset, zero_stage=stage, precision=precision, hyperparameters=hyper, **settings)
                for work in (killed, resized) if precision == "fp32" else (killed,):
                    rows.append(work(one, f"zero{stage}-{precision}", plan, options.steps))
                    print(json.dumps(rows[-1]), flush=True)
    good = all(row["exact"] and row.get("equal_weights", True) is True for row in rows)
    good = good and all(row.get("equal_losses", row["steps"]) == row["steps"] == options.steps for row in rows)
    summary: dict[str, JsonValue] = {"exact": good, "rows": [dict(row) for row in rows]}
    if options.json is not None:
        options.json.write_text(json.dumps(summary, indent=1))
    print("EXACT" if good else "NOT EXACT")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
