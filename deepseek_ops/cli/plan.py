"""``deepseek-ops plan``: which stages a run of a ref would do, which it would find done, and why. Writes nothing."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepseek_ops.cli.record_sources import GIT_TOKEN, remote
from deepseek_ops.core.config import parse_override

if TYPE_CHECKING:
    from deepseek_ops.core.ports import Blobs, Facts, GitRemote, ObjectStore
    from deepseek_ops.core.records import GitRef
    from deepseek_ops.data import DatasetRepository
    from deepseek_ops.pipeline.changes import ChangeSummary
    from deepseek_ops.pipeline.environment_machine import Planner
    from deepseek_ops.pipeline.push_verdict import PushVerdict
    from deepseek_ops.pipeline.runs import RunPlan

Repository = Annotated[
    str,
    typer.Option(
        "--repo",
        envvar="DEEPSEEK_OPS_REPOSITORY",
        help=f"A clone (its origin is read), or a URL (token in ${GIT_TOKEN}).",
    ),
]
Ref = Annotated[str, typer.Option(help="Branch, tag, commit, or branch@commit; the default branch by default.")]
Against = Annotated[
    str, typer.Option(help="Ref or commit to compare with; where the branch left the default branch by default.")
]
StoreUri = Annotated[
    str, typer.Option("--store", envvar="DEEPSEEK_OPS_STORE", help="The runs' store, to look up what is there.")
]
FactsDsn = Annotated[
    str, typer.Option("--facts", envvar="DEEPSEEK_OPS_FACTS", help="The facts, such as sqlite:////folder/facts.db.")
]
User = Annotated[str, typer.Option("--user", help=f"For http(s); the token comes from ${GIT_TOKEN}.")]
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
    repository: Repository = ".",
    ref: Ref = "",
    against: Against = "",
    store: StoreUri = "",
    facts: FactsDsn = "",
    user: User = "git",
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Print whether a push of the ref starts a run, which stages that does and why.

    With --store and --facts also what it would find done. Nothing is pushed, started or stored.
    """
    with tempfile.TemporaryDirectory(prefix="deepseek-ops-plan-") as scratch:
        told = _planned(remote(repository, username=user), ref, against, store, facts, overrides or [], Path(scratch))
    if as_json:
        body = {"plan": told.run.dump(), "change": told.change.dump(), "push": told.push.dump(), "notes": told.notes}
        typer.echo(json.dumps(body, indent=2))
        return
    typer.echo(told.text())
    for note in told.notes:
        typer.echo(f"  {note}", err=True)


@dataclass(frozen=True)
class _Told:
    """What the command prints."""

    run: RunPlan
    change: ChangeSummary
    push: PushVerdict
    notes: list[str]

    def text(self) -> str:
        from deepseek_ops.pipeline.forecast import explain_plan

        return explain_plan(self.run, self.change, self.push)


def _planned(
    git: GitRemote, name: str, against: str, store: str, dsn: str, overrides: list[str], scratch: Path
) -> _Told:
    from deepseek_ops.pipeline.branches import default_branch, ref_of
    from deepseek_ops.pipeline.forecast import forecast
    from deepseek_ops.pipeline.forecast_change import moved_since
    from deepseek_ops.pipeline.push_verdict import push_verdict
    from deepseek_ops.pipeline.registration import resolve_base
    from deepseek_ops.pipeline.runs import config_of, plan_run

    places, datasets, facts = _opened(store, dsn, scratch)
    ref = ref_of(git, name or default_branch(git))
    planner = _planner(git, ref, datasets, facts)
    run = plan_run(
        git,
        places.blobs,
        ref,
        resolve_base=lambda config: None if facts is None else resolve_base(config, places, facts),
        overrides=dict(map(parse_override, overrides)),
        machine=planner.machine if planner else None,
    )
    config = config_of(places.blobs, run.manifest)
    moved = moved_since(git, ref, config, against=against)
    told = forecast(
        git, run, moved.summary, stores=places, datasets=datasets, facts=facts, against=against, before=moved.before
    )
    push = push_verdict(config, ref, moved.paths, nothing_new=moved.nothing_new(ref) and not against)
    return _Told(told, moved.summary, push, list(_notes(moved.summary, looked=bool(store and dsn), planner=planner)))


def _planner(git: GitRemote, ref: GitRef, datasets: DatasetRepository | None, facts: Facts | None) -> Planner | None:
    """Return who plans the runs that left these facts: what they made is found by the keys of their machine."""
    from deepseek_ops.core.config import load_pipeline
    from deepseek_ops.core.errors import PermanentError
    from deepseek_ops.pipeline.changes import PIPELINE_FILE
    from deepseek_ops.pipeline.environment_machine import newest_planner

    if datasets is None or facts is None:
        return None
    try:
        config = load_pipeline(git.read_file(ref.commit, PIPELINE_FILE), file=PIPELINE_FILE)
    except PermanentError:
        return None  # planning says what is wrong with it
    return newest_planner(datasets.store, facts, name=config.name)


def _notes(change: ChangeSummary, *, looked: bool, planner: Planner | None) -> Iterator[str]:
    """Yield what limits the answer."""
    from deepseek_ops import __version__
    from deepseek_ops.pipeline.environment_machine import Machine

    if not looked:
        what = f"'same' is what the run of {change.against} left, if it did" if change.known else "every stage is shown"
        yield f"nothing was looked up ({what}): give --store and --facts to see what would be reused"
    if planner and planner.machine != Machine.here():
        yield f"planned for {planner.machine}, as the runs of these facts are; this is {Machine.here()}"
    if planner and planner.software != __version__:
        yield f"the runs of these facts have deepseek-ops {planner.software}, this is {__version__}: nothing is shared"


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
