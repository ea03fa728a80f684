"""What a move of a ref is: merges, renames, submodules, tags, empty and SHA-256 repositories, unwilling servers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures_git import TOKEN, USER, Developer, git_server, http_developer, make_developer, run_git  # noqa: F401
from fixtures_git_proxy import Proxy, git_proxy
from fixtures_triggers import StateStore, connect, running, state  # noqa: F401

from deepseek_ops.adapters.git import open_git, refs
from deepseek_ops.airflow.triggers.git import GitRefTrigger
from deepseek_ops.core.records import GitRef
from deepseek_ops.embedded.git_server import GitServer

CALM = 0.8
"""Several polls: long enough to see that nothing fires."""


@pytest.fixture
def developer(http_developer: Developer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Developer:  # noqa: F811
    connect(monkeypatch, "model", conn_type="git", host=http_developer.remote.url, login=USER, password=TOKEN)
    monkeypatch.setenv("DEEPSEEK_OPS_CACHE", str(tmp_path / "trigger-cache"))
    return http_developer


@pytest.fixture
def proxy(git_server: GitServer) -> Iterator[Proxy]:  # noqa: F811
    with git_proxy(git_server.url) as running_proxy:
        yield running_proxy


def watcher(**changes: Any) -> GitRefTrigger:
    arguments: dict[str, Any] = {
        "git_conn_id": "model", "asset_name": "model_repository", "poll_interval": 0.1,
        "refs": ["refs/heads/*", "refs/tags/*"],
    }  # fmt: skip
    return GitRefTrigger(**{**arguments, **changes})


def told(events: list[dict[str, Any]]) -> list[tuple[str, str, str | None]]:
    return [(ref.name, ref.commit, ref.previous) for ref in map(GitRef.load, events)]


async def begun(state: StateStore) -> None:  # noqa: F811
    async with asyncio.timeout(20):
        while not any("shards" in value for value in state.values.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def fires(developer: Developer, paths: list[str], push: Any) -> bool:
    """Return whether what ``push`` does makes a watcher of ``paths`` announce ``main``."""
    store = StateStore()
    async with running(watcher(refs=["refs/heads/main"], paths=paths), store) as listener:
        await begun(store)
        commit = push(developer)
        async with asyncio.timeout(20):
            while not any(commit in value for value in store.values.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return bool(listener.events)


async def test_a_merge_is_what_it_brought_to_the_branch(developer: Developer) -> None:
    developer.push_commit({"deepseek/a": "1", "docs/b": "1"})

    def merge(branch: str, files: dict[str, str]) -> Any:
        def push(developer: Developer) -> str:
            developer.git("switch", "--quiet", "-c", branch, "main")
            developer.commit(files)
            developer.git("switch", "--quiet", "main")
            developer.git("commit", "--quiet", "--allow-empty", "-m", "meanwhile")
            developer.git("merge", "--quiet", "--no-ff", "-m", "merge", branch)
            developer.push("main")
            return developer.git("rev-parse", "main")

        return push

    assert await fires(developer, ["deepseek/**"], merge("one", {"deepseek/a": "2"}))
    assert not await fires(developer, ["deepseek/**"], merge("two", {"docs/b": "2"}))


async def test_both_names_of_a_renamed_file_have_changed(developer: Developer) -> None:
    developer.push_commit({"deepseek/a": "a long enough content\n" * 9, "other/c": "1"})

    def rename(source: str, target: str) -> Any:
        def push(developer: Developer) -> str:
            (developer.folder / target).parent.mkdir(parents=True, exist_ok=True)
            developer.git("mv", source, target)
            return developer.push_commit({})

        return push

    assert await fires(developer, ["deepseek/**"], rename("deepseek/a", "attic/a"))
    assert await fires(developer, ["deepseek/**"], rename("attic/a", "deepseek/b"))
    assert not await fires(developer, ["deepseek/**"], rename("other/c", "other/d"))


async def test_a_moved_submodule_is_a_change_of_its_path_and_is_not_fetched(developer: Developer) -> None:
    def submodule(commit: str) -> Any:
        def push(developer: Developer) -> str:
            developer.git("update-index", "--add", "--cacheinfo", f"160000,{commit},vendor/engine")
            developer.git("commit", "--quiet", "-m", "engine")
            developer.push("main")
            return developer.git("rev-parse", "HEAD")

        return push

    developer.push_commit({".gitmodules": '[submodule "e"]\n path = vendor/engine\n url = http://127.0.0.1:9/e.git\n'})
    assert await fires(developer, ["vendor/engine"], submodule("a" * 40))
    assert await fires(developer, ["vendor/**"], submodule("b" * 40))
    assert not await fires(developer, ["deepseek/**"], submodule("c" * 40))


async def test_a_moved_tag_is_announced_with_what_it_was_and_by_its_commit(
    developer: Developer,
    state: StateStore,  # noqa: F811
) -> None:
    old = developer.push_commit({"a": "1"})
    developer.git("tag", "v1")
    developer.push("v1")
    new = developer.push_commit({"a": "2"})
    async with running(watcher(refs=["refs/tags/*"], paths=["nothing/**"]), state) as listener:
        await begun(state)
        developer.git("tag", "-f", "-a", "v1", "-m", "moved")
        developer.push("v1")
        assert told(await listener.next(1)) == [("refs/tags/v1", new, old)]
        developer.git("tag", "-f", "-a", "v1", "-m", "the same commit in other words")
        developer.push("v1")
        await asyncio.sleep(CALM)
        assert len(listener.events) == 1


async def test_the_first_push_to_an_empty_repository_is_a_new_branch(
    developer: Developer,
    state: StateStore,  # noqa: F811
) -> None:
    async with running(watcher(paths=["a"]), state) as listener:
        await begun(state)
        first = developer.push_commit({"a": "1"})
        assert told(await listener.next(1)) == [("refs/heads/main", first, None)]


async def test_a_repository_that_was_renamed_goes_on_where_it_was_and_another_one_begins_afresh(
    developer: Developer,
    state: StateStore,  # noqa: F811
    git_server: GitServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    old = developer.push_commit({"a": "1"})
    async with running(watcher(), state):
        await begun(state)
    name = developer.bare.stem
    developer.bare.rename(git_server.root / f"{name}-renamed.git")
    developer.bare = git_server.root / f"{name}-renamed.git"
    developer.git("remote", "set-url", "origin", str(developer.bare))
    new = developer.push_commit({"a": "2"})
    url = git_server.repository_url(f"{name}-renamed")
    connect(monkeypatch, "model", conn_type="git", host=url, login=USER, password=TOKEN)
    async with running(watcher(), state) as listener:
        assert told(await listener.next(1)) == [("refs/heads/main", new, old)]
        await asyncio.sleep(CALM)

    other_url = git_server.create_repository(f"{name}-other")
    remote = open_git(other_url, username=USER, password=TOKEN, cache=tmp_path / "other")
    other = make_developer(tmp_path / "other-work", git_server.root / f"{name}-other.git", remote)
    other.push_commit({"z": "1"})
    other.push_commit({"z": "2"}, "exp/x")
    connect(monkeypatch, "model", conn_type="git", host=other_url, login=USER, password=TOKEN)
    async with running(watcher(), state) as listener:
        await asyncio.sleep(CALM)
        assert listener.events == []
        pushed = other.push_commit({"z": "3"}, "exp/x")
        assert told(await listener.next(1))[0][1] == pushed


async def test_a_redirect_on_the_same_host_is_followed_without_a_process(
    developer: Developer,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    commit = developer.push_commit({"a": "1"})
    proxy.moved["old.git"] = f"/{developer.bare.name}"
    remote = open_git(f"{proxy.url}/old.git", username=USER, password=TOKEN, cache=tmp_path / "moved")
    assert remote.changed_paths(None, commit) == ["a"]
    monkeypatch.setattr(refs, "list_refs_by_command", None)
    assert (await remote.look_async()).refs == {"refs/heads/main": commit}
    assert remote.refs() == {"refs/heads/main": commit}


async def test_a_redirect_to_another_host_gets_no_credentials(
    developer: Developer,
    proxy: Proxy,
    git_server: GitServer,  # noqa: F811
    tmp_path: Path,
) -> None:
    developer.push_commit({"a": "1"})
    with git_proxy(git_server.url) as elsewhere:
        proxy.moved["old.git"] = f"{elsewhere.url}/{developer.bare.name}"
        remote = open_git(f"{proxy.url}/old.git", username=USER, password=TOKEN, cache=tmp_path / "moved")
        with pytest.raises(Exception, match=r"old\.git"):
            await remote.look_async()


@pytest.mark.parametrize("stores", ["filters", "everything"])
def test_a_server_that_gives_only_what_its_refs_reach_tells_what_changed(
    developer: Developer,
    proxy: Proxy,
    tmp_path: Path,
    stores: str,
) -> None:
    run_git(developer.bare, "config", "uploadpack.allowAnySHA1InWant", "false")
    run_git(developer.bare, "config", "uploadpack.allowFilter", str(stores == "filters").lower())
    old = developer.push_commit({"deepseek/a": "1", "docs/b": "1"})
    new = developer.push_commit({"docs/b": "2"})
    proxy.old_protocol = True
    remote = open_git(f"{proxy.url}/{developer.bare.name}", username=USER, password=TOKEN, cache=tmp_path / "strict")
    assert remote.refs() == {"refs/heads/main": new}
    assert remote.changed_paths(old, new) == ["docs/b"]
    if stores == "everything":  # a server that filters and then refuses contents cannot be read by anybody
        assert remote.read_file(new, "docs/b") == b"2"


async def test_a_watcher_of_a_strict_server_announces_by_what_really_changed(
    developer: Developer,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    state: StateStore,  # noqa: F811
) -> None:
    run_git(developer.bare, "config", "uploadpack.allowAnySHA1InWant", "false")
    proxy.old_protocol = True
    host = f"{proxy.url}/{developer.bare.name}"
    connect(monkeypatch, "model", conn_type="git", host=host, login=USER, password=TOKEN)
    developer.push_commit({"deepseek/a": "1", "docs/b": "1"})
    async with running(watcher(paths=["deepseek/**"]), state) as listener:
        await begun(state)
        docs = developer.push_commit({"docs/b": "2"})
        async with asyncio.timeout(20):
            while not any(docs in value for value in state.values.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        code = developer.push_commit({"deepseek/a": "2"})
        assert told(await listener.next(1)) == [("refs/heads/main", code, docs)]


async def test_a_sha256_repository_is_watched_as_any_other(
    git_server: GitServer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: StateStore,  # noqa: F811
) -> None:
    bare, work = git_server.root / "long-hashes.git", tmp_path / "work"
    run_git(tmp_path, "init", "--quiet", "--bare", "--object-format=sha256", "--initial-branch=main", str(bare))
    run_git(bare, "config", "uploadpack.allowFilter", "true")
    work.mkdir()
    run_git(work, "init", "--quiet", "--object-format=sha256", "--initial-branch=main")
    run_git(work, "remote", "add", "origin", str(bare))
    url = git_server.repository_url("long-hashes")
    connect(monkeypatch, "model", conn_type="git", host=url, login=USER, password=TOKEN)
    monkeypatch.setenv("DEEPSEEK_OPS_CACHE", str(tmp_path / "trigger-cache"))
    developer = Developer(work, bare, open_git(url, username=USER, password=TOKEN, cache=tmp_path / "c"))
    old = developer.push_commit({"deepseek/a": "1", "docs/b": "1"})
    async with running(watcher(paths=["deepseek/**"]), state) as listener:
        await begun(state)
        developer.push_commit({"docs/b": "2"}, "exp/docs")
        developer.git("switch", "--quiet", "main")
        new = developer.push_commit({"deepseek/a": "2"})
        assert told(await listener.next(1)) == [("refs/heads/main", new, old)]
        await asyncio.sleep(CALM)
        assert len(listener.events) == 1
    assert len(new) == 64


async def test_hundreds_of_pushes_at_once_are_fetched_together_and_told_once(
    developer: Developer,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    state: StateStore,  # noqa: F811
) -> None:
    host = f"{proxy.url}/{developer.bare.name}"
    connect(monkeypatch, "model", conn_type="git", host=host, login=USER, password=TOKEN)
    base = developer.push_commit({"deepseek/a": "1"})
    code, docs = developer.commit({"deepseek/a": "2"}), developer.commit({"docs/b": "1"})
    developer.push("HEAD:refs/heads/keep")
    names = [f"refs/heads/exp/{number:03d}" for number in range(150)]
    run_git(developer.bare, "update-ref", "--stdin", data="".join(f"create {n} {base}\n" for n in names).encode())
    async with running(watcher(refs=["refs/heads/exp/*"], paths=["deepseek/**"]), state) as listener:
        await begun(state)
        before = proxy.requests
        lines = "".join(f"update {name} {(code, docs)[number % 2]}\n" for number, name in enumerate(names))
        run_git(developer.bare, "update-ref", "--stdin", data=lines.encode())
        await listener.next(150, seconds=60)
        polls_and_fetches = proxy.requests - before
        await asyncio.sleep(CALM)
    assert len(listener.events) == 150
    assert {name for name, *_ in told(listener.events)} == set(names)
    assert polls_and_fetches < 150, "one request for each ref"


async def test_over_ssh_the_same_is_announced(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: StateStore,  # noqa: F811
) -> None:
    """Git's own ssh transport, with a program in place of ssh that runs what the far side would run."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "ssh").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nfor last; do :; done\nexec sh -c "$last"\n'
    )
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("DEEPSEEK_OPS_CACHE", str(tmp_path / "trigger-cache"))
    bare = tmp_path / "model.git"
    run_git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    url = f"ssh://git@127.0.0.1:2222{bare}"
    connect(monkeypatch, "model", conn_type="git", host=url)
    developer = make_developer(tmp_path / "work", bare, open_git(url, cache=tmp_path / "c"))
    old = developer.push_commit({"deepseek/a": "1", "docs/b": "1"})
    async with running(watcher(paths=["deepseek/**"]), state) as listener:
        await begun(state)
        new = developer.push_commit({"deepseek/a": "2"})
        assert told(await listener.next(1)) == [("refs/heads/main", new, old)]
    assert "BatchMode=yes" in (tmp_path / "asked").read_text()
