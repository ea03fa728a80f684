"""The ``git`` program, run so that nothing outside the call decides what it does.

The environment is built from nothing: no system or user configuration, no hooks, no prompts, no helper but ours, one
transport. Credentials travel in the environment only (argv and files are readable by others, URLs end in logs), and
every run has a time limit that ends the whole process group.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import stat
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deepseek_ops.adapters.git.address import Address
from deepseek_ops.adapters.git.errors import GitBinaryMissingError, explain
from deepseek_ops.core.errors import GitUnreachableError

CONNECT_SECONDS = 5.0
NETWORK_SECONDS = 180.0
LOCAL_SECONDS = 120.0

_PASSED_ON = (
    "PATH", "TMPDIR", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO",
    "http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
)  # fmt: skip

# Constant text: user name and password reach the helper through its environment, never through this string.
_HELPER = (
    '!f() { test "$1" = get && '
    'printf "username=%s\\npassword=%s\\n" "$DEEPSEEK_OPS_GIT_USERNAME" "$DEEPSEEK_OPS_GIT_PASSWORD"; }; f'
)

_SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.alternateRefsCommand": "",
    "core.attributesFile": os.devnull,
    "credential.helper": "",  # an empty value forgets every helper configured before it
    "fetch.recurseSubmodules": "false",
    "gc.auto": "0",
    "http.followRedirects": "initial",
    "http.lowSpeedLimit": "1",
    "http.lowSpeedTime": "30",
    "init.templateDir": "",
    "maintenance.auto": "false",
    "protocol.version": "2",
    "push.gpgSign": "false",
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to log in. ``ssh_key``, ``known_hosts`` and ``signing_key`` are a path or the text itself."""

    username: str = ""
    password: str = field(default="", repr=False)
    ssh_key: str = field(default="", repr=False)
    known_hosts: str = ""
    signing_key: str = field(default="", repr=False)

    def mask(self, text: str) -> str:
        """Return ``text`` without the password, should a server have echoed it."""
        return text.replace(self.password, "***") if self.password else text


class Git:
    """Runs git for one repository address; ``at(folder)`` runs it inside a local mirror."""

    def __init__(self, address: Address, credentials: Credentials, folder: Path | None = None) -> None:
        self.address = address
        self.credentials = credentials
        self._folder = folder

    def at(self, folder: Path) -> Git:
        """Return a runner whose repository is the bare repository ``folder``."""
        return Git(self.address, self.credentials, folder)

    def run(
        self,
        *arguments: str,
        data: bytes = b"",
        seconds: float = LOCAL_SECONDS,
        environment: Mapping[str, str] | None = None,
    ) -> bytes:
        """Return what git wrote to standard output. Raises the port's errors for every other end."""
        status, output, message = self.attempt(*arguments, data=data, seconds=seconds, environment=environment)
        if status:
            raise explain(self.address.url, arguments[0], message)
        return output

    def attempt(
        self,
        *arguments: str,
        data: bytes = b"",
        seconds: float = LOCAL_SECONDS,
        environment: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes, str]:
        """Return exit status, standard output and masked messages. Raises GitUnreachableError after ``seconds``."""
        with self._start(arguments, environment or {}) as process:
            try:
                output, messages = process.communicate(data, timeout=seconds)
            except subprocess.TimeoutExpired:
                end_group(process)
                problem = f"git {arguments[0]} gave no answer within {seconds:.0f} s"
                raise GitUnreachableError(self.address.url, problem) from None
        return process.returncode, output, self.credentials.mask(messages.decode(errors="replace"))

    @contextlib.contextmanager
    def stream(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Yield a running git whose pipes the caller reads and writes; it is gone when the block is left."""
        with self._start(arguments, {}) as process:
            try:
                yield process
            finally:
                end_group(process)

    @contextlib.contextmanager
    def _start(self, arguments: tuple[str, ...], more: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        place = [f"--git-dir={self._folder}"] if self._folder else []
        with self._ssh_files() as ssh:
            try:
                process = subprocess.Popen(
                    ["git", *place, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd="/",
                    env={**self.environment(), **ssh, **more},
                    start_new_session=True,
                )
            except FileNotFoundError:
                raise GitBinaryMissingError from None
            with process:
                yield process

    def environment(self) -> dict[str, str]:
        """Return git's whole environment, credentials included."""
        settings = list(_SETTINGS.items())
        if self._folder is not None:
            settings.append(("safe.directory", str(self._folder)))
        known: dict[str, str] = {}
        password = self.credentials.password or self.address.password
        username = self.credentials.username or self.address.username or "git"
        if password and self.address.transport in ("http", "https"):
            settings.append((f"credential.{self.address.origin}.helper", _HELPER))
            known = {"DEEPSEEK_OPS_GIT_USERNAME": username, "DEEPSEEK_OPS_GIT_PASSWORD": password}
        for number, (key, value) in enumerate(settings):
            known[f"GIT_CONFIG_KEY_{number}"] = key
            known[f"GIT_CONFIG_VALUE_{number}"] = value
        allowed = "http:https" if self.address.transport == "http" else self.address.transport
        return {
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_COUNT": str(len(settings)),
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_ALLOW_PROTOCOL": allowed,
            "GIT_LITERAL_PATHSPECS": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "",
            "SSH_ASKPASS_REQUIRE": "never",
            **known,
        }

    @contextlib.contextmanager
    def _ssh_files(self) -> Iterator[dict[str, str]]:
        """Yield the variables ssh needs; an inline key lives in a private file for as long as git runs."""
        if self.address.transport != "ssh":
            yield {}
            return
        with tempfile.TemporaryDirectory(prefix="deepseek-ops-ssh-") as folder:
            options = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS:.0f}"]
            options += ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3"]
            if self.credentials.ssh_key:
                key = file_of(self.credentials.ssh_key, Path(folder, "key"))
                options += ["-i", str(key), "-o", "IdentitiesOnly=yes"]
            if self.credentials.known_hosts:
                hosts = file_of(self.credentials.known_hosts, Path(folder, "known_hosts"))
                options += ["-o", f"UserKnownHostsFile={hosts}", "-o", "StrictHostKeyChecking=yes"]
            else:
                options += ["-o", "StrictHostKeyChecking=accept-new"]
            yield {"GIT_SSH_COMMAND": shlex.join(options), "GIT_SSH_VARIANT": "ssh"}

    def require_reachable(self) -> None:
        """Raise GitUnreachableError within seconds when nothing listens: git itself would wait for minutes."""
        address = self.address
        if address.transport not in ("http", "https") or urllib.request.getproxies():
            return
        try:
            socket.create_connection((address.host, address.port), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            raise GitUnreachableError(address.url, str(error) or type(error).__name__) from error


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process with everything it started, and collect it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def file_of(text_or_path: str, place: Path) -> Path:
    """Return the path that was given, or ``place`` with the text that was, readable by us only."""
    if "\n" not in text_or_path and not text_or_path.startswith("-----"):
        return Path(text_or_path).expanduser()
    handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR)
    with os.fdopen(handle, "w") as file:
        file.write(text_or_path.rstrip("\n") + "\n")  # OpenSSH refuses a key without a last newline
    return place
