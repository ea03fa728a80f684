"""``python -m deepseek_ops.jobs.ray_driver``: the driver of a Ray job, which ``RayEngine`` submits.

It has Ray Train gather one worker on each machine (``ray_workers.run_node``), gathers them anew when a machine is
lost, without a limit when it was taken away, and ends with the status of the first command that failed, or 0. It waits
for machines as long as it takes: an autoscaler may have to start them, or a lost one to come back.

On SIGTERM (``ray job stop``) it has every node told, and ends when they have. It imports no torch.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence

from deepseek_ops.adapters.engines.ray.engine import EXIT_OUT_OF_MEMORY, JOB_VARIABLE, NEEDED_VARIABLE, SECRETS_VARIABLE
from deepseek_ops.core.errors import InvalidRecordError
from deepseek_ops.core.jobs import EXIT_DO_NOT_RETRY, EXIT_RETRY, EngineJob
from deepseek_ops.jobs.error_texts import is_out_of_memory
from deepseek_ops.jobs.ray_gang import Gang, GangView
from deepseek_ops.jobs.ray_workers import NodeTask, run_node

LOOK_SECONDS = 0.5
DRAIN_LOOK_SECONDS = 2.0
"""How often the driver asks the head which machines will be taken away."""
RESIZE_SECONDS = 300.0
"""How often an elastic job that runs on fewer machines looks for more: to take them in costs a restart."""
LEAVE_SECONDS = 5.0
"""How long nodes may take, after the grace of a stop, to say that they have ended."""
TRAIN_SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""How Ray Train runs here, unless the environment says otherwise: it notices a lost worker sooner, and does less.

Machines that are not there within the start timeout are counted again: one that is lost still counts for some seconds.

Its watcher for preemptions is a process of its own, with the imports of Ray Train, that asks the head every few
seconds and tells the workers; the driver asks by itself. Who has to pay for a lost machine is decided as before: Ray
marks the death of a worker on a machine that was taken away.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status of the job."""
    parser = argparse.ArgumentParser(prog="python -m deepseek_ops.jobs.ray_driver")
    parser.add_argument("--job", required=True, help="id of the job, for people who look at processes")
    parser.add_argument("--max-failures", type=int, default=3)
    options = parser.parse_args(arguments)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # every thread: one waits for it
    try:
        job = read_job(os.environ[JOB_VARIABLE])
    except (KeyError, ValueError, InvalidRecordError) as error:
        print(f"{JOB_VARIABLE} holds no job: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_DO_NOT_RETRY
    for name, value in TRAIN_SETTINGS.items():
        os.environ.setdefault(name, value)
    return Driver(job, max_failures=options.max_failures).run()


def read_job(text: str) -> EngineJob:
    """Return the job that the variable holds. Raises ValueError, InvalidRecordError."""
    return EngineJob.load(json.loads(text if text.lstrip().startswith("{") else base64.b64decode(text, validate=True)))


def status_of(error: Exception) -> int:
    """Return the exit status for what Ray Train gave up over: the same batch would run out of memory again."""
    failures = getattr(error, "worker_failures", None)
    starved = isinstance(failures, Mapping) and any(map(is_out_of_memory, failures.values()))
    return EXIT_OUT_OF_MEMORY if starved else EXIT_RETRY


class Driver:
    """One submission: the gang, the trainer, and two threads that pass on what the nodes print and who wants an end."""

    def __init__(self, job: EngineJob, *, max_failures: int) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray.init(log_to_driver=False, logging_level="warning")
        self._ray = ray
        self._job = job
        self._max_failures = max_failures
        # Beside the driver, so that it lives as long; a node's worker tells it twice a second.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._gang = ray.remote(num_cpus=0, scheduling_strategy=here)(Gang).remote()
        self._ended = threading.Event()
        self._printing = threading.Lock()

    def run(self) -> int:
        """Return the exit status of the job."""
        threading.Thread(target=self._stop_on_signal, daemon=True).start()
        printer = threading.Thread(target=self._follow, daemon=True)
        printer.start()
        scratch = tempfile.mkdtemp(prefix="deepseek-ops-ray-")
        try:
            problem, status = self._train(scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self._ended.set()
        printer.join(timeout=10)
        view = self._look()
        if view.failure is not None:
            print(f"node {view.failure[0]} ended with status {view.failure[1]}", flush=True)  # noqa: T201
            return view.failure[1]
        if problem:
            print(f"the nodes could not be kept: {problem}", flush=True)  # noqa: T201
            return status
        return 0

    def _train(self, scratch: str) -> tuple[str, int]:
        """Run the command on all nodes; return what made Ray Train give up, or "", and the status that means it."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.v2.api.exceptions import TrainingFailedError

        from deepseek_ops.jobs.ray_trainer import MachinesTrainer

        job = self._job
        least = job.min_nodes or job.num_nodes
        resources: dict[str, float] = {"CPU": job.cpus_per_node}
        if job.gpus_per_node:
            resources["GPU"] = job.gpus_per_node
        if job.memory_bytes:
            resources["memory"] = job.memory_bytes
        task: NodeTask = {
            "job": job.dump(),
            "sealed": os.environ.get(SECRETS_VARIABLE, ""),
            "needed": [name for name in os.environ.get(NEEDED_VARIABLE, "").split(",") if name],
            "gang": self._gang,
        }
        trainer = MachinesTrainer(
            run_node,
            train_loop_config=dict(task),
            scaling_config=ScalingConfig(
                num_workers=job.num_nodes if least == job.num_nodes else (least, job.num_nodes),
                elastic_resize_monitor_interval_s=RESIZE_SECONDS,
                use_gpu=job.gpus_per_node > 0,
                resources_per_worker=resources,
                placement_strategy="STRICT_SPREAD",
            ),
            run_config=RunConfig(
                name=job.id,
                storage_path=scratch,  # Ray Train wants one; the checkpoints are in our store
                failure_config=FailureConfig(max_failures=self._max_failures, max_preemption_failures=-1),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            return str(error), status_of(error)
        return "", 0

    def _look(self) -> GangView:
        """Print what the nodes have said, and return where they are."""
        with self._printing:
            view: GangView = self._ray.get(self._gang.look.remote())
            for node, text in view.output:
                for line in text.splitlines():
                    print(f"[node {node}] {line}", flush=True)  # noqa: T201
        return view

    def _follow(self) -> None:
        """Print what the nodes say, and have the training save what it has when one of them will be taken away."""
        warned: set[str] = set()
        asked = time.monotonic()
        while not self._ended.wait(LOOK_SECONDS):
            machines = set(self._look().machines)
            if time.monotonic() - asked < DRAIN_LOOK_SECONDS:
                continue
            asked = time.monotonic()
            draining = machines & self._draining()
            if draining - warned:
                print(f"machines will be taken away: {', '.join(sorted(draining))}", flush=True)  # noqa: T201
                self._ray.get(self._gang.save.remote())
                warned |= draining

    def _draining(self) -> set[str]:
        """Return the machines that the cluster is about to lose, as Ray's own watcher finds out."""
        from ray._private.state import state

        return set(state.get_draining_nodes())

    def _stop_on_signal(self) -> None:
        """On SIGTERM have the nodes told, wait until they have ended, and leave: Ray ends what is left of us."""
        signal.sigwait([signal.SIGTERM])
        print("told to stop", flush=True)  # noqa: T201
        self._ray.get(self._gang.stop.remote())
        deadline = time.monotonic() + self._job.grace_seconds + LEAVE_SECONDS
        while self._look().running and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
        os._exit(EXIT_RETRY)


if __name__ == "__main__":
    sys.exit(main())
