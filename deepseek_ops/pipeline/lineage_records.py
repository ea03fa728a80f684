"""The answer to "why is this model what it is": a chain of links, each with its digest, its place and what is missing.

One shape for text, JSON and pages. A link never guesses: what could not be found is a sentence in ``missing``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from deepseek_ops.core.records import Digest, Record, RunManifest, TrainingPlan
from deepseek_ops.pipeline.environment_machine import Machine

Part = Literal[
    "version",
    "code",
    "data",
    "environment",
    "base",
    "hyperparameters",
    "training",
    "gates",
    "exports",
    "release",
    "rollout",
    "cost",
]
PARTS: tuple[Part, ...] = (
    "version",
    "code",
    "data",
    "environment",
    "base",
    "hyperparameters",
    "training",
    "gates",
    "exports",
    "release",
    "rollout",
    "cost",
)
"""In the order of the chain."""


class Link(Record):
    """One part of the chain."""

    part: Part
    summary: str = Field(description="One line for people.")
    digest: str = Field(default="", description="What identifies it; empty where it has no identity of its own.")
    stored: str = Field(default="", description="Where it is: a URI, a repository, a table.")
    details: dict[str, JsonValue] = Field(default_factory=dict)
    missing: tuple[str, ...] = Field(default=(), description="What could not be found, and why.")


class Lineage(Record):
    """Where one model version, or one run, comes from and what became of it."""

    target: str = Field(description="What was asked for.")
    found_by: str = Field(description="What the target turned out to be.")
    model: str = ""
    version: str = Field(default="", description="Empty for a run that registered none.")
    run: str = ""
    links: tuple[Link, ...]
    base: Lineage | None = Field(default=None, description="Of the model that the training went on from.")
    degraded: tuple[str, ...] = Field(default=(), description="Sources that did not answer.")

    def link(self, part: Part) -> Link | None:
        """Return the link of one part, or None."""
        return next((link for link in self.links if link.part == part), None)


class TrainingEvidence(Record):
    """What a training was planned from. Stored beside the run's streams, so that the store alone can tell it."""

    run: str = Field(description="The Airflow run that planned it first.")
    manifest: RunManifest = Field(description="Complete, with the dataset version.")
    code: Digest = Field(description="Blob of the FileSet of the commit's files.")
    lock: str = ""
    machine: Machine | None = Field(default=None, description="Where it was planned; None in older records.")
    plan: TrainingPlan
    study: str = Field(default="", description="The sweep that chose the hyperparameters; empty when all are fixed.")
    trial: int | None = Field(default=None, description="The winning trial.")
    objective: float | None = Field(default=None, description="What the winning trial reached.")
    trials: int = Field(default=0, ge=0, description="Trials that were compared.")


Lineage.model_rebuild()
