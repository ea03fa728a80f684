"""``deepseek-ops registry`` answers in JSON, or in tables, and its exit status is the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures_registry import folder_registry, make_parts
from typer.testing import CliRunner, Result

from deepseek_ops.cli.registry import app
from deepseek_ops.data import StoreBlobs
from deepseek_ops.registry import Registry

OK = 0


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Two versions; the champion was 0.1.0 and is 0.2.0."""
    registry = folder_registry(tmp_path)
    assert isinstance(registry.blobs, StoreBlobs)
    for number in range(2):
        parts = make_parts(registry.blobs, tmp_path, number)
        registry.register(manifest=parts.manifest, checkpoint=parts.checkpoint, exports=parts.exports)
        registry.set_alias("tiny", "champion", f"0.{number + 1}.0", actor="ada", reason="gates [passed]")
    return registry


def run(registry: Registry, *arguments: str) -> Result:
    return CliRunner().invoke(app, [arguments[0], "--store", registry.store.uri, *arguments[1:]])


def test_list_shows_versions_newest_first_with_their_aliases(registry: Registry) -> None:
    found = json.loads(run(registry, "list").stdout)
    assert [(row["version"], row["aliases"]) for row in found] == [("0.2.0", ["champion"]), ("0.1.0", [])]
    table = run(registry, "list", "--table").stdout
    assert "0.2.0" in table
    assert "champion" in table


def test_show_prints_the_bundle_of_a_number_or_an_alias(registry: Registry) -> None:
    by_alias, by_number = (json.loads(run(registry, "show", one).stdout) for one in ("champion", "v0.2.0"))
    assert by_alias == by_number
    assert (by_alias["schema"], by_alias["version"]) == ("Bundle/1", "0.2.0")
    assert "safetensors/config.json" in run(registry, "show", "0.1.0", "--table").stdout


def test_verify_passes_what_is_whole(registry: Registry, tmp_path: Path) -> None:
    done = run(registry, "verify", "--facts", f"sqlite:///{tmp_path}/facts.db", "--name", "tiny")
    assert done.exit_code == OK, done.stderr
    assert (json.loads(done.stdout)["ok"], json.loads(done.stdout)["num_files"]) == (True, 10)
    assert "OK: 2 versions, 10 files" in run(registry, "verify", "--table").stdout


def test_verify_fails_on_damage_and_names_it(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "registry" / "v0.1.0" / "onnx" / "model.onnx").write_bytes(b"other")
    for arguments in (["verify"], ["verify", "0.1.0"]):
        done = run(registry, *arguments)
        assert done.exit_code == 1
        [problem] = json.loads(done.stdout)["problems"]
        assert (problem["version"], problem["path"], problem["problem"]) == ("0.1.0", "onnx/model.onnx", "changed")
    assert run(registry, "verify", "champion").exit_code == OK
    assert "1 problems" in run(registry, "verify", "--table").stdout


def test_history_tells_every_move_and_what_served_at_a_time(registry: Registry) -> None:
    moves = json.loads(run(registry, "history", "champion").stdout)
    assert [(move["version"], move["reason"]) for move in moves] == [
        ("0.2.0", "gates [passed]"),
        ("0.1.0", "gates [passed]"),
    ]
    then = json.loads(run(registry, "history", "champion", "--at", moves[1]["at"]).stdout)
    assert [move["version"] for move in then] == ["0.1.0"]
    assert "gates [passed]" in run(registry, "history", "champion", "--table").stdout
    nothing = run(registry, "history", "champion", "--at", "2020-01-01")
    assert nothing.exit_code == 1
    assert "alias 'champion' of tiny at 2020-01-01" in nothing.stderr


def test_rebuild_restores_an_empty_database(registry: Registry, tmp_path: Path) -> None:
    report = json.loads(run(registry, "rebuild", "--facts", f"sqlite:///{tmp_path}/new.db").stdout)
    assert (report["versions"], report["aliases"], len(report["restored"])) == (2, 1, 4)
    again = json.loads(run(registry, "rebuild", "--facts", f"sqlite:///{tmp_path}/new.db").stdout)
    assert again["restored"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "9.9.9"], "has no v9.9.9; it has 0.1.0, 0.2.0"),
        (["show", "rumour"], "alias 'rumour' of tiny"),
        (["verify", "9.9.9"], "has no v9.9.9"),
        (["history", "champion", "--at", "yesterday"], "--at='yesterday'"),
        (["verify", "--facts", "sqlite:////nowhere/facts.db"], "refuses access"),
        (["list", "--store", "ftp://x"], "ftp://x"),
    ],
)
def test_an_error_is_one_line_and_exit_status_1(registry: Registry, arguments: list[str], message: str) -> None:
    done = run(registry, *arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_empty_registry_is_listed_and_whole_but_has_nothing_to_show(tmp_path: Path) -> None:
    empty = folder_registry(tmp_path)
    assert json.loads(run(empty, "list").stdout) == []
    assert run(empty, "verify").exit_code == OK
    assert "it is empty" in run(empty, "show", "champion").stderr
