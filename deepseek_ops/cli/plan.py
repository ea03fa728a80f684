"""``deepseek-ops plan``: which stages a run of a ref would do, which it would find done, and why. Writes nothing."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepseek_ops.core.config import parse_override

if TYPE_CHECKING:
    from deepseek_ops.core.ports import Blobs, Facts, GitRemote, ObjectStore
    from deepseek_ops.data import DatasetRepository
    from deepseek_ops.pipeline.changes import ChangeSummary
    from deepseek_ops.pipeline.runs import RunPlan

Repository = Annotated[
    str, typer.Option("--repo", envvar="DEEPSEEK_OPS_REPOSITORY", help="URL or folder of the model repository.")
]
Ref = Annotated[str, typer.Option(help="Branch, tag, or branch@commit.")]
Against = Annotated[str, typer.Option(help="Ref to compare with; empty: what the branch was before, or main.")]
StoreUri = Annotated[
    str, typer.Option("--store", envvar="DEEPSEEK_OPS_STORE", help="The runs' store, to look up what is there.")
]
FactsDsn = Annotated[
    str, typer.Option("--facts", envvar="DEEPSEEK_OPS_FACTS", help="The facts, such as sqlite:////folder/facts.db.")
]
User = Annotated[str, typer.Option("--user", help="For http(s); the token comes from $DEEPSEEK_OPS_GIT_TOKEN.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override, such as training.seed=2; may be repeated.")
]


@dataclass(frozen=True)
class Places:
    """The stores a plan is looked up in: reading goes to the real one, writing to a scratch folder."""

    uri: str
    blobs: Blobs

    def at(self, uri: str) -> ObjectStore:
        """Open another URI with the credentials of the environment."""
        from deepseek_ops.adapters.stores import open_store

        return open_store(uri, os.environ)


def plan(
    repository: Repository,
    ref: Ref = "main",
    against: Against = "",
    store: StoreUri = "",
    facts: FactsDsn = "",
    user: User = "git",
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Print which stages a run of the ref would do and why; with --store and --facts also what it would find done."""
    from deepseek_ops.adapters.git import open_git

    with tempfile.TemporaryDirectory(prefix="deepseek-ops-plan-") as scratch:
        git = open_git(
            repository,
            username=user,
            password=os.environ.get("DEEPSEEK_OPS_GIT_TOKEN", ""),
            cache=Path(scratch) / "git",
        )
        run, change, text = _planned(git, ref, against, store, facts, overrides or [], Path(scratch))
    if as_json:
        typer.echo(json.dumps({"plan": run.dump(), "change": change.dump()}, indent=2))
        return
    typer.echo(text)
    if not (store and facts):
        typer.echo("  nothing was looked up: give --store and --facts to see what would be reused", err=True)


def _planned(
    git: GitRemote, name: str, against: str, store: str, dsn: str, overrides: list[str], scratch: Path
) -> tuple[RunPlan, ChangeSummary, str]:
    from deepseek_ops.pipeline.forecast import change_of_run, explain_plan, forecast
    from deepseek_ops.pipeline.pushes import resolve
    from deepseek_ops.pipeline.registration import resolve_base
    from deepseek_ops.pipeline.runs import config_of, plan_run

    places, datasets, facts = _opened(store, dsn, scratch)
    base_facts = facts
    run = plan_run(
        git,
        places.blobs,
        resolve(git, name),
        resolve_base=lambda config: None if base_facts is None else resolve_base(config, places, base_facts),
        overrides=dict(map(parse_override, overrides)),
    )
    change = change_of_run(git, run, config_of(places.blobs, run.manifest), against=against)
    told = forecast(git, run, change, stores=places, datasets=datasets, facts=facts, against=against)
    return told, change, explain_plan(told, change)


def _opened(store: str, dsn: str, scratch: Path) -> tuple[Places, DatasetRepository | None, Facts | None]:
    from deepseek_ops.adapters.facts import open_facts
    from deepseek_ops.adapters.stores import open_store
    from deepseek_ops.data import DatasetRepository
    from deepseek_ops.data.blobs import StoreBlobs
    from deepseek_ops.pipeline.scratch import ScratchBlobs

    place = f"file://{scratch / 'store'}"
    real = open_store(store, os.environ) if store else None
    blobs = ScratchBlobs(StoreBlobs(open_store(place, {})), None if real is None else StoreBlobs(real))
    datasets = None if real is None else DatasetRepository(real)
    return Places(store or place, blobs), datasets, open_facts(dsn, migrate=False) if dsn else None
