"""Values from a form or a command line over those of a file, by dotted path."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from deepseek_ops.core.config.document import locate, parse_scalar
from deepseek_ops.core.config.pipeline import PipelineFile
from deepseek_ops.core.config.reading import InvalidPipelineError, pipeline_from
from deepseek_ops.core.errors import ConfigError

_FILE = "(override)"
_MAX_PARTS = 12


def parse_override(text: str) -> tuple[str, JsonValue]:
    """Return (dotted path, value) of a command-line override such as ``training.nodes=2``; the value is YAML.

    Raises InvalidPipelineError without an ``=`` or a path.
    """
    path, sign, value = text.partition("=")
    if not sign or not path.strip():
        raise InvalidPipelineError((_error(text, "this is not path=value.", "Such as training.nodes=2."),))
    return path.strip(), parse_scalar(value)


def override(pipeline: PipelineFile, overrides: Mapping[str, JsonValue]) -> PipelineFile:
    """Return the pipeline with the overrides, checked as a whole. Raises InvalidPipelineError."""
    content, problems = pipeline.source(), []
    for path, value in overrides.items():
        problem = _assign(content, path, value)
        if problem:
            problems.append(problem)
    return pipeline_from(locate(content), problems, file=_FILE)


def _error(path: str, problem: str, remedy: str) -> ConfigError:
    return ConfigError(_FILE, 0, path, problem, remedy)


def _assign(content: dict[str, JsonValue], path: str, value: JsonValue) -> ConfigError | None:
    parts = path.split(".")
    if not all(parts) or len(parts) > _MAX_PARTS:
        return _error(path, "this is not a dotted path.", "Such as training.hyperparameters.learning_rate.")
    if parts[:2] == ["training", "hyperparameters"] and len(parts) == 3:
        return _assign_hyperparameter(content, path, parts[2], value)
    here: JsonValue = content
    for at, part in enumerate(parts[:-1]):
        following = _step(here, part, create=at + 1 < len(parts))
        if following is None:
            return _error(path, f"{'.'.join(parts[: at + 1])} leads nowhere.", "Use the names that the file has.")
        here = following
    return _put(here, parts[-1], path, value)


def _step(here: JsonValue, part: str, *, create: bool) -> JsonValue:
    if isinstance(here, dict):
        if here.get(part) is None and create:
            here[part] = {}
        return here[part]
    position = _position(here, part)
    return here[position] if isinstance(here, list) and position is not None else None


def _put(here: JsonValue, part: str, path: str, value: JsonValue) -> ConfigError | None:
    if isinstance(here, dict):
        here[part] = value
        return None
    position = _position(here, part)
    if isinstance(here, list) and position is not None:
        here[position] = value
        return None
    return _error(path, f"there is no entry {part!r}.", "Use the name or position of an entry that the file has.")


def _position(here: JsonValue, part: str) -> int | None:
    """Return where a list has the entry of this name, or at this position."""
    if not isinstance(here, list):
        return None
    for at, entry in enumerate(here):
        if isinstance(entry, dict) and entry.get("name") == part:
            return at
    return int(part) if part.isdigit() and len(part) < 6 and int(part) < len(here) else None


def _assign_hyperparameter(content: dict[str, JsonValue], path: str, name: str, value: JsonValue) -> ConfigError | None:
    training = content.setdefault("training", {})
    if not isinstance(training, dict):
        return _error(path, "training is not a mapping.", "Correct the file first.")
    entries = training.setdefault("hyperparameters", [])
    form: dict[str, JsonValue]
    form = value if isinstance(value, dict) else {"values" if isinstance(value, list) else "value": value}
    if isinstance(entries, dict):
        entries[name] = form
        return None
    if not isinstance(entries, list):
        return _error(path, "training.hyperparameters is not a list.", "Correct the file first.")
    entry: dict[str, JsonValue] = {"name": name, **form}
    position = _position(entries, name)
    if position is None:
        entries.append(entry)
    else:
        entries[position] = entry
    return None
