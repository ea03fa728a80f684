"""What the hooks of a model repository run: ``python -P -m deepseek_ops.cli.git_hook pre-push origin URL``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.pipeline.repository_checks import Findings, check_commit, check_push


def run(arguments: list[str], updates: list[str]) -> int:
    """Print what is wrong and return the exit status: 1 refuses the commit or push."""
    hook, rest = arguments[0], arguments[1:]
    # Git sets GIT_DIR for hooks of bare and linked repositories; the rest of its state would mislead git -C.
    os.environ.pop("GIT_PREFIX", None)
    try:
        findings = check_commit(Path.cwd()) if hook == "pre-commit" else _push(rest, updates)
    except DeepSeekOpsError as error:
        findings = Findings([str(error)])
    for warning in findings.warnings:
        sys.stderr.write(f"deepseek-ops: warning: {warning}\n")
    for problem in findings.problems:
        sys.stderr.write(f"deepseek-ops: {problem}\n")
    if findings.problems:
        sys.stderr.write(f"deepseek-ops: this {hook.removeprefix('pre-')} is refused; --no-verify does it anyway.\n")
    return 1 if findings.problems else 0


def _push(arguments: list[str], updates: list[str]) -> Findings:
    remote = arguments[0] if arguments else "origin"
    return check_push(Path.cwd(), remote, updates, open_store)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], sys.stdin.read().splitlines()))
