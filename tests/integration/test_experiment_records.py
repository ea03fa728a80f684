"""Records in Git, on real repositories: under races, under the rules of a host, and read back from a plain clone."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fixtures_git import TOKEN, Developer, file_developer, git_server, http_developer, run_git  # noqa: F401

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.git import GitRepository, open_clone, open_git
from deepseek_ops.core.config.recording import Records
from deepseek_ops.core.errors import GitAccessError
from deepseek_ops.core.ports import NOTES_REF, Facts, NewCommit
from deepseek_ops.pipeline.experiments import experiments_of
from deepseek_ops.pipeline.own_pushes import OwnCommit, is_own_tag, own_commits
from deepseek_ops.pipeline.recording import Recorded, push_record
from deepseek_ops.pipeline.records_in_git import ExperimentRecord, experiment_message

PIPELINE = """name: t
data: {raw: r/, prepare: "a.b:c"}
training: {model: m.json}
records: {write: notes}
"""
REFUSE_BOTS = """#!/bin/sh
while read old new name; do
  case "$name" in
    refs/heads/*) if git log -1 --format=%an "$new" | grep -q '^deepseek-ops$'; then
      echo "no bot commits on $name" >&2; exit 1; fi;;
  esac
done
"""


def record(number: int, val_loss: float = 0.5, **changes: object) -> ExperimentRecord:
    made = ExperimentRecord(
        model="tiny",
        dataset="corpus",
        hyperparameters={"learning_rate": 0.001 * number, "batch_size": 32},
        performance={"val_loss": val_loss},
        run_id=f"run-{number}",
        dataset_version="ab" * 32,
        manifest=f"{number:064x}",
    )
    return made.evolve(**changes)


def push(
    remote: GitRepository,
    number: int,
    parent: str,
    rules: Records,
    branch: str = "main",
    facts: Facts | None = None,
) -> Recorded:
    commit = NewCommit(branch, parent, experiment_message(record(number)), {f"experiments/{number}.json": b"{}"})
    return push_record(remote, rules, commit=commit, tag=f"exp-20260301-{number}", facts=facts)


def found_in(remote: GitRepository) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(one.record.run_id, one.source, one.tags) for one in experiments_of(remote.record_texts())]


@pytest.mark.slow
def test_eight_recorders_and_two_people_lose_nothing(http_developer: Developer, tmp_path: Path) -> None:  # noqa: F811
    """Four recorders commit, four write notes, on one branch and over HTTP, while people push to it."""
    remote = http_developer.remote
    trained = http_developer.push_commit({"a": "0"})

    def another(name: str) -> GitRepository:
        return open_git(remote.url, username="git", password=TOKEN, cache=tmp_path / name)

    def record_one(number: int) -> Recorded:
        mine = another(f"recorder-{number}")
        rules = Records(write="commit" if number % 2 else "notes", when_refused="fail")
        first = push(mine, number, trained, rules)
        again = push(mine, number, trained, rules)
        assert (again.commit, again.tag_object) == (first.commit, first.tag_object), "a retried task finds its record"
        return first

    def work(person: int) -> list[str]:
        clone = tmp_path / f"person-{person}"
        run_git(tmp_path, "clone", "--quiet", str(http_developer.bare), str(clone))
        commits = []
        for number in range(3):
            (clone / f"p{person}-{number}").write_text("work")
            run_git(clone, "add", "-A")
            run_git(clone, "commit", "--quiet", "-m", f"Person {person} commit {number}")
            _push_as_people_do(clone)
            commits.append(f"Person {person} commit {number}")
        return commits

    with ThreadPoolExecutor(10) as pool:
        recorders = [pool.submit(record_one, number) for number in range(1, 9)]
        people = [pool.submit(work, person) for person in range(2)]
        done = [one.result() for one in recorders]
        said = [subject for one in people for subject in one.result()]
    on_main = run_git(http_developer.bare, "log", "--format=%s", "main").split("\n")
    assert sorted(set(said) & set(on_main)) == sorted(said), "no commit of a person is lost"
    assert sum(one.on_branch for one in done) <= 1
    found = found_in(remote)
    assert sorted(run for run, _, _ in found) == [f"run-{number}" for number in range(1, 9)]
    assert {source for run, source, _ in found if int(run[-1]) % 2} == {"commit"}
    assert all(tags == (f"exp-20260301-{run[-1]}",) for run, _, tags in found)
    assert remote.notes()[trained].count("Run-Id: ") == 4
    assert run_git(http_developer.bare, "fsck", "--strict", "--no-dangling") == ""


def _push_as_people_do(clone: Path) -> None:
    for _ in range(60):
        try:
            run_git(clone, "push", "--quiet", "origin", "HEAD:main")
        except AssertionError:
            run_git(clone, "pull", "--quiet", "--rebase", "origin", "main")
        else:
            return
    raise AssertionError("a person never got through")


@pytest.mark.parametrize(
    ("when_refused", "way"), [("notes", "notes"), ("tag-only", "tag-only")], ids=["to-notes", "to-the-tag"]
)
def test_where_the_host_refuses_bot_commits_the_record_goes_where_the_team_says(
    http_developer: Developer,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    when_refused: str,
    way: str,
) -> None:
    developer, remote = http_developer, http_developer.remote
    trained = developer.push_commit({"a": "1"})
    _install(developer, REFUSE_BOTS)
    rules = Records.model_validate({"write": "commit", "when_refused": when_refused})
    done = push(remote, 1, trained, rules)
    assert (done.way, done.commit) == (way, trained)
    assert push(remote, 1, trained, rules) == done
    assert remote.refs() == {"refs/heads/main": trained, "refs/tags/exp-20260301-1": trained}
    assert "cannot be written as commit" in caplog.text
    assert "no bot commits on refs/heads/main" in caplog.text
    assert f"Written as {way} instead" in caplog.text
    assert list(remote.notes()) == ([trained] if way == "notes" else [])
    assert found_in(remote) == [("run-1", "tag", ("exp-20260301-1",))]


def test_a_team_may_want_the_refusal_itself(http_developer: Developer) -> None:  # noqa: F811
    trained = http_developer.push_commit({"a": "1"})
    _install(http_developer, REFUSE_BOTS)
    with pytest.raises(GitAccessError, match="no bot commits on refs/heads/main"):
        push(http_developer.remote, 1, trained, Records(when_refused="fail"))
    assert http_developer.remote.refs() == {"refs/heads/main": trained}


@pytest.mark.parametrize("write", ["commit", "notes", "tag-only"])
def test_what_is_pushed_is_noted_as_ours_before_the_server_hears_of_it(
    file_developer: Developer,  # noqa: F811
    tmp_path: Path,
    write: str,
) -> None:
    trained = file_developer.push_commit({"a": "1"})
    remote, facts = file_developer.remote, open_facts(f"sqlite:///{tmp_path / 'facts.db'}")
    rules = Records.model_validate({"write": write, "when_refused": "fail"})
    _install(file_developer, "#!/bin/sh\nexit 1\n")
    for _ in range(2):
        with pytest.raises(GitAccessError):
            push(remote, 1, trained, rules, facts=facts)
    noted = facts.find("own_commit")
    _install(file_developer, "#!/bin/sh\nexit 0\n")
    done = push(remote, 1, trained, rules, facts=facts)
    assert is_own_tag(facts, remote.resolve(f"refs/tags/{done.tag}"))
    assert facts.find("own_commit") == noted, "the very same commit"
    expected = [OwnCommit(commit=done.commit, parent=trained, ref="refs/heads/main")] if write == "commit" else []
    assert own_commits(facts, remote.url, [trained, done.commit]) == expected
    assert own_commits(facts, remote.url, [f"{number:040x}" for number in range(99)] + [done.commit]) == expected
    assert own_commits(facts, "https://host/copy.git", [done.commit]) == []


def test_a_commit_of_a_branch_that_moved_is_held_by_its_tag(file_developer: Developer) -> None:  # noqa: F811
    trained = file_developer.push_commit({"a": "1"})
    later = file_developer.push_commit({"a": "2"})
    done = push(file_developer.remote, 1, trained, Records())
    assert not done.on_branch
    assert file_developer.remote.refs() == {"refs/heads/main": later, "refs/tags/exp-20260301-1": done.commit}
    assert found_in(file_developer.remote) == [("run-1", "commit", ("exp-20260301-1",))]
    assert file_developer.remote.changed_paths(trained, done.commit) == ["experiments/1.json"]


def _install(developer: Developer, hook: str) -> None:
    place = developer.bare / "hooks" / "pre-receive"
    place.parent.mkdir(exist_ok=True)
    place.write_text(hook)
    place.chmod(0o755)
    run_git(developer.bare, "config", "core.hooksPath", str(place.parent))


# --- the command line -------------------------------------------------------------------------------------------------


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deepseek_ops.cli.main", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def recorded(file_developer: Developer) -> Developer:  # noqa: F811
    """A clone with one record of each kind, fetched as ``git pull`` does, and no notes."""
    developer = file_developer
    first = developer.push_commit({"a": "1", "deepseek.yaml": PIPELINE})
    push(developer.remote, 1, first, Records(write="notes"))
    second = developer.push_commit({"a": "2"})
    push(developer.remote, 2, second, Records(write="tag-only"))
    developer.git("switch", "--quiet", "-c", "exp/x")
    third = developer.push_commit({"a": "3"}, "exp/x")
    push(developer.remote, 3, third, Records(), branch="exp/x")
    developer.git("fetch", "--quiet", "--tags", "origin")
    return developer


def test_log_and_experiments_read_a_plain_clone(recorded: Developer) -> None:
    before = recorded.git("status", "--porcelain")
    table = command("log", folder=recorded.folder)
    assert table.returncode == 0, table.stderr
    assert f"git fetch origin '{NOTES_REF}*:{NOTES_REF}*'" in table.stderr
    lines = [line for line in table.stdout.splitlines() if "exp-2026" in line]
    assert sorted(line.split("exp-20260301-")[1][0] for line in lines) == ["1", "2", "3"]
    assert "learning_rate" in table.stdout
    assert "val_loss" in table.stdout
    on_main = command("log", "--ref", "main", "--json", folder=recorded.folder)
    assert {one["run_id"] for one in json.loads(on_main.stdout)} == {"run-2", "run-1"}
    where = ("--where", "learning_rate >= 0.002 and val_loss < 0.6", "--sort", "learning_rate", "--json")
    chosen = command("experiments", *where, folder=recorded.folder)
    assert [one["hyperparameters"]["learning_rate"] for one in json.loads(chosen.stdout)] == [0.002, 0.003]
    wrong = command("experiments", "--where", "lr < 1", folder=recorded.folder)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    said = wrong.stderr.splitlines()[-1]
    assert said.startswith("no experiment has 'lr'. Known are author, batch_size, branch, commit"), said
    assert recorded.git("status", "--porcelain") == before


def test_a_url_tells_what_a_clone_tells(recorded: Developer) -> None:
    url = f"file://{recorded.bare}"
    there = json.loads(command("log", "--repo", url, "--json", folder=recorded.folder).stdout)
    here = json.loads(command("log", "--json", folder=recorded.folder).stdout)
    assert there == here
    assert {one["run_id"] for one in there} == {"run-3", "run-2", "run-1"}


def test_notes_alone_are_enough_where_tags_are_gone(recorded: Developer) -> None:
    recorded.git("push", "--quiet", "origin", ":exp-20260301-1")
    assert ("run-1", "note", ()) in found_in(recorded.remote)
    assert open_clone(recorded.folder).misses_notes()
    recorded.git("fetch", "--quiet", "origin", f"{NOTES_REF}:{NOTES_REF}")
    assert not open_clone(recorded.folder).misses_notes()
    assert list(open_clone(recorded.folder).notes().values()) == [experiment_message(record(1))]


def test_notes_are_missed_only_where_there_can_be_any_and_the_advice_works(file_developer: Developer) -> None:  # noqa: F811
    developer = file_developer
    first = developer.push_commit({"deepseek.yaml": PIPELINE.replace("records: {write: notes}\n", "")})
    push(developer.remote, 1, first, Records())
    developer.git("fetch", "--quiet", "--tags", "origin")
    assert command("log", folder=developer.folder).stderr == "", "records of this team are commits"
    developer.git("pull", "--quiet", "origin", "main")
    developer.push_commit({"deepseek.yaml": PIPELINE})
    told = command("log", folder=developer.folder).stderr
    advice = told.partition("fetch them with: ")[2].strip().replace("'", "").split()
    developer.git(*advice[1:])  # nothing has been noted yet, and that is no error
    push(developer.remote, 2, developer.git("rev-parse", "HEAD"), Records(write="notes"))
    developer.git(*advice[1:])
    assert command("log", folder=developer.folder).stderr == ""
    assert open_clone(developer.folder).notes()


def test_a_clone_that_leaves_something_out_says_so_with_what_brings_it(recorded: Developer, tmp_path: Path) -> None:
    url = f"file://{recorded.bare}"
    for options, said in (
        (("--depth", "1"), "this clone has no older commits, has no other branch than main: its origin may"),
        (("--single-branch", "--no-tags"), "this clone has no other branch than main, fetches no tags: its origin may"),
        (("--no-tags",), "this clone fetches no tags: its origin may"),
    ):
        clone = tmp_path / f"clone{len(options)}{options[0]}"
        run_git(tmp_path, "clone", "--quiet", *options, url, str(clone))
        told = command("log", "--json", folder=clone)
        assert len(json.loads(told.stdout)) < 3
        assert said in told.stderr
        advice = told.stderr.splitlines()[0].partition("fetch them with: ")[2].replace("'", "").split()
        run_git(clone, *advice[1:])
        assert len(json.loads(command("log", "--json", folder=clone).stdout)) == 3
    assert "its origin may" not in command("log", folder=recorded.folder).stderr


def test_a_table_for_programs_cuts_nothing(recorded: Developer) -> None:
    tag = "exp-20260301-" + "long-name-of-an-experiment" * 8
    developer = recorded
    message = experiment_message(record(9, hyperparameters={f"name_{at}" * 5: "value" * 30 for at in range(4)}))
    developer.git("tag", "-a", "-m", message, tag, "main")
    table = command("log", folder=developer.folder).stdout
    assert f" {tag} " in table
    assert "..." not in table
    assert "\u2026" not in table


def test_a_column_that_nobody_has_is_told_as_a_sort_is(recorded: Developer) -> None:
    wrong = command("log", "--columns", "val_loss,nosuch", folder=recorded.folder)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "no experiment has 'nosuch'" in wrong.stderr
    few = command("experiments", "--where", "learning_rate > 1", "--columns", "val_loss", folder=recorded.folder)
    assert few.returncode == 0, "known, though not of any that is chosen"
