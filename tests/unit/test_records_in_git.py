"""What is written into Git is read back, by this package and by git itself."""

from __future__ import annotations

import datetime as dt
import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_ops.pipeline.records_in_git import (
    ExperimentRecord,
    ReleaseRecord,
    experiment_message,
    experiment_tag,
    parse_experiment,
    parse_release,
    release_message,
)

DIGEST = "ab" * 32

EXPERIMENT = ExperimentRecord(
    model="deepseek-tiny",
    dataset="corpus",
    hyperparameters={"learning_rate": 3e-5, "batch_size": 32, "scheduler": "cosine: warm"},
    hardware="4x A100",
    performance={"val_loss": 0.42, "test_acc": 89.1},
    run_id="asset_triggered__2026-11-21T10:00:00+00:00_x",
    dataset_version=DIGEST,
    manifest="cd" * 32,
    tracker_url="https://tracker.example.com/run/1",
)

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
keys = st.from_regex(r"[A-Za-z_][A-Za-z0-9_./@-]{0,20}", fullmatch=True)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
texts = st.text(max_size=40)
numbers = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers() | numbers | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))

experiments = st.builds(
    ExperimentRecord,
    model=names,
    dataset=names,
    hyperparameters=st.dictionaries(keys, values, max_size=4),
    hardware=texts,
    performance=st.dictionaries(keys, numbers, max_size=4),
    run_id=texts.filter(bool),
    dataset_version=digests,
    manifest=digests,
    tracker_url=texts,
)
releases = st.builds(
    ReleaseRecord,
    model=names,
    version=st.from_regex(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}", fullmatch=True),
    bundle=digests,
    metrics=st.dictionaries(keys, numbers, max_size=4),
    run_id=texts,
    dataset_version=texts,
    manifest=texts,
    approved_by=texts,
)


@given(experiments)
@settings(max_examples=200, deadline=None)
def test_every_experiment_is_read_back_exactly(record: ExperimentRecord) -> None:
    assert parse_experiment(experiment_message(record)) == record


@given(releases)
@settings(max_examples=200, deadline=None)
def test_every_release_is_read_back_exactly(record: ReleaseRecord) -> None:
    assert parse_release(release_message(record)) == record


def test_the_message_reads_as_a_person_would_write_it() -> None:
    assert experiment_message(EXPERIMENT) == (
        "Train deepseek-tiny on corpus\n"
        "\n"
        "Hyperparameters:\n"
        "- batch_size: 32\n"
        "- learning_rate: 3e-05\n"
        '- scheduler: "cosine: warm"\n'
        "\n"
        "Hardware: 4x A100\n"
        "\n"
        "Performance:\n"
        "- test_acc: 89.1\n"
        "- val_loss: 0.42\n"
        "\n"
        "Run-Id: asset_triggered__2026-11-21T10:00:00+00:00_x\n"
        f"Dataset-Version: {DIGEST}\n"
        f"Manifest: {'cd' * 32}\n"
        "Tracker-Url: https://tracker.example.com/run/1\n"
    )


def test_it_survives_what_git_adds_to_a_message() -> None:
    message = experiment_message(EXPERIMENT)
    assert parse_experiment(message + "Signed-off-by: Ada <ada@example.com>\n") == EXPERIMENT
    assert parse_experiment(message + f"(cherry picked from commit {'0' * 40})\n") == EXPERIMENT
    assert parse_experiment(message.replace("\n", "\r\n")) == EXPERIMENT
    assert parse_experiment(message.rstrip("\n")) == EXPERIMENT


@pytest.mark.parametrize(
    "message",
    ["", "Fix the loader", "Train a on b", "Train a on b\n\nRun-Id: r\nDataset-Version: short\nManifest: x\n"],
)
def test_another_message_is_no_experiment(message: str) -> None:
    assert parse_experiment(message) is None
    assert parse_release(message) is None


def test_git_itself_reads_the_trailers(tmp_path: Path) -> None:
    release = ReleaseRecord(model="m", version="1.2.0", bundle=DIGEST, metrics={"val_loss": 0.38}, approved_by="Ada L")
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    for message, expected in (
        (experiment_message(EXPERIMENT), ["Run-Id", "Dataset-Version", "Manifest", "Tracker-Url"]),
        (release_message(release), ["Bundle", "Approved-By", "Metrics"]),
    ):
        parsed = subprocess.run(
            ["git", "interpret-trailers", "--parse"],
            input=message.encode(),
            capture_output=True,
            check=True,
            cwd=tmp_path,
            env=environment,
        ).stdout.decode()
        assert [line.partition(":")[0] for line in parsed.splitlines()] == expected


@pytest.mark.parametrize(
    ("what", "tag"),
    [
        ("lr3e5", "exp-20240301-lr3e5"),
        ("exp/lr tuning", "exp-20240301-exp-lr-tuning"),
        ("../..//x.lock", "exp-20240301-x"),
        ("", "exp-20240301-run"),
        ("模型", "exp-20240301-run"),
    ],
)
def test_an_experiment_tag_is_a_safe_ref(what: str, tag: str) -> None:
    assert experiment_tag(dt.date(2024, 3, 1), what) == tag


@given(st.text(max_size=80))
def test_any_text_gives_a_tag_that_git_accepts(what: str) -> None:
    tag = experiment_tag(dt.date(2024, 3, 1), what)
    assert re.fullmatch(r"exp-20240301-[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", tag)
    assert ".." not in tag
    assert not tag.endswith(".lock")
