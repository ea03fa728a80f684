"""The stand-alone server as a process: killed clients, killed servers, transfers that are tried again."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fixtures_git
import fixtures_git_lfs
import fixtures_lfs_server
import fixtures_s3
import httpx
import pytest
from fixtures_lfs_server import LFS, SECRET, Clone, LfsProcess, MakeClone

from deepseek_ops.adapters.git_lfs.tokens import Access, TokenBook
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.objects import blob_key
from deepseek_ops.core.ports import ObjectStore

git_lfs = fixtures_git_lfs.git_lfs
lfs_environment = fixtures_git_lfs.lfs_environment
git_server = fixtures_git.git_server
make_clone = fixtures_lfs_server.make_clone
s3_server = fixtures_s3.s3_server
s3_uri = fixtures_s3.s3_uri

MIB = 1 << 20
SIZE = 96 * MIB


def big_file(place: Path, size: int) -> str:
    """Write a file that does not compress and return its SHA-256, with a few MiB of memory."""
    seen = hashlib.sha256()
    with place.open("wb") as file:
        for number in range(-(-size // (4 * MIB))):
            block = hashlib.shake_128(str(number).encode()).digest(64) * (4 * MIB // 64)
            block = block[: min(len(block), size - file.tell())]
            file.write(block)
            seen.update(block)
    return seen.hexdigest()


def token(store: ObjectStore, access: Access = "write", subject: str = "ada") -> str:
    return TokenBook(store, [SECRET.encode()]).issue("team/model", access, subject, days=1)[0]


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.01)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)


@pytest.fixture
def folder_server(tmp_path: Path) -> Iterator[tuple[LfsProcess, ObjectStore, Path]]:
    place = tmp_path / "store"
    place.mkdir()
    server = LfsProcess(str(place), {}, tmp_path)
    server.start()
    yield server, open_store(str(place)), place
    server.end()


@pytest.fixture
def ada(folder_server: tuple[LfsProcess, ObjectStore, Path], make_clone: MakeClone) -> Clone:
    server, store, _ = folder_server
    clone = make_clone("ada", server.url, token(store))
    clone.git("lfs", "track", "*.bin")
    return clone


def arriving(store_folder: Path) -> int:
    """Return how many bytes of unfinished uploads have been written (not merely reserved)."""
    return sum(_position(path) for path in (store_folder / ".tmp").glob("lfs-*"))


def _position(path: Path) -> int:
    """Return the offset of the server's write handle: the file has its full size from the start."""
    for process in Path("/proc").glob("[0-9]*/fd"):
        try:
            for handle in process.iterdir():
                if handle.readlink() == path:
                    info = (process.parent / "fdinfo" / handle.name).read_text()
                    return int(re.search(r"pos:\s*(\d+)", info)[1])
        except (OSError, TypeError):
            continue
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["client", "server"])
def test_a_push_that_was_killed_on_the_way_is_finished_by_the_next_one(
    folder_server: tuple[LfsProcess, ObjectStore, Path], ada: Clone, victim: str
) -> None:
    server, store, place = folder_server
    oid = big_file(ada.folder / "w.bin", SIZE)
    ada.commit({})
    push = ada.start("push", "origin", "HEAD:main")
    until(lambda: arriving(place) > 8 * MIB or push.poll() is not None, "the upload")
    assert push.poll() is None, "the push was over before it could be killed"
    if victim == "server":
        server.kill()
        kill_group(push)
        server.start()
    else:
        kill_group(push)
    assert store.head(blob_key(oid)) is None, "half an object must never be visible"
    ada.git("push", "--quiet", "origin", "HEAD:main")
    assert store.head(blob_key(oid)).size == SIZE
    if victim == "client":
        until(lambda: not list((place / ".tmp").glob("lfs-*")), "the server's cleaning up")


