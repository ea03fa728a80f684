"""The program that git-lfs starts for its transfers: ``python -P -m deepseek_ops.cli.lfs_agent``.

A module of its own, beside ``deepseek-ops lfs agent``, because git-lfs starts several for each push and pull: without
the command line and the records it is up in a fifth of the time.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from deepseek_ops.adapters.git_lfs.agent import ProtocolError, TransferAgent
from deepseek_ops.adapters.git_lfs.config import clone_settings
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.ports import ObjectStore


def serve() -> int:
    """Serve the git-lfs that started this process; return the exit status."""
    answers = sys.stdout.buffer

    def send(message: dict[str, object]) -> None:
        answers.write(json.dumps(message).encode() + b"\n")
        answers.flush()

    agent = TransferAgent(lambda: clone_settings(Path.cwd(), os.environ), open_store, send, _guarded)
    try:
        agent.serve(sys.stdin)
    except ProtocolError as error:
        sys.stderr.write(f"deepseek-ops lfs agent: {error}\n")
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), answers.fileno())  # git-lfs is gone; nothing is left to be said
    return 0


def _guarded(store: ObjectStore) -> AbstractContextManager[ObjectStore]:
    from deepseek_ops.data.gc_guard import writing  # only an upload pays for this import

    return writing(store, holder="git-lfs")


if __name__ == "__main__":
    sys.exit(serve())
