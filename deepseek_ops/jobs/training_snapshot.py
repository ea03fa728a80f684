"""A checkpoint in memory: what keeps the ranks from training is a copy, everything slow happens behind their back.

DeepSpeed gathers the state of the engine and hands it to a checkpoint engine file by file. Ours copies every tensor
into buffers that are kept from one checkpoint to the next (pinned, for tensors of a GPU: their copies run at the full
speed of the bus) and lets the training go on; a thread then writes DeepSpeed's own file format, so every tool of
DeepSpeed reads it. The price is host memory for one copy of the state.
"""

from __future__ import annotations

import copy
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from deepseek_ops.core.records import FileEntry

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine

    State = Mapping[str, object]

_PLAIN = (int, float, str, bytes, bool, type(None))


class TensorPool:
    """Buffers on the host, used again by each snapshot: fresh memory costs more than the copy."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], torch.Tensor] = {}
        self._file = ""
        self._number = 0
        self._copied: dict[tuple[object, ...], torch.Tensor] = {}

    @contextmanager
    def copying(self, file: str) -> Iterator[None]:
        """Copy the tensors of one file in this block; views of one tensor are copied once."""
        self._file, self._number, self._copied = file, 0, {}
        yield
        for key in [key for key in self._held if key[0] == file and key[1] >= self._number]:
            del self._held[key]
        self._copied = {}

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy on the host; it may be complete only once the device has been waited for."""
        import torch

        source = tensor.detach()
        view = (source.untyped_storage().data_ptr(), source.storage_offset(), source.shape, source.stride())
        seen = (*view, source.dtype, source.device)
        if source.numel() and seen in self._copied:
            return self._copied[seen]
        key = (self._file, self._number)
        self._number += 1
        held = self._held.get(key)
        if held is None or held.shape != source.shape or held.dtype != source.dtype:
            held = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
            self._held[key] = held
        held.copy_(source, non_blocking=source.is_cuda)
        self._copied[seen] = held
        return held


def frozen_copy(value: object, pool: TensorPool) -> object:
    """Return ``value`` as it is now: containers and objects copied, tensors copied into the pool."""
    import torch

    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, torch.Tensor):
        return pool.copy(value)
    if isinstance(value, tuple):
        items = tuple(frozen_copy(item, pool) for item in value)
        make = getattr(type(value), "_make", type(value))
        return make(items)  # a named tuple, torch.Size or a plain one
    if type(value) is list:
        return [frozen_copy(item, pool) for item in value]
    if isinstance(value, dict):
        made = copy.copy(value)
        for key, item in value.items():
            made[key] = frozen_copy(item, pool)
        return made
    return copy.deepcopy(value)


class SnapshotEngine:
    """A checkpoint engine of DeepSpeed's that keeps in memory what it is given. It touches no disk."""

    def __init__(self, pool: TensorPool) -> None:
        self.files: dict[str, object] = {}
        """File name -> frozen state."""
        self._pool = pool

    def create(self, info: object) -> None:
        """Do nothing: there is nothing to prepare."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: folders are made when the files are written."""

    def save(self, state_dict: State, path: str) -> None:
        """Keep a copy of the state under the file's name."""
        name = Path(path).name
        with self._pool.copying(name):
            self.files[name] = frozen_copy(state_dict, self._pool)

    def commit(self, info: object) -> bool:
        """Return True: what was given is kept."""
        del info
        return True

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        """Return whether a rank writes what all ranks have alike."""
        return dp_rank == 0

    def is_decoupled(self) -> bool:
        """Return False: DeepSpeed has nothing to wait for."""
        return False

    def preserves_storage_sharing(self) -> bool:
        """Return False: tensors are copied one by one, so views need not be copied before."""
        return False


def take_snapshot(engine: DeepSpeedEngine, pool: TensorPool, *, shared: bool) -> dict[str, object]:
    """Return this rank's files of a checkpoint: name -> state. Every rank calls it.

    ``shared`` makes this rank keep what all ranks have alike: one on each machine, so that a machine can resume from
    its own disk. Frozen parameters are left out where there are any: they are what the plan's base says.
    """
    keeper = SnapshotEngine(pool)
    replaced = {
        "checkpoint_engine": keeper,
        "save_non_zero_checkpoint": shared or engine.save_non_zero_checkpoint,
        "_copy_recovery_script": lambda _folder: None,
        "_checkpoint_tag_validation": lambda _tag: None,  # names are agreed on already; this costs two collectives
    }
    before = {name: engine.__dict__[name] for name in replaced if name in engine.__dict__}
    engine.__dict__.update(replaced)
    try:
        engine.save_checkpoint(".", tag="snapshot", save_latest=False, exclude_frozen_parameters=has_frozen(engine))
    finally:
        for name in replaced:
            del engine.__dict__[name]
        engine.__dict__.update(before)
    _wait_for_device()
    return keeper.files


def has_frozen(engine: DeepSpeedEngine) -> bool:
    """Return whether some parameters are not trained."""
    return any(not parameter.requires_grad for parameter in engine.module.parameters())


def _wait_for_device() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class _HashedFile:
    """A file that knows the digest of what is written to it, in one go from its start."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._seen = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:  # a single write takes 2 GiB at most
            view = view[self._file.write(view) :]
        self._seen.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def digest(self) -> str:
        return self._seen.hexdigest()


@dataclass
class Written:
    """How the writing of a snapshot ended."""

    files: tuple[FileEntry, ...] = ()
    problem: str = ""
    seconds: float = 0.0


class SnapshotWriter:
    """Writes one snapshot after the other in a thread of its own."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self.last = Written()

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> Written:
        """Wait for the snapshot that is being written, if any, and return how the last one ended."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self.last

    def start(self, files: Mapping[str, object], folder: Path, done: Callable[[Written], None]) -> None:
        """Begin to write the snapshot below ``folder``; the state must not change until ``wait`` returns.

        ``done`` is called in the thread, with how it ended.
        """
        self.wait()
        arguments = (files, folder, done)
        self._thread = threading.Thread(target=self._run, args=arguments, name="checkpoint-writer", daemon=True)
        self._thread.start()

    def _run(self, files: Mapping[str, object], folder: Path, done: Callable[[Written], None]) -> None:
        began = time.perf_counter()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            entries = tuple(_write(folder / name, state) for name, state in files.items())
            self.last = Written(entries, seconds=time.perf_counter() - began)
        except (OSError, RuntimeError) as error:  # torch reports a write that failed as RuntimeError
            for name in files:
                with suppress(OSError):
                    (folder / name).unlink(missing_ok=True)
            self.last = Written(problem=_cause(error), seconds=time.perf_counter() - began)
        done(self.last)


def _write(path: Path, state: object) -> FileEntry:
    import torch

    with path.open("wb", buffering=0) as file:
        hashed = _HashedFile(file)
        torch.save(state, hashed)
        os.fsync(file.fileno())
    return FileEntry(path=path.name, size=hashed.size, digest=hashed.digest)


def _cause(error: BaseException) -> str:
    """Return the system's word for what went wrong: torch wraps it in its own."""
    below = error.__cause__ or error.__context__
    source = below if isinstance(below, OSError) else error
    return (source.strerror if isinstance(source, OSError) and source.strerror else str(source))[:300]
