"""What a change can mean: from the paths that moved, and the pipeline file before and after, to the stages it reaches.

Classes of paths, the first that fits:

* ``pipeline``: ``deepseek.yaml``; what it reaches is decided by the sections that differ, not by its text;
* ``lock``: the file of ``jobs.setup.requirements``;
* ``data``: raw data, tokenizer and evaluation files inside the repository, and dataset pointers;
* ``result``: what we commit ourselves, ``experiments/<version>.json``; other files beside it are of the team;
* ``docs``: ``changes.docs`` of the pipeline file;
* ``code``: everything else.

Documentation, results, pointers and the pipeline file are left out of the code that jobs are given, so that "this
cannot change the data" holds by construction and not by convention. A change only explains a plan; what is reused is
found by fingerprint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum

from pydantic import Field

from deepseek_ops.core.config import PipelineFile, matches_ref
from deepseek_ops.core.records import Record

PIPELINE_FILE = "deepseek.yaml"
STAGES = ("environment", "data", "sweep", "train", "validate", "export", "register")
"""What a run spends on, in order: a stage that does its work again makes those after it do so too."""
_SHOWN = 3
_RESULT = re.compile(r"experiments/[0-9]+\.[0-9]+\.[0-9]+\.json")


class ChangeKind(StrEnum):
    """Class of a changed path."""

    PIPELINE = "pipeline"
    LOCK = "lock"
    DATA = "data"
    RESULT = "result"
    DOCS = "docs"
    CODE = "code"


_FIRST_REACHED = {ChangeKind.LOCK: "environment", ChangeKind.DATA: "data", ChangeKind.CODE: "data"}
_SECTIONS = {
    "jobs": "environment",
    "data": "data",
    "name": "data",
    "sweep": "sweep",
    "training": "sweep",
    "validation": "validate",
    "deployment": "export",
}
"""Section of the pipeline file -> first stage it reaches; the others (triggers, alerts, release, ...) reach none."""


class ChangeSummary(Record):
    """What moved between two commits, by class."""

    paths: dict[ChangeKind, tuple[str, ...]] = Field(default_factory=dict, description="A few paths of each class.")
    counts: dict[ChangeKind, int] = Field(default_factory=dict)
    sections: tuple[str, ...] = Field(default=(), description="Sections of the pipeline file whose meaning differs.")
    against: str = Field(default="", description="What is compared with, for people; empty when nothing is known.")

    @property
    def known(self) -> bool:
        """Whether there was anything to compare with."""
        return bool(self.against)

    @property
    def docs_only(self) -> bool:
        """Whether nothing but documentation and our own results moved."""
        return bool(self.counts) and set(self.counts) <= {ChangeKind.DOCS, ChangeKind.RESULT}

    def reaches(self, stage: str) -> str:
        """Return why the stage, one of ``STAGES``, has something to do again; empty when it has not."""
        return "; ".join(why for first, why in self._reasons() if STAGES.index(first) <= STAGES.index(stage))

    def text(self) -> str:
        """Return the change as one sentence for people."""
        if not self.known:
            return "nothing to compare with: every stage is looked up"
        if not self.counts:
            return f"no file differs from {self.against}"
        parts = [f"{count} {kind}" for kind, count in self.counts.items()]
        verdict = ": documentation only, no stage has anything new to do" if self.docs_only else ""
        return f"{', '.join(parts)} changed since {self.against}{verdict}"

    def _reasons(self) -> Iterable[tuple[str, str]]:
        for kind, first in _FIRST_REACHED.items():
            if count := self.counts.get(kind, 0):
                shown = ", ".join(self.paths[kind]) + (", ..." if count > _SHOWN else "")
                yield first, f"{kind} changed ({shown})"
        for section in self.sections:
            if section in _SECTIONS:
                yield _SECTIONS[section], f"{section} of {PIPELINE_FILE} changed"


def kind_of(config: PipelineFile, path: str) -> ChangeKind:
    """Return the class of a path of the model repository."""
    if path == PIPELINE_FILE:
        return ChangeKind.PIPELINE
    if path == config.jobs.setup.requirements:
        return ChangeKind.LOCK
    if _is_data(config, path):
        return ChangeKind.DATA
    if _RESULT.fullmatch(path):
        return ChangeKind.RESULT
    return ChangeKind.DOCS if matches_ref(config.changes.docs, path) else ChangeKind.CODE


def classify(
    paths: Sequence[str], *, new: PipelineFile, old: PipelineFile | None = None, against: str = ""
) -> ChangeSummary:
    """Return what the changed paths mean to the new commit's pipeline; ``old`` is the pipeline file before, if any."""
    found: dict[ChangeKind, list[str]] = {}
    for path in paths:
        found.setdefault(kind_of(new, path), []).append(path)
    sections: tuple[str, ...] = ()
    if ChangeKind.PIPELINE in found:
        before, after = old.document() if old else {}, new.document()
        sections = tuple(key for key in sorted({*before, *after}) if before.get(key) != after.get(key))
    return ChangeSummary(
        paths={kind: tuple(some[:_SHOWN]) for kind, some in found.items()},
        counts={kind: len(some) for kind, some in found.items()},
        sections=sections,
        against=against,
    )


def only_docs(config: PipelineFile, paths: Sequence[str]) -> bool:
    """Return whether a push of these paths can mean nothing to any task. An unknown change (no paths) is not that."""
    return bool(paths) and all(kind_of(config, path) in (ChangeKind.DOCS, ChangeKind.RESULT) for path in paths)


def is_given_to_jobs(config: PipelineFile, path: str) -> bool:
    """Return whether a job that runs the repository's code gets this file of the commit: whether it can mean it."""
    if _is_pointer(path):
        return False
    return kind_of(config, path) in (ChangeKind.CODE, ChangeKind.LOCK, ChangeKind.DATA)


def is_recorded(path: str) -> bool:
    """Return whether our commit of an experiment writes such a path: its result, or the pointer to its dataset."""
    return bool(_RESULT.fullmatch(path)) or _is_pointer(path)


def _is_pointer(path: str) -> bool:
    return path.startswith("data/") and path.endswith(".dataset.yaml")


def _is_data(config: PipelineFile, path: str) -> bool:
    data = config.data
    folders = [place for place in (data.raw or "", data.tokenizer or "") if place and "://" not in place]
    return (
        _is_pointer(path)
        or any(path.startswith(f"{folder.strip('/')}/") for folder in folders)
        or any(path == one.path for one in data.checks.contamination.against)
    )
