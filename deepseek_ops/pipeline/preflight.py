"""Does a run's training fit what it is to run on, and what will it take: asked before anything is submitted."""

from __future__ import annotations

from deepseek_ops.core.config import PipelineFile
from deepseek_ops.core.records import TrainingPlan
from deepseek_ops.cost import load_prices
from deepseek_ops.pipeline.runs import RunPlan
from deepseek_ops.training.devices import device_named
from deepseek_ops.training.preflight import Device, PreflightReport, preflight, require_fit


def checked_fit(config: PipelineFile, run: RunPlan, plan: TrainingPlan, *, device: str) -> PreflightReport | None:
    """Return what the training needs; None where nothing is known of the device, such as a share of a CPU.

    Args:
        config: The run's pipeline file: its budget.
        run: The run: its own budget goes before that.
        plan: What would be trained.
        device: Key of the price list for what one rank occupies.

    Raises:
        PlanDoesNotFitError: It needs more memory, money or time than there is; names the nearest plan that fits.
        UnsupportedTrainingError: The model's shape is not known by formula.
    """
    spec = device_named(device)
    if spec is None:
        return None
    return require_fit(
        preflight(
            plan,
            Device(
                name=device,
                memory_gib=spec.memory_gib,
                peak_tflops=spec.peak_tflops(plan.precision),
                usd_per_hour=load_prices().price(device).usd_per_hour,
            ),
            budget_usd=run.budget_usd,
            budget_hours=config.training.budget.hours,
        )
    )


def preflight_text(report: PreflightReport) -> str:
    """Return the report as one line for a task's log."""
    parts = [f"{report.parameters / 1e9:.2f} B parameters ({report.active_parameters / 1e9:.2f} B active)"]
    parts.append(f"on each {report.device} {report.reason}")
    if report.seconds is not None and report.usd is not None:
        parts.append(f"about {report.seconds / 3600:.2f} h and {report.usd:.2f} USD at {report.mfu:.0%} utilisation")
    return "; ".join(parts)
