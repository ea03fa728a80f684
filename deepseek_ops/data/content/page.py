"""Self-contained HTML pages of a comparison and of a report: no script, no request, readable when printed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

from pydantic import JsonValue

from deepseek_ops.data.content.diff_records import RecordDiff, RecordExample, Side, SplitDiff
from deepseek_ops.data.content.findings import ContentReport, Finding
from deepseek_ops.data.content.lengths import Lengths

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--old:#c2410c;--new:#0f766e;--bad:#b91c1c;--warn:#b45309}
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.15rem;margin-top:2rem}h3{font-size:1rem}
table{border-collapse:collapse;width:100%;margin:.5rem 0}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
code,.text{font:13px/1.45 ui-monospace,monospace;overflow-wrap:anywhere}
.old{color:var(--old)}.new{color:var(--new)}.block{color:var(--bad)}.warn{color:var(--warn)}
figure{margin:.5rem 0}figcaption{font-size:.85rem;opacity:.8}
.badge{padding:.1rem .5rem;border:1px solid currentColor;border-radius:.5rem}
"""
_WIDTH, _HEIGHT, _BARS = 720, 130, 48
_NAMES = 8
"""Scripts and languages that are shown."""


def diff_page(found: RecordDiff) -> str:
    """Return the comparison as a page."""
    parts = [
        f"<h1>What changed from <code>{found.old[:12]}</code> to <code>{found.new[:12]}</code></h1>",
        f"<p>Records are the same by {escape(found.identity)}; tokens are {escape(found.measure)}. Files: "
        + escape(", ".join(f"{count} {kind}" for kind, count in found.files.items()))
        + f"; {found.files_without_records} of them hold no records; {found.unreadable} unreadable rows.</p>",
        _table(
            ("split", "added", "removed", "changed", "moved here", "equal", "tokens"),
            [_split_row(name, split) for name, split in found.splits.items()],
        ),
    ]
    for name, split in found.splits.items():
        parts += _split_part(name, split)
    if found.examples:
        parts.append("<h2>Examples</h2>")
        parts.append(_table(("change", "record", "text"), [_example_row(one) for one in found.examples], numbers=False))
    return _page("Record-level comparison", parts)


def report_page(dataset: str, report: ContentReport, profiles: Mapping[str, JsonValue]) -> str:
    """Return the report on a dataset as a page."""
    parts = [
        f'<h1>{escape(dataset)}: <span class="badge {report.verdict}">{report.verdict}</span></h1>',
        *(_finding_part(one) for one in report.findings),
        "<h2>Figures</h2>",
        _table(("figure", "value"), [(escape(name), escape(value)) for name, value in _flat(report.figures)]),
    ]
    for name, profile in profiles.items():
        if isinstance(profile, dict):
            side = Side.model_validate(profile)
            parts.append(f"<h2>Split {escape(name)}: {side.documents:,} documents, {side.tokens:,} tokens</h2>")
            parts.append(_histogram([("documents", "new", side)]))
            parts.append(_shares_table([("share", side)]))
    return _page(f"Report on {dataset}", parts)


