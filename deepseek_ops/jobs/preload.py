"""The imports that every training process makes, in one place: made once, before processes are forked."""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path

PRELOADED = (
    "torch",
    "torch.distributed",
    "transformers",
    "transformers.models.deepseek_v3.modeling_deepseek_v3",
    "transformers.models.auto.modeling_auto",
    "transformers.tokenization_utils_tokenizers",
    "safetensors.torch",
    "deepspeed",
    # deepspeed.initialize imports these late, in every rank and after every restart.
    "torch.utils.cpp_extension",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.module_inject.auto_ep_layer",
)


PRELOAD_VARIABLE = "DEEPSEEK_OPS_PRELOAD"
"""Names the modules to import instead, separated by commas, for trainers that use others; set but empty: none."""


def preload() -> None:
    """Import what train jobs import, as far as it is installed, without starting a thread or touching a GPU."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # looks for GPUs without initialising them
    if not has_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    named = os.environ.get(PRELOAD_VARIABLE)
    for name in PRELOADED if named is None else filter(None, named.split(",")):
        with contextlib.suppress(ImportError):  # the job that needs it says so
            importlib.import_module(name)


def has_gpu() -> bool:
    """Return whether the machine shows a GPU of NVIDIA or AMD to this process."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()
