"""Streams of a training that never ran, as a real one writes them: with everything that may happen on the way."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence

from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.jobs.training_streams import _line
from deepseek_ops.training.streams import EVENTS, METRICS, TELEMETRY, pack, segment_name

PLAN = "5ca1ab1e" * 8
HOSTILE = "<img src=x onerror=alert(1)>"


def put_rows(store: ObjectStore, prefix: str, rows: Iterable[Mapping[str, object]], *, each: int = 1000) -> None:
    """Store rows as segments of ``each``, the first half of them joined as a writer does it."""
    left = iter(rows)
    packed = []
    while part := list(itertools.islice(left, each)):
        packed.append(pack(map(_line, part)))
    half = len(packed) // 2
    if half > 1:
        store.create(f"{prefix}/{segment_name(half - 1, first=0)}", b"".join(packed[:half]))
    for number in range(half if half > 1 else 0, len(packed)):
        store.create(f"{prefix}/{segment_name(number)}", packed[number])


def step_row(step: int, total: int, at: float, *, attempt: int = 1, noise: random.Random) -> dict[str, object]:
    """Return the metrics of a step of a calm training."""
    share = step / total
    row: dict[str, object] = {
        "step": step,
        "training_loss": 1.9 + 5 * math.exp(-9 * share) + noise.gauss(0, 0.05),
        "learning_rate": 4e-4 * min(step / (0.05 * total), 1.0) * (0.55 + 0.45 * math.cos(math.pi * share)),
        "grad_norm": 0.4 + 3 * math.exp(-6 * share) * abs(noise.gauss(1, 0.3)),
        "tokens_per_second": 41_000 + noise.gauss(0, 900),
        "mfu": 0.38 + noise.gauss(0, 0.008),
        "step_seconds": 0.8,
        "expert_load_min": max(0.0, 0.45 + 0.4 * share + noise.gauss(0, 0.05)),
        "expert_load_max": 1.9 - 0.6 * share + abs(noise.gauss(0, 0.08)),
        "experts_dead": float(max(0, 5 - int(share * 12))),
        "skipped": 0.0,
        "at": at,
        "attempt": attempt,
    }
    if step % max(total // 50, 1) == 0:
        row["val_loss"] = 2.0 + 5 * math.exp(-9 * share)
    return row


def rows_of(steps: int, at: float) -> list[dict[str, object]]:
    """Return the metrics of a run that was poisoned at 60 %, rewound to 58 %, and killed and resumed at 80 %."""
    noise = random.Random(7)  # noqa: S311  (no secret)
    seconds = 0.8

    def part(first: int, last: int, attempt: int) -> Iterable[dict[str, object]]:
        for step in range(first, last):
            yield step_row(step, steps, at + step * seconds, attempt=attempt, noise=noise)

    poisoned, back, killed, resumed = int(steps * 0.6), int(steps * 0.58), int(steps * 0.8), int(steps * 0.79)
    bad = [dict(row) for row in part(poisoned, poisoned + 3, 1)]
    bad[0] |= {"training_loss": 300.0, "grad_norm": 4000.0}
    bad[1] |= {"training_loss": math.nan, "grad_norm": math.inf}
    bad[2] |= {"training_loss": math.nan}
    calm = list(part(1, poisoned, 1))
    calm[int(steps * 0.3)] |= {"training_loss": math.nan}
    return [*calm, *bad, *part(back, killed, 1), *part(resumed, steps + 1, 2)]


def events_of(steps: int, at: float, *, ended: bool = True) -> list[dict[str, object]]:
    """Return what happened in it, hang and stacks included."""
    poisoned, back, killed, resumed = int(steps * 0.6), int(steps * 0.58), int(steps * 0.8), int(steps * 0.79)

    def one(kind: str, when: float, attempt: int = 1, /, **fields: object) -> dict[str, object]:
        return {"kind": kind, **fields, "at": at + when * 0.8, "attempt": attempt}

    evidence = ["2.31", "2.29", "300.0", "nan"]
    rule = {"rule": "loss is NaN or spikes", "metric": "training_loss", "severity": "critical", "evidence": evidence}
    found = [one("started", 0, parameters=671_000_000, total_steps=steps, num_samples=10 * steps, ranks=16)]
    every = max(steps // 40, 1)
    found += [
        one("checkpoint", step, step=step, folder=f"step-{step}", reason="interval", seconds=0.31)
        for step in range(every, steps, every)
    ]
    noise = random.Random(3)  # noqa: S311  (no secret)
    for step in range(max(steps // 60, 1), steps, max(steps // 60, 1)):
        layers = [[max(0.0, round(noise.gauss(1, 0.9 - 0.6 * step / steps), 3)) for _ in range(16)] for _ in range(2)]
        layers[0][3] = 0.0 if step < steps / 2 else layers[0][3]
        found.append(one("experts", step, step=step, steps=64, layers=layers))
    found += [
        one("alert", poisoned + 2, step=poisoned + 2, action="rewind", action_attempt=1, max_attempts=3, **rule),
        one(
            "guardian", poisoned + 2, step=poisoned + 2, action="rewind", done=True, why_not="", went_to=back - 1,
            positions_skipped=[[poisoned - 1, poisoned + 2]], samples_skipped=768, lr_factor=0.5, **rule,
        ),
        one("stragglers", steps * 0.7, step=int(steps * 0.7), window=32, ranks=[{"rank": 11, "node": 1, "ratio": 1.8}]),
        one("hang", killed, step=killed, node=0, behind=[5], silent_seconds=61.2, limit_seconds=60.0,
            positions={"0": {"step": killed, "phase": "step"}, "5": {"step": killed - 1, "phase": HOSTILE}}),
        one("stacks", killed, rank=5, node=0, step=killed - 1, phase="step", source="py-spy", problem="",
            frames=["read (queue.py:171)", f"wait {HOSTILE} (loader.py:88)", "batch (training_task.py:40)"]),
        one("resumed", resumed, 2, from_step=resumed - 1, samples_skipped=768, ranks=16,
            total_steps=steps),
        one("published", steps, 2, files=12, bytes=1_300_000_000, model=HOSTILE),
    ]  # fmt: skip
    if ended:
        found.append(
            one("resume_proof", steps, 2, exact=True, steps=steps, samples=10 * steps, samples_repeated=0,
                samples_skipped=0, steps_recomputed=9, steps_unrecorded=0, lives=[{"life": "1.0", "ranks": 16}])
        )  # fmt: skip
        found.append(one("finished", steps, 2, step=steps, metrics={"training_loss": 1.9}))
    return sorted(found, key=lambda row: float(str(row["at"])))


def telemetry_of(node: int, at: float, rows: int, *, gpus: int = 0) -> Iterable[dict[str, object]]:
    """Yield what a node's machine did, a row a second."""
    noise = random.Random(node)  # noqa: S311  (no secret)
    for second in range(rows):
        busy = 0.5 + 0.5 * math.sin(second / 90)
        row: dict[str, object] = {
            "node": node, "host": f"gpu-node-{node}", "cpu_percent": round(35 + 20 * busy + noise.gauss(0, 4), 1),
            "load_1m": 8.2, "memory_used_bytes": int(2.2e11 + 1e10 * busy), "memory_total_bytes": 540_000_000_000,
            "network_sent_bytes_per_second": int(9e8 * busy + 1e7), "ranks_rss_bytes": int(1.6e11),
            "network_received_bytes_per_second": int(8e8 * busy + 2e7),
            "disk_read_bytes_per_second": int(4e7 * busy),
            "disk_written_bytes_per_second": 900_000_000 if second % 300 < 12 else 100_000,
            "at": at + second, "attempt": 1,
        }  # fmt: skip
        if gpus:
            row["gpus"] = [
                {"index": index, "utilisation_percent": round(92 - 3 * index + noise.gauss(0, 2)),
                 "memory_used_bytes": int(6.1e10 + 1e9 * index), "memory_total_bytes": 85_899_345_920,
                 "power_watts": 610 + noise.gauss(0, 12), "temperature_celsius": 61}
                for index in range(gpus)
            ]  # fmt: skip
        yield row


def make_run(
    store: ObjectStore,
    at: float,
    *,
    plan: str = PLAN,
    steps: int = 2000,
    ended: bool = True,
    nodes: Sequence[int] = (4, 0),
    seconds: int = 900,
) -> None:
    """Store a run; ``nodes`` has the number of GPUs of each node."""
    prefix = f"runs/{plan}"
    put_rows(store, f"{prefix}/{EVENTS}", events_of(steps, at, ended=ended), each=20)
    put_rows(store, f"{prefix}/{METRICS}", rows_of(steps, at))
    for node, gpus in enumerate(nodes):
        put_rows(store, f"{prefix}/{TELEMETRY}/{node:04d}", telemetry_of(node, at, seconds, gpus=gpus), each=100)
