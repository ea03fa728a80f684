"""Exports: which formats there are, what a model must show to be one, and the batches to show it on.

**An export is an export once its own runtime has loaded the file from disk and agreed with the checkpoint** on held-out
tokens, in shapes the exporter did not see. What cannot be run (a TensorRT engine without a GPU) is published as
``built_unverified`` with the reason; what disagrees is not published. The reference is always the checkpoint in
float32 with the plain (``eager``) experts: the one implementation that no export uses.
"""

from deepseek_ops.export.batches import TokenBatch, padded, plan_batches
from deepseek_ops.export.errors import (
    BrokenCheckpointError,
    ExportFailedError,
    ParityError,
    SampleError,
    TensorRtMissingError,
    UnsupportedNodesError,
)
from deepseek_ops.export.hub_config import completed_config
from deepseek_ops.export.request import ExportOptions, ExportRequest, ExportSample, Format
from deepseek_ops.export.tolerance import Measured, Tolerance, agrees, parity_of, tolerance_for

__all__ = [
    "BrokenCheckpointError",
    "ExportFailedError",
    "ExportOptions",
    "ExportRequest",
    "ExportSample",
    "Format",
    "Measured",
    "ParityError",
    "SampleError",
    "TensorRtMissingError",
    "TokenBatch",
    "Tolerance",
    "UnsupportedNodesError",
    "agrees",
    "completed_config",
    "padded",
    "parity_of",
    "plan_batches",
    "tolerance_for",
]
