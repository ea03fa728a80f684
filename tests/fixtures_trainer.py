"""A laboratory for training: a store, a small real dataset, a warm launcher and a model of 60,000 parameters."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures_launcher import settled
from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher.launcher import LocalLauncher
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.adapters.stores.opening import store_environment
from deepseek_ops.core.jobs import JobPhase, JobSpec, JobStatus
from deepseek_ops.core.records import Checkpoint, DatasetVersion, FileSet, Hyperparameters, TrainingPlan
from deepseek_ops.data import StoreBlobs
from deepseek_ops.embedded.corpus import collect_python_corpus

MODEL: dict[str, JsonValue] = {
    "model_type": "deepseek_v3",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
    "initializer_range": 0.1,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
FIRST_JOB = "prepare-first"
"""The job that made the dataset of all laboratories."""
SECRET = "correct-horse-battery-staple"
PREPARE = '''
"""The preparation of the tests: the template's, with a vocabulary of 512."""
import json, os, sys
from pathlib import Path
from template import prepare as template

def prepare_data(raw, out, **parameters):
    template.VOCAB_SIZE = 512
    template.prepare_data(raw, out)
    print("VARIABLES", *sorted(os.environ))
    print("VALUES", *os.environ.values())

def leaky(raw, out):
    prepare_data(raw, out)
    lines = (out / "documents.jsonl").read_text().splitlines()
    texts = [json.loads(line) for line in lines]
    with (out / "documents.jsonl").open("a") as file:
        for text in texts[:30]:
            file.write(json.dumps({"id": text["id"] + "-copy", "text": text["text"]}) + "\\n")
        for text in texts[30:90]:
            file.write(json.dumps({"id": text["id"] + "-shout", "text": text["text"].upper()}) + "\\n")

def fail(raw, out):
    raise ValueError("the corpus is a fish")

def nothing(raw, out):
    out.mkdir()

def garbage(raw, out):
    prepare_data(raw, out)
    (out / "documents.jsonl").write_text('{"id": "a", "text": "fine"}\\n{"id": 7}\\n')

def killed(raw, out):
    os.kill(os.getpid(), 9)

def endless(raw, out):
    import subprocess, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("CHILD", child.pid, flush=True)
    Path("child.pid").write_text(str(child.pid))
    time.sleep(600)
