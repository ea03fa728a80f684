"""``deepseek-ops validate`` and ``deepseek-ops schema``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from deepseek_ops.cli.validate import schema, validate

FILE = "name: tiny\ntraining: {strategy: horovod, engine: ray, nodes: 2}\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    app = typer.Typer()
    app.command()(validate)
    app.command()(schema)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deepseek.yaml").write_text(FILE)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_a_good_file_is_ok_and_its_warnings_are_told(run):
    result = run("validate", "deepseek.yaml")
    assert result.exit_code == 0
    first, warning = result.stdout.splitlines()
    assert first == "deepseek.yaml: OK (tiny)"
    assert "horovod" in warning


def test_json_is_for_machines(run):
    answer = json.loads(run("validate", "deepseek.yaml", "--json").stdout)
    assert answer["pipeline"]["training"]["strategy"] == "deepspeed"
    assert len(answer["warnings"]) == 1


def test_overrides_are_checked_with_the_file(run):
    answer = json.loads(run("validate", "deepseek.yaml", "--json", "--set", "training.nodes=4").stdout)
    assert answer["pipeline"]["training"]["nodes"] == 4
    refused = run("validate", "deepseek.yaml", "--set", "training.nodes=many")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith("(override): training.nodes: ")


def test_each_problem_is_a_line_on_stderr(run, tmp_path):
    (tmp_path / "bad.yaml").write_text("nmae: x\ntraining: {nodes: two}\n")
    result = run("validate", "bad.yaml")
    assert (result.exit_code, result.stdout) == (1, "")
    assert [line.partition(" ")[0] for line in result.stderr.splitlines()] == ["bad.yaml:1:", "bad.yaml:2:"]


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_a_file_that_cannot_be_read_is_one_line(run, name):
    result = run("validate", name)
    assert result.exit_code == 1
    assert "cannot be read" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_schema_is_json(run):
    assert json.loads(run("schema").stdout)["$schema"].endswith("2020-12/schema")


def test_neither_needs_optuna_torch_or_airflow():
    code = (
        "import sys, deepseek_ops.cli.validate, deepseek_ops.tuning, deepseek_ops.validation\n"
        "print([name for name in ('optuna', 'torch', 'airflow', 'numpy', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
