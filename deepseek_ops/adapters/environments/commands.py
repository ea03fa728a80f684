"""Running the programs that build: their lines reach the log as they come, and they end when the build has to.

They run what packages bring along (build backends), so they get the few variables that installing needs and none of
the task's secrets. Index addresses and their credentials pass through to them and are written nowhere.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepseek_ops.adapters.environments.errors import (
    BuildStoppedError,
    BuildTimeoutError,
    EnvironmentBuildError,
    IndexUnavailableError,
)
from deepseek_ops.core.masking import masked

LAST_LINES = 20
_PASSED = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
        *(
            "SSH_AUTH_SOCK",
            "GIT_SSH_COMMAND",
            "GIT_SSL_CAINFO",
            "CUDA_HOME",
            "CC",
            "CXX",
            "MAX_JOBS",
            "LD_LIBRARY_PATH",
        ),
    }
)
_PREFIXES = ("UV_", "PIP_", "CONDA_", "MAMBA_")
_PIP_TO_UV = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
    "PIP_NO_INDEX": "UV_NO_INDEX",
    "PIP_CERT": "SSL_CERT_FILE",
}
_AWAY = re.compile(
    r"error sending request|dns error|timed out|connection (refused|reset|error)|temporary failure|"
    r"could not connect|failed to fetch|max retries|network is unreachable|\b50[0234]\b",
    re.IGNORECASE,
)


def build_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a build: what installing needs; pip's settings of the index also hold for uv."""
    passed = {name: value for name, value in given.items() if name in _PASSED or name.startswith(_PREFIXES)}
    for pip, uv in _PIP_TO_UV.items():
        if passed.get(pip) and not passed.get(uv):
            passed[uv] = ",".join(passed[pip].split()) if pip == "PIP_FIND_LINKS" else passed[pip]
    for name in ("PIP_REQUIRE_VIRTUALENV", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "UV_PROJECT_ENVIRONMENT"):
        passed.pop(name, None)  # they would send packages elsewhere
    return {**passed, "UV_NO_PROGRESS": "1", "NO_COLOR": "1", "PYTHONNOUSERSITE": "1", "GIT_TERMINAL_PROMPT": "0"}


def find_uv() -> str | None:
    """Return the program uv: beside this interpreter, or on the PATH."""
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.is_file() else shutil.which("uv")


@dataclass
class Commands:
    """Runs the programs of one build."""

    file: str
    """The lock, for messages."""
    environment: Mapping[str, str]
    say: Callable[[str], None]
    stopped: Callable[[], bool]
    deadline: float
    """On the monotonic clock."""
    timeout_seconds: float
    keep_open: tuple[int, ...] = ()
    """File descriptors the programs inherit: the entry's lock, so that it is held while any of them runs."""
    secrets: tuple[str, ...] = field(default=())

    def run(self, step: str, command: Sequence[str], *, folder: Path) -> None:
        """Run one program to its end.

        Raises EnvironmentBuildError, IndexUnavailableError, BuildTimeoutError, BuildStoppedError.
        """
        child = subprocess.Popen(
            list(command),
            cwd=folder,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=self.keep_open,
            start_new_session=True,
        )
        try:
            last = self._follow(child)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        if child.returncode:
            lines = tuple(last) or (f"exit status {child.returncode}",)
            kind = IndexUnavailableError if _AWAY.search("\n".join(lines)) else EnvironmentBuildError
            raise kind(self.file, step, lines)

    def check(self) -> None:
        """Raise BuildStoppedError or BuildTimeoutError when the build has to end."""
        if self.stopped():
            raise BuildStoppedError(self.file)
        if time.monotonic() > self.deadline:
            raise BuildTimeoutError(self.file, self.timeout_seconds)

    def _follow(self, child: subprocess.Popen[bytes]) -> deque[str]:
        """Pass the child's lines on until it has ended, and return the last of them."""
        last: deque[str] = deque(maxlen=LAST_LINES)
        rest = b""
        assert child.stdout is not None  # noqa: S101  (it was asked for)
        with selectors.DefaultSelector() as ready:
            ready.register(child.stdout, selectors.EVENT_READ)
            while True:
                self.check()
                if not ready.select(0.25):
                    if child.poll() is not None:
                        break  # a grandchild holds the pipe
                    continue
                part = os.read(child.stdout.fileno(), 65536)
                *lines, rest = (rest + part).split(b"\n")
                for line in lines if part else [*lines, rest]:
                    self._pass_on(line, last)
                if not part:
                    break
        child.wait()
        return last

    def _pass_on(self, line: bytes, last: deque[str]) -> None:
        text = masked(line.decode(errors="replace").rstrip())
        for secret in self.secrets:
            text = text.replace(secret, "***")
        if text:
            last.append(text)
            self.say(text)
