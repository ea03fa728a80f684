"""``deepseek-ops data``: dataset versions from the command line.

Results are JSON on stdout (``--table`` where a table is of use to people), errors one line each on stderr, progress a
bar on stderr where that is a terminal. Exit status 0: done, or nothing to do. 1: an error (with a line on stderr), a
problem that ``verify`` found, conflicts of a ``merge`` (on stdout too), or, with ``--exit-code`` as in ``git diff``,
differences. 2: wrong usage.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.cli import data_content, data_exchange, data_gc, data_worktree
from deepseek_ops.cli.data_options import (
    AsTable,
    Author,
    Dataset,
    ExitCode,
    Patterns,
    Store,
    Version,
    author_or_login,
    print_json,
    print_rows,
    read_text,
    write_text,
)
from deepseek_ops.data import DatasetRepository, MergeConflictError, Preference
from deepseek_ops.data.content import DiffOptions

data_app = typer.Typer(no_args_is_help=True, help="Dataset versions.")

Branch = Annotated[str, typer.Option(help="Branch of the dataset.")]
Globs = list[str] | None


@data_app.command()
def log(
    dataset: Dataset,
    store: Store,
    branch: Branch = "main",
    limit: Annotated[int, typer.Option(min=1, help="Newest versions to show.")] = 20,
    table: AsTable = False,
) -> None:
    """List a branch's version and those it was made from, newest first; a merge names two parents."""
    entries = DatasetRepository(open_store(store)).log(dataset, branch=branch, limit=limit)
    columns = ("version", "at", "author", "message", "num_files", "num_bytes", "parents")
    print_rows([asdict(entry) for entry in entries], columns, table=table)


@data_app.command()
def show(version: Version, store: Store) -> None:
    """Print the commit record of a version."""
    repository = DatasetRepository(open_store(store))
    digest = repository.resolve(version)
    body: dict[str, JsonValue] = {"version": digest, **repository.describe(digest)}
    print_json(body)


@data_app.command()
def files(version: Version, store: Store, pattern: Patterns = None, table: AsTable = False) -> None:
    """List the files of a version with their size, digest and split."""
    found = DatasetRepository(open_store(store)).files(version, tuple(pattern or ()))
    rows = [
        {"path": entry.path, "size": entry.size, "digest": entry.digest.hex(), "split": entry.split}
        for entry, _ in found
    ]
    print_rows(rows, ("path", "size", "digest", "split"), table=table)


@data_app.command()
def diff(
    old: Version,
    new: Version,
    store: Store,
    records: Annotated[bool, typer.Option("--records", help="Compare records of JSONL, Parquet and text.")] = False,
    exit_code: ExitCode = False,
) -> None:
    """List the paths that differ between two versions, or with --records the records."""
    repository = DatasetRepository(open_store(store))
    changes = repository.diff(old, new)
    if records:
        data_content.show_record_diff(repository, old, new, DiffOptions())
    else:
        print_json(asdict(changes))
    if changes and exit_code:
        raise typer.Exit(1)


@data_app.command()
def branch(
    dataset: Dataset,
    store: Store,
    name: Annotated[str, typer.Argument(help="Branch to make or delete; without it all are listed.")] = "",
    at: Annotated[str, typer.Option(help="Version it begins at, by any name; main by default.")] = "",
    delete: Annotated[bool, typer.Option("--delete", help="End the branch; its versions stay for now.")] = False,
    expected: Annotated[str, typer.Option(help="Only if the branch is still at this version.")] = "",
    table: AsTable = False,
) -> None:
    """List the branches of a dataset, make one (nothing is copied), or delete one."""
    repository = DatasetRepository(open_store(store))
    if not name:
        heads = repository.branches(dataset)
        rows = [{"branch": one, "version": entry.version, "at": entry.at} for one, entry in heads.items()]
        print_rows(rows, ("branch", "version", "at"), table=table)
        return
    if delete:
        wanted = repository.resolve(expected) if expected else None
        version = repository.delete_branch(dataset, name, expected=wanted)
    else:
        version = repository.branch(dataset, name, at or dataset)
    print_json({"dataset": dataset, "branch": name, "version": version, "deleted": delete})


@data_app.command()
def merge(
    dataset: Dataset,
    source: Annotated[str, typer.Argument(help="What to merge: dataset@branch, tag or id.")],
    store: Store,
    into: Annotated[str, typer.Option(help="Branch that gets it.")] = "main",
    message: Annotated[str, typer.Option("--message", "-m", help="What is merged and why.")] = "",
    author: Author = "",
    ours: Annotated[Globs, typer.Option(help="Where both changed these paths, keep the branch's; first.")] = None,
    theirs: Annotated[Globs, typer.Option(help="Where both changed these paths, take the source's.")] = None,
    fast_forward: Annotated[bool, typer.Option("--ff/--no-ff", help="Make no commit where none is needed.")] = True,
) -> None:
    """Merge a version into a branch, file by file; conflicts are all named, and then nothing is merged."""
    chosen = [Preference("ours", glob) for glob in ours or ()] + [Preference("theirs", glob) for glob in theirs or ()]
    repository = DatasetRepository(open_store(store))
    who = author_or_login(author)
    try:
        result = repository.merge(
            dataset, source, into=into, author=who, message=message, preferences=chosen, fast_forward=fast_forward
        )
    except MergeConflictError as error:
        print_json({"how": "conflict", "conflicts": [asdict(one) for one in error.conflicts]})
        raise
    resolved = [asdict(one) for one in result.resolved]
    print_json({**result.version.dump(), "how": result.how, "changed": result.changed, "resolved": resolved})


@data_app.command()
def tag(
    store: Store,
    name: Annotated[str, typer.Argument(help="Such as dataset-v1.1; without it all are listed.")] = "",
    version: Annotated[str, typer.Argument(help="dataset, dataset@branch, tag or id.")] = "",
    table: AsTable = False,
) -> None:
    """Name a version for ever, or list the tags."""
    if not name:
        found = DatasetRepository(open_store(store)).tags()
        rows = [{"tag": one, "version": digest} for one, digest in found.items()]
        print_rows(rows, ("tag", "version"), table=table)
        return
    if not version:
        raise typer.BadParameter("say which version the tag names")
    print_json({"tag": name, "version": DatasetRepository.open(open_store(store)).tag(name, version)})


@data_app.command("merge-pointer")
def merge_pointer(
    base: Annotated[Path, typer.Argument(help="%O of Git's merge driver.")],
    ours: Annotated[Path, typer.Argument(help="%A; the result goes here.")],
    theirs: Annotated[Path, typer.Argument(help="%B.")],
    author: Author = "",
) -> None:
    """Merge a pointer file for Git by merging the versions it names; exit status 1 leaves a conflict to read."""
    from deepseek_ops.data.pointer_merge import merge_pointers

    texts = [read_text(path) for path in (base, ours, theirs)]
    merged = merge_pointers(
        texts[0],
        texts[1],
        texts[2],
        open_repository=lambda uri: DatasetRepository.open(open_store(uri)),
        author=author_or_login(author),
    )
    write_text(ours, merged.text)
    if merged.problem:
        typer.echo(merged.problem, err=True)
        raise typer.Exit(1)


for _module in (data_worktree, data_content, data_exchange, data_gc):
    _module.register(data_app)
