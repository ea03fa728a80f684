"""The embedded Git server: plain git clients work with it, and it serves nothing else to nobody else."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from fixtures_git import TOKEN, USER, Developer, git_server, http_developer, run_git  # noqa: F401

from deepseek_ops.embedded.git_server import TOKEN_VARIABLE, GitServer, RepositoryNameError


def with_token(url: str) -> str:
    return url.replace("http://", f"http://{USER}:{TOKEN}@")


def test_a_plain_client_clones_and_pushes_more_than_one_buffer(git_server: GitServer, tmp_path: Path) -> None:  # noqa: F811
    url = with_token(git_server.create_repository("plain-client"))
    run_git(tmp_path, "clone", "--quiet", url, "one")
    (tmp_path / "one/big").write_bytes(os.urandom(3_000_000))  # above http.postBuffer: a chunked request
    run_git(tmp_path / "one", "add", "-A")
    run_git(tmp_path / "one", "commit", "--quiet", "-m", "big")
    run_git(tmp_path / "one", "push", "--quiet", "origin", "HEAD:refs/heads/main")
    run_git(tmp_path, "clone", "--quiet", "--depth=1", "--filter=blob:none", "--no-checkout", url, "two")
    run_git(tmp_path, "clone", "--quiet", url, "three")
    assert (tmp_path / "three/big").read_bytes() == (tmp_path / "one/big").read_bytes()
    packed = sum(file.stat().st_size for file in (tmp_path / "two/.git/objects").rglob("*") if file.is_file())
    assert packed < 100_000, "the filter was not honoured"


def test_making_a_repository_twice_keeps_it(git_server: GitServer, http_developer: Developer) -> None:  # noqa: F811
    commit = http_developer.push_commit({"a": "1"})
    name = http_developer.bare.name
    assert git_server.create_repository(name) == http_developer.remote.url
    assert http_developer.remote.refs() == {"refs/heads/main": commit}
    assert [path.name for path in git_server.root.iterdir() if path.name.startswith(".new")] == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "a b"])
def test_a_name_that_is_no_folder_name_is_refused(git_server: GitServer, name: str) -> None:  # noqa: F811
    with pytest.raises(RepositoryNameError):
        git_server.create_repository(name)


def test_nothing_is_told_without_the_token(git_server: GitServer) -> None:  # noqa: F811
    url = git_server.create_repository("guarded")
    for auth in (None, (USER, "x"), ("other", TOKEN), (USER, TOKEN + "x")):
        for where in (url, git_server.repository_url("not-there")):
            answer = httpx.get(f"{where}/info/refs", params={"service": "git-upload-pack"}, auth=auth)
            assert (answer.status_code, "www-authenticate" in answer.headers) == (401, True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/guarded.git/info/refs?service=git-upload-pack", 200),
        ("GET", "/guarded.git/info/refs", 403),
        ("GET", "/guarded.git/info/refs?service=git-daemon", 403),
        ("GET", "/guarded.git/HEAD", 404),
        ("GET", "/guarded.git/config", 404),
        ("GET", "/guarded.git/objects/info/packs", 404),
        ("GET", "/guarded.git/../guarded.git/config", 404),
        ("GET", "/%2e%2e/etc/passwd", 404),
        ("GET", "/none.git/info/refs?service=git-upload-pack", 404),
        ("GET", "/guarded.git/git-upload-pack", 405),
        ("POST", "/guarded.git/info/refs?service=git-upload-pack", 405),
        ("GET", "/", 404),
    ],
)
def test_only_the_git_services_are_served(git_server: GitServer, method: str, path: str, status: int) -> None:  # noqa: F811
    git_server.create_repository("guarded")
    with httpx.Client(auth=(USER, TOKEN)) as client:
        request = client.build_request(method, git_server.url + "/")
        request.url = request.url.copy_with(raw_path=path.encode())
        assert client.send(request).status_code == status


def start(root: Path, *options: str, token: str = TOKEN) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deepseek_ops.embedded.git_server", "--root", str(root), *options],
        env={"PATH": os.environ["PATH"], TOKEN_VARIABLE: token},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_process_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    with start(tmp_path / "repos", "--create", "model") as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        run_git(tmp_path, "ls-remote", f"{with_token(url)}/model.git")
        with start(tmp_path / "repos", "--port", url.rpartition(":")[2]) as second:
            assert second.stderr is not None
            assert "cannot listen" in second.stderr.read()
            assert second.wait(20) == 1
        process.terminate()
        assert process.wait(20) == 0


def test_the_process_wants_a_token(tmp_path: Path) -> None:
    with start(tmp_path, token="") as process:
        assert process.stderr is not None
        assert TOKEN_VARIABLE in process.stderr.read()
        assert process.wait(20) == 2


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        f"argv = [sys.executable, '-m', 'deepseek_ops.embedded.git_server', '--root', {str(tmp_path)!r}]\n"
        "child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)\n"
        "print(child.pid, child.stdout.readline().strip(), flush=True)\n"
    )
    environment = {"PATH": os.environ["PATH"], TOKEN_VARIABLE: TOKEN}
    parent = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    pid, url = parent.stdout.split()
    deadline = time.monotonic() + 20
    with contextlib.suppress(httpx.TransportError):
        while time.monotonic() < deadline:
            httpx.get(url)
            time.sleep(0.1)
    with pytest.raises(httpx.TransportError):
        httpx.get(url)
    assert int(pid) > 0
