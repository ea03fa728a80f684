"""What a weight file holds, read from its header: no tensor is loaded, nothing is executed, nothing is imported.

safetensors, PyTorch (zip, TorchScript, and the format before 1.6) and GGUF, on local files, Git LFS pointers and store
objects. Only headers are read, by ranges: kilobytes of a file of gigabytes. Files come from anywhere, so every length,
offset, shape and name is refused until it was checked, and no file makes a reader take more than a fixed budget.
"""

from deepseek_ops.registry.weights.comparing import WeightDiff, compare_weights, diff_lines
from deepseek_ops.registry.weights.errors import WeightFormatError
from deepseek_ops.registry.weights.models import model_weights, summarise_model
from deepseek_ops.registry.weights.ranges import LocalRanges, ObjectRanges, Ranges
from deepseek_ops.registry.weights.reading import WEIGHT_SUFFIXES, is_weight_file, read_weights
from deepseek_ops.registry.weights.record import TensorInfo, WeightInfo, WeightSummary, weight_lines
from deepseek_ops.registry.weights.sharded import ShardIndex, combine_shards, read_shard_index

__all__ = [
    "WEIGHT_SUFFIXES",
    "LocalRanges",
    "ObjectRanges",
    "Ranges",
    "ShardIndex",
    "TensorInfo",
    "WeightDiff",
    "WeightFormatError",
    "WeightInfo",
    "WeightSummary",
    "combine_shards",
    "compare_weights",
    "diff_lines",
    "is_weight_file",
    "model_weights",
    "read_shard_index",
    "read_weights",
    "summarise_model",
    "weight_lines",
]
