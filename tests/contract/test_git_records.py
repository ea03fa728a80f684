"""What every Git remote promises about records: notes that nobody loses, texts that are found, merges that are real."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fixtures_git import TOKEN, Developer, file_developer, git_server, http_developer, run_git  # noqa: F401

from deepseek_ops.adapters.git import GitRepository, UnrelatedHistoriesError, open_clone, open_git
from deepseek_ops.adapters.git.merging import merge_by_file
from deepseek_ops.core.errors import GitAccessError, RefNotFoundError, StaleRefError
from deepseek_ops.core.ports import NOTES_REF, NewCommit, NewNote, NewTag

UNKNOWN = "0123456789abcdef0123456789abcdef01234567"


def another(remote: GitRepository, cache: Path) -> GitRepository:
    return open_git(remote.url, username="git", password=TOKEN, cache=cache)


class GitRecordsContract:
    """Subclasses provide ``developer``."""

    @pytest.fixture
    def remote(self, developer: Developer) -> GitRepository:
        return developer.remote

    def test_a_note_is_added_once_and_moves_no_branch(self, developer: Developer, remote: GitRepository) -> None:
        commit = developer.push_commit({"a": "1"})
        assert remote.notes() == {}
        first = remote.publish(notes=[NewNote(commit, "Train a on b\n\nManifest: 1\n")])
        assert remote.publish(notes=[NewNote(commit, "Train a on b\n\nManifest: 1")]) == first
        remote.publish(notes=[NewNote(commit, "Train a on b\n\nManifest: 2")])
        assert remote.notes() == {commit: "Train a on b\n\nManifest: 1\n\nTrain a on b\n\nManifest: 2\n"}
        assert remote.refs() == {"refs/heads/main": commit}
        assert run_git(developer.bare, "notes", "--ref=deepseek-ops", "show", commit).count("Manifest") == 2
        assert run_git(developer.bare, "fsck", "--strict") == ""

    def test_a_note_and_a_tag_arrive_together_or_not_at_all(self, developer: Developer, remote: GitRepository) -> None:
        commit = developer.push_commit({"a": "1"})
        ids = remote.publish(tags=[NewTag("exp-1", commit, "Manifest: 1")], notes=[NewNote(commit, "Manifest: 1")])
        assert remote.refs(["refs/tags/*"]) == {"refs/tags/exp-1": commit}
        assert ids[NOTES_REF] == remote.refs([NOTES_REF])[NOTES_REF]
        stale = NewCommit("main", UNKNOWN[:39] + "8", "m", {})
        with pytest.raises((StaleRefError, RefNotFoundError)):
            remote.publish(commit=stale, notes=[NewNote(commit, "Manifest: 2")])
        assert remote.notes() == {commit: "Manifest: 1\n"}

    def test_a_note_about_a_commit_that_is_not_there_is_refused(
        self, developer: Developer, remote: GitRepository
    ) -> None:
        developer.push_commit({"a": "1"})
        with pytest.raises(RefNotFoundError, match=UNKNOWN):
            remote.publish(notes=[NewNote(UNKNOWN, "Manifest: 1")])

    def test_notes_that_people_wrote_stay(self, developer: Developer, remote: GitRepository) -> None:
        commit = developer.push_commit({"a": "1"})
        developer.git("notes", "--ref=deepseek-ops", "add", "-m", "Mine, by hand", commit)
        developer.git("push", "--quiet", "origin", NOTES_REF)
        remote.publish(notes=[NewNote(commit, "Manifest: 1")])
        assert remote.notes() == {commit: "Mine, by hand\n\nManifest: 1\n"}
        remote.annotate(commit, lambda note: note.replace("Mine", "Ours"))
        assert remote.notes() == {commit: "Ours, by hand\n\nManifest: 1\n"}
        remote.annotate(commit, lambda note: "")
        assert remote.notes() == {}

    def test_of_concurrent_notes_none_is_lost(
        self, developer: Developer, remote: GitRepository, tmp_path: Path
    ) -> None:
        commits = [developer.push_commit({"a": str(number)}) for number in range(2)]

        def write(number: int) -> None:
            mine = another(remote, tmp_path / f"c{number}")
            mine.publish(notes=[NewNote(commits[number % 2], f"Manifest: {number}")])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        there = remote.notes()
        found = sorted(line for commit in commits for line in there[commit].split("\n") if line)
        assert found == [f"Manifest: {number}" for number in range(4)]

    def test_record_texts_are_commits_then_tags_then_notes(
        self, developer: Developer, remote: GitRepository, tmp_path: Path
    ) -> None:
        assert list(remote.record_texts()) == []
        first = developer.push_commit({"a": "1"}, message="Say nothing")
        second = developer.push_commit({"a": "2"}, "exp/x", "Train\n\nManifest: 1\n")
        developer.git("tag", "-a", "exp-1", "-m", "Train\n\nManifest: 2", first)
        developer.git("tag", "-a", "other", "-m", "no record", first)
        developer.git("tag", "light", first)
        developer.git("push", "--quiet", "origin", "--tags")
        remote.publish(notes=[NewNote(first, "Manifest: 3")])
        texts = list(remote.record_texts())
        assert [(text.kind, text.commit, text.name) for text in texts] == [
            ("commit", second, ""),
            ("tag", first, "exp-1"),
            ("note", first, ""),
        ]
        assert texts[0].parents == (first,)
        assert (texts[0].author, texts[1].author, texts[2].author) == ("Ada", "Ada", "Ada")
        assert all(text.time > 1_700_000_000 for text in texts)
        assert [text.kind for text in remote.record_texts([first])] == ["tag", "note"]
        developer.git("fetch", "--quiet", "origin", f"{NOTES_REF}:{NOTES_REF}")
        assert list(open_clone(developer.folder).record_texts()) == texts, "a clone tells the same, without the network"
        assert list(open_clone(developer.bare).record_texts()) == texts
        developer.git("push", "--quiet", "origin", ":exp/x", ":exp-1")
        assert [text.kind for text in remote.record_texts()] == ["note"], "what is gone there is gone here"

    def test_a_folder_without_a_repository_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(GitAccessError, match="no Git repository"):
            open_clone(tmp_path)

    def test_a_merge_is_made_from_both_sides(self, developer: Developer, remote: GitRepository) -> None:
        base = developer.push_commit({"a": "1\n2\n3\n4\n5\n", "moved": "x\n" * 20, "gone": "1"})
        developer.git("switch", "--quiet", "-c", "exp/x")
        developer.git("rm", "--quiet", "gone")
        theirs = developer.push_commit({"a": "one\n2\n3\n4\n5\n", "new": "1", "moved": "x\n" * 19 + "y\n"}, "exp/x")
        developer.git("switch", "--quiet", "main")
        ours = developer.push_commit({"a": "1\n2\n3\n4\nfive\n"})
        merged = remote.merge(ours, theirs)
        assert (merged.base, merged.conflicts, merged.merged) == (base, (), False)
        assert remote.refs()["refs/heads/main"] == ours
        parents = (ours, theirs)
        made = remote.publish_merge("promote/x", merged, parents=parents, files={"note/é": b"n"}, message="Promote x")
        assert (
            remote.publish_merge("promote/x", merged, parents=parents, files={"note/é": b"n"}, message="Promote x")
            == made
        )
        assert run_git(developer.bare, "rev-list", "--parents", "-1", made).split() == [made, ours, theirs]
        assert remote.read_file(made, "a") == b"one\n2\n3\n4\nfive\n"
        assert sorted(remote.changed_paths(None, made)) == ["a", "moved", "new", "note/é"]
        assert remote.refs()["refs/heads/main"] == ours
        assert run_git(developer.bare, "fsck", "--strict") == ""
        assert remote.merge(made, theirs).merged
        with pytest.raises(StaleRefError, match="promote/x"):
            remote.publish_merge("promote/x", merged, parents=parents, files={}, message="Another")
        developer.git("fetch", "--quiet", "origin")
        developer.git("merge", "--quiet", "--no-edit", "origin/exp/x")
        by_git = developer.git("rev-parse", "HEAD^{tree}")
        assert merged.tree == by_git, "the tree is the one that git merge makes in a clone"

    def test_a_conflict_names_the_file_and_both_sides(self, developer: Developer, remote: GitRepository) -> None:
        developer.push_commit({"lr": "1\n", "both": "1\n", "keep": "1", "bin": b"\x00a"})
        theirs = developer.push_commit({"lr": "2\n", "added": "t", "bin": b"\x00b"}, "exp/x")
        developer.git("switch", "--quiet", "main")
        developer.git("rm", "--quiet", "lr")
        ours = developer.push_commit({"added": "o", "bin": b"\x00c"})
        merged = remote.merge(ours, theirs)
        told = {one.path: (one.base, one.ours, one.theirs) for one in merged.conflicts}
        assert told == {"added": (None, b"o", b"t"), "bin": (None, None, None), "lr": (b"1\n", None, b"2\n")}

    def test_histories_that_share_nothing_are_not_merged(self, developer: Developer, remote: GitRepository) -> None:
        ours = developer.push_commit({"a": "1"})
        developer.git("switch", "--quiet", "--orphan", "other")
        theirs = developer.push_commit({"b": "1"}, "other")
        with pytest.raises(UnrelatedHistoriesError, match=theirs[:12]):
            remote.merge(ours, theirs)


class TestGitRecordsOverHttp(GitRecordsContract):
    @pytest.fixture
    def developer(self, http_developer: Developer) -> Developer:  # noqa: F811
        return http_developer


class TestGitRecordsOverFile(GitRecordsContract):
    @pytest.fixture
    def developer(self, file_developer: Developer) -> Developer:  # noqa: F811
        return file_developer


def test_an_older_git_merges_file_by_file(file_developer: Developer) -> None:  # noqa: F811
    developer = file_developer
    base = developer.push_commit({"a": "1\n2\n3\n4\n5\n", "lr": "1\n", "gone": "1", "run": "#!\n"})
    developer.git("rm", "--quiet", "gone")
    theirs = developer.push_commit({"a": "one\n2\n3\n4\n5\n", "lr": "2\n", "new": "1"}, "exp/x")
    developer.git("switch", "--quiet", "main")
    ours = developer.push_commit({"a": "1\n2\n3\n4\nfive\n", "lr": "3\n"})
    clone = open_clone(developer.bare)._git  # the same git, on a repository that has all objects
    tree, conflicts = merge_by_file(clone, base, ours, theirs)
    assert list(conflicts) == ["lr"]
    assert developer.git("-C", str(developer.bare), "ls-tree", "-r", "--name-only", tree).split() == [
        "a",
        "lr",
        "new",
        "run",
    ]
    assert developer.git("-C", str(developer.bare), "show", f"{tree}:a") == "one\n2\n3\n4\nfive"
    assert "<<<<<<< ours" in developer.git("-C", str(developer.bare), "show", f"{tree}:lr")
