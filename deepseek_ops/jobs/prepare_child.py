"""The process in which a model repository's own ``prepare`` runs: no credentials, limits set, no way to outlive us.

``python -m deepseek_ops.jobs.prepare_child module:function RAW OUT PARAMETERS-JSON CPU-SECONDS PARENT``. The variables
it starts with are chosen by ``deepseek_ops.jobs.prepare``; what it imports first is this file, so that the limits hold
before a line of foreign code runs. It is a fence against accidents (runaway memory, a leaked key in a log, a process
left behind), not a jail against malice: whoever may push to the repository may run code in training, too.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from pathlib import Path

from deepseek_ops.adapters.local_launcher import processes


def main(arguments: list[str]) -> int:
    """Run the callable and return the exit status; its traceback goes to stderr."""
    target, raw, out, parameters, cpu_seconds, parent = arguments
    processes.die_with_parent(int(parent))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_CPU, int(float(cpu_seconds)))
    _lower(resource.RLIMIT_NOFILE, 4096)
    os.umask(0o077)
    module, _, name = target.partition(":")
    getattr(importlib.import_module(module), name)(Path(raw), Path(out), **json.loads(parameters))
    return 0


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (ceiling, ceiling))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
