"""Whether the kernel killed processes for want of memory: counters that are read before and after.

The kernel counts such a kill before it sends the SIGKILL, so whoever has reaped the process reads the new number. The
counter of our own control group is asked first; it also counts what lies below it, and kills because the whole machine
ran out (Documentation/admin-guide/cgroup-v2.rst, ``memory.events``; for version 1 ``memory.oom_control``). Where there
is none, the machine's own is (``oom_kill`` in /proc/vmstat), which cannot tell us from our neighbours. So a counter
that has grown says something only beside a SIGKILL that nobody of ours sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_KEY = "oom_kill"


class MemoryKills:
    """The kills since this was made. ``root`` is where /proc and /sys are."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._counter = next((path for path in _counters(root) if _count(path) is not None), None)
        self._before = self._now()

    def seen(self) -> bool | None:
        """Return whether there was one; None where no counter can be read."""
        now = self._now()
        return None if now is None or self._before is None else now > self._before

    def _now(self) -> int | None:
        return None if self._counter is None else _count(self._counter)


def _counters(root: Path) -> Iterator[Path]:
    """Yield the counters that there may be, the closest to this process first."""
    mounted = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        hierarchy, controllers, path = [*line.split(":", 2), "", ""][:3]
        inside = path.lstrip("/")
        if hierarchy == "0" and not controllers:
            yield mounted / inside / "memory.events"
            yield mounted / "memory.events"  # in a container that sees its own group as the root, but not its name
        elif "memory" in controllers.split(","):
            yield mounted / "memory" / inside / "memory.oom_control"
            yield mounted / "memory" / "memory.oom_control"
    yield root / "proc/vmstat"


def _count(path: Path) -> int | None:
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        if name == _KEY and value.strip().isdigit():
            return int(value)
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
