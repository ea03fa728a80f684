"""The sections of a run's page, which can be sent by themselves, so that an open page stays new."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from deepseek_ops.data.progress import readable
from deepseek_ops.web.markup import Child, Html, address, el, table
from deepseek_ops.web.training_chart import Line, Look, chart, heat_strip
from deepseek_ops.web.training_events import Told, marks, tell
from deepseek_ops.web.training_runs import MAX_NODES, ROUTINE, Node, RunView, number

MAX_EVENT_ROWS = 250
TABLE_ROWS = 20
MAX_EXPERT_ROWS = 128


def sections(base: str, view: RunView, *, nodes_from: int) -> dict[str, Html]:
    """Return the parts of a run's page by their ids."""
    return {
        "facts": el("div", _facts(view)),
        "curves": el("div", _curves(view)),
        "experts": el("div", _experts(view)),
        "machines": el("div", _machines(base, view, nodes_from)),
        "events": el("div", _events(view)),
    }


def state_chip(state: str) -> Html:
    """Return the state as a chip."""
    return el("span", state, class_=f"chip state-{state}")


def _facts(view: RunView) -> list[Child]:
    eta = view.eta_seconds()
    rows: list[tuple[str, Child]] = [
        ("plan", el("code", view.plan)),
        ("state", [state_chip(view.state), " still reading what is stored" if view.more else ""]),
        ("step", f"{max(view.step, 0):,}" + (f" of {view.total_steps:,}" if view.total_steps else "")),
        ("attempt", str(view.attempt)),
        ("first heard of", when(view.started_at)),
        ("last heard of", when(view.seen_at)),
    ]
    if eta is not None and view.state == "running":
        rows.append(("remaining", f"about {_lasting(eta)} at the speed of the last 50 steps"))
    bar = None
    if view.total_steps:
        bar = el("progress", value=max(view.step, 0), max=view.total_steps, aria_label="Steps done")
    return [bar, el("dl", [[el("dt", name), el("dd", value)] for name, value in rows], class_="facts")]


def _curves(view: RunView) -> list[Child]:
    series = view.series
    happened = marks(view.told())

    def small(title: str, shown: Callable[[float], str], *names: str, log: bool = False, zero: bool = False) -> Child:
        look = Look(shown, _step, width=400, height=170, may_log=log, from_zero=zero)
        return chart(title, [Line(name.replace("_", " "), series[name]) for name in names], look)

    loss = [Line("training loss", series["training_loss"]), Line("val loss", series["val_loss"])]
    loss.append(Line("val loss, old data", series["val_loss_old"]))
    main = chart("Loss", loss, Look(as_text, _step, width=1140, height=300, may_log=True), happened)
    others = [
        small("Learning rate", as_text, "learning_rate", zero=True),
        small("Gradient norm", as_text, "grad_norm", log=True),
        small("Tokens per second", _large, "tokens_per_second", zero=True),
        small("MFU", _percent, "mfu", zero=True),
        small("Expert load, multiple of an even share", as_text, "expert_load_min", "expert_load_max", log=True),
        small("Dead experts", as_text, "experts_dead", zero=True),
        small("Drift of the routers' bias", as_text, "bias_drift", zero=True),
        small("Accuracy and recall", _percent, "accuracy", "recall", zero=True),
    ]
    drawn = [one for one in others if one is not None]
    if main is None:
        return [el("h2", "Curves"), el("p", "No step has been reported yet.")]
    key = el(
        "p",
        [[el("span", class_=f"sign-{tone}"), f" {what} "] for tone, what in _SIGNS],
        el("br"),
        "A shaded band is the range of the steps that one point stands for.",
        class_="signs",
    )
    return [el("h2", "Curves"), main, key, el("div", drawn, class_="grid-of"), _numbers(view)]


_SIGNS = (
    ("saved", "checkpoint"),
    ("decision", "guardian"),
    ("trouble", "hang, restart, straggler"),
    ("resumed", "resumed"),
    ("bad", "NaN or infinite"),
)


def _numbers(view: RunView) -> Html:
    """Return the curves as a table, thinned to what can be read."""
    names = [name for name, series in view.series.items() if series]
    ends = view.series["training_loss"].ends or (0.0, 1.0)
    by_name = {name: view.series[name].columns(*ends, TABLE_ROWS - 1) for name in names}
    width = ((ends[1] - ends[0]) or 1.0) / (TABLE_ROWS - 1)
    found: dict[int, dict[str, str]] = {}
    for name, columns in by_name.items():
        for column in columns:
            cell = as_text(column.mean) if column.count else "NaN or infinite"
            found.setdefault(int((column.first - ends[0]) / width), {})[name] = cell
    rows: list[list[Child]] = [
        [f"{ends[0] + place * width:,.0f}", *(cells.get(name, "") for name in names)]
        for place, cells in sorted(found.items())
    ]
    heads = ("From step", *(name.replace("_", " ") for name in names))
    shown = table("Means of equal parts of the run", heads, rows, numbers=range(len(heads)))
    return el("details", el("summary", "The curves as numbers"), shown, id="numbers")


