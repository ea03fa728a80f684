"""The Git LFS server for tests: in a thread of this process or as a process, and people who use it with real git."""

from __future__ import annotations

import os
import secrets
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn

from deepseek_ops.adapters.git_lfs.tokens import Access
from deepseek_ops.adapters.stores import store_environment
from deepseek_ops.embedded.processes import free_port
from deepseek_ops.web.lfs import LfsService, LfsSettings, lfs_app, open_service, token_authoriser

SECRET = "a-secret-of-the-tests-that-is-long-enough"
REPOSITORY = "team/model"
LFS = {"Accept": "application/vnd.git-lfs+json", "Content-Type": "application/vnd.git-lfs+json"}


@dataclass
class Seen:
    """Requests that reached the server, as (method, path)."""

    requests: list[tuple[str, str]] = field(default_factory=list)

    def count(self, method: str, part: str = "") -> int:
        return sum(1 for seen, path in self.requests if seen == method and part in path)


@dataclass
class LfsServer:
    """A running server."""

    url: str
    service: LfsService
    seen: Seen

    def token(self, access: Access = "write", *, repository: str = REPOSITORY, subject: str = "ada") -> str:
        return self.service.tokens.issue(repository, access, subject, days=1)[0]

    def client(self, token: str = "", *, repository: str = REPOSITORY) -> httpx.Client:
        headers = {**LFS, **({"Authorization": f"Bearer {token}"} if token else {})}
        return httpx.Client(base_url=f"{self.url}/{repository}", headers=headers, trust_env=False, timeout=60)


@contextmanager
def lfs_server(uri: str, credentials: Mapping[str, str], settings: LfsSettings | None = None) -> Iterator[LfsServer]:
    """Serve the store on a free port of this process."""
    service = open_service(uri, credentials, [SECRET.encode()], settings)
    app, seen = lfs_app(lambda: service, token_authoriser), Seen()

    async def recorded(scope, receive, send):
        if scope["type"] == "http":
            seen.requests.append((scope["method"], scope["path"]))
        await app(scope, receive, send)

    config = uvicorn.Config(recorded, port=free_port(), log_level="error", lifespan="off", timeout_graceful_shutdown=3)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield LfsServer(f"http://127.0.0.1:{config.port}", service, seen)
    finally:
        server.should_exit = True
        thread.join(10)


class LfsProcess:
    """The stand-alone server as a process of its own, to be killed and started again on the same port."""

    def __init__(self, uri: str, credentials: Mapping[str, str], folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"http{'s' * ('--tls-cert' in options)}://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self._secret = folder / "secret"
        self._secret.write_text(SECRET)
        self._secret.chmod(0o600)
        self._environment = {**os.environ, **store_environment(uri, credentials)}
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, verify: ssl.SSLContext | bool = True) -> None:
        command = [sys.executable, "-m", "deepseek_ops.cli.main", "lfs", "serve", "--port", str(self.port)]
        command += ["--secret-file", str(self._secret), *self._options]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.log.read_text()
            try:
                if httpx.get(f"{self.url}/x/locks", trust_env=False, verify=verify).status_code == 401:
                    return
            except httpx.HTTPError:
                time.sleep(0.05)
        raise AssertionError(f"the server did not start: {self.log.read_text()}")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def end(self) -> int:
        """Ask it to end and return its exit status."""
        self.terminate()
        assert self._process is not None
        return self._process.wait(60)

    def terminate(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)


@dataclass
class Clone:
    """Somebody's clone with LFS pointed at a server."""

    folder: Path
    environment: dict[str, str]

    def run(
        self, *arguments: str, check: bool = True, timeout: float = 120, data: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["git", "-C", str(self.folder), *arguments],
            env=self.environment,
            input=data,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"git {arguments}: {done.stdout}\n{done.stderr}"
        return done

    def git(self, *arguments: str, data: str | None = None) -> str:
        return self.run(*arguments, data=data).stdout.strip()

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Run git in a process group of its own, to be killed with all its children."""
        return subprocess.Popen(
            ["git", "-C", str(self.folder), *arguments],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def commit(self, files: Mapping[str, bytes], message: str = "Change") -> str:
        for path, content in files.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_bytes(content)
        self.git("add", "-A")
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")


def clone_of(
    folder: Path, remote: str, server_url: str, token: str, environment: dict[str, str], *, repository: str = REPOSITORY
) -> Clone:
    """Return a fresh repository whose LFS server is ours; the token lies in a credential store, as a user's would."""
    folder.mkdir()
    home = folder.parent / f"home-{secrets.token_hex(4)}"
    home.mkdir()
    global_config = Path(environment["HOME"]) / ".gitconfig"
    (home / ".gitconfig").write_bytes(global_config.read_bytes())
    clone = Clone(folder, {**environment, "HOME": str(home)})
    clone.git("init", "--quiet")
    credentials = home / "credentials"
    if token:
        parts = urlsplit(server_url)
        credentials.write_text(f"{parts.scheme}://anybody:{token}@{parts.netloc}\n")
    for key, value in (
        ("credential.helper", f"store --file {credentials}"),
        ("lfs.url", f"{server_url}/{repository}"),
        ("lfs.transfer.maxretries", "3"),
        ("lfs.transfer.maxretrydelay", "1"),
    ):
        clone.git("config", key, value)
    clone.git("remote", "add", "origin", remote)
    clone.git("lfs", "install", "--local")
    return clone


MakeClone = Callable[..., Clone]


@pytest.fixture
def make_clone(lfs_environment: dict[str, str], git_server, tmp_path: Path) -> MakeClone:
    """Give a function (name, server URL, token) that makes a clone of one repository on the Git server."""
    name = f"lfs-{secrets.token_hex(4)}"
    remote = git_server.create_repository(name)
    parts = urlsplit(remote)

    def make(folder: str, url: str, token: str, *, repository: str = REPOSITORY) -> Clone:
        from fixtures_git import TOKEN, USER

        clone = clone_of(tmp_path / folder, remote, url, token, lfs_environment, repository=repository)
        credentials = Path(clone.environment["HOME"]) / "credentials"
        known = credentials.read_text() if credentials.exists() else ""
        credentials.write_text(f"{known}{parts.scheme}://{USER}:{TOKEN}@{parts.netloc}\n")
        return clone

    return make
