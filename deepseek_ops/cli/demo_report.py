"""What the demo shows at the end: a table of what was made, the loss curve as a line and as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.cli.demo_view import sparkline
from deepseek_ops.core.records import (
    Checkpoint,
    DatasetVersion,
    Deployment,
    Evaluation,
    ExportedModel,
    ModelVersion,
    Release,
    Trial,
)
from deepseek_ops.cost import entries_of, summarise
from deepseek_ops.embedded.stack import Stack

LOSSES = ("training_loss", "val_loss")


@dataclass
class DemoResult:
    """What came of one demo run. ``returned`` maps ``dag.task`` or ``dag.task[index]`` to the task's XCom."""

    commit: str
    runs: dict[str, str]
    returned: dict[str, JsonValue]
    url: str
    answer: str
    killed: list[int]
    seconds: dict[str, float] = field(default_factory=dict)

    def one(self, key: str) -> Mapping[str, JsonValue] | None:
        """Return what a task returned, or None."""
        value = self.returned.get(key)
        return value if isinstance(value, dict) else None

    def mapped(self, key: str) -> list[Mapping[str, JsonValue]]:
        """Return what the instances of a mapped task returned, in order."""
        found = [(name, value) for name, value in self.returned.items() if name.startswith(f"{key}[")]
        ordered = sorted(found, key=lambda item: int(item[0].rpartition("[")[2].rstrip("]")))
        return [value for _, value in ordered if isinstance(value, dict)]


def write_report(console: Console, stack: Stack, result: DemoResult) -> None:
    """Print the summary table and write the loss curve beside the logs."""
    table = Table(title="From a git push to a deployed model", title_justify="left", show_header=False, expand=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    checkpoint = Checkpoint.load(data) if (data := result.one("retrain.train")) else None
    for name, text in [
        ("commit", f"{result.commit[:12]} on exp/first"),
        *_data_rows(result),
        *(_training_rows(checkpoint, result) if checkpoint else []),
        *_gate_rows(result),
        *_delivery_rows(result),
        *_cost_rows(stack, result),
    ]:
        table.add_row(name, text)
    console.print()
    console.print(table)
    if checkpoint:
        console.print(f"loss curve: {plot_loss(checkpoint, _trials(result), stack.root / 'loss.png')}")
    console.print(
        f"look inside: make demo KEEP=1, then open Airflow at the URL it prints; logs below {stack.root}", style="dim"
    )


def plot_loss(checkpoint: Checkpoint, trials: Sequence[Trial], path: Path) -> Path:
    """Draw the training's loss and the trials' validation losses to a PNG and return its path."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=110)
    axes.plot(*zip(*checkpoint.curve, strict=True), color="#1f77b4", linewidth=1.8, label="training loss")
    final = checkpoint.metrics.get("val_loss")
    if final is not None:
        axes.scatter([checkpoint.step], [final], color="#d62728", zorder=3, label=f"validation loss {final:.3f}")
    for trial in trials:
        if trial.curve:
            label = f"trial {trial.number} ({trial.state})"
            axes.plot(*zip(*trial.curve, strict=True), linewidth=1, linestyle="--", alpha=0.8, label=label)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("cross-entropy, nats per token")
    axes.set_title(f"Plan {checkpoint.plan[:12]}: {checkpoint.tokens:,} tokens, {checkpoint.restarts} restarts")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    return path


def _trials(result: DemoResult) -> list[Trial]:
    return [Trial.load(trial) for trial in result.mapped("retrain.run_trial")]


def _data_rows(result: DemoResult) -> list[tuple[str, str]]:
    data = result.one("retrain.prepare_dataset")
    if data is None:
        return []
    version = DatasetVersion.load(data)
    splits = ", ".join(f"{name} {count:,}" for name, count in version.splits.items())
    return [("dataset", f"{version.name} {version.version[:12]} ({version.num_files} files; {splits})")]


def _training_rows(checkpoint: Checkpoint, result: DemoResult) -> list[tuple[str, str]]:
    trials = _trials(result)
    rows = []
    done = [trial for trial in trials if trial.state == "complete" and trial.objective is not None]
    if done:
        best = min(done, key=lambda trial: trial.objective or 0.0)
        states = ", ".join(f"{sum(t.state == s for t in trials)} {s}" for s in sorted({t.state for t in trials}))
        reused = sum(trial.reused for trial in trials)
        shown = ", ".join(f"{name}={value}" for name, value in best.values.items())
        rows.append(("best trial", f"#{best.number} {shown} -> {best.objective:.4f} ({states}; {reused} reused)"))
    losses = [loss for _, loss in checkpoint.curve]
    rows.append(("loss", f"{losses[0]:.3f} {sparkline(losses)} {losses[-1]:.3f}"))
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(checkpoint.metrics.items()) if name in LOSSES)
    restarts = f", {checkpoint.restarts} restart(s) from a checkpoint" if checkpoint.restarts else ""
    rows.append(("training", f"{checkpoint.step} steps, {checkpoint.tokens:,} tokens, {metrics}{restarts}"))
    return rows


def _gate_rows(result: DemoResult) -> list[tuple[str, str]]:
    rows = []
    for data in result.mapped("retrain.evaluate"):
        evaluation = Evaluation.load(data)
        rows.append((f"gate {evaluation.stage}", f"{evaluation.verdict.upper()}: {evaluation.reason}"))
    for data in result.mapped("retrain.export"):
        exported = ExportedModel.load(data)
        if exported.parity is None:
            text = f"{exported.status}: {exported.reason}"
        else:
            parity = exported.parity
            text = f"{exported.status} in {parity.runtime}: max error {parity.max_abs_error:.2g}"
            text += f", top-1 {parity.top1_agreement:.2%} of {parity.num_tokens:,} tokens"
        rows.append((f"export {exported.format}", f"{text} ({exported.files.num_bytes / 1e6:.1f} MB)"))
    return rows


def _delivery_rows(result: DemoResult) -> list[tuple[str, str]]:
    rows = []
    if data := result.one("retrain.register"):
        version = ModelVersion.load(data)
        rows.append(("registered", f"{version.name} {version.version}, bundle {version.bundle[:12]}"))
    if data := result.one("retrain.record_experiment"):
        rows.append(("experiment", f"tag {data['tag']} on commit {str(data['commit'])[:12]}"))
    if data := result.one("release.create_release"):
        release = Release.load(data)
        rows.append(("release", f"tag {release.tag} on commit {release.commit[:12]}"))
    if data := result.one("deploy.promote"):
        deployment = Deployment.load(data)
        rows.append(("deployed", f"{deployment.endpoint} {deployment.version} at {deployment.url}"))
        rows.append(("it answers", repr(result.answer)))
    return rows


def _cost_rows(stack: Stack, result: DemoResult) -> list[tuple[str, str]]:
    facts = open_facts(stack.facts_dsn)
    summary = summarise(entry for run in result.runs.values() for entry in entries_of(facts, run))
    labels = ", ".join(f"{label} {usd:.5f}" for label, usd in sorted(summary.usd_by_label.items()))
    spent = f"{summary.device_seconds:.0f} device-seconds, {summary.usd:.5f} USD by the price list ({labels})"
    times = ", ".join(f"{name.replace('_', ' ')} {seconds:.0f} s" for name, seconds in result.seconds.items())
    return [("cost", spent), ("time", times)]
