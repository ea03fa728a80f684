"""The cache of environments: built once, published whole, shared, never taken from under a job; on real uv."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fixtures_environments import cache, lock_of, offline, small_runtime, wheels, write_wheel  # noqa: F401
from fixtures_launcher import until

from deepseek_ops.adapters.environments import (
    BuildStoppedError,
    CondaUnavailableError,
    EnvironmentBuildError,
    IndexUnavailableError,
    VenvCache,
    export_uv_lock,
)
from deepseek_ops.adapters.environments import building as building_module
from deepseek_ops.adapters.local_launcher.environment_use import hold
from deepseek_ops.pipeline.environment_conda import parse_conda

LOCK = "seasoning==1.0\nsalt==1.0\n"


def made(cache, text=LOCK, say=lambda _line: None):  # noqa: F811
    """Return the environment of a lock, after its lease has ended."""
    with cache.interpreter(lock_of(text), say=say) as environment:
        return environment


def says(python, code):
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def folders(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "envs").iterdir())


def test_a_job_gets_the_locked_versions_our_code_and_nothing_of_this_interpreter(cache):  # noqa: F811
    environment = made(cache)
    code = "import seasoning, salt, sys, importlib.util as u; print(seasoning.VERSION, salt.VERSION, *map(u.find_spec, "
    assert says(environment.python, code + "['airflow', 'pydantic']))") == "1.0 1.0 None None"
    assert says(environment.python, "import deepseek_ops; print(deepseek_ops.__version__)")
    assert os.access(environment.python, os.X_OK)


def test_an_equal_lock_is_built_once_and_found_without_an_index(cache, tmp_path):  # noqa: F811
    first = made(cache)
    elsewhere = VenvCache(tmp_path / "cache", runtime=small_runtime(), environment={"PATH": "/nowhere"})
    again = made(elsewhere, "# another comment\nSalt==1.0\nseasoning==1.0")
    assert (first.built, again.built) == (True, False)
    assert first.python == again.python
    assert made(cache, "seasoning==2.0\nsalt==1.0").python != first.python


def test_of_many_that_ask_at_once_one_builds_and_the_others_wait(tmp_path, wheels):  # noqa: F811
    def ask(_number):
        one = VenvCache(tmp_path / "cache", runtime=small_runtime(), environment=offline(wheels))
        return made(one)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert sorted(one.built for one in found) == [False, False, False, True]
    assert len({one.python for one in found}) == len(folders(tmp_path)) == 1


BUILDER = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from fixtures_environments import *
cache = VenvCache(Path({root!r}), runtime=small_runtime(), environment=offline(Path({wheels!r})))
print("begin", flush=True)
with cache.interpreter(lock_of({lock!r}), say=lambda line: print(line, flush=True)): pass
"""


@pytest.mark.parametrize("after", [0.0, 0.03, 0.1, 0.3])
def test_a_builder_that_is_killed_leaves_nothing_half_made(tmp_path, wheels, cache, after):  # noqa: F811
    tests = str(Path(__file__).parents[1])
    code = BUILDER.format(tests=tests, root=str(tmp_path / "cache"), wheels=str(wheels), lock=LOCK)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as builder:
        for line in builder.stdout:
            if "building environment" in line:
                break
        time.sleep(after)
        builder.send_signal(signal.SIGKILL)
    environment = made(cache)
    assert says(environment.python, "import seasoning, salt; print(seasoning.VERSION, salt.VERSION)") == "1.0 1.0"
    assert folders(tmp_path) == [environment.python.parents[1].name]


def test_what_a_killed_builder_left_is_swept_when_another_lock_is_built(tmp_path, cache):  # noqa: F811
    left = tmp_path / "cache" / "envs" / f"{'0' * 32}-dead"
    (left / "bin").mkdir(parents=True)
    made(cache)
    assert not left.exists()


def test_the_least_recently_used_goes_first_and_one_in_use_never(tmp_path, cache, wheels):  # noqa: F811
    first, second = made(cache, "salt==1.0"), made(cache, "salt==2.0")
    until(lambda: made(cache, "salt==1.0").built is False)
    small = VenvCache(tmp_path / "cache", runtime=small_runtime(), environment=offline(wheels), max_bytes=1)
    job = hold(second.python.parents[1])  # what a job in it does
    third = made(small, LOCK)
    assert [first.python.exists(), second.python.exists(), third.python.exists()] == [False, True, True]
    os.close(job)
    assert small.sweep() == [second.entry]
    assert not second.python.exists()
    assert made(cache, "salt==2.0").built, "what was removed is built again"


def test_a_lock_that_contradicts_itself_is_one_error_with_what_the_resolver_said(cache, tmp_path, wheels):  # noqa: F811
    write_wheel(wheels, "seasoning", "3.0", ("salt<2",))
    with pytest.raises(
        EnvironmentBuildError, match=r"requirements\.txt cannot be built: installing the lock"
    ) as caught:
        made(cache, "seasoning==3.0\nsalt==2.0")
    assert "seasoning==3.0" in "".join(caught.value.lines)
    with pytest.raises(EnvironmentBuildError, match="pepper"):
        made(cache, "pepper==1.0")
    assert folders(tmp_path) == []


def test_a_package_with_another_hash_than_the_lock_is_refused(cache, tmp_path, wheels):  # noqa: F811
    right = write_wheel(wheels, "salt", "1.0")
    assert made(cache, f"salt==1.0 --hash={right}").built
    with pytest.raises(EnvironmentBuildError, match=r"(?i)hash"):
        made(cache, f"salt==2.0 --hash=sha256:{'0' * 64}")
    with pytest.raises(EnvironmentBuildError, match=r"(?i)hash"):
        made(cache, f"seasoning==1.0 --hash={write_wheel(wheels, 'seasoning', '1.0', ('salt',))}")


