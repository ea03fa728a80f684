"""``deepseek-ops validate FILE`` and ``deepseek-ops schema``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from deepseek_ops.core.config import InvalidPipelineError, load_pipeline, parse_override, pipeline_schema

Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override, such as training.nodes=2; may be repeated.")
]


def validate(
    file: Annotated[Path, typer.Argument(help="Pipeline file, or a GitHub Actions workflow.")],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checked content and warnings as JSON.")] = False,
) -> None:
    """Check a pipeline file: OK and warnings, or one line per problem on stderr and exit status 1."""
    try:
        pipeline = load_pipeline(_read(file), file=str(file))
        if overrides:
            pipeline = pipeline.with_overrides(dict(map(parse_override, overrides)))
    except InvalidPipelineError as error:
        _refuse(str(error))
    if as_json:
        answer = {"file": str(file), "warnings": list(pipeline.warnings), "pipeline": pipeline.document()}
        typer.echo(json.dumps(answer, indent=2))
        return
    typer.echo(f"{file}: OK ({pipeline.name})")
    for warning in pipeline.warnings:
        typer.echo(f"{file}: warning: {warning}")


def schema() -> None:
    """Print the JSON Schema of the pipeline file, for editors."""
    typer.echo(json.dumps(pipeline_schema(), indent=2))


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read((1 << 20) + 1)  # one byte more than is accepted: enough to refuse it
    except OSError as error:
        _refuse(f"{file}: cannot be read: {error.strerror}. Check the path and its rights.")


def _refuse(text: str) -> NoReturn:
    typer.echo(text, err=True)
    raise typer.Exit(1)
