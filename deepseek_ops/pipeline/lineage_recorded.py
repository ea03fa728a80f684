"""The links of a lineage that nothing but a record in Git is left of."""

from __future__ import annotations

from deepseek_ops.pipeline.lineage_records import Link
from deepseek_ops.pipeline.lineage_subject import Subject
from deepseek_ops.pipeline.records_in_git import ExperimentRecord

_ALONE = "only the record in Git was found; give the --store, --facts or --registry of its run"


def recorded_links(subject: Subject) -> list[Link]:
    """Return what the record says of code, data and hyperparameters; each link says that it is no more than that."""
    record = subject.record
    if record is None:
        return []
    return [
        Link(part="code", summary=f"commit {subject.commit[:12]}", digest=subject.commit, missing=(_ALONE,)),
        Link(
            part="data",
            summary=f"{record.dataset} version {record.dataset_version[:12]}",
            digest=record.dataset_version,
            missing=(_ALONE,),
        ),
        Link(
            part="hyperparameters",
            summary="as the record in Git has them",
            details={"values": record.hyperparameters},
            missing=(_ALONE,),
        ),
    ]


def recorded_training(record: ExperimentRecord) -> Link:
    """Return how the training ended, as its record has it."""
    shown = ", ".join(f"{name} {value:.4g}" for name, value in sorted(record.performance.items()))
    return Link(
        part="training",
        summary=f"{shown or 'no metric'}, as the record in Git has it",
        details={"metrics": dict(record.performance), "hardware": record.hardware, "tracker_url": record.tracker_url},
        missing=("steps, tokens and weights: no version of it was found in a registry",),
    )
