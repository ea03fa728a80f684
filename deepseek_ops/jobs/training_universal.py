"""A checkpoint of one world size, loaded by another: DeepSpeed's universal layout, made by itself when it is needed.

ZeRO cuts weights and optimiser by rank, so a checkpoint of two ranks is not one of three. DeepSpeed can take the cut
pieces apart by parameter (``ds_to_universal``) and load those with any number of ranks. Four things it leaves to us,
each of which silently changes the training (seen in 0.19.8): buffers are not restored (the experts' bias is one); under
ZeRO-3 every parameter group gets the settings of the first (weight decay of biases and norms); there, too, all groups
share one step counter, which Adam then advances once for each of them; and the switch that makes the engine load that
layout stays on.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine

UNIVERSAL = ".universal"


def needs_universal(engine: DeepSpeedEngine, saved_world_size: int, world_size: int) -> bool:
    """Return whether the checkpoint has to be converted; without ZeRO nothing is cut."""
    return saved_world_size != world_size and (engine.zero_optimization() or _has_sharded_bf16(engine))


def convert(checkpoint: Path) -> Path:
    """Write the universal layout of a checkpoint beside it and return its folder; one that is there is taken.

    It appears as a whole or not at all.
    """
    from deepspeed.checkpoint.ds_to_universal import main

    final = checkpoint.with_name(f"{checkpoint.name}{UNIVERSAL}")
    if final.is_dir():
        return final
    building = checkpoint.with_name(f"{checkpoint.name}{UNIVERSAL}.partial")
    shutil.rmtree(building, ignore_errors=True)
    # A folder of its own inside: the converter leaves its "latest_universal" beside what it writes.
    options = Namespace(
        input_folder=str(checkpoint),
        output_folder=str(building / "made"),
        num_extract_workers=1,  # no processes: they would import torch again, and forking a rank is asking for trouble
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(options)
    (building / "made").rename(final)
    shutil.rmtree(building)
    return final


def load_universal(engine: DeepSpeedEngine, universal: Path) -> None:
    """Restore weights, optimiser and buffers from the universal layout, on any number of ranks."""
    groups = [
        {key: value for key, value in group.items() if key != "params"} for group in engine.optimizer.param_groups
    ]
    engine._config.load_universal_checkpoint = True
    try:
        engine.load_checkpoint(str(universal.parent), tag=universal.name, load_lr_scheduler_states=False)
    finally:
        engine._config.load_universal_checkpoint = False
    for group, settings in zip(engine.optimizer.param_groups, groups, strict=True):
        group.update(settings)
    _part_step_counters(engine.optimizer)
    load_buffers(engine.module, universal)


def _part_step_counters(optimizer: object) -> None:
    import torch

    for state in getattr(optimizer, "optimizer", optimizer).state.values():  # type: ignore[attr-defined]
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def load_buffers(module: torch.nn.Module, checkpoint: Path) -> None:
    """Copy the buffers that the checkpoint holds into the module; one that it lacks is a KeyError."""
    import torch

    files = sorted(checkpoint.glob("*model_states.pt"))
    saved = torch.load(files[0], map_location="cpu", weights_only=False, mmap=True)["module"]
    with torch.no_grad():
        for name, buffer in persistent_buffers(module).items():
            buffer.copy_(saved[name])


def persistent_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers that a checkpoint holds, by name."""
    found = {}
    for prefix, part in module.named_modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def _has_sharded_bf16(engine: DeepSpeedEngine) -> bool:
    name = type(engine.optimizer).__name__
    return name == "BF16_Optimizer"
