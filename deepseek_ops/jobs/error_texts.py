"""What errors of libraries mean for a training: CUDA, NCCL, gloo and C++ raise a RuntimeError and put the rest in text.

The words are matched here and nowhere else; what is made of them travels as a ``JobCause``. Names of classes stand for
the classes, so that nothing is imported to look for them.
"""

from __future__ import annotations

import errno
import re

_MEMORY_ERRORS = frozenset({"OutOfMemoryError"})
"""torch's of a GPU, and Ray's of a machine."""
_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator: "
    r"|(CUDA|HIP)( driver)? (error|failure)\S*:? *'?out of memory"  # also NCCL's, which quotes it
    r"|CUDA_ERROR_OUT_OF_MEMORY|hipErrorOutOfMemory"
    r"|CU(BLAS|DNN|SPARSE|SOLVER)_STATUS_ALLOC_FAILED"
    r"|\bstd::bad_alloc\b"
    r"|due to the node running low on memory"  # Ray's, where it wraps its own error
    r"|^can't start new thread$"  # no room for its stack; a limit of processes says the same
    r"|NCCL.*\bout of memory\b|Failed to CUDA (c|m)alloc",
    re.IGNORECASE | re.DOTALL,
)
_BROKEN_DEVICE = re.compile(
    r"uncorrectable (ECC|NVLink) error|\bGPU (is lost|has fallen off the bus)|cudaErrorECCUncorrectable", re.IGNORECASE
)
_PEER_ERRORS = frozenset({"DistBackendError", "DistNetworkError", "DistStoreError"})
"""Names of torch's errors about the process group."""
_PEER_LOSS = re.compile(r"gloo/transport|Timed out waiting \d+ ?ms for (recv|send) operation", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, of the machine or of a device: the same work would meet the same end."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or _is_one_of(error, _MEMORY_ERRORS):
        return True
    return _OUT_OF_MEMORY.search(str(error)) is not None


def is_broken_device(error: BaseException) -> bool:
    """Return whether a device of this machine broke: the training is well, and goes on elsewhere."""
    return _BROKEN_DEVICE.search(str(error)) is not None


def is_peer_loss(error: BaseException) -> bool:
    """Return whether another process went away: a connection broke, or a collective failed.

    gloo raises a bare RuntimeError whose text names its own source file, or only how long it waited.
    """
    if isinstance(error, ConnectionError) or _is_one_of(error, _PEER_ERRORS):
        return True
    return _PEER_LOSS.search(str(error)) is not None


def _is_one_of(error: BaseException, names: frozenset[str]) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)
