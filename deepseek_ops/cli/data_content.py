"""``deepseek-ops data diff-records|check|since``: what is in a dataset. JSON on stdout, or text with ``--text``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from deepseek_ops.adapters.stores import STORE_VARIABLE, open_store
from deepseek_ops.core.config import DataChecks, EvaluationSet, load_pipeline
from deepseek_ops.core.errors import ConfigError
from deepseek_ops.data import DatasetRepository
from deepseek_ops.data.content import DiffOptions, RecordDiff, examine, record_diff
from deepseek_ops.data.content.contamination import Item
from deepseek_ops.data.content.identity import TokenCount
from deepseek_ops.data.content.incremental import since as changed_since
from deepseek_ops.data.content.profile import stored_profiles
from deepseek_ops.data.content.rows import Row, read_rows, rows_below
from deepseek_ops.data.content.verdict import evaluation_items
from deepseek_ops.data.content.version_files import open_files

StoreOption = Annotated[
    str, typer.Option("--store", envvar=STORE_VARIABLE, help="s3://bucket/prefix, file:///folder or a path.")
]
VersionArgument = Annotated[str, typer.Argument(help="dataset, dataset@branch, tag, id, or a beginning of an id.")]
KeyOption = Annotated[str, typer.Option(help="Field that names a record, such as id; none compares by content.")]
FieldsOption = Annotated[list[str] | None, typer.Option("--field", help="Field of a record's text; repeatable.")]
TokenizerOption = Annotated[bool, typer.Option(help="Count tokens with the tokenizer that the new version holds.")]
TextOption = Annotated[bool, typer.Option("--text", help="Text for people instead of JSON.")]
PageOption = Annotated[Path | None, typer.Option(help="Also write a self-contained HTML page here.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to ``deepseek-ops data``."""
    app.command("diff-records")(diff_records)
    app.command("check")(check)
    app.command("since")(since)


def diff_records(
    old: VersionArgument,
    new: VersionArgument,
    store: StoreOption,
    key: KeyOption = "",
    field: FieldsOption = None,
    tokenizer: TokenizerOption = True,
    documents: Annotated[bool, typer.Option(help="A text file is one record, not each of its lines.")] = False,
    examples: Annotated[int, typer.Option(min=0, max=100, help="Records shown of each kind.")] = 5,
    text: TextOption = False,
    page: PageOption = None,
) -> None:
    """Show what changed between two versions, record by record: counts, tokens, lengths, languages, examples."""
    options = DiffOptions(
        key=key or None,
        fields=tuple(field or ()),
        examples=examples,
        text_unit="document" if documents else "line",
    )
    show_record_diff(DatasetRepository(open_store(store)), old, new, options, tokenizer=tokenizer, text=text, page=page)


def show_record_diff(
    repository: DatasetRepository,
    old: str,
    new: str,
    options: DiffOptions,
    *,
    tokenizer: bool = True,
    text: bool = False,
    page: Path | None = None,
) -> None:
    """Print the record-level comparison of two versions: what ``data diff --records`` does, too."""
    with TemporaryDirectory(prefix="deepseek-ops-tokenizer-") as folder:
        counting = _token_count(repository, new, Path(folder)) if tokenizer else None
        if counting is not None:
            options = replace(options, count=counting, measure="tokens of the newer version's tokenizer")
        found = record_diff(repository, old, new, options)
    _show(found, text=text, page=page)


def _show(found: RecordDiff, *, text: bool, page: Path | None) -> None:
    if page is not None:
        from deepseek_ops.data.content.page import diff_page

        page.write_text(diff_page(found), encoding="utf-8")
    typer.echo(found.text() if text else json.dumps(found.dump(), indent=2, ensure_ascii=False))


