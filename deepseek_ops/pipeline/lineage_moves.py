"""What moved between two results, part by part, each with the texts that differ, cut to a readable size."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping

from pydantic import Field, JsonValue

from deepseek_ops.adapters.git.tracing import GitTracer
from deepseek_ops.core.config import PipelineFile
from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.records import Record, RunManifest
from deepseek_ops.pipeline.changes import PIPELINE_FILE, ChangeKind, kind_of
from deepseek_ops.pipeline.lineage_evidence import code_files
from deepseek_ops.pipeline.lineage_made_of import decided, read_config
from deepseek_ops.pipeline.lineage_sources import Sources
from deepseek_ops.pipeline.lineage_subject import Subject

MAX_LINES = 200
"""Lines of one textual difference that are kept."""
MAX_BYTES = 256 << 10
"""Of a file that is compared as text."""
MAX_FILES = 50


class Move(Record):
    """One part that two results may differ in."""

    part: str
    moved: bool | None = Field(description="None: what would tell is gone.")
    old: str = ""
    new: str = ""
    summary: str
    details: dict[str, JsonValue] = Field(default_factory=dict)
    text: tuple[str, ...] = Field(default=(), description="Unified differences.")
    cut: int = Field(default=0, ge=0, description="Lines that were left out.")
    follows: str = Field(default="", description="The part that made this one move; empty when it moved by itself.")


class Files:
    """The files of a commit, from the store where they were kept, else from Git."""

    def __init__(self, sources: Sources, subject: Subject, manifest: RunManifest) -> None:
        self.entries: dict[str, str] = {}
        self.place = ""
        """``store``, ``git``, or nothing when neither has them: ids are comparable within one place only."""
        self._sources = sources
        self._commit = manifest.source.commit
        self._tracer: GitTracer | None = None
        if subject.evidence is not None:
            try:
                files = code_files(sources.stores.blobs, subject.evidence).files
                self.entries, self.place = {entry.path: entry.digest for entry in files}, "store"
            except DeepSeekOpsError as error:
                sources.say(str(error))

    def from_git(self, repository: str) -> None:
        """Take the files of the commit itself; nothing is taken when no repository has it."""

        def look(tracer: GitTracer) -> tuple[GitTracer, dict[str, str]]:
            return tracer, tracer.files(self._commit)

        found = self._sources.in_git(look, [repository])
        if found is not None:
            (self._tracer, self.entries), self.place = found, "git"

    def lines(self, path: str) -> list[str] | None:
        """Return a file as lines of text, empty where it does not exist; None when it is large or no text."""
        if path not in self.entries:
            return []
        try:
            if self._tracer is not None:
                data = self._tracer.read(self._commit, path, max_bytes=MAX_BYTES)
            else:
                size = self._sources.stores.blobs.size_of(self.entries[path])
                if size is None or size > MAX_BYTES:
                    return None
                data = self._sources.stores.blobs.get(self.entries[path])
            return data.decode().splitlines()
        except (DeepSeekOpsError, UnicodeDecodeError):
            return None


def both_files(sources: Sources, old: Subject, new: Subject) -> tuple[Files, Files] | None:
    """Return the files of both commits from one place, or None when no place has both."""
    if old.manifest is None or new.manifest is None:
        return None
    sides = Files(sources, old, old.manifest), Files(sources, new, new.manifest)
    if sides[0].place == sides[1].place == "store":
        return sides
    sides[0].from_git(old.manifest.source.repository)
    sides[1].from_git(new.manifest.source.repository)
    return sides if sides[0].place == sides[1].place == "git" else None


def code_move(sources: Sources, old: Subject, new: Subject) -> list[Move]:
    """Return how code and lock file moved. Documentation, results and pointers are named, and no move."""
    before, after = _manifests(old, new)
    config, _ = read_config(sources, after)
    files = both_files(sources, old, new)
    if before.tree == after.tree:
        return [Move(part="code", moved=False, old=before.tree, new=after.tree, summary="the same files")]
    if files is None or config is None:
        summary = "the trees differ, and no copy of both is left to say in what"
        return [Move(part="code", moved=None, old=before.tree, new=after.tree, summary=summary)]
    changed = _changed(*files)
    by_kind: dict[ChangeKind, list[str]] = {}
    for path in changed:
        kind = ChangeKind.PIPELINE if path == config.training.model else kind_of(config, path)
        by_kind.setdefault(kind, []).append(path)
    code = [*by_kind.get(ChangeKind.CODE, []), *_no_pointers(by_kind.get(ChangeKind.DATA, []))]
    text, cut = _texts(files, code)
    others: dict[str, JsonValue] = {str(kind): list(paths[:MAX_FILES]) for kind, paths in by_kind.items()}
    return [
        Move(
            part="code",
            moved=bool(code),
            old=before.source.commit,
            new=after.source.commit,
            summary=_named(code, "files") if code else f"no code moved; {_named(changed, 'other files')}",
            details={"paths": others, "compared_in": files[0].place},
            text=tuple(text),
            cut=cut,
        )
    ]


def config_move(sources: Sources, old: Subject, new: Subject) -> Move:
    """Return how the pipeline file, its overrides and the values that were chosen moved.

    It counts as moved when something that decides the weights differs; another alert or trigger does not.
    """
    before, after = _manifests(old, new)
    names = (before.config_digest, after.config_digest)
    lines, missing = _config_lines(sources, before, after)
    text, cut = _bounded(
        list(difflib.unified_diff(*lines, f"old/{PIPELINE_FILE}", f"new/{PIPELINE_FILE}", lineterm=""))
    )
    values = _decisions(sources, old, before), _decisions(sources, new, after)
    differ = {key: [values[0].get(key), values[1].get(key)] for key in sorted({*values[0], *values[1]})}
    details: dict[str, JsonValue] = {key: pair for key, pair in differ.items() if pair[0] != pair[1]}
    moved: bool | None = bool(details)
    if missing and not moved:
        moved = None if names[0] != names[1] else False
    if details:
        summary = ", ".join(
            f"{key} {_brief(pair[0])} -> {_brief(pair[1])}" for key, pair in differ.items() if key in details
        )
    else:
        summary = missing or ("the same" if names[0] == names[1] else "only in what does not decide the weights")
    return Move(
        part="config",
        moved=moved,
        old=names[0],
        new=names[1],
        summary=summary,
        details=details,
        text=tuple(text),
        cut=cut,
    )


def plain_moves(old: Subject, new: Subject) -> list[Move]:
    """Return how base, software, hardware and seed moved: values of the manifest that speak for themselves."""
    before, after = _manifests(old, new)
    pairs = {
        "base": (before.base, after.base),
        "software": (before.software, after.software),
        "hardware": (before.hardware, after.hardware),
        "seed": (str(before.seed), str(after.seed)),
    }
    return [_plain_move(part, was, now) for part, (was, now) in pairs.items()]


def _plain_move(part: str, was: str, now: str) -> Move:
    summary = f"{_brief(was) or 'none'} -> {_brief(now) or 'none'}" if was != now else "the same"
    return Move(part=part, moved=was != now, old=was, new=now, summary=summary)


def unified(files: tuple[Files, Files], paths: Iterable[str]) -> tuple[list[str], int]:
    """Return the bounded textual differences of some files."""
    return _texts(files, list(paths))


def _manifests(old: Subject, new: Subject) -> tuple[RunManifest, RunManifest]:
    assert old.manifest is not None and new.manifest is not None  # noqa: S101, PT018  (compare() has refused others)
    return old.manifest, new.manifest


def _changed(old: Files, new: Files) -> list[str]:
    paths = {*old.entries, *new.entries}
    return sorted(path for path in paths if old.entries.get(path) != new.entries.get(path))


def _no_pointers(paths: Iterable[str]) -> list[str]:
    """Return the paths that are data of the commit itself; what a pointer names is compared as data."""
    return [path for path in paths if not path.endswith(".dataset.yaml")]


def _texts(files: tuple[Files, Files], paths: list[str]) -> tuple[list[str], int]:
    found: list[str] = []
    for path in paths[:MAX_FILES]:
        sides = files[0].lines(path), files[1].lines(path)
        if sides[0] is None or sides[1] is None:
            found.append(f"{path} differs and is large or no text")
            continue
        found += difflib.unified_diff(sides[0], sides[1], f"old/{path}", f"new/{path}", lineterm="")
    if len(paths) > MAX_FILES:
        found.append(f"{len(paths) - MAX_FILES} more files differ")
    return _bounded(found)


def _bounded(lines: list[str]) -> tuple[list[str], int]:
    kept = [line[:500] for line in lines[:MAX_LINES]]
    return kept, len(lines) - len(kept)


def _config_lines(sources: Sources, before: RunManifest, after: RunManifest) -> tuple[tuple[list[str], list[str]], str]:
    sides: list[list[str]] = []
    for manifest in (before, after):
        try:
            text = sources.stores.blobs.get(manifest.config_digest).decode(errors="replace")
        except DeepSeekOpsError as error:
            return ([], []), f"the pipeline file: {error}"
        overrides = [f"# override {key}: {json.dumps(value)}" for key, value in sorted(manifest.overrides.items())]
        sides.append([*text.splitlines(), *overrides])
    return (sides[0], sides[1]), ""


def _decisions(sources: Sources, subject: Subject, manifest: RunManifest) -> Mapping[str, JsonValue]:
    """Return what decides the weights: as planned, or else as the pipeline file says."""
    if subject.evidence is not None:
        plan = subject.evidence.plan
        return {**decided(plan), "model": plan.model, "deepspeed": plan.deepspeed}
    config, _ = read_config(sources, manifest)
    return _declared(config) if config else {}


def _declared(config: PipelineFile) -> Mapping[str, JsonValue]:
    body: dict[str, JsonValue] = config.training.model_dump(mode="json", exclude={"seed", "budget", "base"})
    return body


def _named(paths: list[str], what: str) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"{len(paths)} {what if len(paths) != 1 else what[:-1]}: {', '.join(paths[:3])}{more}"


def _brief(value: JsonValue) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    text = text[:12] if len(text) in (40, 64) and not set(text) - set("0123456789abcdef") else text
    return text if len(text) <= 60 else f"{text[:57]}..."
