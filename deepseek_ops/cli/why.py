"""``deepseek-ops why``: the chain behind a model, a run, a tag or a commit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deepseek_ops.cli.lineage_options import AsJson, FactsDsn, Registries, Repositories, Store, opened_sources
from deepseek_ops.pipeline.lineage import explain
from deepseek_ops.pipeline.lineage_restore import restore_code
from deepseek_ops.pipeline.lineage_text import lineage_text

Target = Annotated[str, typer.Argument(help="MODEL, MODEL@VERSION, MODEL@ALIAS, a run, tag, commit or branch.")]


def why(
    target: Target,
    store: Store = "",
    facts: FactsDsn = "",
    registry: Registries = None,
    repo: Repositories = None,
    checkout: Annotated[
        Path | None,
        typer.Option(help="Also write the commit's code to this new folder, from the store: Git may be gone."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print commit, data, environment, base, hyperparameters, gates, exports, approver, rollout and cost of a result.

    What cannot be found is said. Without --facts the store and Git answer alone.
    """
    with opened_sources(store, facts, registry, repo) as sources:
        lineage = explain(sources, target)
        if checkout is not None:
            restore_code(sources, target, checkout)
    typer.echo(json.dumps(lineage.dump(), indent=2, ensure_ascii=False) if as_json else lineage_text(lineage))