def _token_count(repository: DatasetRepository, version: str, folder: Path) -> TokenCount | None:
    """Return how to count the tokens of a version that holds a tokenizer, where one can be loaded here."""
    from deepseek_ops.data import NothingSelectedError
    from deepseek_ops.jobs.prepare_tokenizer import token_counter

    try:
        repository.checkout(version, folder / "files", patterns=("tokenizer/tokenizer.json",))
    except NothingSelectedError:
        return None
    return token_counter(folder / "files" / "tokenizer" / "tokenizer.json")


def check(
    data: Annotated[str, typer.Argument(help="A folder, or a version: dataset, dataset@branch, tag, id.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="Pipeline file with data.checks.")] = Path(
        "deepseek.yaml"
    ),
    store: Annotated[str, typer.Option("--store", envvar=STORE_VARIABLE, help="Needed for versions.")] = "",
    field: FieldsOption = None,
    text: TextOption = False,
    page: PageOption = None,
) -> None:
    """Check a folder or version against data.checks of a pipeline file; exit status 1 when it would be refused."""
    checks = _checks(config)
    repository = DatasetRepository(open_store(store)) if store else None
    with TemporaryDirectory(prefix="deepseek-ops-check-") as scratch:
        sets = checks.contamination.against
        items = [item for one in sets for item in _items(one, config.parent, repository, scratch)]
        before = {}
        if Path(data).is_dir():
            rows = lambda: rows_below(Path(data))  # noqa: E731
        else:
            opened = _needed(repository)
            version = opened.resolve(data)
            rows = lambda: _version_rows(opened, version, Path(scratch), "*")  # noqa: E731
            parents = opened.describe(version).get("parents")
            before = stored_profiles(opened, str(parents[0])) if isinstance(parents, list) and parents else {}
        found = examine(rows, checks, items=items, before=before, fields=tuple(field or ()))
    if page is not None:
        from deepseek_ops.data.content.page import report_page

        page.write_text(report_page(data, found.report, found.profiles), encoding="utf-8")
    if text:
        typer.echo(f"{data}: {found.report.verdict}")
        for finding in found.report.findings:
            typer.echo("\n".join(finding.lines()))
    else:
        typer.echo(json.dumps({**found.report.dump(), "profiles": found.profiles}, indent=2, ensure_ascii=False))
    if found.report.verdict == "block":
        raise typer.Exit(1)


def since(
    version: Annotated[str, typer.Argument(help="Version that was trained on already.")],
    store: StoreOption,
    new: Annotated[str, typer.Argument(help="Version to go on with; the dataset's newest by default.")] = "",
) -> None:
    """List the files that were added or modified since a version: what incremental training reads."""
    repository = DatasetRepository(open_store(store))
    found = changed_since(repository, version, new)
    typer.echo(json.dumps(found.dump(), indent=2, ensure_ascii=False))


def _checks(config: Path) -> DataChecks:
    try:
        text = config.read_bytes()
    except OSError as error:
        raise ConfigError(str(config), 0, "", f"cannot be read ({error}).", "Give --config.") from None
    return load_pipeline(text, file=str(config)).data.checks


def _needed(repository: DatasetRepository | None) -> DatasetRepository:
    if repository is None:
        raise typer.BadParameter(f"give --store or set {STORE_VARIABLE}, or the path of a folder")
    return repository


def _items(one: EvaluationSet, root: Path, repository: DatasetRepository | None, scratch: str) -> Iterable[Item]:
    if one.path is not None:
        path = root / one.path
        if not path.is_file():
            raise ConfigError(str(path), 0, "", "does not exist.", "Correct data.checks.contamination.against.")
        with path.open("rb") as source:
            return list(evaluation_items(one.name, read_rows(one.path, source), one.fields))
    opened = _needed(repository)
    rows = _version_rows(opened, opened.resolve(one.dataset or ""), Path(scratch), one.pattern)
    return list(evaluation_items(one.name, rows, one.fields))


def _version_rows(repository: DatasetRepository, version: str, scratch: Path, pattern: str) -> Iterator[Row]:
    with closing(open_files(repository, repository.files(version, (pattern,)), scratch)) as files:
        for stored, source in files:
            yield from read_rows(stored.entry.path, source)