def _page(title: str, parts: Iterable[str]) -> str:
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
    viewport = '<meta name="viewport" content="width=device-width,initial-scale=1">'
    return f"{head}{viewport}<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    def cell(tag: str, at: int, content: str) -> str:
        return f"<{tag}{' class=n' if numbers and at else ''}>{content}</{tag}>"

    top = "".join(cell("th", at, escape(head)) for at, head in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(cell("td", at, content) for at, content in enumerate(row)) + "</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _split_row(name: str, split: SplitDiff) -> tuple[str, ...]:
    gained = split.added.tokens - split.removed.tokens + split.changed.tokens
    counts = (split.added.records, split.removed.records, split.changed.records, split.moved, split.unchanged)
    return (escape(name), *(f"{count:,}" for count in counts), f"{gained:+,}")


def _split_part(name: str, split: SplitDiff) -> Iterator[str]:
    sides = [(label, label, side) for label, side in (("old", split.old), ("new", split.new)) if side is not None]
    yield f"<h2>{escape(name)}</h2>"
    if split.shift:
        moved = ", ".join(f"{key} {value}" for key, value in split.shift.items())
        yield f"<p>Shift, compared with {escape(split.shift_from)}: {escape(moved)}.</p>"
    yield _histogram(sides)
    yield _shares_table([(label, side) for label, _, side in sides])


def _histogram(sides: Sequence[tuple[str, str, Side]]) -> str:
    """Return the length distributions as bars side by side, in shares of the records of each side."""
    loaded = [(label, color, Lengths.load(side.length_histogram)) for label, color, side in sides]
    top = max((max(map(int, side.length_histogram), default=0) for _, _, side in sides), default=0)
    step = max(1, -(-(top + 1) // _BARS))
    shares = [(label, color, _binned(side.length_histogram, step)) for label, color, side in sides]
    highest = max((share for _, _, bars in shares for share in bars), default=0) or 1
    width = _WIDTH / _BARS / max(len(shares), 1)
    bars = []
    for number, (label, color, heights) in enumerate(shares):
        for at, share in enumerate(heights):
            if share:
                high = max(1.0, _HEIGHT * share / highest)
                place = f'x="{at * _WIDTH / _BARS + number * width:.1f}" y="{_HEIGHT - high:.1f}"'
                size = f'width="{max(width - 0.6, 0.6):.1f}" height="{high:.1f}" fill="var(--{color})"'
                title = f"{label}: {share:.1%} have {at * step:,} to {(at + 1) * step - 1:,}"
                bars.append(f"<rect {place} {size}><title>{escape(title)}</title></rect>")
    axis = f'<line x1="0" y1="{_HEIGHT}" x2="{_WIDTH}" y2="{_HEIGHT}" stroke="currentColor"/>'
    ticks = "".join(
        f'<text x="{part * _WIDTH / 4:.0f}" y="{_HEIGHT + 16}" font-size="12" fill="currentColor" '
        f'text-anchor="{("start", "middle", "middle", "middle", "end")[part]}">{part * step * _BARS // 4:,}</text>'
        for part in range(5)
    )
    legend = ", ".join(
        f'<span class="{color}">{escape(label)}: {lengths.count:,} records, median '
        f"{lengths.quantiles().get('p50', 0):,}</span>"
        for label, color, lengths in loaded
    )
    drawing = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 22}" role="img" width="100%">{"".join(bars)}{axis}{ticks}</svg>'
    return (
        f"<figure>{drawing}<figcaption>Length in tokens, share of records per {step:,}: {legend}</figcaption></figure>"
    )


def _binned(histogram: Mapping[str, int], step: int) -> list[float]:
    counts = [0] * _BARS
    for least, count in histogram.items():
        counts[min(int(least) // step, _BARS - 1)] += count
    total = sum(counts) or 1
    return [count / total for count in counts]


def _shares_table(sides: Sequence[tuple[str, Side]]) -> str:
    rows: list[tuple[str, ...]] = []
    kinds = {"script": [side.scripts for _, side in sides], "language": [side.languages for _, side in sides]}
    for kind, shares in kinds.items():
        seen = {name for one in shares for name in one}
        largest = {name: max(one.get(name, 0) for one in shares) for name in seen}
        names = sorted(largest, key=lambda name: (-largest[name], name))[:_NAMES]
        rows += [(f"{kind} {escape(name)}", *(f"{one.get(name, 0):.1%}" for one in shares)) for name in names]
    return _table(("", *(label for label, _ in sides)), rows)


def _example_row(one: RecordExample) -> tuple[str, str, str]:
    texts = "".join(
        f'<div class="text {label}">{escape(text)}</div>'
        for label, text in (("old", one.old), ("new", one.new))
        if text
    )
    key = f"<br>{escape(one.key)}" if one.key else ""
    return one.kind, f"<code>{escape(one.file)}:{one.row}</code>{key}", texts


def _finding_part(finding: Finding) -> str:
    examples = "".join(f'<li class="text">{escape(str(one))}</li>' for one in finding.examples)
    head = f'<h3 class="{finding.action}">{finding.action}: {escape(finding.check)}</h3>'
    return f"{head}<p>{escape(finding.problem)} {escape(finding.remedy)}</p><ul>{examples}</ul>"


def _flat(body: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in body.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, f"{value:,}" if isinstance(value, int) else str(value)
