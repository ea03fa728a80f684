"""What every GitRemote promises, kept over HTTP with a token and over a plain folder."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fixtures_git import Developer, file_developer, git_server, http_developer, run_git  # noqa: F401

from deepseek_ops.adapters.git import CheckoutTargetError, GitRepository, TagConflictError, open_git
from deepseek_ops.core.errors import GitAccessError, RefNotFoundError, StaleRefError
from deepseek_ops.core.ports import NewCommit, NewTag

UNKNOWN = "0123456789abcdef0123456789abcdef01234567"


class GitRemoteContract:
    """Subclasses provide ``developer``."""

    @pytest.fixture
    def remote(self, developer: Developer) -> GitRepository:
        return developer.remote

    def test_an_empty_repository_has_no_refs(self, remote: GitRepository) -> None:
        assert remote.refs() == {}
        assert remote.default_branch() is None
        with pytest.raises(RefNotFoundError, match="main"):
            remote.resolve("main")

    def test_refs_are_chosen_by_globs_and_annotated_tags_are_peeled(
        self, developer: Developer, remote: GitRepository
    ) -> None:
        first = developer.push_commit({"a": "1"})
        second = developer.push_commit({"a": "2"}, "exp/deep/er")
        developer.git("tag", "-a", "deepseek-v1.0", "-m", "one", first)
        developer.push("deepseek-v1.0")
        assert remote.refs() == {
            "refs/heads/main": first,
            "refs/heads/exp/deep/er": second,
            "refs/tags/deepseek-v1.0": first,
        }
        assert remote.refs(["refs/heads/exp/*"]) == {"refs/heads/exp/deep/er": second}
        assert remote.refs(["refs/heads/ma?n", "refs/tags/none*"]) == {"refs/heads/main": first}
        assert remote.default_branch() == "refs/heads/main"

    def test_a_name_resolves_as_branch_then_tag_then_tip(self, developer: Developer, remote: GitRepository) -> None:
        first = developer.push_commit({"a": "1"})
        developer.git("tag", "v1", first)
        developer.git("tag", "main", first)
        second = developer.push_commit({"a": "2"})
        developer.push("refs/tags/v1", "refs/tags/main")
        assert remote.resolve("main").commit == second
        assert remote.resolve("HEAD").name == "refs/heads/main"
        assert remote.resolve("refs/tags/main").commit == first
        assert (remote.resolve("v1").name, remote.resolve("v1").short) == ("refs/tags/v1", "v1")
        assert remote.resolve(second).name == "refs/heads/main"
        for missing in (UNKNOWN, "v", "--upload-pack=touch /tmp/x", "refs/heads/ma*"):
            with pytest.raises(RefNotFoundError):
                remote.resolve(missing)

    def test_changed_paths_name_both_sides_of_a_rename_and_only_what_changed(
        self, developer: Developer, remote: GitRepository
    ) -> None:
        old = developer.push_commit({"keep/a": "same", "b": "x" * 500, "gone": "1", "um laut/ß": "1"})
        developer.git("mv", "b", "moved")
        developer.git("rm", "--quiet", "gone")
        new = developer.push_commit({"um laut/ß": "2"})
        assert sorted(remote.changed_paths(old, new)) == ["b", "gone", "moved", "um laut/ß"]
        assert sorted(remote.changed_paths(None, new)) == ["keep/a", "moved", "um laut/ß"]
        assert remote.changed_paths(new, new) == []
        assert sorted(remote.changed_paths(new, old)) == ["b", "gone", "moved", "um laut/ß"]

    def test_changed_paths_work_between_commits_that_share_no_history(
        self, developer: Developer, remote: GitRepository
    ) -> None:
        one = developer.push_commit({"a": "1"})
        developer.git("switch", "--quiet", "--orphan", "other")
        two = developer.push_commit({"b": "1"}, "other")
        assert sorted(remote.changed_paths(one, two)) == ["a", "b"]
        assert remote.merge_base(one, two) is None

    def test_the_merge_base_is_where_a_branch_left(self, developer: Developer, remote: GitRepository) -> None:
        base = developer.push_commit({"a": "1"})
        side = developer.push_commit({"b": "1"}, "exp/x")
        main = developer.push_commit({"c": "1"}, "main")
        assert remote.merge_base(side, main) == base
        assert remote.merge_base(base, main) == base

    def test_an_unknown_commit_is_named_in_the_error(self, developer: Developer, remote: GitRepository) -> None:
        known = developer.push_commit({"a": "1"})
        for ask in (
            lambda: remote.changed_paths(known, UNKNOWN),
            lambda: remote.read_file(UNKNOWN, "a"),
            lambda: remote.describe(UNKNOWN),
            lambda: remote.merge_base(known, UNKNOWN),
        ):
            with pytest.raises(RefNotFoundError, match=UNKNOWN):
                ask()
        with pytest.raises(RefNotFoundError, match="--help"):
            remote.read_file("--help", "a")

    def test_a_file_is_read_as_it_stands_in_the_commit(self, developer: Developer, remote: GitRepository) -> None:
        old = developer.push_commit({"deepseek.yaml": "name: one\n", "d/*.bin": b"\x00\r\n\xff"})
        new = developer.push_commit({"deepseek.yaml": "name: two\n"})
        assert remote.read_file(old, "deepseek.yaml") == b"name: one\n"
        assert remote.read_file(new, "deepseek.yaml") == b"name: two\n"
        assert remote.read_file(new, "d/*.bin") == b"\x00\r\n\xff"
        for missing in ("nothing.yaml", "d", "../deepseek.yaml", "*.yaml"):
            with pytest.raises((RefNotFoundError, GitAccessError)):
                remote.read_file(new, missing)

    def test_a_file_larger_than_the_limit_is_refused(self, developer: Developer, remote: GitRepository) -> None:
        commit = developer.push_commit({"deepseek.yaml": "#" * 2001})
        assert len(remote.read_file(commit, "deepseek.yaml", max_bytes=2001)) == 2001
        with pytest.raises(GitAccessError, match="2001 bytes"):
            remote.read_file(commit, "deepseek.yaml", max_bytes=2000)

    def test_what_is_no_file_is_named_as_what_it_is_with_a_remedy(
        self, developer: Developer, remote: GitRepository
    ) -> None:
        (developer.folder / "deepseek.yaml").symlink_to("real.yaml")
        commit = developer.push_commit({"real.yaml": "name: x\n", "requirements.txt/a": "1"})
        for path, kind in (("deepseek.yaml", "a symbolic link"), ("requirements.txt", "a folder")):
            with pytest.raises(GitAccessError) as caught:
                remote.read_file(commit, path)
            told = str(caught.value)
            assert told.startswith(f"{path} in commit {commit[:12]} of {remote.url} is not a plain file but {kind}; ")
            assert "refuses access" not in told
            assert "connection" not in told

    def test_small_texts_are_files_and_messages_of_every_ref(self, developer: Developer, remote: GitRepository) -> None:
        developer.push_commit({"small": "first", "large": "x" * 5000}, message="Say one")
        developer.push_commit({"small": "second", "other": b"\x00\n\n"}, message="Say two")
        developer.git("tag", "-a", "v1", "-m", "Say tag")
        developer.git("push", "--quiet", "origin", "v1")
        developer.git("push", "--quiet", "origin", "HEAD:refs/odd/place")
        developer.git("reset", "--quiet", "--hard", "HEAD~1")
        developer.push()
        texts = list(remote.small_texts())
        files = [text for text in texts if b"Say" not in text]
        assert {b"first", b"second", b"\x00\n\n"} <= set(files)
        assert len(files) == len(set(files))
        assert not any(b"xxx" in text for text in texts)
        assert {word for text in texts for word in text.split() if word in (b"one", b"two", b"tag")} == {
            b"one", b"two", b"tag",
        }  # fmt: skip

    def test_small_texts_of_tips_only_leave_the_history_out(self, developer: Developer, remote: GitRepository) -> None:
        developer.push_commit({"small": "first"}, branch="exp")
        assert b"first" in list(remote.small_texts(history=False))
        developer.push_commit({"small": "second"}, branch="exp")
        assert {b"second"} == {b"first", b"second"} & set(remote.small_texts(history=False))
        assert {b"first", b"second"} <= set(remote.small_texts())
        developer.git("push", "--quiet", "origin", ":exp")
        assert not {b"first", b"second"} & set(remote.small_texts()), "what no ref reaches any more is forgotten"

    def test_describe_tells_what_survives_a_rebase(self, developer: Developer, remote: GitRepository) -> None:
        developer.push_commit({"a": "1", "b": "1"})
        commit = developer.push_commit({"a": "2"}, "exp/x", "Lower the learning rate\n\nbody")
        known = remote.describe(commit)
        assert known["tree"] == developer.git("rev-parse", f"{commit}^{{tree}}")
        assert (known["author"], known["subject"]) == ("Ada <ada@example.com>", "Lower the learning rate")
        plain = subprocess.run(
            ["git", "-C", str(developer.folder), "show", commit], capture_output=True, check=True
        ).stdout
        assert known["patch_id"] == developer.git("patch-id", "--stable", data=plain).split()[0]
        developer.push_commit({"c": "1"}, "main")
        developer.git("switch", "--quiet", "exp/x")
        developer.git("rebase", "--quiet", "main")
        developer.push("exp/x")
        rebased = remote.describe(developer.git("rev-parse", "HEAD"))
        assert rebased["patch_id"] == known["patch_id"]
        assert rebased["tree"] != known["tree"]

    def test_a_root_commit_has_a_patch_id_and_a_merge_has_none(
        self, developer: Developer, remote: GitRepository
    ) -> None:
        root = developer.push_commit({"a": "1"})
        developer.push_commit({"b": "1"}, "side")
        developer.push_commit({"c": "1"}, "main")
        developer.git("merge", "--quiet", "--no-ff", "-m", "Merge", "side")
        developer.push("main")
        assert len(remote.describe(root)["patch_id"]) == 40
        assert remote.describe(developer.git("rev-parse", "HEAD"))["patch_id"] == ""

    def test_a_checkout_is_the_committed_bytes_without_history(
        self, developer: Developer, remote: GitRepository, tmp_path: Path
    ) -> None:
        developer.commit({".gitattributes": "secret export-ignore\n*.txt text eol=crlf\nv export-subst\n"})
        developer.commit(
            {"secret": "kept", "a.txt": "one\n", "v": "$Format:%H$", "run.sh": "#!/bin/sh\n", "d/e/f": "x"}
        )
        (developer.folder / "run.sh").chmod(0o755)
        (developer.folder / "link").symlink_to("d/e/f")
        commit = developer.push_commit({})
        target = tmp_path / "out"
        remote.checkout(commit, target)
        assert (target / "secret").read_text() == "kept"
        assert (target / "a.txt").read_bytes() == b"one\n"
        assert (target / "v").read_text() == "$Format:%H$"
        assert (target / "run.sh").stat().st_mode & 0o777 == 0o755
        assert (target / "link").read_text() == "x"
        assert not (target / ".git").exists()
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []

    def test_a_second_checkout_changes_nothing_and_another_folder_is_left_alone(
        self, developer: Developer, remote: GitRepository, tmp_path: Path
    ) -> None:
        commit = developer.push_commit({"a": "1", "b": "2"})
        target = tmp_path / "out"
        target.mkdir()
        remote.checkout(commit, target)
        (target / "__pycache__").mkdir()
        remote.checkout(commit, target)
        (target / "b").write_text("mine")
        with pytest.raises(CheckoutTargetError, match="b is not as in the commit"):
            remote.checkout(commit, target)
        assert (target / "b").read_text() == "mine"

    def test_a_commit_and_a_tag_arrive_together_and_twice_is_once(
        self, developer: Developer, remote: GitRepository, tmp_path: Path
    ) -> None:
        parent = developer.push_commit({"a": "1", "d/b": "1", "d/c": "1"}, "exp/x")
        made = NewCommit("exp/x", parent, "Train m on d\n\nRun-Id: r1", {"d/b": b"2", "runs/r1.json": b"{}"})
        tag = NewTag("exp-20260301-lr", "", "Baseline\n\nMetrics: {}")
        ids = remote.publish(commit=made, tags=[tag])
        assert remote.refs() == {"refs/heads/exp/x": ids["exp/x"], "refs/tags/exp-20260301-lr": ids["exp/x"]}
        assert remote.publish(commit=made, tags=[tag]) == ids
        other = open_git(remote.url, username="git", password="s3cret-token-of-the-tests", cache=tmp_path / "other")
        assert other.publish(commit=made, tags=[tag]) == ids, "ids do not depend on the machine or the clock"
        bare = developer.bare
        assert run_git(bare, "log", "-1", "--format=%an <%ae>|%B", "exp/x").strip() == (
            "deepseek-ops <deepseek-ops@localhost>|Train m on d\n\nRun-Id: r1"
        )
        assert run_git(bare, "diff-tree", "-r", "--name-only", parent, ids["exp/x"]) == "d/b\nruns/r1.json"
        assert run_git(bare, "cat-file", "-t", ids["exp-20260301-lr"]) == "tag"
        assert run_git(bare, "fsck", "--strict") == ""

    def test_a_branch_that_moved_is_never_overwritten(self, developer: Developer, remote: GitRepository) -> None:
        parent = developer.push_commit({"a": "1"})
        moved = developer.push_commit({"a": "2"})
        with pytest.raises(StaleRefError, match="main"):
            remote.publish(commit=NewCommit("main", parent, "Late", {"r": b"1"}), tags=[NewTag("late", "", "m")])
        assert remote.refs() == {"refs/heads/main": moved}, "nothing of an atomic push may arrive"

    def test_of_many_writers_exactly_one_wins(
        self, developer: Developer, remote: GitRepository, tmp_path: Path
    ) -> None:
        parent = developer.push_commit({"a": "1"})

        def write(number: int) -> str:
            mine = open_git(
                remote.url, username="git", password="s3cret-token-of-the-tests", cache=tmp_path / f"c{number}"
            )
            try:
                return mine.publish(commit=NewCommit("main", parent, f"W{number}", {"w": b"%d" % number}))["main"]
            except StaleRefError:
                return ""

        with ThreadPoolExecutor(3) as pool:
            wins = [commit for commit in pool.map(write, range(3)) if commit]
        assert [remote.refs()["refs/heads/main"]] == wins

    def test_a_tag_never_moves(self, developer: Developer, remote: GitRepository) -> None:
        first = developer.push_commit({"a": "1"})
        second = developer.push_commit({"a": "2"})
        tag = NewTag("deepseek-v1.0", first, "Release v1.0")
        there = remote.publish(tags=[tag])["deepseek-v1.0"]
        for other in (NewTag("deepseek-v1.0", second, "Release v1.0"), NewTag("deepseek-v1.0", first, "Else")):
            with pytest.raises(TagConflictError, match=there):
                remote.publish(tags=[other])
        developer.git("tag", "-a", "by-hand", "-m", "Release v1.0", first)
        developer.git("tag", "light", first)
        developer.push("by-hand", "light")
        by_hand = developer.git("rev-parse", "refs/tags/by-hand")
        assert remote.publish(tags=[NewTag("by-hand", first, "Release v1.0")]) == {"by-hand": by_hand}
        with pytest.raises(TagConflictError):
            remote.publish(tags=[NewTag("light", first, "Release v1.0")])

    def test_a_new_branch_can_start_anywhere_and_be_deleted(self, developer: Developer, remote: GitRepository) -> None:
        old = developer.push_commit({"a": "1", "big": "x" * 4000})
        developer.push_commit({"a": "2"})
        made = remote.publish(commit=NewCommit("promote/x", old, "Promote", {"a": b"3"}))["promote/x"]
        assert remote.refs()["refs/heads/promote/x"] == made
        assert remote.publish(delete=["refs/heads/promote/x"]) == {"refs/heads/promote/x": ""}
        assert "refs/heads/promote/x" not in remote.refs()
        assert remote.publish(delete=["refs/heads/promote/x"]) == {"refs/heads/promote/x": ""}

    def test_a_first_commit_can_be_published_to_an_empty_repository(
        self, developer: Developer, remote: GitRepository, tmp_path: Path
    ) -> None:
        made = remote.publish(commit=NewCommit("main", "", "Begin", {"d/a": b"1"}))["main"]
        remote.checkout(made, tmp_path / "out")
        assert (tmp_path / "out/d/a").read_text() == "1"

    @pytest.mark.parametrize("name", ["refs/heads/../x", "a b", "-x^", "x.lock", "refs/heads/a\nb"])
    def test_a_bad_ref_name_is_refused(self, developer: Developer, remote: GitRepository, name: str) -> None:
        parent = developer.push_commit({"a": "1"})
        with pytest.raises(RefNotFoundError):
            remote.publish(commit=NewCommit(name, parent, "m", {"a": b"2"}))

    def test_a_lost_cache_is_made_again(self, developer: Developer, remote: GitRepository, tmp_path: Path) -> None:
        commit = developer.push_commit({"a": "1"})
        assert remote.read_file(commit, "a") == b"1"
        run_git(tmp_path, "init", "--quiet", "probe")
        for tips in (tmp_path / "cache").glob("*/tips.git/objects"):
            subprocess.run(["rm", "-rf", str(tips)], check=True)
        assert remote.read_file(commit, "a") == b"1"


class TestGitOverHttp(GitRemoteContract):
    @pytest.fixture
    def developer(self, http_developer: Developer) -> Developer:  # noqa: F811
        return http_developer


class TestGitOverFile(GitRemoteContract):
    @pytest.fixture
    def developer(self, file_developer: Developer) -> Developer:  # noqa: F811
        return file_developer
