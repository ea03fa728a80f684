"""A repository, a server or a neighbour that means harm gets one clear error and executes nothing."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_git import TOKEN, USER, Developer, file_developer, git_server, http_developer, run_git  # noqa: F401

from deepseek_ops.adapters.git import GitRepository, UnsafePathError, UnsafeTreeError, open_git
from deepseek_ops.adapters.git import publish as publish_module
from deepseek_ops.adapters.git.refs import list_refs_async
from deepseek_ops.core.errors import GitAccessError, GitUnreachableError, RefNotFoundError, StaleRefError
from deepseek_ops.core.ports import NewCommit, NewTag


def commit_tree(developer: Developer, entries: list[tuple[str, str, str]]) -> str:
    """Commit a tree as no ordinary git would make it, straight into the bare repository, and return the commit."""
    bare = developer.bare
    listing = b"".join(f"{mode} {kind} {name}".encode() + b"\x00" for mode, kind, name in entries)
    tree = run_git(bare, "mktree", "-z", "--missing", data=listing)
    made = run_git(bare, "commit-tree", "-m", "hostile", tree)
    run_git(bare, "update-ref", "refs/heads/main", made)
    return made


def blob(developer: Developer, content: str) -> str:
    return run_git(developer.bare, "hash-object", "-w", "--stdin", data=content.encode())


def raw_tree(developer: Developer, entries: list[tuple[str, str, str]]) -> str:
    """Return a tree of raw entries: names that mktree refuses are possible."""
    data = b"".join(f"{mode} {name}".encode() + b"\x00" + bytes.fromhex(oid) for mode, oid, name in entries)
    return run_git(developer.bare, "hash-object", "-t", "tree", "-w", "--stdin", "--literally", data=data)


@pytest.mark.parametrize("name", ["..", ".git", ".GIT", ".git. ", "git~1"])
def test_a_path_that_leaves_the_folder_is_refused(file_developer: Developer, tmp_path: Path, name: str) -> None:  # noqa: F811
    inner = raw_tree(file_developer, [("100644", blob(file_developer, "evil"), "config")])
    commit = run_git(file_developer.bare, "commit-tree", "-m", "x", raw_tree(file_developer, [("40000", inner, name)]))
    run_git(file_developer.bare, "update-ref", "refs/heads/main", commit)
    with pytest.raises(UnsafeTreeError, match="config"):
        file_developer.remote.checkout(commit, tmp_path / "deep/out")
    assert not (tmp_path / "deep/out").exists()
    assert not (tmp_path / "deep/config").exists()


@pytest.mark.parametrize("link", ["/etc/passwd", "../outside", "sub/../../outside", "self/../..", "loop"])
def test_a_link_that_leaves_the_folder_is_refused(file_developer: Developer, tmp_path: Path, link: str) -> None:  # noqa: F811
    (file_developer.folder / "loop").symlink_to(link)
    (file_developer.folder / "self").symlink_to(".")
    commit = file_developer.push_commit({"a": "1"})
    with pytest.raises(UnsafeTreeError, match="link that leaves"):
        file_developer.remote.checkout(commit, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_file_is_written_through_a_link(file_developer: Developer, tmp_path: Path) -> None:  # noqa: F811
    inner = raw_tree(file_developer, [("100644", blob(file_developer, "evil"), "file")])
    tree = raw_tree(
        file_developer, [("120000", blob(file_developer, str(tmp_path / "victim")), "a"), ("40000", inner, "a")]
    )
    (tmp_path / "victim").mkdir()
    commit = run_git(file_developer.bare, "commit-tree", "-m", "x", tree)
    run_git(file_developer.bare, "update-ref", "refs/heads/main", commit)
    with pytest.raises(UnsafeTreeError):
        file_developer.remote.checkout(commit, tmp_path / "out")
    assert list((tmp_path / "victim").iterdir()) == []


def test_attributes_filters_and_hooks_of_a_repository_run_nothing(
    http_developer: Developer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proof = tmp_path / "executed"
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        f'[filter "evil"]\n smudge = touch {proof}\n[core]\n fsmonitor = touch {proof}\n[diff "evil"]\n'
        f" textconv = touch {proof}\n command = touch {proof}\n[alias]\n fetch = !touch {proof}\n"
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", f"touch {proof}")
    monkeypatch.setenv("GIT_SSH_COMMAND", f"touch {proof}")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    http_developer.push_commit({".gitattributes": "* filter=evil diff=evil\n", "a": "1"})
    commit = http_developer.push_commit({"a": "2", ".gitmodules": '[submodule "x"]\n path = x\n url = ext::sh\n'})
    remote = http_developer.remote
    remote.checkout(commit, tmp_path / "out")
    remote.describe(commit)
    made = remote.publish(commit=NewCommit("main", commit, "m", {"b": b"1"}), tags=[NewTag("t", "", "m")])
    assert remote.changed_paths(commit, made["main"]) == ["b"]
    assert not proof.exists()


def test_names_that_look_like_options_are_names(http_developer: Developer, tmp_path: Path) -> None:  # noqa: F811
    commit = http_developer.push_commit({"--output=x": "1", "-n": "2"})
    name = "refs/heads/--upload-pack=touch"
    run_git(http_developer.bare, "update-ref", name, commit)
    remote = http_developer.remote
    assert remote.resolve("--upload-pack=touch").name == name
    assert remote.read_file(commit, "--output=x") == b"1"
    assert sorted(remote.changed_paths(None, commit)) == ["--output=x", "-n"]
    made = remote.publish(commit=NewCommit(name, commit, "-m", {"-x": b"1"}))
    assert remote.resolve(name).commit == made[name]
    remote.checkout(made[name], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["--output=x", "-n", "-x"]
    for bad in ("--help", "HEAD", "main", "0" * 39, "0" * 40 + "\n"):
        with pytest.raises(RefNotFoundError):
            remote.describe(bad)


def test_a_published_path_cannot_leave_the_tree(http_developer: Developer) -> None:  # noqa: F811
    parent = http_developer.push_commit({"a": "1"})
    for path in ("../x", ".git/config", "/x", "a//b"):
        with pytest.raises(UnsafePathError, match="cannot be published"):
            http_developer.remote.publish(commit=NewCommit("main", parent, "m", {path: b"1"}))
    assert http_developer.remote.refs() == {"refs/heads/main": parent}


def test_a_rule_of_the_host_is_told_and_not_tried_again(http_developer: Developer) -> None:  # noqa: F811
    parent = http_developer.push_commit({"a": "1"})
    hook = http_developer.bare / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'bots may not write to main' >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(GitAccessError, match="bots may not write to main"):
        http_developer.remote.publish(commit=NewCommit("main", parent, "m", {"b": b"1"}))


def test_a_ref_that_is_refused_takes_the_others_with_it(http_developer: Developer) -> None:  # noqa: F811
    parent = http_developer.push_commit({"a": "1"})
    hook = http_developer.bare / "hooks" / "update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\ntest "$1" != refs/heads/main\n')
    hook.chmod(0o755)
    with pytest.raises(GitAccessError, match="refs/heads/main"):
        http_developer.remote.publish(commit=NewCommit("main", parent, "m", {"b": b"1"}), tags=[NewTag("t", "", "m")])
    assert http_developer.remote.refs() == {"refs/heads/main": parent}


def test_a_branch_that_moves_during_the_push_is_not_overwritten(
    http_developer: Developer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent = http_developer.push_commit({"a": "1"})
    other: list[str] = []
    plain = publish_module.list_refs

    def then_moved(*arguments: object) -> object:
        found = plain(*arguments)  # type: ignore[arg-type]
        if not other:
            other.append(http_developer.push_commit({"a": "2"}))
        return found

    monkeypatch.setattr(publish_module, "list_refs", then_moved)
    with pytest.raises(StaleRefError, match="refs/heads/main"):
        http_developer.remote.publish(commit=NewCommit("main", parent, "m", {"b": b"1"}))
    assert http_developer.remote.refs() == {"refs/heads/main": other[0]}


def test_size_of_what_is_fetched_does_not_follow_the_files(http_developer: Developer, tmp_path: Path) -> None:  # noqa: F811
    old = http_developer.push_commit({"big.bin": os.urandom(3_000_000), "small": "1"})
    new = http_developer.push_commit({"small": "2"})
    later = http_developer.push_commit({"big.bin": os.urandom(3_000_000)})
    remote = http_developer.remote
    assert remote.changed_paths(old, new) == ["small"]
    assert remote.read_file(later, "small") == b"2"
    assert len(remote.describe(new)["patch_id"]) == 40
    assert remote.merge_base(old, later) == old
    remote.publish(commit=NewCommit("main", later, "m", {"r": b"1"}), tags=[NewTag("on-old", old, "m")])
    held = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert held < 500_000, "contents were fetched that nobody asked for"


# --- servers ----------------------------------------------------------------------------------------------------------


def everything(remote: GitRepository) -> list[object]:
    commit = "0123456789abcdef0123456789abcdef01234567"
    return [
        remote.refs,
        lambda: remote.describe(commit),
        lambda: remote.changed_paths(None, commit),
        lambda: remote.publish(tags=[NewTag("t", commit, "m")]),
    ]


def test_a_closed_port_an_unknown_host_and_a_missing_folder_are_told_apart(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for url, kind in (
        (f"http://127.0.0.1:{port}/m.git", GitUnreachableError),
        ("https://no-such-host.invalid/m.git", GitUnreachableError),
        *([(f"ssh://git@127.0.0.1:{port}/m.git", GitUnreachableError)] if shutil.which("ssh") else []),
        (f"file://{tmp_path}/none.git", GitAccessError),
    ):
        remote = open_git(url, cache=tmp_path / "cache")
        for ask in everything(remote):
            started = time.monotonic()
            with pytest.raises(kind, match=r"m\.git|none\.git"):
                ask()  # type: ignore[operator]
            assert time.monotonic() - started < 30


def test_wrong_credentials_and_unknown_repositories_are_refused_without_showing_the_token(
    http_developer: Developer,  # noqa: F811
    tmp_path: Path,
) -> None:
    url = http_developer.remote.url
    for remote in (
        open_git(url, username=USER, password="wrong-token", cache=tmp_path / "c"),
        open_git(url, cache=tmp_path / "c"),
        open_git(url.replace("model-", "none-"), username=USER, password=TOKEN, cache=tmp_path / "c"),
        open_git(url.replace("http://", "http://git:wrong-token@"), cache=tmp_path / "c"),
    ):
        for ask in everything(remote):
            with pytest.raises(GitAccessError) as refused:
                ask()  # type: ignore[operator]
            assert "token" not in str(refused.value)
    inside = open_git(url.replace("http://", f"http://{USER}:{TOKEN}@"), cache=tmp_path / "c")
    assert (inside.refs(), TOKEN in inside.url) == ({}, False)


def test_credentials_are_in_no_argument_and_no_file(
    http_developer: Developer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = tmp_path / "bin" / "git"
    real.parent.mkdir()
    real.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/argv\nexec {shutil.which("git")} "$@"\n')
    real.chmod(0o755)
    monkeypatch.setenv("PATH", f"{real.parent}:{os.environ['PATH']}")
    commit = http_developer.push_commit({"a": "1"})
    remote = http_developer.remote
    remote.checkout(commit, tmp_path / "out")
    remote.publish(tags=[NewTag("t", commit, "m")])
    assert "fetch" in (tmp_path / "argv").read_text()
    for file in [tmp_path / "argv", *(tmp_path / "cache").rglob("*")]:
        if file.is_file():
            assert TOKEN.encode() not in file.read_bytes(), file


class _Answer(http.server.BaseHTTPRequestHandler):
    status, body, kind = 200, b"", "application/x-git-upload-pack-result"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def liar() -> Iterator[tuple[type[_Answer], str]]:
    """A server that answers what the test says."""
    handler = type("Liar", (_Answer,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_address[1]}/m.git"
    server.shutdown()
    server.server_close()


def packet(line: str) -> bytes:
    return b"%04x%s" % (len(line.encode()) + 4, line.encode())


async def test_a_server_that_lies_about_refs_is_not_believed(
    liar: tuple[type[_Answer], str],
    tmp_path: Path,
) -> None:
    handler, url = liar
    remote = open_git(url, username=USER, password=TOKEN, cache=tmp_path)
    good = "a" * 40
    names = ["refs/heads/main", "refs/heads/a b", "refs/heads/x\ny", "--upload-pack=x", "refs/heads/\x01", "../x"]
    handler.body = b"".join(packet(f"{good} {name}\n") for name in names) + packet("zz refs/heads/z\n") + b"0000"
    assert remote.refs(["*"]) == {"refs/heads/main": good}
    assert await remote.refs_async(["*"]) == {"refs/heads/main": good}
    for status, body, kind in (
        (200, packet(f"{good} refs/heads/main\n"), GitUnreachableError),  # cut: no flush
        (200, b"00ff" + good.encode(), GitUnreachableError),
        (200, packet(f"ERR go away {TOKEN}\n") + b"0000", GitAccessError),
        (503, b"", GitUnreachableError),
        (429, b"", GitUnreachableError),
        (401, b"", GitAccessError),
        (404, b"", GitAccessError),
    ):
        handler.status, handler.body = status, body
        with pytest.raises(kind) as refused:
            remote.refs()
        with pytest.raises(kind):
            await list_refs_async(remote._git, [])
        assert TOKEN not in str(refused.value)


def test_a_server_without_version_two_is_asked_by_git_itself(liar: tuple[type[_Answer], str], tmp_path: Path) -> None:
    handler, url = liar
    handler.kind, handler.body = "text/html", b"<html>"
    with pytest.raises(Exception, match=r"m\.git") as refused:
        open_git(url, cache=tmp_path).refs()
    assert "Traceback" not in str(refused.value)
