"""What this process runs with: read from the interpreter's own folders in milliseconds, without importing a thing."""

from __future__ import annotations

import contextlib
import json
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import deepseek_ops
from deepseek_ops.core.environments import ResolvedEnvironment, ResolvedPackage, canonical_name

_NVIDIA = Path("/proc/driver/nvidia")


def resolved_environment() -> ResolvedEnvironment:
    """Return packages, Python, platform and, as far as the machine says, processor, GPU and driver."""
    packages: dict[str, ResolvedPackage] = {}
    for folder in map(Path, sys.path):
        for name, package in _packages(folder):
            packages.setdefault(name, package)  # the first on the path is the one that is imported
    packages.setdefault("deepseek-ops", ResolvedPackage(version=deepseek_ops.__version__))  # linked, not installed
    return ResolvedEnvironment(
        packages=dict(sorted(packages.items())),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=f"{platform.system()}-{platform.machine()}-{''.join(platform.libc_ver())}".lower(),
        hardware={name: value for name, value in _hardware().items() if value},
    )


def _packages(folder: Path) -> Iterator[tuple[str, ResolvedPackage]]:
    try:
        entries = sorted(folder.glob("*.dist-info"))
    except OSError:  # a zip file, or a folder that may not be read: nothing is imported from there by name
        return
    for entry in entries:
        name, _, version = entry.name.removesuffix(".dist-info").partition("-")
        if version:
            yield canonical_name(name), ResolvedPackage(version=version, source=_source(entry / "direct_url.json"))


def _source(file: Path) -> str:
    """Return where a package came from that is not from an index, without credentials; "" for the others."""
    try:
        body = json.loads(file.read_bytes())
        url = re.sub(r"://[^/@\s]+@", "://", str(body["url"]))
        commit = body.get("vcs_info", {}).get("commit_id")
        hashes = body.get("archive_info", {}).get("hashes") or {}
    except (OSError, ValueError, KeyError, AttributeError):
        return ""
    if url.startswith("file:"):
        url = "file:"  # where it lay on that machine says nothing about what it is
    return f"{url}@{commit}" if commit else f"{url}#sha256={hashes['sha256']}" if "sha256" in hashes else url


def _hardware() -> dict[str, str]:
    gpus = sorted(_field(path, "Model") for path in _NVIDIA.glob("gpus/*/information"))
    driver = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", _read(_NVIDIA / "version"))
    return {
        "cpu": _field(Path("/proc/cpuinfo"), "model name"),
        "gpu": ", ".join(gpus),
        "driver": f"nvidia {driver[1]}" if driver else "",
    }


def _field(path: Path, name: str) -> str:
    match = re.search(rf"^{name}\s*:\s*(.+)$", _read(path), re.MULTILINE)
    return match[1].strip() if match else ""


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""
