"""Git hooks that run in a chain: what was there before, our checks, then Git LFS."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.adapters.git_lfs.worktree_git import git, top_folder
from deepseek_ops.core.errors import PermanentError

CHECK_MODULE = "deepseek_ops.cli.git_hook"
CHECKED_HOOKS = ("pre-commit", "pre-push")
LFS_HOOKS = ("pre-push", "post-checkout", "post-commit", "post-merge")
EARLIER = ".before-deepseek-ops"
_MARK = "# Written by deepseek-ops init."

_HEAD = f"""\
#!/bin/sh
{_MARK} Runs the hook that was here before, the checks of deepseek-ops, and Git LFS, in this order.
# --no-verify skips all of them; delete this file to be rid of them.
here=$(dirname "$0")
given=$(cat; printf x); given=${{given%x}}
earlier="$here/$(basename "$0"){EARLIER}"
if [ -x "$earlier" ]; then
    printf '%s' "$given" | "$earlier" "$@" || exit $?
fi
"""
_CHECK = """\
python={python}
if [ -x "$python" ] && "$python" -P -c 'import deepseek_ops' 2>/dev/null; then
    printf '%s' "$given" | "$python" -P -m {module} {hook} "$@" || exit $?
else
    echo "deepseek-ops is not at $python any more: its checks are skipped; run 'deepseek-ops init' again." >&2
fi
"""
_LFS = """\
if command -v git-lfs >/dev/null 2>&1; then
    printf '%s' "$given" | git lfs {hook} "$@" || exit $?
else
    echo "this repository keeps its weights in Git LFS and git-lfs is not installed: install it." >&2
    exit 2
fi
"""


@dataclass(eq=False)
class SharedHooksError(PermanentError):
    """The hooks of this repository are those of others too."""

    folder: str

    def __str__(self) -> str:
        return (
            f"core.hooksPath is {self.folder}, which other repositories may use: no hook was written. Set it for this "
            "repository (`git config core.hooksPath .git/hooks`), or use --no-hooks and call "
            f"`python -P -m {CHECK_MODULE} pre-push` from there."
        )


def hooks_folder(folder: Path) -> Path:
    """Return where Git looks for this repository's hooks. Raises SharedHooksError when that is not its own place."""
    place = (folder / git(folder, "rev-parse", "--git-path", "hooks").decode().rstrip("\n")).resolve()
    common = (folder / git(folder, "rev-parse", "--git-common-dir").decode().rstrip("\n")).resolve()
    if not place.is_relative_to(common) and not place.is_relative_to(top_folder(folder).resolve()):
        raise SharedHooksError(str(place))
    return place


def hook_text(hook: str) -> str:
    """Return the script of a hook."""
    text = _HEAD
    if hook in CHECKED_HOOKS:
        text += _CHECK.format(python=shlex.quote(sys.executable), module=CHECK_MODULE, hook=hook)
    if hook in LFS_HOOKS:
        text += _LFS.format(hook=hook)
    return text


def install_hooks(folder: Path) -> list[str]:
    """Write the hooks and return what was done. A hook that was there runs first, under another name.

    Doing it again changes nothing. Raises SharedHooksError.
    """
    place = hooks_folder(folder)
    place.mkdir(parents=True, exist_ok=True)
    return [done for hook in sorted({*CHECKED_HOOKS, *LFS_HOOKS}) if (done := _install(place / hook))]


def _install(path: Path) -> str:
    text = hook_text(path.name)
    before = path.read_text(errors="replace") if path.exists() else ""
    if before == text:
        return ""
    kept = ""
    if before and _MARK not in before and not _only_git_lfs(before, path.name):
        earlier = path.with_name(path.name + EARLIER)
        if earlier.exists():
            raise FileExistsError(f"{earlier} exists and {path} is no hook of ours: merge the two, and run this again")
        os.link(path, earlier)  # the hook is never away, wherever this process is killed
        kept = f", after the one that was there ({earlier.name})"
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.chmod(fresh.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    fresh.replace(path)
    return f"hook {path.name}{kept}"


def _only_git_lfs(text: str, hook: str) -> bool:
    """Return whether a hook is the one ``git lfs install`` writes: ours calls git-lfs itself."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return len(lines) == 2 and lines[0].startswith("command -v git-lfs") and lines[1] == f'git lfs {hook} "$@"'
