"""The data pages as HTML, from what ``data_views`` found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from deepseek_ops.core.records import DatasetVersion, Digest
from deepseek_ops.data.history import LogEntry
from deepseek_ops.data.progress import readable
from deepseek_ops.web.data_graph import size_plot, strip_svg, strips
from deepseek_ops.web.data_views import DatasetLine, DatasetView, FilesView
from deepseek_ops.web.frames import DATASETS
from deepseek_ops.web.markup import Child, Html, address, el, table


def short(version: Digest) -> str:
    """Return the beginning of an id, enough to tell versions apart."""
    return version[:12]


def when(at: str) -> str:
    """Return a time of the log as people read it."""
    return at.replace("T", " ").removesuffix("+00:00") + " UTC" if at else "merged in"


def version_link(base: str, version: Digest) -> Html:
    """Return the link to a version."""
    return el("a", short(version), href=address(base, "v", version), class_="id")


def datasets_page(base: str, lines: Sequence[DatasetLine], store: str) -> Html:
    """Return the list of datasets."""
    rows: list[list[Child]] = [
        [
            el("a", line.name, href=address(base, "d", line.name)),
            version_link(base, line.version) if line.version else "",
            line.message,
            f"{line.num_files:,}",
            readable(line.num_bytes),
            line.branches,
            when(line.at) if line.at else "",
        ]
        for line in lines
    ]
    heads = ("Dataset", "Newest version", "Message", "Files", "Size", "Branches", "Since")
    content: Child = (
        table(f"{len(lines)} datasets", heads, rows, numbers=(3, 4, 5))
        if lines
        else el(
            "p", "There is no dataset yet. ", el("code", "deepseek-ops data commit FOLDER --name NAME"), " makes one."
        )
    )
    return DATASETS.page(base, "Datasets", el("p", "Store ", el("code", store), class_="lead"), content)


def dataset_page(base: str, view: DatasetView, limit: int) -> Html:
    """Return one dataset: branches, tags, the graph of its versions, sizes over time."""
    plot = size_plot(view.main, name=view.name)
    more = address(base, "d", view.name, limit=limit * 4)
    content: list[Child] = [
        el("h2", "Branches and tags"),
        el(
            "ul",
            [el("li", _chip(base, name, version, "branch")) for name, version in view.branches.items()],
            [el("li", _chip(base, name, version, "tag")) for name, version in view.tags.items()],
            class_="chips",
        ),
        [el("h2", "Size over time"), plot] if plot else None,
        el("h2", "Versions"),
        _compare_form(base, view),
        _graph(base, view),
        el("p", el("a", "Older versions", href=more), class_="more") if view.more else None,
    ]
    return DATASETS.page(base, view.name, content)


def _chip(base: str, name: str, version: Digest, kind: str) -> Html:
    label = f"{kind} {name}, version {short(version)}"
    return el("a", name, href=address(base, "v", version), class_=f"chip {kind}", title=label)


def _compare_form(base: str, view: DatasetView) -> Html | None:
    if len(view.history) < 2:
        return None

    def choice(label: str, name: str, chosen: Digest) -> Html:
        options = [
            el(
                "option",
                f"{short(entry.version)} {entry.message[:60]}",
                value=entry.version,
                selected=entry.version == chosen,
            )
            for entry in view.history
        ]
        return el("label", label, el("select", options, name=name))

    newest = view.history[0]
    old = newest.parents[0] if newest.parents else view.history[1].version
    return el(
        "form",
        choice("Compare", "old", old),
        choice("with", "new", newest.version),
        el("button", "Compare"),
        action=address(base, "diff"),
        class_="filter",
    )


def _graph(base: str, view: DatasetView) -> Html:
    names: dict[Digest, list[Html]] = {}
    for kind, refs in (("branch", view.branches), ("tag", view.tags)):
        for name, version in refs.items():
            names.setdefault(version, []).append(_chip(base, name, version, kind))
    drawn = strips(view.history)
    width = max((max((strip.lane, *strip.above, *(end for _, end in strip.links))) + 1 for strip in drawn), default=1)
    rows = [
        el("li", strip_svg(strip, width), _log_row(base, entry, names.get(entry.version, [])))
        for strip, entry in zip(drawn, view.history, strict=True)
    ]
    return el("ol", rows, class_="log", aria_label="Versions, newest first")


def _log_row(base: str, entry: LogEntry, names: Sequence[Html]) -> list[Child]:
    made = f", merged from {', '.join(map(short, entry.parents))}" if len(entry.parents) > 1 else ""
    facts: list[Child] = [el("span", short(entry.version), class_="id"), f" by {entry.author}, {when(entry.at)}{made}"]
    return [
        el(
            "div",
            el("a", entry.message or "(no message)", href=address(base, "v", entry.version), title=entry.message),
            el("small", facts),
            class_="what",
        ),
        el("div", names, class_="names"),
        el("div", f"{entry.num_files:,} files, {readable(entry.num_bytes)}", class_="size"),
    ]


def version_page(
    base: str,
    version: DatasetVersion,
    body: Mapping[str, JsonValue],
    files: FilesView,
    *,
    pattern: str,
    split: str,
    splits: Mapping[str, int] | None,
) -> Html:
    """Return one version: its facts and a stretch of its files."""
    parents = body.get("parents")
    links: list[Child] = [
        [version_link(base, str(parent)), " (", _diff_link(base, str(parent), version.version), ") "]
        for parent in (parents if isinstance(parents, list) else [])
    ]
    facts: list[tuple[str, Child]] = [
        ("Version", el("span", version.version, class_="id")),
        ("Author", str(body.get("author", ""))),
        ("Contents", f"{version.num_files:,} files, {readable(version.num_bytes)}"),
        ("Records", ", ".join(f"{count:,} {name}" for name, count in version.splits.items()) or None),
        ("Made from", links or "nothing: the first version"),
    ]
    lineage = body.get("lineage")
    listed = [el("dt", name) + el("dd", value) for name, value in facts if value is not None]
    content: list[Child] = [
        el("dl", [Html(pair) for pair in listed], class_="facts"),
        _details("Lineage", lineage) if lineage else None,
        el("h2", "Files"),
        _filter_form(base, version.version, pattern, split, splits),
        _files_table(base, version.version, files),
        _next_link(base, version.version, files, pattern, split),
    ]
    title = str(body.get("message") or short(version.version))
    return DATASETS.page(base, title, content, crumbs=[(version.name, address(base, "d", version.name))])


def _details(title: str, value: JsonValue) -> Html:
    return el("details", el("summary", title), el("pre", json.dumps(value, indent=2, ensure_ascii=False)))


def _diff_link(base: str, old: Digest, new: Digest) -> Html:
    return el("a", "what changed", href=address(base, "diff", old=old, new=new))


def _filter_form(base: str, version: Digest, pattern: str, split: str, splits: Mapping[str, int] | None) -> Html:
    named = {name: count for name, count in (splits or {}).items() if name}
    options = [el("option", "all", value="")]
    options += [
        el("option", f"{name} ({count:,})", value=name, selected=name == split) for name, count in named.items()
    ]
    by_split = el("label", "Split", el("select", options, name="split")) if named else None
    if splits is None:
        by_split = el("label", "Split", el("input", name="split", value=split, size=12))
    return el(
        "form",
        el("label", "Path holds, or glob", el("input", name="pattern", value=pattern, placeholder="train/*.jsonl")),
        by_split,
        el("button", "Filter"),
        action=address(base, "v", version),
        class_="filter",
        role="search",
    )


def _files_table(base: str, version: Digest, files: FilesView) -> Html:
    rows: list[list[Child]] = [
        [
            el("a", file.entry.path, href=address(base, "v", version, "file", path=file.entry.path)),
            file.entry.split,
            readable(file.entry.size),
            el("span", file.entry.digest.hex()[:16], class_="id", title=file.entry.digest.hex()),
            el("a", "download", href=raw_address(base, version, file.entry.path)),
        ]
        for file in files.files
    ]
    caption = f"{len(rows)} files" + (", more follow" if files.next_after else "")
    return table(caption, ("Path", "Split", "Size", "SHA-256", "Bytes"), rows, numbers=(2,))


def raw_address(base: str, version: Digest, path: str) -> str:
    """Return where a file's bytes are."""
    return address(base, "v", version, "raw", path)


def _next_link(base: str, version: Digest, files: FilesView, pattern: str, split: str) -> Html | None:
    if not files.next_after:
        return None
    link = address(base, "v", version, pattern=pattern, split=split, after=files.next_after)
    return el("p", el("a", "Next files", href=link, rel="next"), class_="more")


def problem_page(base: str, status: int, message: str) -> Html:
    """Return the page that says what went wrong."""
    title = {401: "Access needed", 404: "Not found", 503: "Not available"}.get(status, "This did not work")
    return DATASETS.page(base, title, el("p", message, role="alert"))
