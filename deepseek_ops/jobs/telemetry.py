"""What the machine of a training does, once a second: CPU, memory, network, disk, GPUs. One thread per node.

It reads counters of the kernel and of NVIDIA's management library and hands rows to a stream; the training neither
waits for it nor knows it. Rates are means since the row before. A machine without NVIDIA's library or driver has no
GPU rows, and one event says why.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from pydantic import JsonValue

if TYPE_CHECKING:
    import psutil

SECONDS = 1.0
RANKS_SECONDS = 30.0
"""How often to look which processes are the ranks: it reads the whole process table."""
_QUIET = ("lo",)
"""Network interfaces that are no network."""

_log = logging.getLogger(__name__)

Append = Callable[[Mapping[str, object]], None]
Say = Callable[[str, Mapping[str, object]], None]


class Gpus(Protocol):
    """The GPUs of a node."""

    def rows(self) -> list[dict[str, JsonValue]]:
        """Return what each GPU does now."""

    def close(self) -> None:
        """Let go of the library."""


@dataclass(frozen=True, slots=True)
class _Counters:
    at: float
    sent: int
    received: int
    read: int
    written: int


class Machine:
    """The host's counters, through psutil."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        self._ranks: list[psutil.Process] = []
        self._looked = float("-inf")
        psutil.cpu_percent()  # its first answer is since ever
        self._before = self._counters()

    def row(self) -> dict[str, JsonValue]:
        """Return the load of the machine; bytes, bytes per second, percent of all cores."""
        now, before = self._counters(), self._before
        self._before = now
        seconds = max(now.at - before.at, 1e-3)
        memory = self._psutil.virtual_memory()
        return {
            "cpu_percent": self._psutil.cpu_percent(),
            "load_1m": round(os.getloadavg()[0], 2),
            "memory_used_bytes": memory.total - memory.available,
            "memory_total_bytes": memory.total,
            "network_sent_bytes_per_second": round((now.sent - before.sent) / seconds),
            "network_received_bytes_per_second": round((now.received - before.received) / seconds),
            "disk_read_bytes_per_second": round((now.read - before.read) / seconds),
            "disk_written_bytes_per_second": round((now.written - before.written) / seconds),
            "ranks_rss_bytes": self._resident(),
        }

    def _counters(self) -> _Counters:
        links = [link for name, link in self._psutil.net_io_counters(pernic=True).items() if name not in _QUIET]
        disk = self._psutil.disk_io_counters()  # None where the kernel tells of no disk
        return _Counters(
            time.monotonic(),
            sum(link.bytes_sent for link in links),
            sum(link.bytes_recv for link in links),
            0 if disk is None else disk.read_bytes,
            0 if disk is None else disk.write_bytes,
        )

    def _resident(self) -> int:
        """Return the resident memory of this node's ranks: this process and those of the same parent."""
        now = time.monotonic()
        if now - self._looked >= RANKS_SECONDS:
            self._looked, self._ranks = now, self._siblings()
        total = 0
        for process in self._ranks:
            with contextlib.suppress(self._psutil.Error):  # it has ended
                total += process.memory_info().rss
        return total

    def _siblings(self) -> list[psutil.Process]:
        own = self._psutil.Process()
        try:
            parent = own.parent()
            return [own] if parent is None or parent.pid == 1 else parent.children()
        except self._psutil.Error:
            return [own]


class NvidiaGpus:
    """NVIDIA's GPUs, through its management library (NVML). Raises MissingGpuError where there is none."""

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise MissingGpuError("the package nvidia-ml-py is not installed") from error
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        except pynvml.NVMLError as error:
            raise MissingGpuError(f"NVML: {error}") from error

    def rows(self) -> list[dict[str, JsonValue]]:
        """Return utilisation (percent), memory (bytes), power (watts) and temperature (degrees Celsius) of each GPU."""
        return [{"index": index, **self._row(handle)} for index, handle in enumerate(self._handles)]

    def close(self) -> None:
        """Let go of the library."""
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _row(self, handle: object) -> dict[str, JsonValue]:
        nvml = self._nvml
        asked: dict[str, Callable[[], dict[str, JsonValue]]] = {
            "utilisation": lambda: {"utilisation_percent": nvml.nvmlDeviceGetUtilizationRates(handle).gpu},
            "memory": lambda: _memory(nvml.nvmlDeviceGetMemoryInfo(handle)),
            "power": lambda: {"power_watts": nvml.nvmlDeviceGetPowerUsage(handle) / 1000},
            "temperature": lambda: {
                "temperature_celsius": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            },
        }
        row: dict[str, JsonValue] = {}
        for ask in asked.values():
            with contextlib.suppress(nvml.NVMLError):  # a virtual or partitioned GPU does not tell everything
                row |= ask()
        return row


class MissingGpuError(Exception):
    """There is no GPU that could be watched; ``str`` says why."""


class Telemetry:
    """Samples the node in a thread of its own between ``__enter__`` and ``__exit__``."""

    def __init__(
        self,
        append: Append,
        say: Say,
        *,
        node: int = 0,
        seconds: float = SECONDS,
        gpus: Callable[[], Gpus] = NvidiaGpus,
    ) -> None:
        self._append = append
        self._say = say
        self._node = {"node": node, "host": socket.gethostname()}
        self._seconds = seconds
        self._open_gpus = gpus
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="training-telemetry", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            machine = Machine()
        except ImportError:
            self._say("no_telemetry", {**self._node, "reason": "the package psutil is not installed"})
            return
        gpus = self._gpus()
        try:
            while not self._ended.wait(self._seconds):
                self._append({**self._node, **machine.row(), **({} if gpus is None else {"gpus": gpus.rows()})})
        except Exception as error:  # noqa: BLE001  (a counter that cannot be read ends no training)
            _log.warning("telemetry ended", exc_info=True)
            self._say("no_telemetry", {**self._node, "reason": f"{type(error).__name__}: {error}"})
        finally:
            if gpus is not None:
                gpus.close()

    def _gpus(self) -> Gpus | None:
        try:
            return self._open_gpus()
        except MissingGpuError as error:
            self._say("no_gpu_telemetry", {**self._node, "reason": str(error)})
            return None


def _memory(memory: object) -> dict[str, JsonValue]:
    used, total = getattr(memory, "used", 0), getattr(memory, "total", 0)
    return {"memory_used_bytes": int(used), "memory_total_bytes": int(total)}
