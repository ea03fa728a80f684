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
    Comparison,
    ExperimentRecord,
    ReleaseRecord,
    experiment_message,
    experiment_tag,
    parse_experiment,
    parse_experiments,
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
    comparisons=st.dictionaries(
        keys,
        st.builds(Comparison, champion=texts.filter(bool), delta=numbers, interval=st.tuples(numbers, numbers)),
        max_size=2,
    ),
    version=texts,
    run_id=texts.filter(bool),
    date=texts,
    branch=texts,
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


@given(st.lists(experiments, min_size=1, max_size=3, unique_by=lambda one: one.fingerprint), st.data())
@settings(max_examples=40, deadline=None)
def test_a_text_with_several_records_gives_each_of_them(records: list[ExperimentRecord], data: st.DataObject) -> None:
    messages = [experiment_message(record) for record in records]
    as_a_note = "\n".join(messages)
    assert parse_experiments(as_a_note) == records
    by_git_squash = "Squashed commit of the following:\n\n" + "\n".join(
        f"commit {'0' * 40}\nAuthor: Ada <ada@example.com>\nDate:   Sun Mar 1 10:00:00 2026\n\n"
        + "".join(f"    {line}".rstrip(" ") + "\n" for line in message.split("\n"))
        for message in messages
    )
    assert parse_experiments(by_git_squash) == records
    by_a_host = "Tune (#7)\n\n" + "\n\n".join(f"* {message.rstrip()}\n\n* Fix a typo" for message in messages)
    assert parse_experiments(by_a_host) == records
    ending = data.draw(st.sampled_from(["\r\n", "\n"]))
    assert parse_experiments(as_a_note.replace("\n", ending)) == records
    assert parse_experiments(as_a_note + as_a_note) == records, "the same record twice is one"


@given(st.text(max_size=400), st.integers(0, 10), st.data())
@settings(max_examples=200, deadline=None)
def test_no_message_makes_the_parser_fail(text: str, cut: int, data: st.DataObject) -> None:
    message = experiment_message(EXPERIMENT)
    at = data.draw(st.integers(0, len(message)))
    for hostile in (text, message[:at] + text + message[at + cut :], f"Train a on b\n{text}"):
        for record in parse_experiments(hostile):
            assert ExperimentRecord.load(record.dump()) == record
        parse_release(hostile)


@pytest.mark.parametrize(
    "line",
    [
        "- deep: " + "[" * 100_000,
        "- deep: " + "[" * 300 + "]" * 300,
        "- val_loss: NaN",
        "- val_loss: 1e999",
        "- val_loss: " + "9" * 10_000,
        "- val_loss: [1]",
        "- \ud800: 1",
    ],
)
def test_a_hostile_value_makes_no_record_and_no_error(line: str) -> None:
    text = experiment_message(EXPERIMENT).replace("- val_loss: 0.42", line)
    assert parse_experiments(text) == []


def test_what_follows_a_record_does_not_become_part_of_it() -> None:
    record = EXPERIMENT.evolve(tracker_url="", hardware="")
    other = "Fix it\n\nTracker-Url: https://elsewhere.example.com\nHardware: 1x cpu\nRun-Id: other\n"
    assert parse_experiments(f"{experiment_message(record)}\n{other}") == [record]


def test_quoting_a_record_is_not_recording_it() -> None:
    quoted = "".join(f"> {line}\n" for line in experiment_message(EXPERIMENT).split("\n"))
    assert parse_experiments(f"I doubt this:\n\n{quoted}") == []


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