class Cutter:
    """A TCP relay to the server that cuts its first connections after some bytes of answer, and records requests."""

    def __init__(self, port: int, after: int, cuts: int) -> None:
        import socket

        self._port, self._after, self._cuts = port, after, cuts
        self.ranges: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        import socket

        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._up, args=(near, far), daemon=True).start()
            threading.Thread(target=self._down, args=(far, near), daemon=True).start()

    def _up(self, near, far) -> None:
        while data := _received(near):
            self.ranges += re.findall(rb"(?i)range: (bytes=\d+-\d+)", data)
            far.sendall(data)
        far.close()

    def _down(self, far, near) -> None:
        sent = 0
        while data := _received(far):
            sent += len(data)
            if sent > self._after and self._cuts > 0:
                self._cuts -= 1
                break
            try:
                near.sendall(data)
            except OSError:
                break
        import socket

        for end in (near, far):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def close(self) -> None:
        self._listener.close()


def _received(end) -> bytes:
    try:
        return end.recv(1 << 16)
    except OSError:
        return b""


@pytest.mark.slow
def test_a_download_whose_connection_breaks_goes_on_where_it_stopped(
    folder_server: tuple[LfsProcess, ObjectStore, Path], ada: Clone, make_clone: MakeClone
) -> None:
    server, store, _ = folder_server
    oid = big_file(ada.folder / "w.bin", 24 * MIB)
    ada.commit({})
    ada.git("push", "--quiet", "origin", "HEAD:main")
    cutter = Cutter(server.port, after=8 * MIB, cuts=2)
    try:
        bob = make_clone("bob", f"http://127.0.0.1:{cutter.port}", token(store, "read", "bob"))
        bob.git("fetch", "--quiet", "origin")
        bob.git("checkout", "--quiet", "main")
    finally:
        cutter.close()
    assert hashlib.sha256((bob.folder / "w.bin").read_bytes()).hexdigest() == oid
    starts = [int(re.search(rb"=(\d+)-", one)[1]) for one in cutter.ranges]
    assert starts, "git-lfs must have resumed"
    assert min(starts) > 4 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["client", "server"])
def test_a_pull_that_was_killed_on_the_way_is_finished_by_the_next_one(
    folder_server: tuple[LfsProcess, ObjectStore, Path], ada: Clone, make_clone: MakeClone, victim: str
) -> None:
    server, store, _ = folder_server
    oid = big_file(ada.folder / "w.bin", SIZE)
    ada.commit({})
    ada.git("push", "--quiet", "origin", "HEAD:main")
    bob = make_clone("bob", server.url, token(store, "read", "bob"))
    bob.git("fetch", "--quiet", "origin")
    pull = bob.start("lfs", "fetch", "origin", "origin/main")
    incomplete = bob.folder / ".git/lfs/incomplete"

    def arrived() -> int:
        return sum(path.stat().st_size for path in incomplete.glob("*") if path.exists())

    until(lambda: arrived() > 8 * MIB or pull.poll() is not None, "the download")
    assert pull.poll() is None, "the pull was over before it could be killed"
    if victim == "server":
        server.kill()
        kill_group(pull)
        server.start()
    else:
        kill_group(pull)
    bob.git("checkout", "--quiet", "main")
    with (bob.folder / "w.bin").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == oid


@pytest.mark.slow
def test_a_push_to_s3_through_the_server_that_was_killed_is_finished_by_the_next_one(
    s3_server, s3_uri: str, make_clone: MakeClone, tmp_path: Path
) -> None:
    store = open_store(s3_uri, s3_server.credentials)
    (tmp_path / "settings.json").write_text('{"transfers": "proxied"}')
    server = LfsProcess(s3_uri, s3_server.credentials, tmp_path, "--settings", str(tmp_path / "settings.json"))
    server.start()
    try:
        ada = make_clone("ada", server.url, token(store))
        ada.git("lfs", "track", "*.bin")
        oid = big_file(ada.folder / "w.bin", SIZE)
        ada.commit({})
        push = ada.start("push", "origin", "HEAD:main")
        time.sleep(1.5)
        server.kill()
        kill_group(push)
        assert store.head(blob_key(oid)) is None
        server.start()
        ada.git("push", "--quiet", "origin", "HEAD:main")
        assert store.head(blob_key(oid)).size == SIZE
    finally:
        server.end()


