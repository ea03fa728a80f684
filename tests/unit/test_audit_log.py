"""Audit events read as one honest line each."""

from __future__ import annotations

from pathlib import Path

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.audit import record, render


def test_what_was_recorded_is_rendered_in_order(tmp_path: Path) -> None:
    facts = open_facts(f"sqlite:///{tmp_path}/facts.db")
    assert record(facts, "ada", "registered", "model/tiny/0.1.0", bundle="ab12", metrics={"loss": 1.5}) == 1
    assert record(facts, "bob", "promoted", "model/tiny/0.1.0", reason="all steps held") == 2
    first, second = render(facts.audit()).splitlines()
    assert first.startswith("#1 20")
    assert first.endswith('Z ada registered model/tiny/0.1.0 bundle=ab12 metrics={"loss": 1.5}')
    assert second.endswith('bob promoted model/tiny/0.1.0 reason="all steps held"')


def test_details_cannot_forge_or_hide_a_line(tmp_path: Path) -> None:
    facts = open_facts(f"sqlite:///{tmp_path}/facts.db")
    record(facts, "eve\n#2 x", "did", "thing\x1b[2K", note="a\r\nb\u2028c")
    lines = render(facts.audit()).splitlines()
    assert len(lines) == 1
    assert "\x1b" not in lines[0]
