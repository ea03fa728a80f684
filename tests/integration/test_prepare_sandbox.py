"""What foreign code in ``prepare`` can reach: its raw folder and its own one, and nothing that is ours."""

from __future__ import annotations

import json
import os
import socket

import pytest
from fixtures_prepare import kitchen  # noqa: F401  (a pytest fixture)

from deepseek_ops.jobs.prepare_process import PrepareFailedError, PrepareMemoryError
from deepseek_ops.jobs.prepare_sandbox import landlock_abi

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(landlock_abi() < 1, reason="the kernel has no Landlock"),
]
SECRET = "correct-horse-battery-staple"

PROBE = """
import json, os, socket, subprocess, sys
from pathlib import Path

def tried(work):
    try:
        return f"done {work()}"
    except BaseException as error:
        return type(error).__name__

def prepare(raw, out, **parameters):
    parent, secret = os.getppid(), Path(parameters["home"])
    found = {
        "variables": " ".join(os.environ.values()),
        "parent_environment": tried(lambda: Path(f"/proc/{parent}/environ").read_bytes()),
        "grandparent_environment": tried(lambda: Path(f"/proc/{parameters['pytest']}/environ").read_bytes()),
        "parent_memory": tried(lambda: open(f"/proc/{parent}/mem", "rb").read(1)),
        "parent_file": tried(lambda: open(f"/proc/{parent}/fd/{parameters['descriptor']}").read()),
        "own_files": [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if name not in "012"
                      and os.path.exists(f"/proc/self/fd/{name}")],
        "home_file": tried(lambda: (secret / ".aws" / "credentials").read_text()),
        "home_list": tried(lambda: os.listdir(secret)),
        "store_file": tried(lambda: list(Path(parameters["store"]).rglob("*"))[0]),
        "shadow": tried(lambda: open("/etc/shadow").read()),
        "network": tried(lambda: socket.create_connection(("127.0.0.1", parameters["port"]))),
        "datagrams": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
        "local_socket": tried(lambda: socket.socket(socket.AF_UNIX)),
        "shell": subprocess.run(["cat", str(secret / ".aws" / "credentials")], capture_output=True, text=True).stdout,
        "signal": tried(lambda: os.kill(parent, 0)),
        "raw_write": tried(lambda: (Path(raw) / "mine").write_text("x")),
        "code_write": tried(lambda: Path(__file__).with_name("other.py").write_text("x")),
        "elsewhere": tried(lambda: Path(parameters["elsewhere"]).write_text("x")),
        "become": tried(lambda: os.setuid(12345)),
        "raw_read": tried(lambda: len(os.listdir(raw))),
        "out_write": tried(lambda: (Path(out).parent / "mine").write_text("x")),
        "pool": tried(lambda: __import__("multiprocessing").Pool(2).map(abs, [-1, 2])),
        "home": os.environ["HOME"],
    }
    print("PROBE" + json.dumps(found), flush=True)
    raise SystemExit(3)
"""


@pytest.fixture
def probed(kitchen, tmp_path, monkeypatch, capfd):  # noqa: F811
    """What the probe found, run by a parent with secrets in its variables, its home and an open file."""
    home = tmp_path / "home"
    (home / ".aws").mkdir(parents=True)
    (home / ".aws" / "credentials").write_text(SECRET)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    kitchen.write_raw("part.jsonl", [{"id": "1", "text": "one"}])
    with socket.create_server(("127.0.0.1", 0)) as server, (home / ".aws" / "credentials").open() as secret:
        os.set_inheritable(secret.fileno(), True)
        parameters = {
            "home": str(home),
            "store": str(tmp_path / "store"),
            "port": server.getsockname()[1],
            "descriptor": secret.fileno(),
            "elsewhere": str(tmp_path / "elsewhere"),
            "pytest": os.getppid(),
        }
        with pytest.raises(PrepareFailedError):
            kitchen.prepare(PROBE, parameters=parameters)
    said = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("PROBE"))
    return json.loads(said.removeprefix("PROBE"))


def test_nothing_of_ours_is_in_reach(probed):
    assert SECRET not in json.dumps(probed)
    refused = {name for name, answer in probed.items() if answer in ("PermissionError", "FileNotFoundError")}
    assert refused >= {
        *("parent_environment", "grandparent_environment", "parent_memory", "parent_file", "home_file", "home_list"),
        *("shadow", "network", "datagrams", "local_socket", "signal", "raw_write", "code_write", "elsewhere", "become"),
    }
    assert probed["own_files"] == []
    assert probed["shell"] == ""
    assert not probed["store_file"].startswith("done")


def test_what_it_needs_works(probed):
    assert probed["raw_read"] == "done 1"
    assert probed["out_write"].startswith("done")
    assert probed["pool"] == "done [1, 2]"
    assert probed["home"].endswith("scratch")


def limited(kitchen, code, **limits):  # noqa: F811
    kitchen.write_raw("part.jsonl", [{"id": "1", "text": "one"}])
    with pytest.raises(PrepareFailedError) as failed:
        kitchen.prepare(code, limits=limits)
    return str(failed.value)


def test_memory_is_limited_and_the_error_names_the_key(kitchen):  # noqa: F811
    said = limited(kitchen, "def prepare(raw, out): bytearray(1 << 30)", memory_bytes=256 << 20)
    assert "raise data.limits.memory" in said


def test_memory_of_many_processes_is_counted_together(kitchen):  # noqa: F811
    code = """
import os, time
def prepare(raw, out):
    for _ in range(4):
        if os.fork() == 0:
            data = bytearray(os.urandom(1)) * (100 << 20)
            time.sleep(60)
    time.sleep(60)
"""
    kitchen.write_raw("part.jsonl", [{"id": "1", "text": "one"}])
    with pytest.raises(PrepareMemoryError, match=r"allowed; read the input in parts, or raise data\.limits\.memory"):
        kitchen.prepare(code, limits={"memory_bytes": 256 << 20})


def test_processor_time_is_limited(kitchen):  # noqa: F811
    assert "raise data.limits.cpu" in limited(kitchen, "def prepare(raw, out):\n    while True: pass", cpu_seconds=1)


def test_file_size_and_open_files_are_limited(kitchen):  # noqa: F811
    big = "def prepare(raw, out): (out.parent / 'big').write_bytes(bytes(3 << 20))"
    assert "File too large" in limited(kitchen, big, file_bytes=1 << 20)
    many = "def prepare(raw, out): print([open('/dev/null') for _ in range(200)])"
    assert "Too many open files" in limited(kitchen, many, open_files=100)


def test_a_kernel_without_a_layer_is_said_aloud(monkeypatch):
    from deepseek_ops.jobs import prepare_sandbox

    monkeypatch.setattr(prepare_sandbox, "landlock_abi", lambda: 0)
    assert "no Landlock" in prepare_sandbox._landlock([], [])
    monkeypatch.setattr(prepare_sandbox.platform, "machine", lambda: "riscv64")
    assert "sockets can be opened" in prepare_sandbox._seccomp()
