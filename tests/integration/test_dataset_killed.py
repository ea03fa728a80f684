"""Writers and readers killed with SIGKILL before each of their system calls that change a disk."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fixtures_s3
import pytest

from deepseek_ops.adapters.stores import open_store, store_environment
from deepseek_ops.data import DatasetRepository, VersionNotFoundError

s3_server, s3_uri = fixtures_s3.s3_server, fixtures_s3.s3_uri

CHANGING = ("write", "fsync", "link", "replace", "rename", "mkdir", "unlink")
"""Functions of ``os`` through which LocalStore, commit and checkout change anything."""


def killed_before(step: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a child that is killed before its ``step``-th change; return whether it was."""
    child = os.fork()
    if child == 0:
        left = step

        def counted(function: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call

        for name in CHANGING:
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
        except BaseException:  # noqa: BLE001
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "the child failed instead of being killed"
    return os.WIFSIGNALED(status)


@contextmanager
def scratch(origin: Path, copy: Path) -> Iterator[Path]:
    shutil.copytree(origin, copy)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


def fill(folder: Path, seed: int) -> None:
    numbers = random.Random(seed)  # noqa: S311
    folder.mkdir(exist_ok=True)
    for index in range(6):
        (folder / f"{index}.bin").write_bytes(numbers.randbytes(200))
    (folder / "large.bin").write_bytes(numbers.randbytes((1 << 20) + 5))


def commit(store: Path, folder: Path) -> str:
    repository = DatasetRepository.open(open_store(str(store)), workers=1)
    return repository.commit(folder, name="corpus", message="m", author="a").version


@pytest.mark.slow
def test_a_commit_killed_anywhere_leaves_the_old_version_or_the_new_one(tmp_path: Path) -> None:
    base, first, second = tmp_path / "base", tmp_path / "first", tmp_path / "second"
    fill(first, 1)
    fill(second, 2)
    old = commit(base, first)
    with scratch(base, tmp_path / "reference") as reference:
        new = commit(reference, second)
    step, heads = 0, []
    while True:
        shutil.rmtree(second / ".deepseek-ops", ignore_errors=True)
        with scratch(base, tmp_path / "store") as store:
            was_killed = killed_before(step, lambda: commit(store, second))
            repository = DatasetRepository(open_store(str(store)))
            head = repository.resolve("corpus")
            heads.append(head)
            assert head in (old, new)
            assert repository.verify(head).problems == ()
            assert repository.verify(old).problems == ()
            assert commit(store, second) == new, "the next try finishes"
            assert repository.verify("corpus").problems == ()
            assert len(repository.log("corpus")) == 2
        if not was_killed:
            break
        step += 1
    assert step > 25
    assert heads == sorted(heads, key=[old, new].index), "a version that was seen is not taken back"
    assert heads[0] == old
    assert heads[-1] == new


def test_the_first_commit_killed_anywhere_leaves_no_version_or_a_whole_one(tmp_path: Path) -> None:
    folder, step = tmp_path / "folder", 0
    fill(folder, 1)
    while True:
        shutil.rmtree(folder / ".deepseek-ops", ignore_errors=True)
        store = tmp_path / f"store{step}"
        was_killed = killed_before(step, lambda: commit(store, folder))  # noqa: B023
        try:
            assert DatasetRepository(open_store(str(store))).verify("corpus").problems == ()
        except VersionNotFoundError:
            assert was_killed
        version = commit(store, folder)
        assert DatasetRepository(open_store(str(store))).verify(version).problems == ()
        shutil.rmtree(store)
        if not was_killed:
            break
        step += 3


def test_a_checkout_killed_anywhere_leaves_all_or_nothing(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "folder"
    fill(folder, 1)
    version = commit(store, folder)
    wanted = sorted(path.name for path in folder.iterdir() if path.is_file())
    step = 0
    while True:
        target = tmp_path / "out" / "corpus"
        repository = DatasetRepository(open_store(str(store)), workers=1)
        was_killed = killed_before(step, lambda: repository.checkout(version, target))  # noqa: B023
        if target.exists():
            assert sorted(path.name for path in target.iterdir()) == wanted
            shutil.rmtree(target)
        repository.checkout(version, target)
        assert sorted(path.name for path in target.iterdir()) == wanted
        shutil.rmtree(tmp_path / "out")
        if not was_killed:
            break
        step += 1
    assert step > 8


@pytest.mark.slow
def test_commits_to_s3_killed_at_any_time_lose_nothing(
    s3_server: fixtures_s3.SeaweedServer, s3_uri: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    fill(folder, 1)
    store = open_store(s3_uri, s3_server.credentials)
    old = DatasetRepository.open(store).commit(folder, name="corpus", message="m", author="a").version
    numbers = random.Random(3)  # noqa: S311
    (folder / "large.bin").write_bytes(numbers.randbytes(40 << 20))
    for index in range(2000):
        (folder / f"{index}.bin").write_bytes(numbers.randbytes(16 << 10))
    program = (
        "import sys; from pathlib import Path\n"
        "from deepseek_ops.adapters.stores import store_from_environment\n"
        "from deepseek_ops.data import DatasetRepository\n"
        "import os; repository = DatasetRepository.open(store_from_environment(os.environ))\n"
        "print('ready', flush=True)\n"
        "repository.commit(Path(sys.argv[1]), name='corpus', message='m', author='a')\n"
    )
    environment = {**os.environ, **store_environment(s3_uri, s3_server.credentials)}
    for delay in (0.0, 0.05, 0.15, 0.3, 0.6):
        shutil.rmtree(folder / ".deepseek-ops", ignore_errors=True)
        writer = subprocess.Popen([sys.executable, "-c", program, str(folder)], env=environment, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(delay)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        repository = DatasetRepository(store)
        assert repository.verify("corpus").problems == ()
        assert repository.resolve("corpus") == old or len(repository.log("corpus")) == 2
    repository = DatasetRepository(store)
    new = repository.commit(folder, name="corpus", message="m", author="a").version
    assert repository.verify(new).problems == ()
    assert len(repository.log("corpus")) == 2
