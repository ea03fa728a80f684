"""The message of a promotion's merge commit: what wins, by how much, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import JsonValue

from deepseek_ops.pipeline.experiments import Experiment


def promotion_message(
    *,
    source: str,
    into: str,
    merges: str,
    winner: Experiment | None,
    baseline: Experiment | None,
    metric: str,
    doubts: Sequence[str] = (),
) -> str:
    """Return the message. It names the record by its run, and is no record itself."""
    if winner is None:
        return f"Promote {source} to {into}\n\nMerges {merges} as it stands; no experiment of it is recorded.\n"
    record = winner.record
    blocks = [
        f"Promote {source} to {into}: {record.model} on {record.dataset}",
        f"Merges {merges}, the experiment {', '.join(winner.tags) or record.run_id}.",
        *doubts,
        _results(winner, baseline, source, into, metric),
    ]
    if settings := _settings(winner, baseline, source, into):
        blocks.append(settings)
    blocks.append(f"Promotes-Run: {json.dumps(record.run_id)[1:-1]}")
    return "\n\n".join(blocks) + "\n"


def _results(winner: Experiment, baseline: Experiment | None, source: str, into: str, metric: str) -> str:
    ours = winner.record.performance
    theirs = baseline.record.performance if baseline else {}
    first = [name for name in (metric,) if name in ours or name in theirs]
    names = [*first, *sorted({*ours, *theirs} - {metric})]
    rows = [("metric", source, into, "difference")]
    for name in names:
        both = name in ours and name in theirs
        rows.append(
            (
                name,
                _number(ours.get(name)),
                _number(theirs.get(name)),
                f"{ours[name] - theirs[name]:+.4g}" if both else "",
            )
        )
    return f"{_table(rows)}\n\n{_certainty(winner, baseline, into, metric)}"


def _certainty(winner: Experiment, baseline: Experiment | None, into: str, metric: str) -> str:
    """Return what is known of the uncertainty, and never more than that."""
    if baseline is None:
        return f"{into} has no recorded experiment to compare with."
    compared = winner.record.comparisons.get(metric)
    if compared is None:
        return f"No interval is known: the gates of this run compared {metric} with no champion."
    low, high = compared.interval
    told = (
        f"{metric} - champion {compared.champion}: {compared.delta:+.4g}, interval {low:+.4g} to {high:+.4g} (paired)."
    )
    if compared.champion == baseline.record.version:
        return told
    return f"{told} The last experiment of {into} is another version, so this is no interval of the difference above."


def _settings(winner: Experiment, baseline: Experiment | None, source: str, into: str) -> str:
    ours = winner.record.hyperparameters
    theirs = baseline.record.hyperparameters if baseline else {}
    names = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    rows = [("hyperparameter", source, into), *((name, _json(ours, name), _json(theirs, name)) for name in names)]
    return _table(rows) if names else ""


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    head, *rest = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    ruler = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([f"| {head} |", f"|{ruler}|", *(f"| {line} |" for line in rest)])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _json(values: dict[str, JsonValue], name: str) -> str:
    return json.dumps(values[name], sort_keys=True) if name in values else ""
