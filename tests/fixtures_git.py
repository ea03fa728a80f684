"""Real Git for tests: bare repositories over file and over the embedded HTTP server, and a developer who pushes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deepseek_ops.adapters.git import GitRepository, open_git
from deepseek_ops.embedded.git_server import GitServer

USER, TOKEN = "git", "s3cret-token-of-the-tests"
_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.com",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.com",
    "GIT_TERMINAL_PROMPT": "0",
}


def run_git(folder: Path, *arguments: str, data: bytes | None = None) -> str:
    """Return what plain git prints, as a developer's would."""
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        input=data,
        env=_ENVIRONMENT,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"git {arguments}: {done.stderr.decode()}"
    return done.stdout.decode().strip()


@dataclass
class Developer:
    """A clone, and somebody who commits and pushes in it, straight into the bare repository's folder."""

    folder: Path
    bare: Path
    remote: GitRepository

    def git(self, *arguments: str, data: bytes | None = None) -> str:
        return run_git(self.folder, *arguments, data=data)

    def commit(self, files: dict[str, str | bytes], message: str = "Change") -> str:
        """Commit files on the current branch and return the commit."""
        for path, content in files.items():
            place = self.folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.git("add", "-A")
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def push(self, *refs: str) -> None:
        self.git("push", "--quiet", "--force", "origin", *(refs or ("HEAD",)))

    def push_commit(self, files: dict[str, str | bytes], branch: str = "main", message: str = "Change") -> str:
        """Commit files on ``branch`` (made from the current one when it is new), push it, and return the commit."""
        known = self.git("branch", "--list", branch)
        if known:
            self.git("switch", "--quiet", branch)
        elif self.git("branch", "--show-current") != branch:
            self.git("switch", "--quiet", "-c", branch)
        commit = self.commit(files, message)
        self.push(f"refs/heads/{branch}")
        return commit


def make_developer(folder: Path, bare: Path, remote: GitRepository) -> Developer:
    folder.mkdir()
    run_git(folder, "init", "--quiet", "--initial-branch=main")
    run_git(folder, "remote", "add", "origin", str(bare))
    return Developer(folder, bare, remote)


@pytest.fixture(scope="session")
def git_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    """One embedded Git server for all tests; each test has a repository of its own."""
    with GitServer(tmp_path_factory.mktemp("git-server"), username=USER, token=TOKEN) as server:
        yield server


@pytest.fixture
def http_developer(git_server: GitServer, tmp_path: Path, request: pytest.FixtureRequest) -> Developer:
    """A developer whose repository is reached over HTTP with a token."""
    name = f"model-{abs(hash(request.node.nodeid))}"
    url = git_server.create_repository(name)
    remote = open_git(url, username=USER, password=TOKEN, cache=tmp_path / "cache")
    return make_developer(tmp_path / "work", git_server.root / f"{name}.git", remote)


@pytest.fixture
def file_developer(tmp_path: Path) -> Developer:
    """A developer whose repository is a folder that allows no filters: every partial fetch falls back."""
    bare = tmp_path / "model.git"
    run_git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    return make_developer(tmp_path / "work", bare, open_git(f"file://{bare}", cache=tmp_path / "cache"))
