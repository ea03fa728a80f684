"""``deepseek-ops log`` and ``deepseek-ops experiments``: what was tried, read from Git alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from deepseek_ops.adapters.git import Clone
from deepseek_ops.cli.data_options import print_json
from deepseek_ops.cli.record_sources import Repo, opened
from deepseek_ops.core.ports import NOTES_REF
from deepseek_ops.pipeline.changes import PIPELINE_FILE
from deepseek_ops.pipeline.experiments import Experiment, Value, body_of, chosen, experiments_of, require_names, row_of

AsJson = Annotated[bool, typer.Option("--json", help="For programs, with everything that is known.")]
Limit = Annotated[int | None, typer.Option("--limit", "-n", min=1, help="At most so many.")]
Columns = Annotated[str, typer.Option(help="Names to show after the fixed columns, such as learning_rate,val_loss.")]

MAX_COLUMNS = 4
"""Hyperparameters, and metrics, that a table shows where no columns are named."""
_FIXED = ("date", "model", "dataset", "commit", "tag")
_UNLIMITED = 100_000
"""Width of a table that a program reads: nothing in it is cut."""


def log(
    repo: Repo = ".",
    ref: Annotated[list[str] | None, typer.Option(help="Only what this branch or tag reaches; repeatable.")] = None,
    limit: Limit = None,
    columns: Columns = "",
    as_json: AsJson = False,
) -> None:
    """Show the experiments of a repository, newest first, from its commits, tags and notes."""
    known = _experiments(repo, ref or [])
    _show(chosen(known, limit=limit), _named(columns, known), as_json=as_json)


def experiments(
    repo: Repo = ".",
    where: Annotated[str, typer.Option(help="Such as 'val_loss < 0.5 and learning_rate >= 1e-4'.")] = "",
    sort: Annotated[str, typer.Option(help="Smallest first by this name; -name for the largest first.")] = "",
    ref: Annotated[list[str] | None, typer.Option(help="Only what this branch or tag reaches; repeatable.")] = None,
    limit: Limit = None,
    columns: Columns = "",
    as_json: AsJson = False,
) -> None:
    """Choose and sort experiments by what they were and what came out."""
    known = _experiments(repo, ref or [])
    found = chosen(known, where=where, sort=sort, limit=limit)
    _show(found, _named(columns, known), as_json=as_json)


def _experiments(repo: str, refs: Sequence[str]) -> list[Experiment]:
    source = opened(repo)
    if isinstance(source, Clone):
        found = experiments_of(source.record_texts(refs))
        for line in _what_is_missing(source, found):
            sys.stderr.write(f"{line}\n")
        return _reached(found, set(source.reachable(refs)) if refs else None)
    commits = [source.resolve(ref).commit for ref in refs]
    return _reached(experiments_of(source.record_texts(commits)), set(source.reachable(commits)) if refs else None)


def _what_is_missing(clone: Clone, found: Sequence[Experiment]) -> Iterator[str]:
    """Yield what the clone cannot show, with the command that brings it."""
    gaps = clone.gaps()
    if gaps.remedy:
        yield f"this clone {gaps}: its origin may have more experiments; fetch them with: {gaps.remedy}"
    if clone.misses_notes() and _has_notes(clone, found):
        every = f"{NOTES_REF}*:{NOTES_REF}*"  # a pattern: no error where nothing has been noted yet
        yield f"records are kept as notes, which are not in this clone; fetch them with: git fetch origin '{every}'"


def _has_notes(clone: Clone, found: Sequence[Experiment]) -> bool:
    """Return whether the team keeps records as notes, or they went there as the host refused a commit."""
    from deepseek_ops.core.config import load_pipeline
    from deepseek_ops.core.errors import PermanentError

    text = clone.read_file(PIPELINE_FILE)
    try:
        rules = load_pipeline(text, file=PIPELINE_FILE).records if text else None
    except PermanentError:
        return False  # the table is not about this file
    if rules is None:
        return False
    refused = rules.write == "commit" and rules.when_refused == "notes" and any(one.source == "tag" for one in found)
    return rules.write == "notes" or refused


def _reached(found: list[Experiment], reach: set[str] | None) -> list[Experiment]:
    """Return those whose commit, or the commit that it stands on, is reached: tags and notes are of all branches."""
    if reach is None:
        return found
    return [one for one in found if reach.intersection((one.commit, *one.parents, *one.copies))]


def _named(columns: str, known: Sequence[Experiment]) -> list[str]:
    names = [name.strip() for name in columns.split(",") if name.strip()]
    require_names(names, known)
    return names


def _show(found: Sequence[Experiment], columns: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print_json([body_of(one) for one in found])
        return
    rows = [row_of(one) for one in found]
    names = columns or _interesting(found)
    # What names a result is never cut: it is what people copy into the next command.
    table = Table(*(Column(name, overflow="fold" if name in ("commit", "tag") else "ellipsis") for name in _FIXED))
    for name in names:
        table.add_column(name)
    for one, row in zip(found, rows, strict=True):
        about = (one.date[:10], f"{one.record.model} {one.record.version}".strip(), _dataset(one), one.commit[:12])
        table.add_row(*about, " ".join((*one.releases, *one.tags)), *(_cell(row.get(name)) for name in names))
    console = Console() if sys.stdout.isatty() else Console(width=_UNLIMITED)
    console.print(table, markup=False)


def _interesting(found: Sequence[Experiment]) -> list[str]:
    """Return the hyperparameters that differ, or else are there, and the metrics: the most frequent ones first."""
    hyperparameters: dict[str, set[str]] = {}
    metrics: dict[str, int] = {}
    for one in found:
        for name, value in one.record.hyperparameters.items():
            hyperparameters.setdefault(name, set()).add(repr(value))
        for name in one.record.performance:
            metrics[name] = metrics.get(name, 0) + 1
    first = sorted(hyperparameters, key=lambda name: (-min(len(hyperparameters[name]), 2), name))
    second = sorted(metrics, key=lambda name: (-metrics[name], name))
    return [*first[:MAX_COLUMNS], *second[:MAX_COLUMNS]]


def _dataset(one: Experiment) -> str:
    return f"{one.record.dataset}@{one.record.dataset_version[:12]}"


def _cell(value: Value | None) -> str:
    if value is None:
        return ""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() else repr(text)  # anybody may have written it: no escape sequences
