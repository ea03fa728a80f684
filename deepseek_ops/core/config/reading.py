"""Text to checked models, with every problem of the file at once.

A validator stops at its first failing level: a wrong type hides the cross reference above it. So reading goes in
rounds: what was found wrong is cut out of the document, the rest is validated again, and consequences of a cut are not
reported. The file is refused with all that the rounds found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from pydantic import JsonValue, ValidationError

from deepseek_ops.core.config.base import Config, Notes
from deepseek_ops.core.config.document import Located, parse_document
from deepseek_ops.core.config.findings import Finding, findings
from deepseek_ops.core.config.github import is_workflow, translate
from deepseek_ops.core.config.pipeline import PipelineFile
from deepseek_ops.core.errors import ConfigError, PermanentError

_ROUNDS = 16
M = TypeVar("M", bound=Config)


@dataclass(eq=False)
class InvalidPipelineError(PermanentError):
    """A file that people write is wrong. One line per problem."""

    problems: tuple[ConfigError, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def load_pipeline(text: str | bytes, *, file: str) -> PipelineFile:
    """Return the checked pipeline file; ``file`` names it in messages. A GitHub Actions workflow is translated.

    Raises InvalidPipelineError with every problem: file, line, key, value and what to write instead.
    """
    tree, problems = parse_document(text, file=file)
    notes: list[str] = []
    if tree is not None and is_workflow(tree):
        tree, notes = translate(tree)
    return pipeline_from(tree, problems, file=file, notes=notes)


def pipeline_from(
    tree: Located | None, problems: list[ConfigError], *, file: str, notes: list[str] | None = None
) -> PipelineFile:
    """Return the pipeline of a document, keeping the document for overrides. Raises InvalidPipelineError."""
    source = tree.plain() if tree else None
    pipeline, warnings = _validate(PipelineFile, tree, problems, file=file)
    return pipeline.remember(warnings=(*(notes or []), *warnings), source=source)


def read_file(model: type[M], text: str | bytes, *, file: str) -> M:
    """Return any other file model (policies, prices) read with the same care. Raises InvalidPipelineError."""
    tree, problems = parse_document(text, file=file)
    return _validate(model, tree, problems, file=file)[0]


def _validate(
    model: type[M], tree: Located | None, problems: list[ConfigError], *, file: str
) -> tuple[M, tuple[str, ...]]:
    found = list(problems)
    cuts: list[str] = []
    if tree is None:
        raise InvalidPipelineError(tuple(found))
    for _ in range(_ROUNDS):
        notes = Notes()
        try:
            checked = model.model_validate(_frozen(tree.plain()), strict=True, context=notes)
        except ValidationError as error:
            news = findings(error, tree)
            found += [one.error(file) for one in news if not one.follows_from(cuts, news)]
            if not _cut(tree, news, cuts):
                break
            continue
        if not found:
            return checked, tuple(notes.warnings)
        break
    raise InvalidPipelineError(tuple(sorted(_unique(found), key=lambda one: one.line)))


def _frozen(value: JsonValue) -> object:
    """Return the value with tuples for lists: what strict validation of frozen models takes."""
    if isinstance(value, dict):
        return {name: _frozen(child) for name, child in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _cut(tree: Located, news: list[Finding], cuts: list[str]) -> bool:
    """Remove what was found wrong from the tree; return whether anything was left to remove."""
    removed = False
    for parent, name in [one.target for one in news if one.target is not None]:
        if isinstance(parent.value, dict) and isinstance(name, str) and name in parent.value:
            del parent.value[name]
            removed = True
        elif isinstance(parent.value, list) and isinstance(name, Located):
            kept = [child for child in parent.value if child is not name]
            removed = removed or len(kept) < len(parent.value)
            parent.value[:] = kept
    cuts += [key for one in news for key in one.cuts]
    return removed and tree.value != {}


def _unique(found: list[ConfigError]) -> list[ConfigError]:
    return list({(one.line, one.key, one.problem): one for one in found}.values())
