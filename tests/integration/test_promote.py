"""Promotion: the winner of an experiment's branch as a real merge commit on a branch of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_git import TOKEN, Developer, file_developer, git_server, http_developer, run_git  # noqa: F401

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.errors import RefNotFoundError
from deepseek_ops.core.ports import NewCommit
from deepseek_ops.data import DatasetPointer, pointer_text, read_pointer
from deepseek_ops.data.pointer_merge import PointerMerge, merge_pointers
from deepseek_ops.data.repository import DatasetRepository
from deepseek_ops.pipeline.branches import BranchNameError
from deepseek_ops.pipeline.experiments import experiments_of
from deepseek_ops.pipeline.promotion import (
    NothingRecordedError,
    PromotionBranchTakenError,
    Wish,
    promote,
    review_url,
)
from deepseek_ops.pipeline.promotion_choice import UnknownDirectionError, UnknownMetricError
from deepseek_ops.pipeline.promotion_conflicts import conflict_lines
from deepseek_ops.pipeline.records_in_git import Comparison, ExperimentRecord, experiment_message


def never(base: str, ours: str, theirs: str) -> PointerMerge:
    raise AssertionError("there is no pointer to merge")


def record(number: int, val_loss: float, **changes: object) -> ExperimentRecord:
    made = ExperimentRecord(
        model="tiny",
        dataset="corpus",
        hyperparameters={"learning_rate": 0.001 * number, "batch_size": 32},
        performance={"val_loss": val_loss, "accuracy": 1 - val_loss},
        version=f"1.{number}.0",
        run_id=f"run-{number}",
        dataset_version="ab" * 32,
        manifest=f"{number:064x}",
    )
    return made.evolve(**changes)


def commit_record(developer: Developer, made: ExperimentRecord, branch: str) -> str:
    """Commit the record on the branch as the pipeline does, and let the developer follow."""
    tip = developer.remote.resolve(branch).commit
    files = {f"experiments/{made.version}.json": b"{}"}
    ids = developer.remote.publish(commit=NewCommit(branch, tip, experiment_message(made), files))
    developer.git("switch", "--quiet", branch)
    developer.git("pull", "--quiet", "origin", branch)
    return ids[branch]


@pytest.fixture
def developer(file_developer: Developer) -> Developer:  # noqa: F811
    """Main with one experiment; exp/x with two, of which the first is the better one, and a commit after them."""
    developer = file_developer
    developer.push_commit({"config.py": "lr = 1\n", "train.py": "train\n", "README.md": "one\n"})
    commit_record(developer, record(1, 0.5), "main")
    developer.push_commit({"config.py": "lr = 2\n"}, "exp/x")
    beside = {"val_loss": Comparison(champion="1.1.0", delta=-0.1, interval=(-0.12, -0.08))}
    commit_record(developer, record(2, 0.4, comparisons=beside), "exp/x")
    developer.push_commit({"config.py": "lr = 3\n"}, "exp/x")
    commit_record(developer, record(3, 0.45), "exp/x")
    developer.push_commit({"docs.md": "later\n"}, "exp/x")
    developer.git("switch", "--quiet", "main")
    developer.push_commit({"README.md": "two\n"})
    return developer


def test_the_best_experiment_is_merged_on_a_branch_of_its_own(developer: Developer) -> None:
    remote = developer.remote
    before = remote.refs()
    done = promote(remote, Wish("exp/x"), merge_pointer=never)
    assert (done.status, done.branch, done.into) == ("opened", "promote/exp/x", "main")
    assert remote.refs() == {**before, "refs/heads/promote/exp/x": done.commit}
    winner = experiments_of(remote.record_texts())[1]
    assert (winner.record.run_id, done.merges) == ("run-2", winner.commit)
    parents = run_git(developer.bare, "rev-list", "--parents", "-1", done.commit).split()
    assert parents == [done.commit, before["refs/heads/main"], winner.commit]
    assert remote.read_file(done.commit, "config.py") == b"lr = 2\n"
    assert remote.read_file(done.commit, "README.md") == b"two\n"
    assert "docs.md" not in remote.changed_paths(None, done.commit)
    assert run_git(developer.bare, "log", "-1", "--format=%B", done.commit) == done.message.strip()
    assert "val_loss - champion 1.1.0: -0.1, interval -0.12 to -0.08 (paired)." in done.message
    assert "| val_loss | 0.4   | 0.5  | -0.1       |" in done.message
    assert "| learning_rate  | 0.002 | 0.001 |" in done.message
    assert "batch_size" not in done.message, "only what differs is compared"
    assert run_git(developer.bare, "fsck", "--strict") == ""


def test_doing_it_again_changes_nothing(developer: Developer) -> None:
    first = promote(developer.remote, Wish("exp/x"), merge_pointer=never)
    assert promote(developer.remote, Wish("exp/x"), merge_pointer=never).commit == first.commit
    developer.push_commit({"README.md": "three\n"})
    again = promote(developer.remote, Wish("exp/x"), merge_pointer=never)
    assert (again.status, again.commit) == ("open already", first.commit)
    developer.git("fetch", "--quiet", "origin")
    developer.git("merge", "--quiet", "--no-edit", "origin/promote/exp/x")
    developer.push("main")
    after = promote(developer.remote, Wish("exp/x", push_branch="promote/next"), merge_pointer=never)
    assert after.winner is not None
    assert after.winner.record.run_id == "run-3", "what main has is not promoted again"
    assert after.baseline is not None
    assert after.baseline.record.run_id == "run-2"


def test_the_command_tells_people_what_it_did_and_what_does_not_merge(developer: Developer, tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deepseek_ops.cli.main", "promote", "exp/x", *arguments],
            cwd=developer.folder,
            env={**os.environ, "DEEPSEEK_OPS_CACHE": str(tmp_path / "cache-of-the-command")},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    done = command()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("opened: ")
    assert "| val_loss | 0.4   | 0.5  | -0.1       |\n" in done.stdout
    assert "|----------|-------|------|------------|\n" in done.stdout
    before = developer.git("status", "--porcelain")
    developer.push_commit({"config.py": "lr = 9\n"})
    failed = command("--push-branch", "promote/again")
    assert failed.returncode == 1
    place = "    <<<<<<< main\n      lr = 9\n    =======\n      lr = 2\n"
    shown = f"config.py: both sides changed the same lines\n  line 1:\n{place}"
    assert f"nothing was pushed\n{shown}" in failed.stderr
    told = json.loads(command("--push-branch", "promote/again", "--json").stdout)
    assert (told["status"], told["conflicts"][0]["theirs"]) == ("conflicts", "lr = 2\n")
    assert developer.git("status", "--porcelain") == before, "the clone of the user is not touched"


def test_a_branch_with_other_work_is_left_alone(developer: Developer) -> None:
    theirs = developer.push_commit({"mine": "1"}, "promote/exp/x")
    with pytest.raises(PromotionBranchTakenError, match=theirs[:12]):
        promote(developer.remote, Wish("exp/x"), merge_pointer=never)
    assert developer.remote.refs()["refs/heads/promote/exp/x"] == theirs


def test_the_whole_branch_another_metric_or_main_itself_can_be_asked_for(developer: Developer) -> None:
    remote = developer.remote
    whole = promote(remote, Wish("exp/x", tip=True, push_branch="a"), merge_pointer=never)
    assert whole.merges == remote.resolve("exp/x").commit
    worst = promote(remote, Wish("exp/x", push_branch="b", direction="maximize"), merge_pointer=never)
    assert worst.winner is not None
    assert worst.winner.record.run_id == "run-3"
    now = promote(remote, Wish("exp/x", push_branch="main"), merge_pointer=never)
    assert remote.resolve("main").commit == now.commit
    assert now.url == ""


def test_a_branch_without_a_record_is_not_promoted_by_mistake(developer: Developer) -> None:
    commit = developer.push_commit({"x": "1"}, "exp/none")
    with pytest.raises(NothingRecordedError, match="exp/none"):
        promote(developer.remote, Wish("exp/none"), merge_pointer=never)
    assert promote(developer.remote, Wish("exp/none", tip=True), merge_pointer=never).merges == commit
    assert promote(developer.remote, Wish("main", tip=True), merge_pointer=never).status == "merged already"


def test_a_conflict_is_told_file_by_file_and_nothing_is_pushed(developer: Developer) -> None:
    developer.push_commit({"config.py": "lr = 9\n"})
    before = developer.remote.refs()
    done = promote(developer.remote, Wish("exp/x"), merge_pointer=never)
    assert (done.status, done.commit) == ("conflicts", "")
    (one,) = done.conflicts
    assert (one.path, one.ours, one.theirs) == ("config.py", "lr = 9\n", "lr = 2\n")
    assert one.problem == "both sides changed the same lines"
    assert developer.remote.refs() == before


def test_a_metric_that_nobody_has_is_refused_and_not_the_newest_merged(developer: Developer) -> None:
    before = developer.remote.refs()
    with pytest.raises(UnknownMetricError) as caught:
        promote(developer.remote, Wish("exp/x", metric="val_los"), merge_pointer=never)
    assert str(caught.value) == (
        "no experiment of exp/x has the metric 'val_los'; did you mean val_loss? Known are accuracy, val_loss."
    )
    with pytest.raises(UnknownMetricError):
        promote(developer.remote, Wish("exp/x", metric="val_los", tip=True), merge_pointer=never)
    assert developer.remote.refs() == before


def test_a_metric_without_a_declared_direction_is_not_guessed(developer: Developer) -> None:
    """``accuracy`` is the team's: by the default of another metric the worst experiment would win."""
    with pytest.raises(UnknownDirectionError, match="whether more or less accuracy is better; add --direction"):
        promote(developer.remote, Wish("exp/x", metric="accuracy"), merge_pointer=never)
    done = promote(developer.remote, Wish("exp/x", metric="accuracy", direction="maximize"), merge_pointer=never)
    assert done.winner is not None
    assert done.winner.record.run_id == "run-2"
    text = "name: t\ndata: {raw: r/, prepare: 'a.b:c'}\ntraining: {model: m.json}\nvalidation: {metric: accuracy, "
    developer.push_commit({"deepseek.yaml": text + "direction: maximize}\n"}, "exp/x")
    declared = promote(developer.remote, Wish("exp/x", push_branch="declared"), merge_pointer=never)
    assert declared.winner is not None
    assert declared.winner.record.run_id == "run-2"