@pytest.fixture(params=["folder", "s3"])
def stored(
    request: pytest.FixtureRequest, make_clone: MakeClone, tmp_path: Path
) -> Iterator[tuple[Clone, ObjectStore]]:
    """A clone whose server stands before a folder (transfers by the server) or S3 (transfers past it)."""
    if request.param == "s3":
        credentials, uri = request.getfixturevalue("s3_server").credentials, request.getfixturevalue("s3_uri")
    else:
        credentials, uri = {}, str(tmp_path / "store")
        (tmp_path / "store").mkdir()
    server, store = LfsProcess(uri, credentials, tmp_path), open_store(uri, credentials)
    server.start()
    clone = make_clone("ada", server.url, token(store))
    clone.git("lfs", "track", "*.bin")
    yield clone, store
    server.end()


@pytest.mark.slow
@pytest.mark.heavy
def test_a_file_of_a_gigabyte_goes_up_and_comes_down(stored: tuple[Clone, ObjectStore]) -> None:
    ada, store = stored
    size = 1 << 30
    oid = big_file(ada.folder / "w.bin", size)
    ada.commit({})
    begun = time.monotonic()
    ada.run("push", "--quiet", "origin", "HEAD:main", timeout=280)
    up = time.monotonic() - begun
    assert store.head(blob_key(oid)).size == size
    (ada.folder / "w.bin").unlink()
    (ada.folder / ".git/lfs/objects" / oid[:2] / oid[2:4] / oid).unlink()
    begun = time.monotonic()
    ada.run("lfs", "pull", timeout=280)
    print(f"1 GiB: push {up:.1f} s, pull and checkout {time.monotonic() - begun:.1f} s")
    with (ada.folder / "w.bin").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == oid
    store.delete([blob_key(oid)])
    shutil.rmtree(ada.folder)


def test_an_upload_that_runs_when_the_server_is_asked_to_end_is_finished(
    folder_server: tuple[LfsProcess, ObjectStore, Path],
) -> None:
    server, store, place = folder_server
    content = b"part" * 2_000_000
    oid = hashlib.sha256(content).hexdigest()
    headers = {**LFS, "Authorization": f"Bearer {token(store)}"}
    body = {"operation": "upload", "objects": [{"oid": oid, "size": len(content)}]}
    answer = httpx.post(f"{server.url}/team/model/objects/batch", json=body, headers=headers, trust_env=False)
    link = answer.json()["objects"][0]["actions"]["upload"]
    ended = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield content[:4_000_000]
        ended.wait(20)
        time.sleep(0.5)
        yield content[4_000_000:]

    def end() -> None:
        until(lambda: arriving(place) > 0, "the upload")
        server.terminate()
        ended.set()

    ender = threading.Thread(target=end)
    ender.start()
    sized = {**link["header"], "Content-Length": str(len(content))}
    done = httpx.put(link["href"], content=slowly(), headers=sized, trust_env=False, timeout=60)
    ender.join()
    assert done.status_code == 200
    assert server.end() == 0
    assert store.head(blob_key(oid)).size == len(content)


def test_the_server_ends_cleanly_and_its_log_holds_no_secret(
    folder_server: tuple[LfsProcess, ObjectStore, Path], ada: Clone
) -> None:
    server, store, _ = folder_server
    text = token(store)
    ada.commit({"w.bin": b"w" * 5000})
    ada.git("push", "--quiet", "origin", "HEAD:main")
    httpx.get(f"{server.url}/team/model/locks?path={text}", auth=("x", text), trust_env=False)
    httpx.get(f"{server.url}/evil%0a2026 forged line/locks", trust_env=False)
    assert server.end() == 0
    log = server.log.read_text()
    assert re.search(r'POST /team/model/objects/batch 200 \d+ bytes \d+ ms "ada/[0-9a-f]{16}"', log)
    assert "\n2026 forged" not in log
    for secret in (SECRET, text, text.split(".")[1], "dsolink", "dsotoken", "Basic ", "Bearer "):
        assert secret not in log


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "192.0.2.1"], "without TLS"),
        (["--host", "::"], "without TLS"),
        (["--secret-file", "/nonexistent"], "cannot be read"),
        (["--settings", "bad.json"], "link_seconds"),
    ],
)
def test_the_server_does_not_start_unsafely(tmp_path: Path, options: list[str], message: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    (tmp_path / "bad.json").write_text('{"link_seconds": -1}')
    command = [sys.executable, "-m", "deepseek_ops.cli.main", "lfs", "serve", "--store", str(tmp_path / "store")]
    done = subprocess.run(
        [*command, "--secret-file", str(secret), *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
