"""What the process of ``prepare`` may do: read some folders, write one, open no socket, use so much memory and time.

Three layers of the Linux kernel, none of which needs rights or a container, each applied by the process to itself and
inherited by whatever it starts:

- no capabilities, and none to be gained (``no_new_privs``), resource limits;
- Landlock: only the named folders can be read and only ``writable`` be written; processes outside cannot be signalled
  or looked into, so ``/proc/<parent>/environ`` stays closed; this ends what a same-user process could otherwise see;
- seccomp: no socket can be opened (no network, no metadata service, no agent or daemon), no kernel keyring be read.

Not covered: how much disk the files fill together, processor caches and timing, ``/dev/shm`` (shared, because locks of
``multiprocessing`` live there), names and command lines of processes. Where a kernel lacks a layer, ``confine`` says so
and goes on: whoever may push to the repository may run code in training, too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import site
import struct
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 24, 38, 22
_LAST_CAPABILITY = 63
_CPU_GRACE_SECONDS = 5

# Landlock; its syscalls have the same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, list a folder
_FILE_RIGHTS = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
_RIGHTS_BY_ABI = ((5, 16), (3, 15), (2, 14), (1, 13))
"""(ABI, number of file rights it knows), newest first."""
_TCP_RIGHTS = 3
_SCOPES = 3  # abstract sockets and signals

_ARCHITECTURES = {
    "x86_64": (0xC000003E, (41, 101, 165, 248, 249, 250, 272, 298, 308, 310, 311, 321, 323, 425, 438)),
    "aarch64": (0xC00000B7, (198, 117, 40, 217, 218, 219, 97, 241, 268, 270, 271, 280, 282, 425, 438)),
}
"""Per machine: audit number; socket, ptrace, mount, add_key, request_key, keyctl, unshare, perf_event_open, setns,
process_vm_readv, process_vm_writev, bpf, userfaultfd, io_uring_setup, pidfd_getfd."""
_X32 = 0x40000000
_CAPSET = {"x86_64": 126, "aarch64": 91}

_SYSTEM = (
    *("/usr", "/bin", "/lib", "/lib64", "/proc", "/sys/devices/system/cpu", "/sys/fs/cgroup"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/timezone", "/etc/passwd"),
    *("/etc/group", "/etc/nsswitch.conf", "/etc/mime.types", "/etc/alternatives"),
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/shm")  # noqa: S108


@dataclass(frozen=True, slots=True)
class Limits:
    """Resources of one process; None = as they are."""

    memory_bytes: int | None = None
    cpu_seconds: int | None = None
    file_bytes: int | None = None
    open_files: int | None = None
    processes: int | None = None


def confine(*, readable: Iterable[Path], writable: Iterable[Path], limits: Limits) -> list[str]:
    """Confine this process, which must have one thread, and return what could not be, one sentence each."""
    set_limits(limits)
    os.umask(0o077)
    gaps = [_drop_capabilities()]
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        gaps.append(f"new privileges can be gained ({_reason()})")
    gaps += [_landlock([*_python(), *map(Path, _SYSTEM), *readable], [*map(Path, _DEVICES), *writable]), _seccomp()]
    return [gap for gap in gaps if gap]


def set_limits(limits: Limits) -> None:
    """Lower this process's limits; none is ever raised."""
    _lower(resource.RLIMIT_CORE, 0)
    # SIGXCPU comes at the soft limit, SIGKILL at the hard one: equal limits would end it without a reason.
    _lower(resource.RLIMIT_CPU, limits.cpu_seconds, spare=_CPU_GRACE_SECONDS)
    _lower(resource.RLIMIT_FSIZE, limits.file_bytes)
    _lower(resource.RLIMIT_NOFILE, limits.open_files)
    _lower(resource.RLIMIT_NPROC, limits.processes)
    if limits.memory_bytes is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + limits.memory_bytes)