def test_a_winner_that_is_worse_than_the_target_is_told_in_the_message(developer: Developer) -> None:
    developer.push_commit({"config.py": "lr = 7\n"}, "exp/worse")
    commit_record(developer, record(7, 9.0), "exp/worse")
    done = promote(developer.remote, Wish("exp/worse"), merge_pointer=never)
    (doubt,) = done.doubts
    assert doubt == "The winner is worse than main: val_loss 9, while the last experiment of main has 0.5."
    assert done.message.split("\n\n")[2] == doubt
    assert promote(developer.remote, Wish("exp/x"), merge_pointer=never).doubts == ()


def test_where_the_files_own_metric_was_not_measured_the_choice_is_told_to_be_none(developer: Developer) -> None:
    for number in (8, 9):
        developer.push_commit({"config.py": f"lr = {number}\n"}, "exp/other")
        commit_record(developer, record(number, 1.0, performance={"reward": float(number)}), "exp/other")
    done = promote(developer.remote, Wish("exp/other"), merge_pointer=never)
    assert done.doubts == ("No experiment has val_loss: of 2 the newest is merged, which need not be the best.",)


def test_only_a_branch_is_pushed_to(developer: Developer) -> None:
    before = developer.remote.refs()
    for name in ("refs/tags/zz", "refs/notes/x", "bad..name"):
        with pytest.raises(BranchNameError, match="is no name of a branch"):
            promote(developer.remote, Wish("exp/x", push_branch=name), merge_pointer=never)
    assert developer.remote.refs() == before