def _experts(view: RunView) -> Child:
    columns: list[list[float]] = []
    steps: list[float] = []
    names: list[str] = []
    for row in view.details:
        layers = row.get("layers")
        kept = [layer for layer in layers if isinstance(layer, list)] if isinstance(layers, list) else []
        shares = [number(share) or 0.0 for layer in kept for share in layer][:MAX_EXPERT_ROWS]
        if columns and len(shares) != len(columns[0]):
            columns, steps = [], []  # another model: an older attempt's
        columns.append(shares)
        steps.append(number(row.get("step")) or 0.0)
        names = [f"layer {at}" if not place else "" for at, layer in enumerate(kept) for place in range(len(layer))]
    if not columns or not columns[0]:
        return None
    counts = sum(share < 0.02 for share in columns[-1])
    told = f"{len(columns[0])} experts, {counts} without tokens in the newest interval."
    scale = [[el("span", class_=f"key heat{shade}"), f" {text} "] for shade, text in enumerate(_SHADES)]
    picture = el("div", heat_strip(columns, steps, names[:MAX_EXPERT_ROWS]), class_="scroll", tabindex=0)
    return [el("h2", "Load of each expert"), el("p", told), picture, el("p", scale, class_="signs")]


_SHADES = ("dead", "< 0.35", "< 0.75", "even", "> 1.35", "> 2", "> 3")


def _machines(base: str, view: RunView, nodes_from: int) -> Child:
    if not view.num_nodes:
        return None
    shown = (
        f"{nodes_from + 1} to {nodes_from + len(view.nodes)} of {view.num_nodes} nodes, their last half hour at most"
    )
    more = None
    if nodes_from + MAX_NODES < view.num_nodes:
        more = el("a", "More nodes", href=address(base, "runs", view.plan, nodes=nodes_from + MAX_NODES))
    return [el("h2", "Machines"), el("p", shown, " ", more, class_="lead"), [_machine(node) for node in view.nodes]]


def _machine(node: Node) -> Child:
    series = node.series
    gpus = sorted({name.partition("_")[0] for name in series if name.startswith("gpu")}, key=lambda gpu: int(gpu[3:]))

    def small(title: str, shown: Callable[[float], str], names: Mapping[str, str], top: float | None = None) -> Child:
        look = Look(shown, _clock, width=370, height=150, from_zero=True, top=top, binary=shown is _bytes)
        return chart(title, [Line(text, series[name]) for name, text in names.items() if name in series], look)

    def of_gpus(key: str) -> dict[str, str]:
        return {f"{gpu}_{key}": gpu.upper() for gpu in gpus}

    both = {"memory_used_bytes": "in use", "ranks_rss_bytes": "ranks"}
    wire = {"network_received_bytes_per_second": "in", "network_sent_bytes_per_second": "out"}
    disk = {"disk_read_bytes_per_second": "read", "disk_written_bytes_per_second": "written"}
    gpu_bytes = max((limit for name, limit in node.limits.items() if name.startswith("gpu")), default=0.0)
    drawn = [
        small("CPU", _of_hundred, {"cpu_percent": "all cores"}, 100.0),
        small("Memory", _bytes, both, node.limits.get("memory_total_bytes")),
        small("Network per second", _bytes, wire),
        small("Disk per second", _bytes, disk),
        small("GPU utilisation", _of_hundred, of_gpus("utilisation_percent"), 100.0),
        small("GPU memory", _bytes, of_gpus("memory_used_bytes"), gpu_bytes or None),
        small("GPU power", _watts, of_gpus("power_watts")),
    ]
    charts = [one for one in drawn if one is not None]
    return [el("h3", f"Node {node.name} ", el("small", node.host)), el("div", charts, class_="grid-of")]


def _events(view: RunView) -> Child:
    told = [(str(event.get("kind")) in ROUTINE, tell(event)) for event in reversed(view.told())]
    if not told:
        return None
    rare = [_event_row(one) for routine, one in told if not routine][:MAX_EVENT_ROWS]
    often = [_event_row(one) for routine, one in told if routine][:MAX_EVENT_ROWS]
    heads = ("At (UTC)", "Step", "What", "")
    folded = el(
        "details",
        el("summary", f"Checkpoints: the newest {len(often)}"),
        table("Checkpoints, newest first", heads, often, numbers=(1,)),
        id="checkpoints",
    )
    shown = table("What happened, newest first", heads, rare, numbers=(1,))
    return [el("h2", "Events"), shown, folded if often else None]


def _event_row(one: Told) -> list[Child]:
    folded = None
    if one.details:
        key = f"event-{one.at}-{one.kind}-{one.text[:40]}"
        folded = el("details", el("summary", "Details"), el("pre", one.details), data_key=key)
    kind = el("span", one.kind.replace("_", " "), class_=f"kind tone-{one.tone}" if one.tone else "kind")
    return [el("span", one.at, class_="id"), one.step, kind, [one.text, folded]]


def when(at: float | None) -> str:
    """Return a Unix time as people read it, in UTC; empty for none."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S") if at and 0 < at < 1e11 else ""


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S") if 0 < at < 1e11 else ""


def _lasting(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _step(at: float) -> str:
    return f"step {at:,.0f}"


def as_text(value: float) -> str:
    """Return a number with four digits."""
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def _large(value: float) -> str:
    for bound, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= bound:
            return f"{value / bound:.3g} {unit}"
    return as_text(value)


def _percent(value: float) -> str:
    return f"{value:.3%}" if 0 < abs(value) < 0.01 else f"{value:.1%}"


def _of_hundred(value: float) -> str:
    return f"{value:.0f} %"


def _watts(value: float) -> str:
    return f"{value:.0f} W"


def _bytes(value: float) -> str:
    return readable(int(value)).replace(".0 ", " ")
