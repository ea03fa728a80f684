"""PyTorch files: the zip archive of today and of TorchScript, and the chain of pickles from before 1.6."""

from __future__ import annotations

import io
import zipfile
import zlib

from deepseek_ops.registry.weights.errors import WeightFormatError
from deepseek_ops.registry.weights.pickle_reading import read_pickle
from deepseek_ops.registry.weights.pytorch_values import Storage, TensorWalk, executed_names
from deepseek_ops.registry.weights.ranges import Ranges, buffered
from deepseek_ops.registry.weights.record import WeightInfo, by_name, clipped

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa850192e")
"""The first pickle of the older format, after its protocol: one number."""
MAX_PICKLE_BYTES = 128 << 20
MAX_ENTRIES = 2_000_000
MAX_DIRECTORY_BYTES = 128 << 20
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OverflowError, ValueError)


def read_pytorch_zip(ranges: Ranges) -> WeightInfo:
    """Return what a zip checkpoint holds, from its directory and its pickle alone. Raises WeightFormatError."""
    try:
        with zipfile.ZipFile(buffered(ranges)) as archive:
            return _from_archive(ranges, archive)
    except _ZIP_ERRORS as error:
        raise WeightFormatError(ranges.name, f"it is no zip archive that can be read ({str(error)[:160]})") from None


def _from_archive(ranges: Ranges, archive: zipfile.ZipFile) -> WeightInfo:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()) or len(entries) > MAX_ENTRIES:
        raise WeightFormatError(ranges.name, "its archive names a file twice, or too many files")
    for name in entries:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise WeightFormatError(ranges.name, f"its archive holds the path {name[:80]!r}")
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightFormatError(ranges.name, "its archive holds no data.pkl: it is no PyTorch file")
    root = pickles[0].removesuffix("data.pkl")
    data = _member(ranges.name, archive, entries[pickles[0]])
    value, imported = read_pickle(io.BytesIO(data), file=ranges.name)

    def room(storage: Storage) -> int:
        entry = entries.get(f"{root}data/{storage.key}")
        if entry is None:
            raise WeightFormatError(ranges.name, f"the storage {storage.key[:80]!r} is missing")
        if entry.compress_type != zipfile.ZIP_STORED or entry.header_offset + entry.file_size > ranges.size:
            raise WeightFormatError(
                ranges.name, f"the storage {storage.key[:80]!r} is compressed, or ends beyond the file"
            )
        return entry.file_size

    walk = TensorWalk(ranges.name, room)
    walk.walk(value)
    scripted = f"{root}constants.pkl" in entries
    return WeightInfo(
        format="torchscript" if scripted else "pytorch",
        framework="pytorch",
        tensors=by_name(list(walk.tensors.values())),
        num_bytes=ranges.size,
        metadata=clipped(walk.metadata),
        executes=executed_names(imported),
    )


def _member(file: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Return a member, at most MAX_PICKLE_BYTES of it: what the directory says about its size may be a lie."""
    if entry.file_size > MAX_PICKLE_BYTES:
        raise WeightFormatError(file, f"its {entry.filename[-40:]} claims {entry.file_size:,} bytes")
    with archive.open(entry) as member:
        data = member.read(MAX_PICKLE_BYTES + 1)
    if len(data) > MAX_PICKLE_BYTES:
        raise WeightFormatError(file, f"its {entry.filename[-40:]} unpacks to more than {MAX_PICKLE_BYTES:,} bytes")
    return data


def read_pytorch_legacy(ranges: Ranges) -> WeightInfo:
    """Return what a file from before PyTorch 1.6 holds: five pickles, then the storages. Raises WeightFormatError."""
    file = buffered(ranges)
    executed = set()
    values = []
    for _ in range(5):  # magic number, protocol, system, the object, names of the storages
        value, imported = read_pickle(file, file=ranges.name)
        values.append(value)
        executed |= imported
    keys = values[4]
    if not isinstance(keys, list):
        raise WeightFormatError(ranges.name, "its list of storages is missing")
    known = {key for key in keys if isinstance(key, str)}
    left = ranges.size - file.tell()

    def room(storage: Storage) -> int:
        if storage.key not in known:
            raise WeightFormatError(ranges.name, f"the storage {storage.key[:80]!r} is missing")
        return left

    walk = TensorWalk(ranges.name, room)
    walk.walk(values[3])
    return WeightInfo(
        format="pytorch",
        framework="pytorch (format before 1.6)",
        tensors=by_name(list(walk.tensors.values())),
        num_bytes=ranges.size,
        metadata=clipped(walk.metadata),
        executes=executed_names(executed),
    )