def test_a_full_name_of_a_branch_is_that_branch_and_a_tag_is_no_target(developer: Developer) -> None:
    done = promote(developer.remote, Wish("exp/x", push_branch="refs/heads/next", into="main"), merge_pointer=never)
    assert developer.remote.resolve("next").commit == done.commit
    now = promote(developer.remote, Wish("exp/x", push_branch="refs/heads/main"), merge_pointer=never)
    assert (now.status, now.url, developer.remote.resolve("main").commit) == ("opened", "", now.commit)
    developer.git("tag", "v1", "main")
    developer.push("v1")
    with pytest.raises(RefNotFoundError, match="branch v1 does not exist"):
        promote(developer.remote, Wish("exp/x", into="v1"), merge_pointer=never)


def test_the_default_branch_is_the_target_whatever_it_is_called(developer: Developer) -> None:
    run_git(developer.bare, "branch", "--move", "main", "develop")
    run_git(developer.bare, "symbolic-ref", "HEAD", "refs/heads/develop")
    done = promote(developer.remote, Wish("exp/x"), merge_pointer=never)
    assert (done.status, done.into) == ("opened", "develop")
    run_git(developer.bare, "symbolic-ref", "HEAD", "refs/heads/gone")
    run_git(developer.bare, "branch", "--move", "develop", "trunk")
    assert promote(developer.remote, Wish("exp/x"), merge_pointer=never).into == "trunk"