def test_an_index_that_is_away_is_worth_another_try_and_its_password_is_not_shown(tmp_path):
    hidden = {"UV_DEFAULT_INDEX": "http://reader:hush@127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0", "UV_NO_CACHE": "1"}
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "AWS_SECRET_ACCESS_KEY": "hush", **hidden}
    lines = []
    cache = VenvCache(tmp_path / "cache", runtime=small_runtime(), environment=environment)  # noqa: F811
    with pytest.raises(IndexUnavailableError) as caught:
        made(cache, "salt==1.0", lines.append)
    assert "hush" not in str(caught.value) + "".join(lines)
    written = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not any(b"hush" in path.read_bytes() for path in written)


def test_packages_the_lock_leaves_open_come_in_this_workers_versions_where_they_can(tmp_path, wheels):  # noqa: F811
    runtime = small_runtime(requirements=("salt>=1",), versions=(("salt", "1.0"),))
    ours = VenvCache(tmp_path / "cache", runtime=runtime, environment=offline(wheels))
    assert says(made(ours, "seasoning==2.0").python, "import salt; print(salt.VERSION)") == "1.0"
    assert says(made(ours, "seasoning==2.0\nsalt==2.0").python, "import salt; print(salt.VERSION)") == "2.0"
    write_wheel(wheels, "sauce", "1.0", ("salt>1",))
    assert says(made(ours, "sauce==1.0").python, "import salt; print(salt.VERSION)") == "2.0"


def test_a_lock_that_our_jobs_cannot_live_with_says_so(tmp_path, wheels):  # noqa: F811
    runtime = small_runtime(requirements=("salt>=2",))
    ours = VenvCache(tmp_path / "cache", runtime=runtime, environment=offline(wheels))
    with pytest.raises(EnvironmentBuildError, match=r"what deepseek-ops needs beside the lock(.|\n)*salt"):
        made(ours, "salt==1.0")


def test_an_environment_that_cannot_run_our_jobs_is_never_published(tmp_path, wheels):  # noqa: F811
    broken = VenvCache(tmp_path / "cache", runtime=small_runtime("import not_there"), environment=offline(wheels))
    with pytest.raises(EnvironmentBuildError, match="not_there"):
        made(broken)
    assert broken.published() == {}
    assert folders(tmp_path) == []


def test_a_build_ends_when_its_task_is_stopped(cache, tmp_path):  # noqa: F811
    with (
        pytest.raises(BuildStoppedError),
        cache.interpreter(lock_of(LOCK), say=lambda _line: None, stopped=lambda: True),
    ):
        pass
    assert folders(tmp_path) == []


@pytest.mark.slow
def test_without_uv_the_same_is_made_by_pip(cache, monkeypatch):  # noqa: F811
    monkeypatch.setattr(building_module, "find_uv", lambda: None)
    environment = made(cache)
    assert says(environment.python, "import seasoning, salt; print(seasoning.VERSION, salt.VERSION)") == "1.0 1.0"


CONDA = "channels: [conda-forge]\ndependencies: [python=3.11, numpy=2.4.6, {pip: [salt==1.0]}]\n"


def test_conda_packages_need_conda_and_an_error_says_which(cache, monkeypatch):  # noqa: F811
    monkeypatch.setenv("PATH", "/nowhere")
    lock = parse_conda(CONDA, file="environment.yml")
    with (
        pytest.raises(CondaUnavailableError, match="needs one of micromamba, mamba and conda"),
        cache.interpreter(lock, say=lambda _line: None),
    ):
        pass


def test_an_environment_file_with_pip_packages_only_needs_no_conda(cache):  # noqa: F811
    lock = parse_conda(CONDA.replace("numpy=2.4.6, ", ""), file="environment.yml")
    with cache.interpreter(lock, say=lambda _line: None) as environment:
        assert says(environment.python, "import salt, sys; print(salt.VERSION, *sys.version_info[:2])") == "1.0 3 11"


@pytest.mark.slow
def test_conda_makes_the_environment_where_it_is_there(cache, tmp_path, monkeypatch):  # noqa: F811
    tool = tmp_path / "bin" / "micromamba"  # stands in for the real one: what is tested is how it is called
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\nexec {sys.executable} -m venv "$5"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    with cache.interpreter(parse_conda(CONDA, file="environment.yml"), say=lambda _line: None) as environment:
        assert says(environment.python, "import salt; print(salt.VERSION)") == "1.0"
    called = (tmp_path / "called").read_text()
    assert called.startswith("create --yes --quiet --prefix ")
    assert called.endswith("--channel conda-forge python=3.11 numpy=2.4.6 pip\n")


PROJECT = '[project]\nname = "m"\nversion = "0"\nrequires-python = ">=3.11"\ndependencies = ["salt==1.0"]\n'


def test_a_uv_lock_is_read_with_its_hashes(tmp_path, wheels):  # noqa: F811
    from deepseek_ops.pipeline.environment_locks import read_lock

    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "pyproject.toml").write_text(PROJECT)
    uv = [building_module.find_uv() or "uv", "lock", "--quiet", "--no-index"]
    subprocess.run(uv, cwd=tmp_path / "m", env=offline(wheels), check=True)
    text = (tmp_path / "m" / "uv.lock").read_text()
    lock = read_lock("m/uv.lock", {"m/uv.lock": text, "m/pyproject.toml": PROJECT}.get)
    assert [pin.requirement for pin in lock.pins] == ["salt==1.0"]
    with pytest.raises(EnvironmentBuildError, match="uv export"):
        export_uv_lock("version = what", PROJECT, file="uv.lock")
