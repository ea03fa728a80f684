"""Images of environments: the tag is the key, the Dockerfile is clean, and no name is pasted into it unread."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek_ops.adapters.environments.images import (
    ImageLockError,
    ImageNameError,
    build_command,
    build_files,
    image_tag,
)
from deepseek_ops.pipeline.environment import environment_key
from deepseek_ops.pipeline.environment_conda import parse_conda
from deepseek_ops.pipeline.environment_requirements import parse_requirements

BASE = "registry.example.com:5000/team/jobs:0.1.0-cuda"
LOCK = parse_requirements(f"b==2 --hash=sha256:{'b' * 64}\na==1 --hash=sha256:{'a' * 64}\n", file="requirements.txt")


def test_the_tag_is_the_key_so_an_equal_lock_has_an_equal_image():
    key = environment_key(LOCK, image=BASE)
    assert image_tag("host:5000/team/model", key) == f"host:5000/team/model:{key[:12]}"
    for wrong in ("Host/x", "host/x:tag", "x y", "x\nRUN evil", ""):
        with pytest.raises(ImageNameError):
            image_tag(wrong, key)


def test_the_dockerfile_installs_the_lock_by_its_hashes():
    files = build_files(LOCK, base=BASE, key="k" * 32)
    assert "--require-hashes" in files["Dockerfile"]
    assert files["Dockerfile"].count(f"FROM {BASE}\n") == 1
    assert files["lock.txt"].splitlines() == [f"{name} --hash=sha256:{name[0] * 64}" for name in ("a==1", "b==2")]
    assert build_command("host/x:1")[-2:] == ("host/x:1", ".")
    for wrong in ("base\nRUN evil", "base:1 AS x", "base"):
        with pytest.raises(ImageNameError):
            build_files(LOCK, base=wrong, key="k" * 32)


def test_conda_packages_are_refused():
    with pytest.raises(ImageLockError, match=r"environment\.yml"):
        build_files(parse_conda("dependencies: [numpy=1.0]", file="environment.yml"), base=BASE, key="k")


def test_hadolint_finds_nothing_in_the_dockerfile(tmp_path):
    beside = Path(sys.executable).parent / "hadolint"
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is packaged for Linux on x86-64")
    (tmp_path / "Dockerfile").write_text(build_files(LOCK, base=BASE, key="k" * 32)["Dockerfile"])
    done = subprocess.run([hadolint, str(tmp_path / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
