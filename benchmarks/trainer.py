"""What our trainer costs beside a bare DeepSpeed loop and the Trainer of transformers: speed, start, restart.

    python benchmarks/trainer.py [--blocks 12] [--block 4] [--starts 2] [--out results.json]

Speed: the three train the same shape of model on the same ranks of one process group and take turns every few steps
(``trainer_turns.py``), ours with everything on: streams to the store, guardian, telemetry, checkpoints, bias balancing.
The figures are tokens per CPU-second and per second, and ours over each of the others, paired turn by turn: the median
and the middle half. On a shared machine believe the CPU-seconds; on a GPU the seconds. The rates of weights and biases
are so small that all three keep the routing they begin with: balanced routers, which only ours has, send tokens to more
experts, and a step that computes more experts is not one that wastes more.

Start: from submitting a job to its first step, cold and with the warm host, beside torchrun with a plain script.
Restart: from kill -9 of a rank to the first step beyond the checkpoint, beside starting torchrun again on its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from deepseek_ops.adapters.local_launcher import LocalLauncher
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.adapters.stores.opening import store_environment
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.core.records import DatasetVersion, Hyperparameters, TrainingPlan
from deepseek_ops.data import StoreBlobs, materialise
from deepseek_ops.embedded.corpus import collect_python_corpus

PROJECT = Path(__file__).parents[1]
HERE = Path(__file__).parent
SECRET_FREE = {"OMP_NUM_THREADS": "1"}
WITHIN = 300.0
STILL = 1e-9
"""A rate that changes no routing."""


def main() -> None:
    """Run the parts and print one JSON object."""
    asked = arguments()
    with tempfile.TemporaryDirectory(prefix="trainer-benchmark-") as scratch:
        bench = Bench(Path(scratch), asked)
        try:
            found: dict[str, object] = {"machine": machine(), "model": bench.size, **bench.speed()}
            if asked.starts:
                found |= {"start": bench.starts(), "restart": bench.restarts()}
        finally:
            bench.launcher.shutdown(grace_seconds=5)
    text = json.dumps(found, indent=2)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=12, help="turns of each trainer that are measured")
    parser.add_argument("--block", type=int, default=4, help="optimiser steps of a turn")
    parser.add_argument("--starts", type=int, default=2, help="repetitions of start and restart; 0 leaves them out")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stage", type=int, default=2, help="ZeRO stage")
    parser.add_argument("--batch", type=int, default=16, help="samples of a step over all ranks")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sample")
    parser.add_argument("--hidden", type=int, default=128, help="width of the model")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--checkpoint-steps", default="auto", help="steps between checkpoints, or auto: as they cost")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


class Bench:
    """A store, a dataset, a plan and a launcher, below one folder."""

    def __init__(self, root: Path, asked: argparse.Namespace) -> None:
        self.root, self.asked = root, asked
        self.store = LocalStore(root / "store")
        self.launcher = LocalLauncher(root / "launcher")
        dataset = self._dataset()
        self.plan = TrainingPlan(
            dataset=dataset,
            model=model(asked.hidden, asked.layers),
            nproc_per_node=asked.ranks,
            zero_stage=asked.stage,
            precision=asked.precision,
            hyperparameters=Hyperparameters(
                learning_rate=STILL,
                bias_update_rate=STILL,
                batch_size=asked.batch,
                sequence_length=asked.length,
                max_steps=100_000,
            ),
            checkpoint_steps=asked.checkpoint_steps
            if asked.checkpoint_steps == "auto"
            else int(asked.checkpoint_steps),
            eval_steps=1_000_000,
        )
        self.data = root / "dataset"
        materialise(self.store, dataset.version, self.data, patterns=("tokens/*", "tokenizer/*"))
        asked_of = self.plan.hyperparameters
        self.size = {"model": "DeepSeek-V3 class", "hidden": asked.hidden, "layers": asked.layers,
                     "tokens_per_step": asked_of.batch_size * asked_of.sequence_length, "ranks": asked.ranks,
                     "zero_stage": asked.stage, "precision": asked.precision}  # fmt: skip

    def speed(self) -> dict[str, object]:
        """Return tokens per CPU-second and per second of the three, and ours over the others."""
        out = self.root / "turns"
        out.mkdir()
        request = self._request("turns-job", out=str(out), block=self.asked.block, blocks=self.asked.blocks,
                                alerts=[], store=str(self.root / "store"))  # fmt: skip
        subprocess.run(self._torchrun("trainer_turns.py", request), check=True, env=self._environment())
        ranks = [json.loads(path.read_text()) for path in sorted(out.glob("rank-*.json"))]
        tokens = self.plan.hyperparameters.batch_size * self.plan.hyperparameters.sequence_length * self.asked.block
        turns = self.asked.blocks
        behind = sum(rank["behind"] for rank in ranks) / turns  # of all three's time, so a little too much
        cpu = {name: [sum(rank["blocks"][name][turn][1] for rank in ranks) for turn in range(turns)]
               for name in ("bare", "ours", "hf")}  # fmt: skip
        wall = {name: [max(rank["blocks"][name][turn][0] for rank in ranks) for turn in range(turns)]
                for name in cpu}  # fmt: skip
        own_share = sum(wall["ours"]) / sum(sum(values) for values in wall.values())
        cpu["ours"] = [value + behind * own_share for value in cpu["ours"]]
        told = {
            name: {"tokens_per_cpu_second": round(tokens / statistics.median(cpu[name])),
                   "tokens_per_second": round(tokens / statistics.median(wall[name]))}
            for name in cpu
        }  # fmt: skip
        ratios = {
            f"ours_over_{other}": {"by_cpu": spread([b / a for a, b in zip(cpu["ours"], cpu[other], strict=True)]),
                                   "by_wall": spread([b / a for a, b in zip(wall["ours"], wall[other], strict=True)])}
            for other in ("bare", "hf")
        }  # fmt: skip
        share = behind * own_share / statistics.median(cpu["ours"])
        return {"speed": told, "ratio": ratios, "background_share_of_cpu": round(share, 4), "turns": turns}

    def starts(self) -> dict[str, object]:
        """Return seconds from submitting to the first step."""
        cold, warm, plain = [], [], []
        for turn in range(self.asked.starts):
            with self._plain(f"start-{turn}") as (began, first):
                plain.append(first(0) - began)
            self.launcher.shutdown(grace_seconds=5)
            for times in (cold, warm):
                name = f"start-{turn}-{'cold' if times is cold else 'warm'}"
                with self._job(name) as (began, first):
                    times.append(first(0) - began)
        return self._compared({"cold": cold, "warm": warm}, plain, "torchrun")

    def restarts(self) -> dict[str, object]:
        """Return seconds from kill -9 of a rank to the first step beyond what was done before."""
        own, plain = [], []
        for turn in range(self.asked.starts):
            with self._plain(f"kill-{turn}", save_at=8) as (_, first):
                done = self._after(first, 9)
                self._kill_plain()
                began = time.time()
                with self._plain(f"kill-{turn}", save_at=8) as (_, again):
                    plain.append(again(done) - began)
            with self._job(f"kill-{turn}", checkpoint_steps=8) as (_, first):
                done = self._after(first, 9)
                group = json.loads((self.root / "launcher" / "jobs" / f"kill-{turn}" / "ranks.json").read_text())
                began = time.time()
                os.kill(group["pids"][-1], signal.SIGKILL)
                own.append(first(done, since=began) - began)
        return self._compared({"ours": own}, plain, "relaunch")

    def _after(self, first: Callable[..., float], steps: int) -> int:
        first(steps - 1)
        return steps

    @contextmanager
    def _job(self, name: str, **changes: object) -> Iterator[tuple[float, Callable[..., float]]]:
        plan = self.plan.evolve(nonce=name, **changes)
        spec = JobSpec(name=name, kind="train", payload={"plan": plan.dump(), "alerts": []},
                       num_ranks=self.asked.ranks, environment=SECRET_FREE)  # fmt: skip
        began = time.time()
        self.launcher.submit(spec, secrets=store_environment(self.store.uri))

        def first(after: int, since: float = 0.0) -> float:
            return self._waited(lambda: self._told(name, after, since), lambda: self.launcher.logs(name)[0][-3000:])

        try:
            yield began, first
        finally:
            self.launcher.stop(name, reason="measured")
            while not (status := self.launcher.status(name)) or not status.settled:
                time.sleep(0.1)

    def _told(self, name: str, after: int, since: float) -> float | None:
        from datetime import datetime

        for event in self.launcher.events(name):
            at = datetime.fromisoformat(str(event["time"])).timestamp()
            if event["kind"] == "metric" and int(str(event["step"])) > after and at > since:
                return at
        return None

    @contextmanager
    def _plain(self, name: str, save_at: int = 0) -> Iterator[tuple[float, Callable[..., float]]]:
        folder = self.root / f"plain-{name}"
        folder.mkdir(exist_ok=True)
        steps = folder / "steps-0"
        steps.unlink(missing_ok=True)
        request = self._request(f"plain-{name}", save_at=save_at)
        began = time.time()
        with (folder / "log").open("wb") as log:
            command = self._torchrun("trainer_plain.py", request)
            self._running = subprocess.Popen(
                command, env=self._environment(), stdout=log, stderr=log, start_new_session=True
            )

            def told(after: int) -> float | None:
                lines = [line.split() for line in steps.read_text().splitlines()] if steps.exists() else []
                return next((float(at) for step, at in lines if int(step) > after), None)

            try:
                yield began, lambda after: self._waited(lambda: told(after), (folder / "log").read_text)
            finally:
                self._kill_plain()

    def _kill_plain(self) -> None:
        if self._running.poll() is None:
            # Ranks lead sessions of their own: torchrun's group does not have them.
            for process in psutil.Process(self._running.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._running.kill()
            self._running.wait()

    @staticmethod
    def _waited(look: Callable[[], float | None], log: Callable[[], str]) -> float:
        deadline = time.monotonic() + WITHIN
        while (found := look()) is None:
            if time.monotonic() > deadline:
                raise SystemExit(f"no step within {WITHIN:.0f} s:\n{log()}")
            time.sleep(0.05)
        return found

    @staticmethod
    def _compared(ours: dict[str, list[float]], plain: list[float], other: str) -> dict[str, object]:
        median = statistics.median
        return {
            f"{other}_seconds": round(median(plain), 2),
            **{f"{name}_seconds": round(median(times), 2) for name, times in ours.items()},
            **{f"{name}_over_{other}": round(median(times) / median(plain), 3) for name, times in ours.items()},
        }

    def _request(self, folder: str, **more: object) -> Path:
        path = self.root / folder
        path.mkdir(exist_ok=True)
        request = self.root / f"{folder}.json"
        request.write_text(
            json.dumps({"plan": self.plan.dump(), "folder": str(path), "dataset": str(self.data), **more})
        )
        return request

    def _torchrun(self, script: str, request: Path) -> list[str]:
        ranks = str(self.asked.ranks)
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks,
                str(HERE / script), str(request)]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}

    def _dataset(self) -> DatasetVersion:
        blobs = StoreBlobs(self.store)
        collect_python_corpus(self.root / "raw")
        code = self.root / "code"
        code.mkdir()
        shutil.copyfile(PROJECT / "include/examples/tiny-deepseek/deepseek/prepare.py", code / "mine.py")
        payload = {"code": blobs.put_folder(code).dump(), "callable": "mine:prepare_data",
                   "raw": blobs.put_folder(self.root / "raw").dump(), "dataset": "corpus",
                   "split": {"train": 0.9, "val": 0.05, "test": 0.05}, "parameters": {}}  # fmt: skip
        spec = JobSpec(name="prepare", kind="prepare", payload=payload, environment=SECRET_FREE)
        self.launcher.submit(spec, secrets=store_environment(self.store.uri))
        while not (status := self.launcher.status("prepare")) or not status.settled:
            time.sleep(0.2)
        return DatasetVersion.load(self.launcher.result("prepare")["dataset"])


def model(hidden: int, layers: int) -> dict[str, object]:
    """Return the configuration of a DeepSeek-V3 of this width: eight routed experts, two used by each token."""
    return {
        "model_type": "deepseek_v3", "vocab_size": 4096, "hidden_size": hidden, "intermediate_size": 4 * hidden,
        "moe_intermediate_size": hidden, "num_hidden_layers": layers, "first_k_dense_replace": 1,
        "num_attention_heads": max(2, hidden // 64), "num_key_value_heads": max(2, hidden // 64),
        "q_lora_rank": 3 * hidden // 4, "kv_lora_rank": hidden // 2, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32,
        "v_head_dim": 32, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1,
        "topk_group": 1, "num_nextn_predict_layers": 0, "max_position_embeddings": 4096, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 2,
    }  # fmt: skip


def spread(values: list[float]) -> dict[str, float]:
    """Return the median and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 4), "quartile_low": round(low, 4), "quartile_high": round(high, 4)}


def machine() -> dict[str, object]:
    """Return what it ran on, and how busy that was."""
    return {"cpus": os.cpu_count(), "machine": platform.machine(), "load_1m": round(os.getloadavg()[0], 1)}


if __name__ == "__main__":
    main()
