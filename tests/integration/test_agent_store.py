"""Ranks that torchrun's agent starts again in the same store do not meet the dead ones there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
RANK = """
import sys, time, torch, torch.distributed as dist
torch.set_num_threads(1)
from deepseek_ops.jobs.training_engine import _join_agents_store
_join_agents_store("gloo")
total = torch.ones(1)
dist.all_reduce(total)
print(int(total), flush=True)
time.sleep(60 if sys.argv[1] == "stay" else 0)
"""


def ranks(port: int, start: int, then: str) -> list[subprocess.Popen[str]]:
    """Return two ranks as torchrun starts them for the ``start``-th time."""
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": str(start),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, then], env={**common, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]


def test_a_restart_in_the_store_of_torchruns_agent_meets_its_own_peers_only() -> None:
    import torch.distributed as dist

    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    first = ranks(agent.port, 0, "stay")
    try:
        assert [rank.stdout.readline().strip() for rank in first] == ["2", "2"]
    finally:
        for rank in first:
            rank.send_signal(signal.SIGKILL)
            rank.communicate()
    second = ranks(agent.port, 1, "go")
    try:
        assert [rank.communicate(timeout=90)[0].strip() for rank in second] == ["2", "2"]
    finally:
        for rank in second:
            rank.kill()
            rank.wait()
