"""Aliases are logs: every move stays, the order is the store's, and losing a race is said."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fixtures_registry import Ticking, folder_registry, make_parts

from deepseek_ops.core.errors import IntegrityError
from deepseek_ops.data import StoreBlobs
from deepseek_ops.registry import ALIAS_KIND, AliasEntry, AliasMovedError, Registry, VersionNotFoundError
from deepseek_ops.registry.layout import alias_key


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Versions 0.1.0, 0.2.0 and 0.3.0 of the model ``tiny``."""
    registry = folder_registry(tmp_path)
    assert isinstance(registry.blobs, StoreBlobs)
    for number in range(3):
        parts = make_parts(registry.blobs, tmp_path, number)
        registry.register(manifest=parts.manifest, checkpoint=parts.checkpoint)
    return registry


def served(registry: Registry, alias: str = "champion") -> list[str]:
    return [entry.version for entry in registry.history("tiny", alias)]


def test_an_alias_names_what_it_was_set_to_last(registry: Registry) -> None:
    assert registry.alias("tiny", "champion") is None
    registry.set_alias("tiny", "champion", "0.1.0", actor="ada")
    registry.set_alias("tiny", "champion", "v0.2.0", actor="ada", reason="better")
    registry.set_alias("tiny", "champion", "0.1.0", actor="bob", reason="rolled back")
    registry.set_alias("tiny", "challenger", "0.3.0", actor="ada")
    assert served(registry) == ["0.1.0", "0.2.0", "0.1.0"]
    assert registry.resolve("tiny", "champion").version == "0.1.0"
    assert registry.resolve("tiny", "challenger").version == "0.3.0"
    newest = registry.history("tiny", "champion")[0]
    assert (newest.sequence, newest.replaces, newest.actor, newest.reason) == (3, "0.2.0", "bob", "rolled back")


def test_an_alias_may_name_another_alias_target_but_no_missing_version(registry: Registry) -> None:
    registry.set_alias("tiny", "challenger", "0.2.0", actor="ada")
    assert registry.set_alias("tiny", "champion", "challenger", actor="ada").version == "0.2.0"
    with pytest.raises(VersionNotFoundError, match=r"v9\.0\.0; it has 0\.1\.0, 0\.2\.0, 0\.3\.0"):
        registry.set_alias("tiny", "champion", "9.0.0", actor="ada")
    with pytest.raises(VersionNotFoundError, match="'rumour'"):
        registry.resolve("tiny", "rumour")


def test_setting_the_same_version_again_changes_nothing(registry: Registry) -> None:
    first = registry.set_alias("tiny", "champion", "0.1.0", actor="ada")
    assert registry.set_alias("tiny", "champion", "0.1.0", actor="bob", expected="0.3.0") == first
    assert served(registry) == ["0.1.0"]
    assert len(registry.facts.audit(subject="alias/tiny/champion")) == 1


def test_a_repeated_operation_does_not_undo_what_came_after_it(registry: Registry) -> None:
    registry.set_alias("tiny", "champion", "0.1.0", actor="ada")
    registry.set_alias("tiny", "champion", "0.2.0", actor="ada", operation="rollout-7")
    registry.set_alias("tiny", "champion", "0.1.0", actor="bob", reason="rolled back")
    again = registry.set_alias("tiny", "champion", "0.2.0", actor="ada", operation="rollout-7")
    assert again.sequence == 2
    assert served(registry) == ["0.1.0", "0.2.0", "0.1.0"]


def test_who_expects_another_version_is_told_what_is_there(registry: Registry) -> None:
    registry.set_alias("tiny", "champion", "0.1.0", actor="ada", expected="")
    with pytest.raises(AliasMovedError, match=r"it names 0\.1\.0, not 0\.2\.0 as expected; 0\.3\.0 was not set"):
        registry.set_alias("tiny", "champion", "0.3.0", actor="bob", expected="0.2.0")
    with pytest.raises(AliasMovedError, match="not nothing as expected"):
        registry.set_alias("tiny", "champion", "0.3.0", actor="bob", expected="")
    assert served(registry) == ["0.1.0"]


def test_of_many_who_move_an_alias_from_the_same_version_one_wins(registry: Registry) -> None:
    registry.set_alias("tiny", "champion", "0.1.0", actor="ada")

    def promote(number: int) -> bool:
        try:
            registry.set_alias("tiny", "champion", f"0.{2 + number % 2}.0", actor=f"w{number}", expected="0.1.0")
        except AliasMovedError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(promote, range(8)))
    assert any(won)
    assert len(served(registry)) == 2, "one move"
    fact = registry.facts.get(ALIAS_KIND, "tiny/champion")
    assert fact is not None
    assert AliasEntry.load(fact.body) == registry.alias("tiny", "champion")


def test_what_served_at_a_moment_is_a_read(registry: Registry) -> None:
    moves = [
        registry.set_alias("tiny", "champion", version, actor="ada") for version in ("0.1.0", "0.2.0", "0.3.0", "0.1.0")
    ]
    times = [datetime.fromisoformat(entry.at) for entry in moves]

    def at(moment: datetime) -> str | None:
        entry = registry.alias_at("tiny", "champion", moment)
        return entry.version if entry else None

    assert [at(time) for time in times] == ["0.1.0", "0.2.0", "0.3.0", "0.1.0"]
    assert at(times[0] - timedelta(microseconds=1)) is None
    assert at(times[2] - timedelta(microseconds=1)) == "0.2.0"
    assert at(datetime.now(UTC) + timedelta(days=1000)) == "0.1.0"


def test_a_clock_that_is_behind_does_not_reorder_the_log(registry: Registry, tmp_path: Path) -> None:
    first = registry.set_alias("tiny", "champion", "0.1.0", actor="ada")
    behind = Registry(registry.store, registry.blobs, registry.facts, Ticking(datetime(2020, 1, 1, tzinfo=UTC)))
    second = behind.set_alias("tiny", "champion", "0.2.0", actor="bob")
    assert second.at == first.at
    found = registry.alias_at("tiny", "champion", datetime.fromisoformat(first.at))
    assert found == second


@pytest.mark.parametrize("sequence", [1, 2, 3])
@pytest.mark.parametrize("change", ["edited", "removed"])
def test_an_entry_that_was_changed_or_removed_is_found(
    registry: Registry, tmp_path: Path, sequence: int, change: str
) -> None:
    for version in ("0.1.0", "0.2.0", "0.3.0"):
        registry.set_alias("tiny", "champion", version, actor="ada")
    assert registry.verify().ok
    path = tmp_path / "registry" / alias_key("tiny", "champion", sequence)
    if change == "edited":
        path.write_bytes(path.read_bytes().replace(b'"ada"', b'"eve"'))
    else:
        path.unlink()
    if sequence < 3:  # no other entry names the newest one yet: only the facts do
        with pytest.raises(IntegrityError, match="aliases/tiny/champion"):
            registry.history("tiny", "champion")
    assert [problem.path for problem in registry.verify().problems] == ["tiny/champion"]


def test_an_alias_whose_name_begins_like_another_is_another(registry: Registry) -> None:
    registry.set_alias("tiny", "champion", "0.1.0", actor="ada")
    registry.set_alias("tiny", "champion2", "0.2.0", actor="ada")
    assert served(registry) == ["0.1.0"]
    assert served(registry, "champion2") == ["0.2.0"]
