"""Commits die in rebases, squashes and deleted branches; what they held is still found, and the answer says by what."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures_git import run_git
from fixtures_lineage import World, world
from pydantic import JsonValue

from deepseek_ops.core.records import ModelVersion
from deepseek_ops.pipeline.lineage import explain
from deepseek_ops.pipeline.lineage_records import Link
from deepseek_ops.pipeline.lineage_restore import CodeGoneError, FolderTakenError, restore_code

__all__ = ["world"]


@pytest.fixture
def trained(world: World) -> ModelVersion:
    """A result of branch exp/a that Git does not record: no tag, no commit of ours."""
    world.push(code="base = 0\n")
    commit = world.push(branch="exp/a", code="base = 0\ntuned = 1\n", learning_rate=0.002)
    return world.run("run-1", commit, world.dataset(["one"]), branch="exp/a", record=False)


def told(world: World, *, repositories: tuple[str, ...] = ()) -> tuple[Link, dict[str, JsonValue]]:
    link = explain(world.sources(repositories=repositories), "tiny@0.1.0").link("code")
    assert link is not None
    return link, link.details


def forget(world: World, branch: str) -> None:
    """Delete a branch on the server, and let the server forget what only it reached."""
    world.developer.git("push", "--quiet", "origin", "--delete", branch)
    run_git(world.developer.bare, "reflog", "expire", "--expire=now", "--all")
    run_git(world.developer.bare, "gc", "--quiet", "--prune=now")


def test_a_branch_that_still_has_the_commit_is_found_by_its_id(world: World, trained: ModelVersion):
    link, details = told(world)
    assert (details["found_by"], details["reached_by"]) == ("commit", ["refs/heads/exp/a"])
    assert link.missing == ()


def test_a_squash_merge_with_the_same_files_is_found_by_its_tree(world: World, trained: ModelVersion):
    developer = world.developer
    developer.git("switch", "--quiet", "main")
    developer.git("merge", "--quiet", "--squash", "exp/a")
    squashed = developer.commit({}, "Tune (squashed)")
    developer.push("main")
    forget(world, "exp/a")
    link, details = told(world)
    assert (details["found_by"], details["now"]) == ("tree", squashed)
    assert "another commit has exactly these files" in link.summary
    assert details["commit"] == trained.manifest.source.commit


def test_a_rebased_commit_is_found_by_its_patch(world: World, trained: ModelVersion):
    developer = world.developer
    developer.git("switch", "--quiet", "main")
    developer.commit({"notes/other.txt": "somebody else's work\n"}, "Other work")
    developer.push("main")
    developer.git("switch", "--quiet", "exp/a")
    developer.git("rebase", "--quiet", "main")
    rebased = developer.git("rev-parse", "HEAD")
    forget(world, "exp/a")
    developer.push("refs/heads/exp/a:refs/heads/feature")
    _, details = told(world)
    assert (details["found_by"], details["now"]) == ("patch-id", rebased)
    assert details["reached_by"] == ["refs/heads/feature"]


def test_a_rewritten_history_is_found_by_the_tag_that_records_the_result(world: World):
    developer = world.developer
    commit = world.push(code="secret = 1\n")
    world.run("run-1", commit, world.dataset(["one"]))
    tag = next(iter(developer.remote.refs(("refs/tags/*",)))).removeprefix("refs/tags/")
    developer.git("fetch", "--quiet", "origin", "main", "tag", tag)
    message = developer.git("for-each-ref", "--format=%(contents)", f"refs/tags/{tag}")
    # What a history filter does: every commit gets another id, and the tag is made again on the new one.
    developer.git("reset", "--quiet", "--hard", commit)
    (developer.folder / "deepseek/prepare.py").write_text("secret = 0\n")
    developer.git("commit", "--quiet", "-a", "--amend", "-m", "Filtered")
    source = developer.git("rev-parse", "HEAD")
    recorded = developer.commit({"experiments/0.1.0.json": "{}"}, "Train tiny on corpus")
    developer.git("tag", "--force", "-a", "-m", message, tag, recorded)
    developer.push("main", f"refs/tags/{tag}")
    run_git(developer.bare, "reflog", "expire", "--expire=now", "--all")
    run_git(developer.bare, "gc", "--quiet", "--prune=now")
    _, details = told(world)
    assert (details["found_by"], details["found_at"], details["now"]) == ("tag", tag, source)
    assert details["tree_now"] != details["tree"]


def test_a_note_is_found_when_neither_files_nor_patch_are_left(world: World, trained: ModelVersion):
    other = world.developer.push_commit({"other.txt": "x"}, branch="reworked", message="Reworked by hand")
    text = f"Train tiny on corpus\n\nRun-Id: run-1\nManifest: {trained.manifest.fingerprint}\n"
    world.developer.git("notes", "--ref=deepseek-ops", "add", "-m", text, other)
    world.developer.git("switch", "--quiet", "main")
    world.developer.push("main", "refs/notes/deepseek-ops")
    forget(world, "exp/a")
    # The branch with the note's commit builds on the old one; a history without it is left:
    world.developer.git("switch", "--quiet", "--orphan", "fresh")
    fresh = world.developer.commit({"fresh.txt": "x"}, "Start again")
    world.developer.git("notes", "--ref=deepseek-ops", "copy", other, fresh)
    world.developer.push("fresh", "refs/notes/deepseek-ops")
    forget(world, "reworked")
    _, details = told(world)
    assert (details["found_by"], details["now"]) == ("notes", fresh)


def test_a_squashed_message_that_names_the_result_is_found_last(world: World, trained: ModelVersion):
    world.developer.git("switch", "--quiet", "--orphan", "fresh")
    text = f"Several experiments\n\nManifest: {trained.manifest.fingerprint}\n"
    squashed = world.developer.commit({"fresh.txt": "x"}, text)
    world.developer.push("fresh")
    forget(world, "exp/a")
    _, details = told(world)
    assert (details["found_by"], details["now"]) == ("message", squashed)


def test_a_renamed_repository_is_looked_into_where_it_is_now(world: World, trained: ModelVersion):
    moved = Path(world.developer.bare).rename(world.folder / "renamed.git")
    link, _ = told(world)
    assert link.missing[0].startswith(f"commit {trained.manifest.source.commit[:12]} is in no repository")
    link, details = told(world, repositories=(f"file://{moved}",))
    assert (details["found_by"], link.stored) == ("commit", f"file://{moved}")
    assert details["repository"] == trained.manifest.source.repository


def test_a_commit_that_no_ref_reaches_is_told_to_be_in_danger(world: World, trained: ModelVersion):
    run_git(world.developer.bare, "config", "uploadpack.allowAnySHA1InWant", "true")
    world.developer.git("push", "--quiet", "origin", "--delete", "exp/a")
    link, details = told(world)
    assert (details["found_by"], details["reached_by"]) == ("commit", [])
    assert "the server may forget it" in link.missing[0]


def test_code_that_is_gone_from_git_is_written_out_from_the_store(world: World, trained: ModelVersion, tmp_path: Path):
    forget(world, "exp/a")
    link, details = told(world)
    assert "found_by" not in details
    assert details["files"] == 3
    written = restore_code(world.sources(), "run-1", tmp_path / "restored")
    assert (tmp_path / "restored" / "deepseek" / "prepare.py").read_text() == "base = 0\ntuned = 1\n"
    assert written["commit"] == trained.manifest.source.commit
    assert written["files"] == 3
    assert link.digest == trained.manifest.source.commit
    with pytest.raises(FolderTakenError):
        restore_code(world.sources(), "run-1", tmp_path / "restored")


def test_code_that_was_never_kept_is_one_clear_error(world: World, trained: ModelVersion, tmp_path: Path):
    store = world.stores.at(world.stores.uri)
    store.delete([info.key for info in store.list("runs/") if "/lineage/" in info.key])
    with pytest.raises(CodeGoneError, match=r"the store holds no copy of the code of 'run-1'"):
        restore_code(world.sources(), "run-1", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
