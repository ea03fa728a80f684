"""What was trained is known again by its content, whatever branch, commit or message it comes from.

Two runs are of the same content when everything that decides the model, its evidence and its exports is equal: the
files that jobs are given, the meaning of the pipeline file, data, environment, base model, seed and our own version.
The second one finds the first one's results step by step, and is registered as the version that is there.
"""

from __future__ import annotations

from pydantic import JsonValue

from deepseek_ops.core.config import PipelineFile
from deepseek_ops.core.errors import ObjectExistsError
from deepseek_ops.core.ports import Facts
from deepseek_ops.core.records import DatasetVersion, Digest, FileSet, ModelVersion, Record, canonical_json, digest_of
from deepseek_ops.pipeline.changes import is_given_to_jobs
from deepseek_ops.pipeline.runs import RunPlan

IDENTITY = "identity"
"""Kind of the facts that name the version of a content, by its digest."""
SAME_AS = "same_as"
"""Kind of the facts that link a run to the version an earlier run of equal content made, by run id."""
_SECTIONS = ("name", "jobs", "data", "training", "sweep", "validation", "deployment")


class SameAs(Record):
    """Where a run of equal content is found."""

    model: str
    version: str
    run: str
    """The run that trained it."""
    commit: str
    """The commit it was trained from."""

    def text(self) -> str:
        """Return the link as a line for people."""
        return f"{self.model} {self.version}, trained by run {self.run} from commit {self.commit[:12]}"


def content_identity(config: PipelineFile, run: RunPlan, code: FileSet, dataset: DatasetVersion) -> Digest:
    """Return the digest of everything that decides what the run makes; names of refs and commits are no part of it."""
    document = config.document()
    sections = {key: document[key] for key in _SECTIONS if key in document}
    training = sections.get("training")
    if isinstance(training, dict):
        sections["training"] = {key: value for key, value in training.items() if key != "budget"}
    body: dict[str, JsonValue] = {
        "config": sections,
        "code": {entry.path: entry.digest for entry in code.files if is_given_to_jobs(config, entry.path)},
        "dataset": dataset.version,
        "environment": run.manifest.environment,
        "base": run.manifest.base,
        "hardware": run.manifest.hardware,
        "software": run.manifest.software,
        "again": run.nonce,
    }
    return digest_of(canonical_json(body))


def made_before(facts: Facts, identity: Digest) -> SameAs | None:
    """Return where equal content was registered, or None."""
    fact = facts.get(IDENTITY, identity)
    return None if fact is None else SameAs.load(fact.body)


def remember_made(facts: Facts, identity: Digest, version: ModelVersion, *, run: str) -> SameAs:
    """Note the version of a content and return whose it is: of two that finished at once, the first one's."""
    mine = SameAs(model=version.name, version=version.version, run=run, commit=version.manifest.source.commit)
    try:
        facts.insert(IDENTITY, identity, mine.dump(), run=run)
    except ObjectExistsError:
        return made_before(facts, identity) or mine
    return mine


def link_run(facts: Facts, run: str, same: SameAs) -> None:
    """Link a run to what an earlier run of equal content made; a second call changes nothing."""
    try:
        facts.insert(SAME_AS, run, same.dump(), run=run)
    except ObjectExistsError:
        return


def linked(facts: Facts, run: str) -> SameAs | None:
    """Return what the run is linked to, or None when it made its own."""
    fact = facts.get(SAME_AS, run)
    return None if fact is None else SameAs.load(fact.body)