'''
TEMPLATE = Path(__file__).parent.parent / "include/examples/tiny-deepseek"


@dataclass
class Lab:
    """Everything a training needs, for real."""

    root: Path
    store: LocalStore
    launcher: LocalLauncher
    raw: FileSet
    code: FileSet

    @property
    def blobs(self) -> StoreBlobs:
        return StoreBlobs(self.store)

    def submit(self, kind: str, name: str, payload: Mapping[str, JsonValue], **fields: object) -> str:
        """Start a job and return its name."""
        body = {"name": name, "kind": kind, "payload": dict(payload), "environment": {"OMP_NUM_THREADS": "1"}}
        job = JobSpec.model_validate({**body, **fields})
        secrets = {**store_environment(self.store.uri), "AWS_SECRET_ACCESS_KEY": SECRET}
        self.launcher.submit(job, secrets=secrets)
        return name

    def settle(self, name: str) -> JobStatus:
        """Return the job's status once it has ended."""
        return settled(self.launcher, name, within=240)

    def result(self, name: str) -> dict[str, JsonValue]:
        """Return the job's result; fails with its log when it did not succeed."""
        status = self.settle(name)
        assert status.phase is JobPhase.SUCCEEDED, f"{status}\n{self.launcher.logs(name)[0][-4000:]}"
        return self.launcher.result(name)

    def prepare(self, name: str, target: str = "mine:prepare_data", *, code: FileSet | None = None) -> str:
        """Start a prepare job."""
        payload = {
            "code": (code or self.code).dump(),
            "callable": target,
            "raw": self.raw.dump(),
            "dataset": "corpus",
            "split": {"train": 0.8, "val": 0.1, "test": 0.1},
            "parameters": {},
        }
        return self.submit("prepare", name, payload)

    def plan(self, dataset: DatasetVersion, *, ranks: int = 2, **changes: object) -> TrainingPlan:
        """Return a training of a few seconds."""
        hyper = {"learning_rate": 0.01, "batch_size": 8, "max_steps": 16, "sequence_length": 64}
        own = changes.pop("hyperparameters", {})
        values = {
            "dataset": dataset,
            "model": MODEL,
            "nproc_per_node": ranks,
            "hyperparameters": Hyperparameters.load({**hyper, **(own if isinstance(own, dict) else {})}),
            "checkpoint_steps": 8,
            "eval_steps": 8,
            **changes,
        }
        return TrainingPlan.model_validate(values)

    def train(self, name: str, plan: TrainingPlan, *, alerts: list[JsonValue] | None = None) -> str:
        """Start a training."""
        payload = {"plan": plan.dump(), "alerts": alerts or []}
        return self.submit("train", name, payload, num_ranks=plan.nproc_per_node)

    def trained(self, name: str, plan: TrainingPlan) -> Checkpoint:
        """Return what a training came to."""
        return Checkpoint.load(self.result(self.train(name, plan)))

    def rows(self, name: str) -> dict[int, dict[str, float]]:
        """Return the metrics of each step, the last ones where a step ran twice."""
        events = self.launcher.events(name)
        return {int(str(event["step"])): event for event in events if event["kind"] == "metric"}  # type: ignore[misc]

    def events(self, name: str, kind: str) -> list[dict[str, JsonValue]]:
        """Return the job's events of a kind."""
        return [event for event in self.launcher.events(name) if event["kind"] == kind]

    def kill_rank(self, name: str, rank: int, *, after_step: int) -> None:
        """Kill -9 a rank once the job has reported a step beyond ``after_step``."""
        deadline = time.monotonic() + 200
        while (self.launcher.status(name).step or 0) <= after_step:  # type: ignore[union-attr]
            assert time.monotonic() < deadline, self.launcher.logs(name)[0][-4000:]
            time.sleep(0.01)
        group = json.loads((self.root / "jobs" / name / "ranks.json").read_text())
        os.kill(group["pids"][rank], signal.SIGKILL)


@dataclass
class Bench:
    """What the laboratories of one process share: imports that are done, and a dataset that is prepared."""

    lab: Lab
    dataset: DatasetVersion


@functools.cache
def shared_bench() -> Bench:
    """Return the bench of this process, which ends with it.

    Its warm host imports torch once for all laboratories: a fixture that several modules import is made for each of
    them, whatever its scope.
    """
    root = Path(tempfile.mkdtemp(prefix="deepseek-ops-bench-"))
    store = LocalStore(root / "store")
    blobs = StoreBlobs(store)
    library = Path(os.__file__).parent
    collect_python_corpus(root / "raw", stdlib=library / "asyncio")
    code = root / "code"
    (code / "template").mkdir(parents=True)
    (code / "template" / "prepare.py").write_bytes((TEMPLATE / "deepseek" / "prepare.py").read_bytes())
    (code / "mine.py").write_text(PREPARE)
    launcher = LocalLauncher(root)
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    atexit.register(launcher.shutdown, grace_seconds=5)
    launcher.prewarm({"OMP_NUM_THREADS": "1"})
    lab = Lab(root, store, launcher, blobs.put_folder(root / "raw"), blobs.put_folder(code))
    result = lab.result(lab.prepare(FIRST_JOB))["dataset"]
    assert isinstance(result, dict)
    return Bench(lab, DatasetVersion.load(result))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A laboratory for one module: a copy of the bench's store, the bench's warm host, and no jobs of other modules."""
    bench = shared_bench().lab
    store = tmp_path_factory.mktemp("lab") / "store"
    shutil.copytree(bench.root / "store", store)
    try:
        yield Lab(bench.root, LocalStore(store), bench.launcher, bench.raw, bench.code)
    finally:
        _clear(bench.launcher)


def _clear(launcher: LocalLauncher) -> None:
    """End the module's jobs and forget them: the next module may use their names."""
    names = [status.name for status in launcher.list() if status.name != FIRST_JOB]
    for name in names:
        launcher.stop(name, "its tests are over")
    for name in names:
        settled(launcher, name, within=90)
        launcher.retire(name)


@pytest.fixture(scope="module")
def dataset(lab: Lab) -> DatasetVersion:
    """A dataset version made by a real prepare job; the laboratory's store has it."""
    del lab
    return shared_bench().dataset
