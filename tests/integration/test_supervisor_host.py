"""The warm host: jobs come from it, are cut off from it and from each other, and do not need it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fixtures_launcher import job, settled, until

from deepseek_ops.adapters.local_launcher import LocalLauncher
from deepseek_ops.adapters.local_launcher.folder import JobFolder
from deepseek_ops.adapters.local_launcher.processes import process
from deepseek_ops.adapters.local_launcher.warm import HostProcess
from deepseek_ops.core.jobs import JobPhase


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[LocalLauncher]:
    launcher = LocalLauncher(tmp_path)
    yield launcher
    launcher.shutdown("the test is over", grace_seconds=1)


def hosts(root: Path) -> list[int]:
    known = [JobFolder(entry).read("host.json", HostProcess) for entry in (root / "host").glob("*")]
    return [host.pid for host in known if host is not None and (p := process(host.pid)) is not None and not p.zombie]


def kinds(launcher: LocalLauncher, name: str) -> list[object]:
    return [event["kind"] for event in launcher.events(name)]


def test_many_launchers_start_one_host_and_their_jobs_come_from_it(launcher, tmp_path) -> None:
    specs = [job("deaf") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(lambda spec: LocalLauncher(tmp_path).submit(spec), specs))
    (host,) = hosts(tmp_path)
    parents = {found.parent for status in statuses if (found := process(status.pid)) is not None}
    assert parents == {host}
    assert {settled(launcher, spec.name).phase for spec in specs} == {JobPhase.SUCCEEDED}


def test_a_job_sees_neither_the_host_nor_the_jobs_before_it(launcher: LocalLauncher, tmp_path: Path) -> None:
    first, second = job("echo", environment={"TEST_VARIABLE": "first"}), job("echo")
    launcher.submit(first, secrets={"TEST_TOKEN": "s3same-open"})
    launcher.submit(second)
    settled(launcher, first.name)
    settled(launcher, second.name)
    result = launcher.result(second.name)
    assert (launcher.result(first.name)["secret_length"], result["secret_length"]) == (len("s3same-open"), 0)
    assert result["variable"] == ""
    assert not [name for name in result["files"] if "/host/" in name or "lock" in name or "socket" in name]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"s3same-open" in path.read_bytes()]


def test_jobs_go_on_when_the_host_is_killed_and_the_next_job_starts_another(launcher, tmp_path) -> None:
    running = job("deaf")
    launcher.submit(running)
    (host,) = hosts(tmp_path)
    os.kill(host, signal.SIGKILL)
    assert until(lambda: not hosts(tmp_path)), "the kernel takes its time on a busy machine; until then jobs start cold"
    after = job("echo")
    launcher.submit(after)
    assert settled(launcher, after.name).phase is JobPhase.SUCCEEDED
    assert settled(launcher, running.name).phase is JobPhase.SUCCEEDED
    assert "cold_start" not in kinds(launcher, after.name)
    assert hosts(tmp_path) not in ([], [host])


def test_the_host_ends_when_it_is_idle_and_not_before(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path)
    spec = job("deaf", environment={"DEEPSEEK_OPS_WARM_SECONDS": "0.5"})
    launcher.submit(spec)
    while not launcher.status(spec.name).settled:
        assert hosts(tmp_path), "it left its job alone"
    assert until(lambda: not hosts(tmp_path), within=20)


def test_the_host_ends_when_its_root_is_gone(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path / "root")
    launcher.prewarm(job("echo").environment)
    (host,) = hosts(tmp_path / "root")
    shutil.rmtree(tmp_path / "root")
    assert until(lambda: process(host) is None, within=20)


def test_a_host_that_has_threads_forks_nothing_and_the_job_starts_cold(launcher: LocalLauncher) -> None:
    spec = job("echo", environment={"DEEPSEEK_OPS_PRELOAD": "fixtures_launcher_threaded"})
    launcher.submit(spec)
    assert settled(launcher, spec.name).phase is JobPhase.SUCCEEDED
    (cold,) = [event for event in launcher.events(spec.name) if event["kind"] == "cold_start"]
    assert "more than one thread" in cold["reason"]


def test_a_host_folder_that_others_may_enter_is_not_used(launcher: LocalLauncher, tmp_path: Path) -> None:
    launcher.prewarm(job("echo").environment)
    for folder in (tmp_path / "host").iterdir():
        folder.chmod(0o755)
    spec = job("echo")
    launcher.submit(spec, secrets={"TEST_TOKEN": "s3same-open"})
    (cold,) = [event for event in launcher.events(spec.name) if event["kind"] == "cold_start"]
    assert "0700" in cold["reason"]
    assert settled(launcher, spec.name).phase is JobPhase.SUCCEEDED


def test_light_jobs_do_not_wait_for_a_host(launcher: LocalLauncher, tmp_path: Path) -> None:
    spec = job("echo", kind="prepare")
    launcher.submit(spec)
    assert hosts(tmp_path) == []
    assert settled(launcher, spec.name).phase is JobPhase.SUCCEEDED


def test_other_names_of_the_interpreter_share_its_host(launcher: LocalLauncher, tmp_path: Path) -> None:
    names = sorted(Path(sys.executable).parent.glob("python3*"))
    for name in [sys.executable, *map(str, names)]:
        spec = job("echo", python=name)
        launcher.submit(spec)
        assert settled(launcher, spec.name).phase is JobPhase.SUCCEEDED
    assert names
    assert len(hosts(tmp_path)) == 1


def test_variables_that_libraries_read_at_import_ask_for_a_host_of_their_own(launcher, tmp_path) -> None:
    for value in ("0", "1"):
        spec = job("echo", environment={"HF_HUB_OFFLINE": value})
        launcher.submit(spec)
        settled(launcher, spec.name)
    assert len(hosts(tmp_path)) == 2
