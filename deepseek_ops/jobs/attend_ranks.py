"""The ranks of one node among several: the forked group of a single machine, with peers to agree with."""

from __future__ import annotations

from deepseek_ops.adapters.local_launcher.folder import JobFolder
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.jobs.entry import Outcome
from deepseek_ops.jobs.meeting import FolderRendezvous
from deepseek_ops.jobs.nodes import NodePlace
from deepseek_ops.jobs.preload import preload
from deepseek_ops.jobs.supervise import GroupRunner


def run_with_peers(place: NodePlace) -> GroupRunner:
    """Return what runs the ranks of this node and restarts them together with those of the other nodes."""

    def run(files: JobFolder, spec: JobSpec, attempt: int) -> Outcome:
        from deepseek_ops.jobs.ranks import RankGroupRunner

        preload()
        return RankGroupRunner(files, spec, attempt, FolderRendezvous(files, attempt, place)).run()

    return run
