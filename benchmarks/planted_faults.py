"""Every fault of a long run, planted into real trainings: what the guardian did, and what it cost in the end.

    python benchmarks/planted_faults.py [--only NAME ...] [--steps 120] [--json FILE]

Two ranks of a small DeepSeek-V3 on this machine. A run is right when it ended as its rule says, all ranks acted in the
same step, no poisoned state was checkpointed, and, where it recovers, its final validation loss is within 2 % of the
clean run's. The default rules are in force unless a line says otherwise; on the clean runs they must be silent.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fixtures_planted_faults import Fault, Planted, outcome, submit_planted
from fixtures_trainer import PREPARE, TEMPLATE, Lab

from deepseek_ops.adapters.local_launcher.launcher import LocalLauncher
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.records import DatasetVersion
from deepseek_ops.data import StoreBlobs
from deepseek_ops.embedded.corpus import collect_python_corpus


@dataclass(frozen=True)
class Case:
    """One fault and what must come of it."""

    name: str
    faults: list[Fault]
    expected: Callable[[Planted], bool]
    says: str
    """What ``expected`` asks, in words."""
    recovers: bool = True
    alerts: list[JsonValue] = field(default_factory=list)
    plan: dict[str, object] = field(default_factory=dict)
    job: dict[str, object] = field(default_factory=dict)
    clean: str = "clean"


def acts(*actions: str) -> Callable[[Planted], bool]:
    """Return whether the guardian did these things, in this order, on all ranks in the same steps."""

    def same(run: Planted) -> bool:
        return tuple(action for _, action in run.actions) == actions and (run.acted_together or not actions)

    return same


def told(metric: str) -> Callable[[Planted], bool]:
    """Return whether a rule on the metric told people, and nothing was done."""
    return lambda run: bool(run.of("alert", metric=metric)) and not run.actions


def silent(run: Planted) -> bool:
    """Return whether no rule fired."""
    return not run.of("alert") and not run.of("guardian")


def cases(late: int) -> list[Case]:
    """Return all cases; ``late`` is a step at which rules with windows know what is usual."""
    zero0: dict[str, object] = {"zero_stage": 0}
    ladder: list[JsonValue] = [
        {"metric": "poisoned", "condition": "value > 0",
         "actions": [{"type": "rewind", "max_attempts": 2}, {"type": "stop_training"}]}
    ]  # fmt: skip
    return [
        Case("clean", [], silent, "silent"),
        Case("clean, ZeRO-0", [], silent, "silent", plan=zero0),
        Case("NaN on rank 1, once", [{"kind": "nan", "step": 40, "rank": 1}], told("loss_nan_ranks"), "told"),
        Case("NaN on rank 1, once, ZeRO-0", [{"kind": "nan", "step": 40, "rank": 1}], acts("rewind"), "rewind",
             plan=zero0, clean="clean, ZeRO-0"),
        Case("bad batches", [{"kind": "bad_batch", "position": 40, "positions": 5, "rank": 1}],
             acts("skip_batches"), "skip_batches"),
        Case("NaN gradient, ZeRO-0", [{"kind": "broken", "position": 41, "rank": 1}],
             acts("rewind", "rewind"), "rewind twice, the second finds it", plan=zero0, clean="clean, ZeRO-0"),
        Case("poison without end", [{"kind": "bad_batch", "position": 40, "positions": 10_000}],
             acts("rewind", "rewind", "stop_training"), "rewinds, stop", recovers=False, alerts=ladder, plan=zero0),
        Case("loss spike", [{"kind": "spike", "step": late, "factor": 300.0}], acts("rewind"), "rewind"),
        Case("exploding gradient", [{"kind": "explode", "step": late, "steps": 2, "factor": 1e4}],
             acts("rewind"), "rewind"),
        Case("collapsed router", [{"kind": "collapse", "step": 40}], acts("rewind"), "rewind"),
        Case("slow rank", [{"kind": "slow", "step": late - 60, "steps": 60, "seconds": 1.0, "rank": 1}],
             lambda run: bool(run.of("stragglers")), "straggler named"),
        Case("rank that hangs", [{"kind": "hang", "step": 40, "rank": 1}],
             lambda run: bool(run.of("hang")) and run.status.restarts == 1, "found, restarted",
             job={"hang_seconds": 20.0}),
        Case("full disk at a checkpoint", [{"kind": "full_disk", "step": 30, "steps": 12, "bytes": 200_000}],
             lambda run: bool(run.of("checkpoint_failed")) and not run.actions, "checkpoint given up, goes on"),
        Case("store away for a minute", [{"kind": "store_down", "step": 30, "seconds": 60.0}],
             lambda run: not run.actions, "training goes on"),
    ]  # fmt: skip


@contextlib.contextmanager
def laboratory(root: Path) -> Iterator[tuple[Lab, DatasetVersion]]:
    """Give a store, a small real dataset and a warm launcher."""
    store = LocalStore(root / "store")
    blobs = StoreBlobs(store)
    collect_python_corpus(root / "raw", stdlib=Path(os.__file__).parent / "asyncio")
    code = root / "code"
    (code / "template").mkdir(parents=True)
    (code / "template" / "prepare.py").write_bytes((TEMPLATE / "deepseek" / "prepare.py").read_bytes())
    (code / "mine.py").write_text(PREPARE)
    launcher = LocalLauncher(root)
    launcher.prewarm({"OMP_NUM_THREADS": "1"})
    try:
        lab = Lab(root, store, launcher, blobs.put_folder(root / "raw"), blobs.put_folder(code))
        made = lab.result(lab.prepare("prepare"))["dataset"]
        if not isinstance(made, dict):
            raise SystemExit("the preparation returned no dataset")
        yield lab, DatasetVersion.load(made)
    finally:
        launcher.shutdown(grace_seconds=5)


def run(lab: Lab, dataset: DatasetVersion, case: Case, *, steps: int) -> Planted:
    """Return what the training of a case came to."""
    name = "".join(char if char.isalnum() else "-" for char in case.name.lower())
    settings: dict[str, object] = {"nonce": name, "checkpoint_steps": 8, "eval_steps": steps, **case.plan}
    plan = lab.plan(dataset, hyperparameters={"max_steps": steps}, **settings)
    submit_planted(lab, name, plan, case.faults, case.alerts, **case.job)
    return outcome(lab, name)


def verdict(case: Case, planted: Planted, clean: Planted | None) -> dict[str, JsonValue]:
    """Return a line of the table."""
    poisoned = {int(str(event["step"])) for event in planted.of("metric") if event.get("poisoned")}
    saved = {int(str(event["step"])) for event in planted.of("checkpoint")}
    rewound = [int(str(event["step"])) for event in planted.of("metric")]
    wrong = []
    if not case.expected(planted):
        wrong.append(f"expected {case.says}")
    if poisoned & saved - {step for step in poisoned if rewound.count(step) > 1}:
        wrong.append("a poisoned state was saved")
    over = None
    if case.recovers:
        if str(planted.status.phase) != "succeeded":
            wrong.append(f"{planted.status.phase}: {planted.status.reason[:80]}")
        elif clean is not None:
            over = planted.final_loss / clean.final_loss - 1
            if abs(over) > 0.02:
                wrong.append("the loss is off")
    elif str(planted.status.phase) != "stopped":
        wrong.append(f"{planted.status.phase} instead of stopped")
    return {
        "case": case.name,
        "expected": case.says,
        "did": ", ".join(f"{action} at {step}" for step, action in planted.actions) or "-",
        "restarts": planted.status.restarts,
        "loss_over_clean": None if over is None else round(over, 5),
        "right": not wrong,
        "wrong": "; ".join(wrong),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="Parts of the names of cases.")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    lines, runs = [], {}
    with tempfile.TemporaryDirectory() as scratch, laboratory(Path(scratch)) as (lab, dataset):
        for case in cases(max(80, options.steps * 2 // 3)):
            wanted = case.name.startswith("clean") or not options.only
            if not wanted and not any(part in case.name for part in options.only):
                continue
            runs[case.name] = run(lab, dataset, case, steps=options.steps)
            line = verdict(case, runs[case.name], runs.get(case.clean))
            lines.append(line)
            over = line["loss_over_clean"]
            print(
                f"{'ok ' if line['right'] else 'BAD'} {case.name:30} {line['did']!s:44} "
                f"{'' if over is None else format(float(str(over)), '+.2%'):>8}  {line['wrong']}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(lines, indent=2) + "\n")
    return 0 if all(line["right"] for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
