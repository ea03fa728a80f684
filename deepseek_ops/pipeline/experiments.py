"""Experiments as Git tells them: no store, no database, only commits, tags and notes."""

from __future__ import annotations

import datetime as dt
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from deepseek_ops.core.conditions import Selection
from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.ports import RecordText
from deepseek_ops.pipeline.records_in_git import ExperimentRecord, parse_experiments, parse_release

Value = float | str | bool
_VERSION = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){2}")
_DATED = re.compile(r"exp-(\d{4})(\d{2})(\d{2})-")
MAX_KNOWN = 40
"""Names listed in an error."""


@dataclass(eq=False)
class UnknownNameError(PermanentError):
    """A name that no experiment has."""

    name: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        near = difflib.get_close_matches(self.name, self.known, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        more = "" if len(self.known) <= MAX_KNOWN else f" and {len(self.known) - MAX_KNOWN} more"
        return f"no experiment has {self.name!r}{hint} Known are {', '.join(self.known[:MAX_KNOWN])}{more}."


@dataclass(frozen=True, slots=True)
class Experiment:
    """One record, and where in Git it stands."""

    record: ExperimentRecord
    source: str
    """Where it was found first: ``commit``, ``tag`` or ``note``."""
    commit: str
    """The commit that holds it; of a tag or a note, the commit that it is about."""
    time: int
    author: str = ""
    parents: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    """Release tags of the same manifest."""
    copies: tuple[str, ...] = field(default=())
    """Other commits with the same record: cherry-picks, rebases, squash merges."""

    @property
    def date(self) -> str:
        """The day of the run, as the record or its tag says; else when the record was committed, ISO 8601 in UTC.

        A commit of ours has the time of the one that was trained, so that a retry makes the same commit: a training of
        today on an old commit is not an old one.
        """
        return self._day or self.committed

    @property
    def committed(self) -> str:
        """When the record was committed, ISO 8601 in UTC, to the second; empty where no clock is known."""
        return dt.datetime.fromtimestamp(self.time, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if self.time else ""

    @property
    def age(self) -> tuple[str, tuple[int, ...], int]:
        """What experiments are ordered by, the larger the newer: day, version, and when they were committed."""
        version = self.record.version if _VERSION.fullmatch(self.record.version) else ""
        return self.date[:10], tuple(map(int, version.split("."))) if version else (), self.time

    @property
    def _day(self) -> str:
        named = (f"{match[1]}-{match[2]}-{match[3]}" for match in map(_DATED.match, self.tags) if match)
        return next((day for day in (self.record.date, *named) if _is_day(day)), "")


def experiments_of(texts: Iterable[RecordText]) -> list[Experiment]:
    """Return the experiments of a repository's texts, newest first, each once.

    The oldest commit with a record is the one that it was recorded by; what has it later are copies.
    """
    found: dict[tuple[str, str], Experiment] = {}
    releases: dict[str, list[str]] = {}
    for text in texts:
        release = parse_release(text.text) if text.kind == "tag" else None
        if release is not None:
            releases.setdefault(release.manifest, []).append(text.name)
            continue
        for record in parse_experiments(text.text):
            key = (record.run_id, record.manifest)
            found[key] = _with(found[key], text) if key in found else _new(record, text)
    named = (replace(one, releases=tuple(sorted(releases.get(one.record.manifest, [])))) for one in found.values())
    return sorted(named, key=lambda one: one.age, reverse=True)  # of equal ones, as Git has them


def row_of(experiment: Experiment) -> dict[str, Value]:
    """Return the values that a selection may ask for, by name.

    A metric or hyperparameter stands under its own name where nothing else does, and always with its prefix
    (``metrics.val_loss``, ``hyperparameters.learning_rate``); what is nested has dots.
    """
    record = experiment.record
    about: dict[str, Value] = {
        "date": experiment.date,
        "model": record.model,
        "version": record.version,
        "dataset": record.dataset,
        "dataset_version": record.dataset_version,
        "commit": experiment.commit,
        "tag": ",".join(experiment.tags),
        "release": ",".join(experiment.releases),
        "branch": record.branch,
        "author": experiment.author,
        "hardware": record.hardware,
        "run_id": record.run_id,
        "manifest": record.manifest,
        "tracker_url": record.tracker_url,
        "source": experiment.source,
    }
    metrics: dict[str, Value] = {**record.performance}
    hyperparameters = _flat(record.hyperparameters)
    prefixed = {f"metrics.{name}": value for name, value in metrics.items()}
    prefixed |= {f"hyperparameters.{name}": value for name, value in hyperparameters.items()}
    return {**prefixed, **hyperparameters, **metrics, **about}


def chosen(
    experiments: Sequence[Experiment], *, where: str = "", sort: str = "", limit: int | None = None
) -> list[Experiment]:
    """Return at most ``limit`` experiments that ``where`` is true of, by ``sort``; ``-name`` puts the largest first.

    Raises ConditionError, SelectionKindError, and UnknownNameError for a name that none of the experiments has.
    """
    rows = [row_of(one) for one in experiments]
    selection = Selection.parse(where) if where else None
    by, descending = sort.removeprefix("-"), sort.startswith("-")
    _require_known([*(selection.names if selection else ()), *([by] if by else [])], rows)
    if selection is not None:
        selection.require_kinds(rows)
    kept = [(one, row) for one, row in zip(experiments, rows, strict=True) if selection is None or selection.holds(row)]
    if by:
        having = [pair for pair in kept if by in pair[1]]
        having.sort(key=lambda pair: _order(pair[1][by]), reverse=descending)
        kept = [*having, *(pair for pair in kept if by not in pair[1])]
    return [one for one, _ in kept][:limit]


def require_names(names: Sequence[str], experiments: Sequence[Experiment]) -> None:
    """Raise UnknownNameError for a name that none of the experiments has; where there are none, every name will do."""
    _require_known(names, [row_of(one) for one in experiments])


def body_of(experiment: Experiment) -> dict[str, JsonValue]:
    """Return an experiment as JSON."""
    body = {name: value for name, value in experiment.record.dump().items() if name not in ("schema", "date")}
    return {
        "date": experiment.date,
        "committed": experiment.committed,
        "commit": experiment.commit,
        "source": experiment.source,
        "author": experiment.author,
        "tags": list(experiment.tags),
        "releases": list(experiment.releases),
        "copies": list(experiment.copies),
        **body,
    }


def _new(record: ExperimentRecord, text: RecordText) -> Experiment:
    tags = (text.name,) if text.kind == "tag" else ()
    return Experiment(record, text.kind, text.commit, text.time, text.author, text.parents, tags=tags)


def _with(known: Experiment, text: RecordText) -> Experiment:
    if text.kind == "tag":
        tags = tuple(sorted({*known.tags, text.name}))
        return replace(known, tags=tags)
    if text.kind == "note" or text.commit == known.commit or text.commit in known.copies:
        return known
    copies = (known.commit, *known.copies)  # commits come newest first: this one is older
    return replace(known, commit=text.commit, time=text.time, author=text.author, parents=text.parents, copies=copies)


def _flat(values: Mapping[str, JsonValue], prefix: str = "") -> dict[str, Value]:
    flat: dict[str, Value] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (bool, float, str)):
            flat[f"{prefix}{key}"] = value
        elif isinstance(value, int):
            flat[f"{prefix}{key}"] = float(value) if abs(value) < 2**1000 else str(value)
        elif value is not None:
            flat[f"{prefix}{key}"] = json.dumps(value)
    return flat


def _is_day(text: str) -> bool:
    try:
        return dt.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _order(value: Value) -> tuple[bool, float, str]:
    return (isinstance(value, str), 0.0 if isinstance(value, str) else float(value), str(value))


def _require_known(names: Sequence[str], rows: Sequence[Mapping[str, Value]]) -> None:
    if not rows:
        return
    known = {name for row in rows for name in row}
    for name in names:
        if name not in known:
            plain = sorted(one for one in known if not one.startswith(("metrics.", "hyperparameters.")))
            raise UnknownNameError(name, tuple(plain))
