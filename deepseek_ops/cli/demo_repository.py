"""The demo's user: a clone of the model repository, the first push, and a change on every later run."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from pathlib import Path

from deepseek_ops.core.errors import GitUnreachableError

BRANCH = "exp/first"
_SEED = re.compile(r"^(?P<head>\s*seed:\s*)(?P<seed>\d+)(?P<tail>.*)$", re.MULTILINE)
TRANSIENT_FILES = ("__pycache__", "*.pyc")


class DemoRepository:
    """A working clone, driven with plain git as a person would.

    Args:
        url: The model repository.
        username: Of the Git server.
        token: Handed to git through the environment, never on a command line.
        folder: The clone.
        template: The template model repository that the first commit is made from.
    """

    def __init__(self, url: str, *, username: str, token: str, folder: Path, template: Path) -> None:
        self._url = url
        self._folder = folder
        self._template = template
        login = base64.b64encode(f"{username}:{token}".encode()).decode()
        self._environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(folder.parent),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_AUTHOR_NAME": "Demo User",
            "GIT_AUTHOR_EMAIL": "demo@example.com",
            "GIT_COMMITTER_NAME": "Demo User",
            "GIT_COMMITTER_EMAIL": "demo@example.com",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "http.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {login}",
        }

    def prepare(self) -> None:
        """Clone the repository; fill ``main`` from the template when it is empty."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._git("clone", "--quiet", self._url, str(self._folder), cwd=self._folder.parent)
        if self._git("ls-remote", "--heads", "origin").strip():
            return
        shutil.copytree(
            self._template, self._folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*TRANSIENT_FILES)
        )
        self._git("checkout", "--quiet", "-B", "main")
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", "Start from the template")
        self._git("push", "--quiet", "origin", "main")

    def push_change(self) -> tuple[str, str]:
        """Push a commit to ``exp/first`` and return its id and what it changes.

        Each commit asks for another seed, so that from the second on data, environment and trials are unchanged and
        only the final training is new.
        """
        exists = f"refs/heads/{BRANCH}" in self._git("ls-remote", "--heads", "origin")
        if not exists:
            self._git("checkout", "--quiet", "-B", BRANCH, "origin/main")
            notes = self._folder / "deepseek" / "NOTES.md"
            notes.write_text("# First experiment\n\nThe template's configuration with a seed of its own.\n")
            change = f"Start the first experiment with seed {self._next_seed()}"  # a note alone would start nothing
        else:
            self._git("checkout", "--quiet", "-B", BRANCH, f"origin/{BRANCH}")
            change = f"Repeat the experiment with seed {self._next_seed()}"
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", change)
        self._git("push", "--quiet", "origin", BRANCH)
        return self._git("rev-parse", "HEAD").strip(), change

    def push_untouched(self) -> str:
        """Push a commit that touches no watched path, and return its id."""
        (self._folder / "docs").mkdir(exist_ok=True)
        page = self._folder / "docs" / "index.md"
        page.write_text((page.read_text() if page.exists() else "") + "One more line of documentation.\n")
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", "Document the experiment")
        self._git("push", "--quiet", "origin", "HEAD")
        return self._git("rev-parse", "HEAD").strip()

    def _next_seed(self) -> int:
        path = self._folder / "deepseek.yaml"
        text = path.read_text()
        section = text.index("training:")
        match = _SEED.search(text, section)
        if match is None:
            raise ValueError(f"{path} has no training.seed to change")
        seed = int(match["seed"]) + 1
        path.write_text(text[: match.start()] + f"{match['head']}{seed}{match['tail']}" + text[match.end() :])
        return seed

    def _git(self, *arguments: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=cwd or self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise GitUnreachableError(self._url, f"git {arguments[0]}: {done.stderr.strip()[:300]}")
        return done.stdout
