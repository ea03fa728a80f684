"""Which format a file has is read from its first bytes, never from its name."""

from __future__ import annotations

from pathlib import PurePosixPath

from deepseek_ops.registry.weights.errors import WeightFormatError
from deepseek_ops.registry.weights.gguf import MAGIC, read_gguf
from deepseek_ops.registry.weights.pytorch import LEGACY_MAGIC, ZIP_MAGIC, read_pytorch_legacy, read_pytorch_zip
from deepseek_ops.registry.weights.ranges import Ranges
from deepseek_ops.registry.weights.record import WeightInfo
from deepseek_ops.registry.weights.safetensors_header import read_safetensors

WEIGHT_SUFFIXES = frozenset({".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".gguf"})
_HEAD_BYTES = 512


def is_weight_file(path: str) -> bool:
    """Return whether a file of this name is expected to hold tensors whose header we read."""
    return PurePosixPath(path).suffix.lower() in WEIGHT_SUFFIXES


def read_weights(ranges: Ranges) -> WeightInfo:
    """Return what a weight file holds. Raises WeightFormatError for another format, and for one that lies."""
    head = ranges.read(0, min(_HEAD_BYTES, ranges.size))
    if head.startswith(MAGIC):
        return read_gguf(ranges)
    if head.startswith(ZIP_MAGIC):
        return read_pytorch_zip(ranges)
    if head[:1] == b"\x80" and head[2:].startswith(LEGACY_MAGIC):
        return read_pytorch_legacy(ranges)
    if head[8:9] == b"{":
        return read_safetensors(ranges)
    raise WeightFormatError(ranges.name, f"it is {_guess(head)}")


def _guess(head: bytes) -> str:
    if head[257:262] == b"ustar":
        return "a tar archive (PyTorch before 0.1.10), which is not read"
    if head[:1] == b"\x80":
        return "a bare pickle, which is no checkpoint of PyTorch's"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file, which is not read"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer whose object has to be fetched first"
    return "no safetensors, PyTorch or GGUF file"
