"""Environments without a network: packages of one line in a folder of wheels, and caches that find them there."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from pathlib import Path

import pytest

import deepseek_ops
from deepseek_ops.adapters.environments import Runtime, VenvCache
from deepseek_ops.core.environments import EnvironmentLock
from deepseek_ops.pipeline.environment_requirements import parse_requirements


def write_wheel(folder: Path, name: str, version: str, needs: tuple[str, ...] = ()) -> str:
    """Write a wheel whose one module says its version, and return its hash."""
    info = f"{name}-{version}.dist-info"
    required = "".join(f"Requires-Dist: {one}\n" for one in needs)
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{required}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text)}")
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), text)
    return f"sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"


def lock_of(text: str, **files: str) -> EnvironmentLock:
    """Return the lock of a requirements file."""
    return parse_requirements(text, file="requirements.txt", read=files.get)


def small_runtime(check: str = "import sys", **fields: object) -> Runtime:
    """Return a runtime that adds nothing to a lock."""
    package = Path(deepseek_ops.__file__).parent
    return Runtime(**{"package": package, "requirements": (), "versions": (), "check": check, **fields})  # type: ignore[arg-type]


def offline(wheels: Path, **more: str) -> dict[str, str]:
    """Return the variables of a worker that knows this folder of wheels and nothing else."""
    return {
        **os.environ,
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": str(wheels),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        **more,
    }


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with two versions of ``seasoning``, which needs ``salt``."""
    folder = tmp_path / "wheels"
    write_wheel(folder, "salt", "1.0")
    write_wheel(folder, "salt", "2.0")
    for version in ("1.0", "2.0"):
        write_wheel(folder, "seasoning", version, ("salt",))
    return folder


@pytest.fixture
def cache(tmp_path: Path, wheels: Path) -> VenvCache:
    """A cache that finds packages in ``wheels`` only."""
    return VenvCache(tmp_path / "cache", runtime=small_runtime(), environment=offline(wheels))
