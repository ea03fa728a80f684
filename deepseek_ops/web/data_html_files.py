"""Pages about what is inside a version: a file, and what changed from one version to another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from deepseek_ops.core.records import DatasetVersion, Digest
from deepseek_ops.data import DatasetDiff, Stored
from deepseek_ops.data.progress import readable
from deepseek_ops.web.data_html import raw_address, short, version_link
from deepseek_ops.web.data_views import Preview
from deepseek_ops.web.frames import DATASETS
from deepseek_ops.web.markup import Child, Html, address, el, table

SHOWN_PATHS = 500
"""Paths of one kind that a comparison lists."""


def file_page(base: str, version: DatasetVersion, file: Stored, seen: Preview) -> Html:
    """Return the part of a file that was read."""
    path = file.entry.path
    facts = f"{readable(file.entry.size)}, SHA-256 {file.entry.digest.hex()}"
    split = f", split {file.entry.split}" if file.entry.split else ""
    content: list[Child] = [
        el("p", facts + split, class_="lead"),
        el("p", el("a", "Download", href=raw_address(base, version.version, path))),
        _records(seen) if seen.kind == "records" else el("pre", seen.text or "(empty)"),
        el("p", "Only the beginning is shown.") if seen.more and seen.kind != "records" else None,
    ]
    if seen.more and seen.rows:
        following = seen.rows[-1][0] + 1
        link = address(base, "v", version.version, "file", path=path, start=following)
        content.append(el("p", el("a", "Next records", href=link, rel="next"), class_="more"))
    crumbs = [
        (version.name, address(base, "d", version.name)),
        (short(version.version), address(base, "v", version.version)),
    ]
    return DATASETS.page(base, path, content, crumbs=crumbs)


def _records(seen: Preview) -> Html:
    if not seen.rows:
        return el("p", "No records.")
    return el("ol", [_record(*row) for row in seen.rows], class_="records")


def _record(number: int, value: JsonValue, problem: str) -> Html:
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)
    shown = el("p", problem, class_="problem") if problem else el("pre", text)
    return el("li", el("div", f"record {number}", class_="at"), shown)


def diff_page(
    base: str,
    old: DatasetVersion,
    new: DatasetVersion,
    diff: DatasetDiff,
    records: Mapping[str, JsonValue] | str | None,
) -> Html:
    """Return what changed between two versions: files, and where asked for, records (or why not)."""
    kinds = (("added", "+", diff.added), ("removed", "-", diff.removed), ("modified", "~", diff.modified))
    summary = ", ".join(f"{len(paths):,} {kind}" for kind, _, paths in kinds)
    sides = {"added": new.version, "modified": new.version, "removed": old.version}
    size = new.num_bytes - old.num_bytes
    sign = "+" if size >= 0 else "-"
    content: list[Child] = [
        el("p", version_link(base, old.version), " to ", version_link(base, new.version), class_="lead"),
        el("p", f"Files: {summary}. Size: {sign}{readable(abs(size))}."),
        _records_part(base, old.version, new.version, records),
        [_paths(base, kind, mark, paths, sides[kind]) for kind, mark, paths in kinds],
        None if diff else el("p", "The files are equal."),
    ]
    return DATASETS.page(base, "What changed", content, crumbs=[(new.name, address(base, "d", new.name))])


def _paths(base: str, kind: str, mark: str, paths: Sequence[str], version: Digest) -> list[Child]:
    if not paths:
        return []
    style = {"added": "added", "removed": "removed", "modified": "changed"}[kind]
    rows: list[list[Child]] = [
        [
            el("span", mark, class_=f"mark {style}", aria_label=kind),
            el("a", path, href=address(base, "v", version, "file", path=path)),
        ]
        for path in paths[:SHOWN_PATHS]
    ]
    left = len(paths) - len(rows)
    caption = f"{len(paths):,} {kind}" + (f", the first {len(rows)} shown" if left else "")
    return [el("h2", kind.capitalize()), table(caption, ("Kind", "Path"), rows)]


def _records_part(base: str, old: Digest, new: Digest, records: Mapping[str, JsonValue] | str | None) -> Child:
    if records is None:
        link = address(base, "diff", old=old, new=new, records=1)
        return el("p", el("a", "Compare record by record", href=link))
    if isinstance(records, str):
        return el("p", records, class_="problem", role="status")
    return [el("h2", "Records"), _split_table(records), _examples(records)]


def _split_table(records: Mapping[str, JsonValue]) -> Html:
    splits = records.get("splits")
    rows: list[list[Child]] = []
    for name, split in (splits if isinstance(splits, dict) else {}).items():
        amounts = split if isinstance(split, dict) else {}
        kinds = ("added", "removed", "changed", "moved")
        rows.append([name or "(none)", *(_amount(amounts.get(kind)) for kind in kinds)])
    heads = ("Split", "Added", "Removed", "Changed", "Moved")
    return table("Records that differ, with their words", heads, rows, numbers=(1, 2, 3, 4))


def _amount(value: JsonValue) -> str:
    if isinstance(value, dict):
        records, tokens = value.get("records", 0), value.get("tokens")
        return f"{records:,}" + (f" ({tokens:,})" if isinstance(tokens, int) else "")
    return f"{value:,}" if isinstance(value, int) else ""


def _examples(records: Mapping[str, JsonValue]) -> Child:
    examples = records.get("examples")
    shown = [example for example in (examples if isinstance(examples, list) else []) if isinstance(example, dict)]
    return [
        [
            el("p", _kind(str(one.get("kind"))), f" {one.get('file')}:{one.get('row')}"),
            el("pre", str(one["old"]), class_="removed") if one.get("old") else None,
            el("pre", str(one["new"]), class_="added") if one.get("new") else None,
        ]
        for one in shown
    ]


def _kind(kind: str) -> Html:
    return el("span", kind, class_=kind)
