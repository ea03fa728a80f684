"""Nodes of one training on this machine: a supervisor each, with a folder of its own, that meet in a shared folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from fixtures_launcher import until

from deepseek_ops.adapters.local_launcher.folder import Attempt, JobFolder, Supervisor
from deepseek_ops.adapters.local_launcher.reading import read_events, status_of
from deepseek_ops.core.jobs import JobSpec, JobStatus
from deepseek_ops.jobs.entry import Outcome
from deepseek_ops.jobs.ranks import RankGroupRunner
from deepseek_ops.jobs.rendezvous_folder import SharedFolderRendezvous
from deepseek_ops.jobs.supervise import supervisor_of


@dataclass
class Nodes:
    """The nodes of one attempt of a job."""

    root: Path
    spec: JobSpec
    meet_seconds: float = 60.0
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    folders: dict[int, JobFolder] = field(default_factory=dict)

    def start(self, *nodes: int, again: str = "") -> None:
        """Start the supervisors of nodes, as an engine does; ``again`` names the folder of a second start."""
        for node in nodes:
            self._start(node, again)
        for node in nodes:
            until(lambda files=self.folders[node]: files.read("supervisor.json", Supervisor))

    def _start(self, node: int, again: str) -> None:
        files = JobFolder(self.root / f"node-{node}{again}")
        files.claims.mkdir(parents=True)
        files.write("spec.json", self.spec)
        files.write("attempt.json", Attempt(attempt=1))
        order = {"folder": str(files.path), "meet": str(self.root / "meet"), "node": node, "seconds": self.meet_seconds}
        environment = {**os.environ, **self.spec.environment}
        with files.log.open("ab") as log:
            command = [sys.executable, __file__, json.dumps(order)]
            self.processes[node] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self.folders[node] = files

    def status(self, node: int, *, within: float = 60.0) -> JobStatus:
        """Return how the node's attempt ended."""
        deadline = time.monotonic() + within
        while (status := status_of(self.folders[node], self.spec.name)) is None or not status.settled:
            assert time.monotonic() < deadline, f"{status}\n{self.log(node)}"
            time.sleep(0.05)
        return status

    def result(self, node: int) -> dict[str, object]:
        """Return what the node's attempt returned."""
        found: dict[str, object] = json.loads((self.folders[node].path / "result.json").read_bytes())
        return found

    def events(self, node: int, kind: str) -> list[dict[str, object]]:
        """Return the node's events of a kind."""
        return [event for event in read_events(self.folders[node], 0) if event["kind"] == kind]

    def log(self, node: int) -> str:
        """Return what the node printed."""
        return self.folders[node].log.read_text()

    def close(self) -> None:
        """Kill what is left; the ranks die with their supervisors."""
        for process in self.processes.values():
            process.send_signal(signal.SIGKILL)
            process.wait()


def main() -> None:
    """Be the supervisor of a node."""
    order = json.loads(sys.argv[1])

    def run_ranks(files: JobFolder, spec: JobSpec, attempt: int) -> Outcome:
        meet = Path(order["meet"]) / str(attempt)
        rendezvous = SharedFolderRendezvous(meet, node=order["node"], num_nodes=spec.num_nodes, settle_seconds=1.5)
        return RankGroupRunner(files, spec, attempt, rendezvous, meet_seconds=order["seconds"]).run()

    supervisor_of(JobFolder(Path(order["folder"])), run_ranks=run_ranks).run(lambda: None)


if __name__ == "__main__":
    main()
