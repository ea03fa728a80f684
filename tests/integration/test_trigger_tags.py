"""Tags and schedules of the pipeline file: what fires, for which tag, and what the tag starts."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest
from fixtures_git import TOKEN, USER, Developer, git_server, http_developer  # noqa: F401
from fixtures_triggers import StateStore, connect, running

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.airflow.triggers import schedule as schedule_module
from deepseek_ops.airflow.triggers.schedule import PipelineScheduleTrigger
from deepseek_ops.airflow.triggers.tags import PushedTagTrigger
from deepseek_ops.core.config import load_pipeline
from deepseek_ops.core.records import GitRef, ModelVersion, RunManifest
from deepseek_ops.data.blobs import StoreBlobs
from deepseek_ops.pipeline.own_pushes import is_own_tag, note_own_tag
from deepseek_ops.pipeline.records_in_git import ExperimentRecord, experiment_message
from deepseek_ops.pipeline.releases import EXPERIMENT
from deepseek_ops.pipeline.tags import UnregisteredTagError, start_of, version_of
from deepseek_ops.registry import VERSION_KIND

PIPELINE = """
name: tiny
triggers:
  - {type: git-tag, tags: ["deepseek-v*"]}
  - {type: git-tag, tags: ["train-*"], run: retrain}
  - {type: schedule, cron: "* * * * *"}
