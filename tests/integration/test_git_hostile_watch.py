"""A repository that means harm to its watcher gets one clear line, executes nothing, and hides no other ref."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from fixtures_git import TOKEN, USER, Developer, git_server, http_developer, run_git  # noqa: F401
from fixtures_triggers import StateStore, connect, running, state  # noqa: F401

from deepseek_ops.adapters.git import refs as refs_module
from deepseek_ops.adapters.git.refs import RefsSeen
from deepseek_ops.airflow.triggers.git import GitRefTrigger
from deepseek_ops.core.config import load_pipeline
from deepseek_ops.core.errors import GitAccessError, PermanentError
from deepseek_ops.core.records import GitRef

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)


@pytest.fixture
def developer(http_developer: Developer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Developer:  # noqa: F811
    connect(monkeypatch, "model", conn_type="git", host=http_developer.remote.url, login=USER, password=TOKEN)
    monkeypatch.setenv("DEEPSEEK_OPS_CACHE", str(tmp_path / "trigger-cache"))
    home = tmp_path / "home"
    home.mkdir()
    proof = tmp_path / "executed"
    (home / ".gitconfig").write_text(
        f'[filter "evil"]\n smudge = touch {proof}\n clean = touch {proof}\n required = true\n'
        f'[diff "evil"]\n textconv = touch {proof}\n command = touch {proof}\n[core]\n fsmonitor = touch {proof}\n'
    )
    monkeypatch.setenv("HOME", str(home))
    return http_developer


def watcher(**changes: Any) -> GitRefTrigger:
    return GitRefTrigger(**{"git_conn_id": "model", "asset_name": "m", "poll_interval": 0.1, **changes})


async def begun(state: StateStore) -> None:  # noqa: F811
    async with asyncio.timeout(20):
        while not any("shards" in value for value in state.values.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def told(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(ref.name, ref.commit) for ref in map(GitRef.load, events)]


async def test_refs_that_look_like_options_or_commands_are_names(
    developer: Developer,
    state: StateStore,  # noqa: F811
    tmp_path: Path,
) -> None:
    commit = developer.push_commit({"deepseek/a": "1"})
    async with running(watcher(refs=["*"]), state) as listener:
        await begun(state)
        moved = developer.push_commit({"deepseek/a": "2"})
        odd = ["--upload-pack=touch", "$(touch${IFS}x)", "a`touch`b", "a;touch|b", "\u202emain", "-c"]
        for name in odd:
            run_git(developer.bare, "update-ref", f"refs/heads/{name}", moved)
        events = await listener.next(1 + len(odd))
        assert set(told(events)) == {(f"refs/heads/{name}", moved) for name in (*odd, "main")}
    assert commit != moved
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "content", [BOMB, "a: " + "[" * 5000, "%YAML 9\n---\n\x00", "!!python/object/apply:os.abort []"]
)
async def test_a_pipeline_file_that_is_a_bomb_is_one_clear_error_of_the_run_it_starts(
    developer: Developer,
    state: StateStore,  # noqa: F811
    content: str,
) -> None:
    developer.push_commit({"a": "1"})
    async with running(watcher(pipeline_file="deepseek.yaml"), state) as listener:
        await begun(state)
        commit = developer.push_commit({"deepseek.yaml": content})
        assert told(await listener.next(1)) == [("refs/heads/main", commit)]
    with pytest.raises(PermanentError, match=r"deepseek\.yaml") as refused:
        load_pipeline(content.encode(), file="deepseek.yaml")
    assert len(str(refused.value)) < 3000


@pytest.mark.slow
async def test_a_pipeline_file_of_fifty_megabytes_is_refused_by_its_size_and_the_watcher_goes_on(
    developer: Developer,
    state: StateStore,  # noqa: F811
) -> None:
    developer.push_commit({"a": "1"})
    async with running(watcher(pipeline_file="deepseek.yaml"), state) as listener:
        await begun(state)
        commit = developer.push_commit({"deepseek.yaml": os.urandom(50_000_000)})
        assert told(await listener.next(1, seconds=60)) == [("refs/heads/main", commit)]
        with pytest.raises(GitAccessError, match="has 50000000 bytes, more than the 1000000 that are read"):
            await asyncio.to_thread(developer.remote.read_file, commit, "deepseek.yaml")
        run_git(developer.folder, "rm", "--quiet", "deepseek.yaml")
        developer.push_commit({})
        await asyncio.sleep(0.6)
        assert len(listener.events) == 1


async def test_attributes_of_any_size_a_link_for_a_pipeline_file_and_odd_paths_run_nothing(
    developer: Developer,
    state: StateStore,  # noqa: F811
    tmp_path: Path,
) -> None:
    developer.push_commit({"deepseek/a": "1"})
    async with running(watcher(paths=["deepseek/**"], pipeline_file="deepseek.yaml"), state) as listener:
        await begun(state)
        (developer.folder / "deepseek.yaml").symlink_to("/etc/passwd")
        attributes = "* filter=evil diff=evil merge=evil\n" + "x/** -text\n" * 300_000
        commit = developer.push_commit(
            {".gitattributes": attributes, "deepseek/b\nc": "1", "deepseek/--output=x": "2", "deepseek/\x1b[31m": "3"}
        )
        assert told(await listener.next(1, seconds=30)) == [("refs/heads/main", commit)]
    with pytest.raises(GitAccessError, match=r"deepseek\.yaml in commit .* is not a plain file but a symbolic link"):
        await asyncio.to_thread(developer.remote.read_file, commit, "deepseek.yaml")
    assert not (tmp_path / "executed").exists()


async def test_a_list_of_refs_that_never_ends_is_cut_and_the_watcher_goes_on(
    developer: Developer,
    state: StateStore,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    commit = developer.push_commit({"a": "1"})
    lines = "".join(f"create refs/heads/exp/{number} {commit}\n" for number in range(100))
    async with running(watcher(on_start="announce", refs=["refs/heads/main"]), state) as listener:
        await listener.next(1)
        run_git(developer.bare, "update-ref", "--stdin", data=lines.encode())
        monkeypatch.setattr(refs_module, "MAX_ANSWER_BYTES", 2000)
        moved = developer.push_commit({"a": "2"})
        await asyncio.sleep(1.0)
        assert "its list of refs is larger than 2000 bytes" in caplog.text
        monkeypatch.setattr(refs_module, "MAX_ANSWER_BYTES", 1 << 20)
        assert (await listener.next(2, seconds=20))[1]["commit"] == moved
    assert isinstance(await developer.remote.look_async(), RefsSeen)
