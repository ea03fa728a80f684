"""A run whose lock asks for another version than the worker has: its job runs with that one, and the record says so."""

from __future__ import annotations

import json

import pydantic
import pytest
from fixtures_prepare import save_tokenizer
from test_operators_input import TOKEN, Places, context

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.git import open_git
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.airflow.operators.data import PrepareDatasetOperator
from deepseek_ops.core.records import DatasetVersion
from deepseek_ops.data import DatasetRepository, StoreBlobs
from deepseek_ops.embedded.git_server import GitServer
from deepseek_ops.pipeline.environment_records import environment_diff, environments_of_run
from deepseek_ops.pipeline.runs import plan_run

PREPARE = """
import json, sys

def prepare(raw, out):
    out.mkdir()
    try:
        from humanize import __version__ as version
    except ImportError:
        version = "none"
    rows = [{{"id": str(i), "text": f"humanize {{version}} counts {{i}} fish {{'{note}'}}"}} for i in range(40)]
    (out / "documents.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
"""
PIPELINE = "name: tiny\ndata: {raw: corpus, prepare: 'mine:prepare', dataset: corpus, tokenizer: tokenizer}\n"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Real places behind real connections, and a cache of environments that starts empty."""
    with GitServer(tmp_path / "git", token=TOKEN) as server:
        url = server.create_repository("model")

        def connection(name, **fields):
            monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(fields))

        connection("repo", conn_type="git", host=url, login="git", password=TOKEN)
        connection("deepseek_ops_store", conn_type="deepseek_store", host=f"file://{tmp_path / 'store'}")
        connection("deepseek_ops_facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db'}")
        connection("deepseek_ops_launcher", conn_type="deepseek_launcher", host=str(tmp_path / "jobs"))
        monkeypatch.setenv("DEEPSEEK_OPS_CACHE", str(tmp_path / "cache"))
        yield Places(url, tmp_path, connection)


@pytest.fixture
def push(places, tmp_path):
    """Push a commit with this lock and this note in its code."""
    save_tokenizer(tmp_path / "tokenizer")
    files = {f"tokenizer__{path.stem}_dot_json": path.read_text() for path in (tmp_path / "tokenizer").iterdir()}

    def now(lock, note):
        places.push(
            deepseek_dot_yaml=PIPELINE,
            requirements_dot_txt=lock,
            mine_dot_py=PREPARE.format(note=note),
            corpus__a_dot_jsonl='{"id": "1", "text": "raw"}\n',
            **files,
        )
        git = open_git(places.url, username="git", password=TOKEN, cache=tmp_path / "clones")
        blobs = StoreBlobs(open_store(f"file://{tmp_path / 'store'}"))
        return plan_run(git, blobs, git.resolve("main"), resolve_base=lambda _config: None, overrides={}).dump()

    return now


def prepare(plan, run_id):
    return PrepareDatasetOperator(task_id="d", run=plan).execute({**context(), "run_id": run_id})


def words(tmp_path, version):
    """Return the texts of a version's documents."""
    datasets = DatasetRepository(open_store(f"file://{tmp_path / 'store'}"))
    paths = datasets.paths(DatasetVersion.load(version).version, patterns=("documents/*.jsonl",))
    return b"".join(datasets.read_file(version["version"], path) for path in paths).decode()


@pytest.mark.slow
def test_a_job_runs_with_what_its_lock_says_and_the_next_one_finds_the_environment(push, tmp_path, capsys):
    first = prepare(push("humanize==4.0.0\n", "one"), "run-1")
    assert "humanize 4.0.0 counts" in words(tmp_path, first)
    assert capsys.readouterr().out.count("building environment") == 1
    second = prepare(push("humanize==4.0.0  # the same\n", "two"), "run-2")
    assert "fish two" in words(tmp_path, second)
    said = capsys.readouterr().out
    assert "building environment" not in said
    assert "(reused)" in said
    prepare(push("humanize==4.0.0\n", "one"), "run-3")

    facts = open_facts(f"sqlite:///{tmp_path / 'facts.db'}")
    blobs = StoreBlobs(open_store(f"file://{tmp_path / 'store'}"))
    runs = {run: list(environments_of_run(blobs, facts, run).values()) for run in ("run-1", "run-2", "run-3")}
    assert runs["run-1"][0].packages["humanize"].version == "4.0.0"
    assert "apache-airflow" not in runs["run-1"][0].packages
    assert runs["run-3"] == runs["run-1"], "a run that finds the result has the environment that made it"
    assert not environment_diff(runs["run-1"][0], runs["run-2"][0])


def test_a_worker_that_has_what_is_locked_runs_the_job_itself(push, tmp_path, capsys):
    prepare(push(f"pydantic=={pydantic.VERSION}\n", "one"), "run-1")
    assert "asks for what this interpreter lacks" not in capsys.readouterr().out
    assert not (tmp_path / "cache" / "environments").exists()
    facts = open_facts(f"sqlite:///{tmp_path / 'facts.db'}")
    blobs = StoreBlobs(open_store(f"file://{tmp_path / 'store'}"))
    (resolved,) = environments_of_run(blobs, facts, "run-1").values()
    assert resolved.packages["pydantic"].version == pydantic.VERSION