"""


class Team:
    def __init__(self, developer: Developer, folder) -> None:
        self.developer, self.git = developer, developer.remote
        self.uri = f"file://{folder / 'store'}"
        self.blobs = StoreBlobs(open_store(self.uri, {}))
        self.facts = open_facts(f"sqlite:///{folder / 'facts.db'}")

    def at(self, uri):
        return open_store(uri, {})

    def tag(self, name: str, commit: str) -> GitRef:
        self.developer.git("tag", "--annotate", "--force", "--message", name, name, commit)
        self.developer.push(f"refs/tags/{name}")
        return self.git.resolve(f"refs/tags/{name}")

    def start(self, ref: GitRef):
        return start_of(self.git, self, self.facts, ref, repository="model")

    def version(self, commit: str, number: str = "0.1.0") -> ModelVersion:
        manifest = RunManifest(
            name="tiny",
            source=GitRef(repository=self.git.url, name="refs/heads/main", commit=commit),
            tree=commit,
            config_digest="c" * 64,
            environment="e",
            software="0",
        )
        version = ModelVersion(
            name="tiny", version=number, bundle="b" * 64, bundle_key=f"v{number}/bundle.json", manifest=manifest
        )
        self.facts.insert(VERSION_KIND, f"tiny/{number}", version.dump())
        return version


@pytest.fixture
def team(http_developer, monkeypatch, tmp_path):  # noqa: F811
    connect(monkeypatch, "model", conn_type="git", host=http_developer.remote.url, login=USER, password=TOKEN)
    connect(monkeypatch, "deepseek_ops_facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db'}")
    monkeypatch.setenv("DEEPSEEK_OPS_CACHE", str(tmp_path / "watch-cache"))
    return Team(http_developer, tmp_path)


async def test_a_tag_that_a_trigger_wants_fires_and_our_own_do_not(team):
    commit = team.developer.push_commit({"deepseek.yaml": PIPELINE})
    trigger = PushedTagTrigger(
        git_conn_id="model", asset_name="tags", refs=["refs/tags/*"], pipeline_file="deepseek.yaml", poll_interval=0.2
    )
    assert trigger.serialize()[0] == "deepseek_ops.airflow.triggers.tags.PushedTagTrigger"
    async with running(trigger, store := StateStore()) as listener:
        while not store.values:  # noqa: ASYNC110  (the first look takes what is there as announced)
            await asyncio.sleep(0.05)
        note_own_tag(team.facts, team.git.url, "deepseek-v1.0.0", commit)
        team.tag("deepseek-v1.0.0", commit)
        team.tag("other", commit)
        team.tag("deepseek-v2.0.0", commit)
        (event,) = await listener.next(1)
        assert GitRef.load(event).short == "deepseek-v2.0.0"
        moved = team.developer.push_commit({"a": "1"})
        team.tag("deepseek-v1.0.0", moved)  # somebody moved our tag: it is theirs now
        events = await listener.next(2)
        assert [(GitRef.load(one).short, GitRef.load(one).commit) for one in events[1:]] == [("deepseek-v1.0.0", moved)]


async def test_the_schedule_of_the_file_fires_once_and_goes_on_after_a_restart(team, monkeypatch):
    team.developer.push_commit({"deepseek.yaml": PIPELINE})
    trigger = PipelineScheduleTrigger(git_conn_id="model", asset_name="schedule", poll_interval=0.2)
    moment = [dt.datetime(2026, 1, 1, 12, 0, 30, tzinfo=dt.UTC)]
    monkeypatch.setattr(schedule_module, "_now", lambda: moment[0])
    store = StateStore()
    async with running(trigger, store) as listener:
        while not store.values:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert listener.events == []
        moment[0] += dt.timedelta(minutes=1)
        (event,) = await listener.next(1)
        assert event == {"ref": "refs/heads/main", "due": {"* * * * * UTC": "2026-01-01T12:01:00+00:00"}}
        await asyncio.sleep(0.8)
        assert len(listener.events) == 1
    moment[0] += dt.timedelta(minutes=10)  # nobody listened for ten minutes
    async with running(trigger, store) as listener:
        (event,) = await listener.next(1)
        assert event["due"] == {"* * * * * UTC": "2026-01-01T12:11:00+00:00"}


def test_the_tag_of_an_experiment_starts_its_release_under_the_id_that_training_gives_it(team):
    trained = team.developer.push_commit({"deepseek.yaml": PIPELINE})
    team.version(trained)
    experiment = team.developer.push_commit({"experiments/0.1.0.json": "{}"})
    team.facts.insert(EXPERIMENT, "tiny/0.1.0", {"commit": experiment})
    start = team.start(team.tag("deepseek-v0.1.0", experiment))
    assert (start.dag, start.run_id) == ("release", "release__tiny-0.1.0")
    assert start.conf == {"repository": "model", "model": "tiny", "version": "0.1.0"}
    assert team.start(team.tag("deepseek-v0.1", trained)).conf["version"] == "0.1.0"


def test_where_the_facts_do_not_know_the_commit_its_trailers_do(team):
    trained = team.developer.push_commit({"deepseek.yaml": PIPELINE})
    version = team.version(trained)
    record = ExperimentRecord(
        model="tiny",
        dataset="tiny",
        run_id="run-1",
        dataset_version="d" * 64,
        manifest=version.manifest.fingerprint,
    )
    experiment = team.developer.push_commit({"x": "1"}, message=experiment_message(record))
    ref = team.tag("deepseek-v0.1.0", experiment)
    assert version_of(team.git, team, team.facts, load_pipeline(PIPELINE, file="f"), ref) == ("tiny", "0.1.0")


def test_a_tag_of_nothing_registered_says_what_to_do_or_is_trained(team):
    commit = team.developer.push_commit({"deepseek.yaml": PIPELINE})
    with pytest.raises(UnregisteredTagError, match=r"deepseek-v9\.9\.9.*run: retrain"):
        team.start(team.tag("deepseek-v9.9.9", commit))
    start = team.start(team.tag("train-a", commit))
    assert start.dag == "retrain"
    assert start.conf["ref"] == f"refs/tags/train-a@{commit}"
    assert start.conf["cause"] == "tag"
    moved = team.start(team.git.resolve("train-a").evolve(move="e.2"))
    assert moved.run_id != start.run_id, "a tag that came back to a commit"
    assert team.start(team.tag("train-x@1", commit)).run_id != team.start(team.tag("train-x-1", commit)).run_id
    assert team.start(team.tag("nobody-asked", commit)) is None


def test_a_tag_is_ours_only_where_we_pushed_it(team):
    ref = GitRef(repository=team.git.url, name="refs/tags/deepseek-v1.0.0", commit=f"{1:040x}")
    assert not is_own_tag(team.facts, ref)
    note_own_tag(team.facts, ref.repository, ref.short, ref.commit)
    note_own_tag(team.facts, ref.repository, ref.short, ref.commit)
    assert is_own_tag(team.facts, ref)
    assert not is_own_tag(team.facts, ref.evolve(commit=f"{2:040x}"))
    assert not is_own_tag(team.facts, ref.evolve(repository="https://other/m.git"))
