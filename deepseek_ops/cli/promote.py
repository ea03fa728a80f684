"""``deepseek-ops promote``: open the merge of the configuration that won."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated, Literal

import typer
from pydantic import JsonValue

from deepseek_ops.cli.data_options import author_or_login, print_json
from deepseek_ops.cli.record_sources import Repo, remote
from deepseek_ops.data.pointer_merge import PointerMerge, merge_pointers
from deepseek_ops.data.repository import DatasetRepository
from deepseek_ops.pipeline.experiments import Experiment, body_of
from deepseek_ops.pipeline.promotion import Host, Promotion, Wish
from deepseek_ops.pipeline.promotion import promote as promote_experiment
from deepseek_ops.pipeline.promotion_conflicts import conflict_lines


def promote(
    source: Annotated[str, typer.Argument(help="Branch such as exp/x, or the tag of one experiment.")],
    repo: Repo = ".",
    into: Annotated[str, typer.Option(help="Branch that the merge is for; the default branch by default.")] = "",
    push_branch: Annotated[
        str,
        typer.Option(help="Branch the merge commit is pushed to; promote/<source> by default, --into to merge now."),
    ] = "",
    metric: Annotated[str, typer.Option(help="What decides; validation.metric of the pipeline file by default.")] = "",
    direction: Annotated[
        Literal["minimize", "maximize", ""],
        typer.Option(help="Which way is better, where neither we nor the pipeline file say."),
    ] = "",
    tip: Annotated[
        bool, typer.Option("--tip", help="Merge the whole branch, not the best experiment's commit.")
    ] = False,
    host: Annotated[Host, typer.Option(help="Kind of the host where its name does not tell.")] = "",
    author: Annotated[str, typer.Option(help="Who merges datasets; the login name by default.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Push a merge of the best experiment to a branch, with its comparison, and print where to open the request."""
    who = author_or_login(author)

    def merge_pointer(base: str, ours: str, theirs: str) -> PointerMerge:
        return merge_pointers(base, ours, theirs, open_repository=_datasets, author=who)

    wish = Wish(source, into, push_branch, metric, direction, tip, host)
    done = promote_experiment(remote(repo), wish, merge_pointer=merge_pointer)
    if as_json:
        print_json(_body(done))
    else:
        _tell(done)
    if done.conflicts:
        raise typer.Exit(1)


def _datasets(store: str) -> DatasetRepository:
    from deepseek_ops.adapters.stores import open_store

    return DatasetRepository.open(open_store(store))


def _tell(done: Promotion) -> None:
    for doubt in done.doubts:
        sys.stderr.write(f"{doubt}\n")
    if done.status == "conflicts":
        sys.stderr.write(f"{done.merges[:12]} does not merge into {done.into}; nothing was pushed\n")
        for one in done.conflicts:
            for line in conflict_lines(one, ours=done.into, theirs=done.merges[:12]):
                sys.stderr.write(f"{line}\n")
        return
    if done.status == "merged already":
        typer.echo(f"{done.into} has {done.merges[:12]} already")
        return
    for path in done.resolved:
        typer.echo(f"merged the dataset versions of {path}")
    typer.echo(f"{done.status}: {done.commit[:12]} on {done.branch}")
    typer.echo(f"\n{done.message}" if done.status == "opened" else "")
    if done.url:
        typer.echo(done.url)


def _body(done: Promotion) -> dict[str, JsonValue]:
    def record(one: Experiment | None) -> JsonValue:
        return body_of(one) if one else None

    return {
        "status": done.status,
        "branch": done.branch,
        "into": done.into,
        "commit": done.commit,
        "merges": done.merges,
        "winner": record(done.winner),
        "baseline": record(done.baseline),
        "message": done.message,
        "resolved": list(done.resolved),
        "doubts": list(done.doubts),
        "conflicts": [dataclasses.asdict(one) for one in done.conflicts],
        "url": done.url,
    }
