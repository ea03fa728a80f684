"""What happened in a training, in words: one line for each event, details folded below it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import JsonValue

from deepseek_ops.training.streams import STAMPS
from deepseek_ops.web.training_chart import Mark

MAX_TEXT = 600
MAX_DETAILS = 20_000
_TONES = {
    "checkpoint": "saved", "checkpoint_uploaded": "saved",
    "guardian": "decision", "alert": "decision",
    "hang": "trouble", "stacks": "trouble", "restart": "trouble", "failed": "trouble", "stragglers": "trouble",
    "checkpoint_failed": "trouble", "spot_notice": "trouble", "checkpoint_fenced": "trouble",
    "checkpoint_upload_delayed": "trouble", "checkpoint_upload_abandoned": "trouble",
    "resumed": "resumed", "checkpoint_restored": "resumed", "resume_proof": "resumed", "loss_continuity": "resumed",
}  # fmt: skip
_QUIET = STAMPS | {"kind", "step", "time", "notify"}

Event = Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Told:
    """One event for people."""

    at: str
    step: str
    kind: str
    tone: str
    text: str
    details: str = ""
    """Longer text, shown folded."""


def tell(event: Event) -> Told:
    """Return an event in words. What it holds is text of others: whoever shows it escapes it."""
    kind = str(event.get("kind", "event"))
    sentence, details = _SENTENCES.get(kind, _anything)(event)
    step = event.get("step", event.get("from_step"))
    return Told(
        at=_when(event),
        step=f"{step:,}" if isinstance(step, int) else "",
        kind=kind,
        tone=_TONES.get(kind, ""),
        text=sentence[:MAX_TEXT],
        details=details[:MAX_DETAILS],
    )


def marks(events: Sequence[Event]) -> list[Mark]:
    """Return the events that have a step as marks on a curve; those that say the same twice once."""
    found = []
    for event in events:
        step = event.get("step", event.get("from_step"))
        kind = str(event.get("kind"))
        if isinstance(step, int) and kind in _TONES and kind not in ("alert", "checkpoint_uploaded", "stacks"):
            found.append(Mark(step, _TONES[kind], f"step {step:,}: {kind}, {tell(event).text}"[:200]))
    return found


def _when(event: Event) -> str:
    at, time = event.get("at"), event.get("time")
    if isinstance(at, int | float) and 0 <= at < 1e11:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return str(time or "")[:19].replace("T", " ")


def _alert(event: Event) -> tuple[str, str]:
    attempt = (
        f", attempt {event.get('action_attempt')} of {event.get('max_attempts')}" if event.get("max_attempts") else ""
    )
    text = f"{event.get('rule')} ({event.get('severity')}): {event.get('action')}{attempt}"
    return f"{text}. Evidence: {event.get('metric')} = {_values(event.get('evidence'))}", ""


def _guardian(event: Event) -> tuple[str, str]:
    who = event.get("rule") or (f"asked by {event.get('by')}" if event.get("by") else "asked by a person")
    text = f"{event.get('action')} " + ("done" if event.get("done") else f"not done: {event.get('why_not')}")
    if isinstance(event.get("went_to"), int):
        text += f", went back to step {event['went_to']:,}"
    if event.get("samples_skipped"):
        text += f", {event['samples_skipped']} samples left out"
    if event.get("lr_factor") not in (None, 1.0):
        text += f", learning rate x {event['lr_factor']}"
    shown = f" Evidence: {event.get('metric')} = {_values(event['evidence'])}" if event.get("evidence") else ""
    return f"{text}. Rule: {who}.{shown}", ""


def _checkpoint(event: Event) -> tuple[str, str]:
    return f"saved in {event.get('seconds', '?')} s ({event.get('reason', '')})", ""


def _stacks(event: Event) -> tuple[str, str]:
    frames = event.get("frames")
    lines = [str(frame) for frame in frames] if isinstance(frames, list) else []
    head = f"rank {event.get('rank')} on node {event.get('node')}, {event.get('phase')}"
    problem = f": no stack, {event['problem']}" if event.get("problem") else f", {len(lines)} frames"
    return head + problem, "\n".join(lines)


def _hang(event: Event) -> tuple[str, str]:
    behind = event.get("behind")
    who = f"rank {_values(behind)} keeps the others" if behind else "no rank goes on"
    text = f"no progress for {event.get('silent_seconds')} s (limit {event.get('limit_seconds')} s): {who}"
    return text, json.dumps(event.get("positions"), indent=1)


def _stragglers(event: Event) -> tuple[str, str]:
    ranks = event.get("ranks")
    slow = [rank for rank in ranks if isinstance(rank, dict)] if isinstance(ranks, list) else []
    told = [
        f"rank {rank.get('rank')} (node {rank.get('node')}) needs {rank.get('ratio')} x the others" for rank in slow
    ]
    return "; ".join(told), json.dumps(slow, indent=1)


def _restart(event: Event) -> tuple[str, str]:
    return f"number {event.get('restarts')}: {event.get('reason')}", ""


def _resumed(event: Event) -> tuple[str, str]:
    text = f"from step {event.get('from_step')} on {event.get('ranks')} ranks"
    left_out = event.get("samples_skipped")
    return (f"{text}, {left_out} samples left out before" if left_out else text), ""


def _proof(event: Event) -> tuple[str, str]:
    exact = "exact" if event.get("exact") else "NOT exact"
    text = f"{exact}: {event.get('samples_repeated')} samples repeated, {event.get('samples_skipped')} skipped"
    text += f" of {event.get('samples')}; {event.get('steps_recomputed')} steps computed again"
    lives = event.get("lives")
    return text, "\n".join(json.dumps(life) for life in lives) if isinstance(lives, list) else ""


def _anything(event: Event) -> tuple[str, str]:
    facts = {name: value for name, value in event.items() if name not in _QUIET}
    text = ", ".join(f"{name.replace('_', ' ')}: {_short(value)}" for name, value in facts.items())
    return text, json.dumps(facts, indent=1, ensure_ascii=False) if len(text) > MAX_TEXT else ""


def _short(value: JsonValue) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_short(one)}" for name, one in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _values(values: JsonValue) -> str:
    return ", ".join(str(value)[:12] for value in values) if isinstance(values, list) else str(values)


_SENTENCES = {
    "alert": _alert,
    "guardian": _guardian,
    "checkpoint": _checkpoint,
    "stacks": _stacks,
    "hang": _hang,
    "stragglers": _stragglers,
    "restart": _restart,
    "resumed": _resumed,
    "resume_proof": _proof,
}