def landlock_abi() -> int:
    """Return the version of Landlock that the kernel offers; 0 = none."""
    return max(int(_LIBC.syscall(_CREATE_RULESET, None, 0, 1)), 0)


def _python() -> list[Path]:
    """Return where this interpreter, its packages and we lie."""
    packages = [*site.getsitepackages(), sysconfig.get_path("stdlib"), sys.prefix, sys.base_prefix, sys.exec_prefix]
    return [*map(Path, packages), Path(sys.executable).resolve().parent, Path(__file__).resolve().parents[1]]


def _lower(limit: int, value: int | None, *, spare: int = 0) -> None:
    if value is None:
        return
    _, hard = resource.getrlimit(limit)
    unlimited = hard == resource.RLIM_INFINITY
    ceiling = value + spare if unlimited else min(value + spare, hard)
    resource.setrlimit(limit, (min(value, ceiling), ceiling))


def _drop_capabilities() -> str:
    number = _CAPSET.get(platform.machine())
    if number is None:
        return f"capabilities are kept: the machine {platform.machine()} is not known here"
    for capability in range(_LAST_CAPABILITY + 1):
        _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # those that are not ours to drop are not ours to use
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    failed = _LIBC.syscall(number, ctypes.c_char_p(header), ctypes.c_char_p(none)) != 0
    return f"capabilities are kept ({_reason()})" if failed else ""


def _landlock(readable: Sequence[Path], writable: Sequence[Path]) -> str:
    abi = landlock_abi()
    if abi < 1:
        return "files of this user stay readable, other processes' environments too: the kernel has no Landlock"
    rights = (1 << next(count for least, count in _RIGHTS_BY_ABI if abi >= least)) - 1
    network, scopes = (_TCP_RIGHTS if abi >= 4 else 0), (_SCOPES if abi >= 6 else 0)
    body = struct.pack("=QQQ", rights, network, scopes)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = _LIBC.syscall(_CREATE_RULESET, ctypes.c_char_p(body), len(body), 0)
    if ruleset < 0:
        return f"files of this user stay readable: Landlock refuses ({_reason()})"
    try:
        for path in readable:
            _allow(ruleset, path, _READ)
        for path in writable:
            _allow(ruleset, path, rights)
        if _LIBC.syscall(_RESTRICT_SELF, ruleset, 0) != 0:
            return f"files of this user stay readable: Landlock refuses ({_reason()})"
    finally:
        os.close(ruleset)
    return "" if abi >= 6 else f"processes of this user can be signalled: Landlock {abi} cannot forbid it"


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there need not be allowed
    try:
        granted = rights if path.is_dir() else rights & _FILE_RIGHTS
        rule = struct.pack("=Qi", granted, handle)
        if _LIBC.syscall(_ADD_RULE, ruleset, 1, ctypes.c_char_p(rule), 0) != 0:
            raise OSError(ctypes.get_errno(), f"Landlock does not take {path}")
    finally:
        os.close(handle)


def _seccomp() -> str:
    known = _ARCHITECTURES.get(platform.machine())
    if known is None:
        return f"sockets can be opened: the machine {platform.machine()} is not known here"
    code = _filter(*known)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    if _LIBC.prctl(_PR_SET_SECCOMP, 2, ctypes.c_char_p(program), 0, 0) != 0:
        return f"sockets can be opened: seccomp refuses ({_reason()})"
    return ""


def _filter(audit: int, denied: Sequence[int]) -> bytes:
    """Return the program: calls of another architecture and those in ``denied`` fail with EACCES, the rest run."""
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EACCES
    steps = [(load, 0, 0, 4), (equal, 1, 0, audit), (answer, 0, 0, refuse), (load, 0, 0, 0)]
    steps.append((at_least, len(denied) + 1, 0, _X32))
    steps += [(equal, len(denied) - at, 0, number) for at, number in enumerate(denied)]
    steps += [(answer, 0, 0, allow), (answer, 0, 0, refuse)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _reason() -> str:
    return os.strerror(ctypes.get_errno())