def test_each_place_of_a_conflict_is_shown_wherever_it_is(developer: Developer) -> None:
    body = [f"line {number}" for number in range(1, 101)]
    text = "\n".join(body) + "\n=======\n"
    developer.push_commit({"long.py": text, "gone.py": "a = 1\nb = 2\n"})
    developer.push_commit(
        {
            "long.py": text.replace("line 50\n", "theirs\x1b[2J\n").replace("line 90\n", "t90\n"),
            "gone.py": "a = 1\nb = 3\n",
        },
        "exp/long",
    )
    commit_record(developer, record(7, 0.1), "exp/long")
    developer.git("switch", "--quiet", "main")
    developer.git("rm", "--quiet", "gone.py")
    developer.push_commit({"long.py": text.replace("line 50\n", "ours\n\n").replace("line 90\n", "o90\n")})
    done = promote(developer.remote, Wish("exp/long"), merge_pointer=never)
    gone, long = done.conflicts
    assert list(conflict_lines(long, ours="main", theirs="exp")) == [
        "long.py: both sides changed the same lines",
        "  line 50:",
        *("      line 47", "      line 48", "      line 49"),
        *("    <<<<<<< main", "      ours", "", "    =======", "      theirs\\x1b[2J", "    >>>>>>> exp"),
        *("      line 51", "      line 52", "      line 53"),
        "  line 91:",
        *("      line 87", "      line 88", "      line 89"),
        *("    <<<<<<< main", "      o90", "    =======", "      t90", "    >>>>>>> exp"),
        *("      line 91", "      line 92", "      line 93"),
    ]
    told = list(conflict_lines(gone, ours="main", theirs="exp"))
    assert told[0].startswith("gone.py: one side changed it, the other deleted it")
    assert told[1:] == ["  exp changed:", "      @@ -1,2 +1,2 @@", "       a = 1", "      -b = 2", "      +b = 3"]


def test_dataset_versions_of_both_sides_are_merged(developer: Developer, tmp_path: Path) -> None:
    uri = f"file://{tmp_path / 'store'}"
    datasets = DatasetRepository.open(open_store(uri))

    def version(name: str, texts: dict[str, str], branch: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for path, text in texts.items():
            (folder / path).write_text(text)
        made = datasets.commit(folder, name="corpus", author="ada", message=name, branch=branch)
        return pointer_text(DatasetPointer.of(made, uri))

    pointer = "data/corpus.dataset.yaml"
    base = version("base", {"a.txt": "a", "b.txt": "b"}, "main")
    developer.push_commit({pointer: base})
    developer.push_commit({"config.py": "lr = 5\n"}, "exp/y")
    datasets.branch("corpus", "y", read_pointer(base, file="f").version)
    commit_record(developer, record(5, 0.3), "exp/y")
    developer.push_commit({pointer: version("theirs", {"a.txt": "a", "b.txt": "b", "c.txt": "c"}, "y")}, "exp/y")
    commit_record(developer, record(6, 0.2), "exp/y")
    developer.git("switch", "--quiet", "main")
    developer.push_commit({pointer: version("ours", {"a.txt": "A", "b.txt": "b"}, "main")})

    def merge(base: str, ours: str, theirs: str) -> PointerMerge:
        return merge_pointers(base, ours, theirs, open_repository=lambda store: datasets, author="ada")

    done = promote(developer.remote, Wish("exp/y"), merge_pointer=merge)
    assert (done.status, done.resolved) == ("opened", (pointer,))
    merged = read_pointer(developer.remote.read_file(done.commit, pointer).decode(), file="f").version
    assert sorted(datasets.paths(merged)) == ["a.txt", "b.txt", "c.txt"]
    assert datasets.read_file(merged, "a.txt") == b"A"
    assert promote(developer.remote, Wish("exp/y"), merge_pointer=merge).commit == done.commit


@pytest.mark.parametrize(
    ("repository", "url"),
    [
        ("git@github.com:team/model.git", "https://github.com/team/model/compare/main...promote%2Fx?expand=1"),
        ("https://github.com/team/model", "https://github.com/team/model/compare/main...promote%2Fx?expand=1"),
        (
            "ssh://git@gitlab.example.com:2222/group/sub/model.git",
            "https://gitlab.example.com/group/sub/model/-/merge_requests/new?{}".format(
                "merge_request%5Bsource_branch%5D=promote%2Fx&merge_request%5Btarget_branch%5D=main"
            ),
        ),
        ("https://git.example.com/team/model.git", ""),
        ("file:///srv/github/model.git", ""),
    ],
)
def test_the_page_of_the_merge_request_is_known_where_the_host_is(repository: str, url: str) -> None:
    assert review_url(repository, "promote/x", "main") == url


def test_over_http_with_partial_fetches_the_same_merge_is_made(http_developer: Developer, tmp_path: Path) -> None:  # noqa: F811
    developer = http_developer
    developer.push_commit({f"d{at}/f{at}": "x\n" * at for at in range(20)} | {"config.py": "lr = 1\n"})
    developer.push_commit({"config.py": "lr = 2\n"}, "exp/x")
    commit_record(developer, record(2, 0.4), "exp/x")
    developer.git("switch", "--quiet", "main")
    developer.push_commit({"d7/f7": "seven\n"})
    done = promote(developer.remote, Wish("exp/x"), merge_pointer=never)
    assert developer.remote.read_file(done.commit, "d7/f7") == b"seven\n"
    assert "main has no recorded experiment to compare with." in done.message
    assert json.dumps(done.merges)[1:-1] in done.message
