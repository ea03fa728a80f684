"""Migration of a history with large files, by the real git-lfs: every file at every ref is what it was."""

from __future__ import annotations

import json
from pathlib import Path

import fixtures_git_lfs
import pytest
from test_init_repository import Person, weights

from deepseek_ops.adapters.git_lfs import migration
from deepseek_ops.adapters.git_lfs.migration import MigrationChangedContentError, migrate
from deepseek_ops.adapters.git_lfs.survey import all_refs, content_digests, large_kinds

git_lfs = fixtures_git_lfs.git_lfs
lfs_environment = fixtures_git_lfs.lfs_environment


@pytest.fixture
def person(lfs_environment: dict[str, str], tmp_path: Path) -> Person:
    """Give somebody whose repository has weights in its history, on two branches and below a tag."""
    folder = tmp_path / "model"
    folder.mkdir()
    one = Person(lfs_environment, folder, tmp_path / "store")
    one.run("git", "init", "-q", "--bare", "--initial-branch=main", str(tmp_path / "team" / "model.git"))
    one.git("init", "--quiet")
    one.git("remote", "add", "origin", str(tmp_path / "team" / "model.git"))
    one.write("train.py", "print()\n")
    one.write("weights/a.pt", weights(1))
    one.write("plain", b"\x00" * 200_000)
    one.commit("One")
    one.git("tag", "-a", "deepseek-v1.0", "-m", "Release")
    one.write("weights/a.pt", weights(2))
    one.commit("Two")
    one.git("checkout", "--quiet", "-b", "exp/lr")
    one.write("weights/b.pt", weights(3))
    one.commit("Three")
    one.git("checkout", "--quiet", "main")
    one.git("push", "--quiet", "origin", "--all")
    one.git("push", "--quiet", "origin", "--tags")
    one.git("config", "deepseek-ops.store", str(one.store))
    one.ops("lfs", "install")
    return one


def test_the_report_names_kinds_with_all_their_versions(person: Person):
    kinds = {kind.pattern: kind for kind in large_kinds(person.folder, 100_000)}
    assert set(kinds) == {"*.pt", "/plain"}
    assert kinds["*.pt"].num_versions == 3
    assert large_kinds(person.folder, 10_000_000) == []
    before = all_refs(person.folder)
    report = json.loads(person.ops("lfs", "migrate", "--min-size", "100000"))
    assert report["dry_run"]
    assert all_refs(person.folder) == before


def test_every_file_stays_what_it_was_and_the_objects_are_in_the_store(person: Person, tmp_path: Path):
    before = all_refs(person.folder)
    contents = content_digests(person.folder, before)
    report = json.loads(person.ops("lfs", "migrate", "--do-it", "--include", "*.pt"))
    after = all_refs(person.folder)
    assert set(after) == set(before)
    assert not set(after.values()) & set(before.values())
    assert content_digests(person.folder, after, without=(".gitattributes",)) == contents
    for ref in after:
        assert person.git("cat-file", "-p", f"{ref}:weights/a.pt").startswith("version https://git-lfs")
    assert report["num_files"] == sum(map(len, contents.values()))
    assert report["uploaded_to"] == "origin"
    assert len(list((person.store / "objects").rglob("*/*/*/*"))) == 3
    assert (person.folder / "weights/a.pt").read_bytes() == weights(2)
    assert person.git("status", "--porcelain") == ""
    assert person.git("rev-parse", f"{report['backup']}/heads/main").strip() == before["refs/heads/main"]
    assert person.git("ls-remote", "origin", "main").split()[0] == before["refs/heads/main"], "nothing is pushed"

    person.git("push", "--quiet", "--force", "origin", "--all")
    person.git("push", "--quiet", "--force", "origin", "--tags")
    target = tmp_path / "restored"
    remote = str(tmp_path / "team" / "model.git")
    person.ops("checkout", "deepseek-v1.0", str(target), "--repository", remote, "--store", str(person.store))
    assert (target / "weights/a.pt").read_bytes() == weights(1)

    person.git("fetch", ".", f"+{report['backup']}/heads/*:refs/heads/*", f"+{report['backup']}/tags/*:refs/tags/*",
               "--update-head-ok")  # fmt: skip
    assert all_refs(person.folder) == before, "the way back that the report names"


@pytest.mark.parametrize("state", ["changes", "unpushed", "shallow"])
def test_a_repository_that_could_lose_something_is_refused(person: Person, tmp_path: Path, state: str):
    if state == "changes":
        person.write("train.py", "changed\n")
    elif state == "unpushed":
        person.write("train.py", "changed\n")
        person.commit("Mine")
    else:
        person.git("clone", "--quiet", "--depth=1", f"file://{tmp_path}/team/model.git", str(tmp_path / "shallow"))
        person.folder = tmp_path / "shallow"
    before = all_refs(person.folder)
    told = person.ops("lfs", "migrate", "--do-it", "--include", "*.pt", status=1)
    assert "is not migrated" in told
    assert all_refs(person.folder) == before


def test_a_rewrite_that_changed_a_file_is_taken_back(person: Person, monkeypatch: pytest.MonkeyPatch):
    before = all_refs(person.folder)
    real = migration.content_digests

    def damaged(*arguments, **options):
        found = real(*arguments, **options)
        if all_refs(person.folder) != before:
            found["refs/heads/main"]["train.py"] = "other"
        return found

    monkeypatch.setattr(migration, "content_digests", damaged)
    with pytest.raises(MigrationChangedContentError, match=r"train\.py at refs/heads/main"):
        migrate(person.folder, ["*.pt"], environment=person.variables)
    assert all_refs(person.folder) == before
    assert (person.folder / "weights/a.pt").read_bytes() == weights(2)
    assert person.git("status", "--porcelain") == ""
