"""``deepseek-ops diff``: what moved between two results, and whether it explains their metrics."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from deepseek_ops.cli.lineage_options import AsJson, FactsDsn, Registries, Repositories, Store, opened_sources
from deepseek_ops.pipeline.lineage_diff import compare
from deepseek_ops.pipeline.lineage_diff_text import diff_text

Old = Annotated[str, typer.Argument(help="MODEL@VERSION, MODEL@ALIAS, a run, tag, commit or branch.")]
New = Annotated[str, typer.Argument(help="What is compared with it, named in the same ways.")]


def diff(
    old: Old,
    new: New,
    store: Store = "",
    facts: FactsDsn = "",
    registry: Registries = None,
    repo: Repositories = None,
    as_json: AsJson = False,
) -> None:
    """Print which of base, data, code, config, environment, software, hardware and seed moved, and how metrics did."""
    with opened_sources(store, facts, registry, repo) as sources:
        found = compare(sources, old, new)
    typer.echo(json.dumps(found.dump(), indent=2, ensure_ascii=False) if as_json else diff_text(found))
