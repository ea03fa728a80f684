"""What a change can mean: each class of path reaches the stages it can mean, and no other."""

from __future__ import annotations

import pytest

from deepseek_ops.core.config import load_pipeline
from deepseek_ops.pipeline.changes import STAGES, ChangeKind, classify, is_given_to_jobs, kind_of, only_docs

TEXT = """
name: tiny
jobs: {setup: {requirements: env/lock.txt}}
data:
  raw: corpus/
  tokenizer: tok
  prepare: deepseek.prepare:prepare_data
  checks: {contamination: {against: [{name: held, path: eval/held.jsonl}]}}
training: {model: deepseek/model.json, seed: 1}
"""


def pipeline(text: str = TEXT):
    return load_pipeline(text.encode(), file="deepseek.yaml")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("deepseek.yaml", "pipeline"),
        ("env/lock.txt", "lock"),
        ("requirements.txt", "code"),  # another file is the lock here
        ("data/tiny.dataset.yaml", "data"),
        ("corpus/guide.md", "data"),  # raw data that happens to be Markdown is no documentation
        ("tok/tokenizer.json", "data"),
        ("eval/held.jsonl", "data"),
        ("experiments/0.1.0.json", "result"),
        ("experiments/prepare.py", "code"),  # a team's own file in a folder that we write to, too
        ("experiments/notes.json", "code"),
        ("experiments/deep/0.1.0.json", "code"),
        ("experiments/README.md", "docs"),
        ("README.md", "docs"),
        ("deepseek/README.md", "docs"),
        ("docs/img/a.png", "docs"),
        ("deepseek/prepare.py", "code"),
        ("deepseek/model.json", "code"),
        (".gitattributes", "code"),
    ],
)
def test_each_path_has_one_class(path, kind):
    assert kind_of(pipeline(), path) == ChangeKind(kind)


def reached(paths, old=None, new=None) -> list[str]:
    change = classify(paths, new=new or pipeline(), old=old or pipeline(), against="main")
    return [stage for stage in STAGES if change.reaches(stage)]


def test_documentation_and_our_own_results_reach_no_stage():
    assert reached(["README.md", "docs/a.txt", "experiments/0.1.0.json"]) == []
    assert classify(["README.md"], new=pipeline(), against="main").docs_only
    assert "documentation only" in classify(["README.md"], new=pipeline(), against="main").text()


def test_hyperparameters_reach_neither_environment_nor_data():
    new = pipeline(TEXT.replace("seed: 1", "seed: 2"))
    assert reached(["deepseek.yaml"], new=new) == ["sweep", "train", "validate", "export", "register"]


def test_a_pipeline_file_that_only_reads_differently_reaches_nothing():
    assert reached(["deepseek.yaml"], new=pipeline(TEXT + "# a remark\n")) == []
    assert reached(["deepseek.yaml"], new=pipeline(TEXT + "triggers: [{type: schedule, cron: '@daily'}]\n")) == []


def test_a_data_pointer_reaches_no_environment():
    assert reached(["data/tiny.dataset.yaml"]) == list(STAGES[1:])


def test_a_lock_reaches_everything_and_mixed_changes_reach_the_union():
    assert reached(["env/lock.txt"]) == list(STAGES)
    new = pipeline(TEXT + "validation: {confidence: 0.9}\n")
    assert reached(["README.md", "deepseek.yaml"], new=new) == ["validate", "export", "register"]
    assert reached(["deepseek/prepare.py", "deepseek.yaml"], new=new) == list(STAGES[1:])


def test_the_team_says_what_documentation_is():
    config = pipeline(TEXT + "changes: {docs: ['notes/**', '!notes/prompt.txt']}\n")
    assert only_docs(config, ["notes/a.txt"])
    assert not only_docs(config, ["notes/prompt.txt"])
    assert not only_docs(config, ["README.md"])


def test_an_unknown_change_is_no_documentation():
    assert not only_docs(pipeline(), [])


def test_jobs_are_given_nothing_that_is_said_not_to_reach_them():
    given = ("deepseek.yaml", "README.md", "experiments/1.0.0.json", "data/tiny.dataset.yaml")
    assert not any(is_given_to_jobs(pipeline(), path) for path in given)
    assert is_given_to_jobs(pipeline(), "corpus/guide.md")
    assert is_given_to_jobs(pipeline(), "deepseek/prepare.py")


def test_a_script_below_experiments_is_code_like_any_other():
    assert is_given_to_jobs(pipeline(), "experiments/prepare.py")
    assert not only_docs(pipeline(), ["experiments/prepare.py"])
    assert reached(["experiments/prepare.py"]) == list(STAGES[1:])


def test_the_policy_of_a_push_is_read_from_the_file():
    config = pipeline(TEXT + "triggers: [{type: git-push, debounce: 30s, branches: [main], concurrency: supersede}]\n")
    (trigger,) = config.triggers
    assert (trigger.debounce.total_seconds(), trigger.concurrency) == (30, "supersede")
