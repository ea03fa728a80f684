"""A version as a remote of DVC: ``dvc pull`` fetches it, with nothing of ours installed.

DVC names content by MD5, which no version carries, so each file is read once to learn it. What was learnt is kept in
the remote, one small object for each manifest page: versions share pages, so the next export reads what changed. What
lies in the remote is listed, not believed, and a file that ``dvc gc`` removed is sent again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import JsonValue

from deepseek_ops.core.errors import ObjectNotFoundError
from deepseek_ops.core.ports import ObjectStore, Progress
from deepseek_ops.core.records import Digest
from deepseek_ops.data.exchange.dvc_files import dvc_file_text, object_key
from deepseek_ops.data.exchange.ordered import contents, pages_of
from deepseek_ops.data.layout import blob_key
from deepseek_ops.data.packs import Stored
from deepseek_ops.data.pages import LOOSE, PageRef
from deepseek_ops.data.parallel import in_order
from deepseek_ops.data.reading import stream_stored
from deepseek_ops.data.trees import Tree

INDEX = "deepseek-ops/md5/"
"""Where a remote keeps the MD5s of a page's files, 16 bytes each; DVC does not look there."""
MD5_BYTES = 16
WORKERS = 8

Copy = Callable[[str, str], bool]
"""Copy a key of the store to a key of the remote within the server; False when that cannot be done."""


@dataclass(frozen=True, slots=True)
class DvcExport:
    """What an export to a DVC remote did."""

    md5: str
    """Of the folder, without ``.dir``."""
    num_files: int
    num_bytes: int
    num_sent: int
    """Objects that were not there."""
    num_copied: int
    """Of these, how many the server copied itself."""
    text: str
    """The .dvc file."""


def export_dvc(
    store: ObjectStore,
    tree: Tree,
    remote: ObjectStore,
    *,
    path: str,
    dataset: str,
    version: Digest,
    copy: Copy | None = None,
    progress: Progress | None = None,
) -> DvcExport:
    """Bring every file of a tree into a DVC remote and return the .dvc file that names them as folder ``path``.

    The folder's own list goes up last: until then no .dvc file can name it. Raises IntegrityError, ObjectNotFoundError.
    """
    sender = _Sender(store, remote, copy)
    done = 0
    with tempfile.TemporaryFile(prefix="deepseek-ops-dvc-") as listed:
        writer = _ListWriter(listed)
        for ref, files in pages_of(tree):
            for file, md5 in zip(files, sender.send(ref, files), strict=True):
                writer.add(file.entry.path, md5)
            done += ref.num_files
            if progress is not None:
                progress(f"{done} of {tree.num_files} files are in {remote.uri}", done / max(tree.num_files, 1))
        md5, data = writer.finish()
    remote.put_blob(object_key(md5, folder=True), data)
    meta: dict[str, JsonValue] = {"deepseek-ops": {"dataset": dataset, "version": version}}
    text = dvc_file_text(md5=md5, size=tree.num_bytes, num_files=tree.num_files, path=path, meta=meta)
    return DvcExport(md5, tree.num_files, tree.num_bytes, sender.num_sent, sender.num_copied, text)


class _ListWriter:
    """Writes the ``.dir`` list as DVC does, so that equal folders get DVC's own digest."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.md5(usedforsecurity=False)
        self._begun = False

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)

    def add(self, path: str, md5: str) -> None:
        self._write((b", " if self._begun else b"[") + json.dumps({"md5": md5, "relpath": path}).encode())
        self._begun = True

    def finish(self) -> tuple[str, bytes]:
        """Return the list's MD5 and the list."""
        self._write(b"]" if self._begun else b"[]")
        self._file.seek(0)
        return self._digest.hexdigest(), self._file.read()


class _Present:
    """Which MD5s a remote holds: 16 bytes each, in order, however many."""

    def __init__(self, remote: ObjectStore) -> None:
        self._sorted = bytearray()
        for info in remote.list("files/md5/"):
            name = info.key.removeprefix("files/md5/").replace("/", "")
            if len(name) == 2 * MD5_BYTES and not set(name) - set("0123456789abcdef"):
                self._sorted += bytes.fromhex(name)
        self._added: set[bytes] = set()

    def __contains__(self, md5: bytes) -> bool:
        places = range(len(self._sorted) // MD5_BYTES)
        at = bisect_left(places, md5, key=self._at)
        return md5 in self._added or (at < len(places) and self._at(at) == md5)

    def _at(self, place: int) -> bytes:
        return bytes(self._sorted[place * MD5_BYTES : (place + 1) * MD5_BYTES])

    def claim(self, md5: bytes) -> bool:
        """Return whether it has to be sent, once for each."""
        if md5 in self:
            return False
        self._added.add(md5)
        return True


class _Sender:
    def __init__(self, store: ObjectStore, remote: ObjectStore, copy: Copy | None) -> None:
        self._store, self._remote, self._copy = store, remote, copy
        self._present = _Present(remote)
        self.num_sent = 0
        self.num_copied = 0

    def send(self, ref: PageRef, files: Sequence[Stored]) -> list[str]:
        """See to it that the files of a page are in the remote and return their MD5s."""
        known = self._indexed(ref)
        if known is None:
            md5s = list(self._sent(files))
            self._remote.put_blob(f"{INDEX}{ref.digest}", b"".join(md5s))
            return [md5.hex() for md5 in md5s]
        missing = [file for file, md5 in zip(files, known, strict=True) if md5 not in self._present]
        for _ in self._sent(missing):
            pass
        return [md5.hex() for md5 in known]

    def _indexed(self, ref: PageRef) -> list[bytes] | None:
        try:
            data = self._remote.get(f"{INDEX}{ref.digest}")
        except ObjectNotFoundError:
            return None
        if len(data) != ref.num_files * MD5_BYTES:
            return None
        return [data[at : at + MD5_BYTES] for at in range(0, len(data), MD5_BYTES)]

    def _sent(self, files: Iterable[Stored]) -> Iterator[bytes]:
        """Yield the MD5 of each file once it is in the remote."""
        with tempfile.TemporaryDirectory(prefix="deepseek-ops-dvc-") as scratch:
            yield from in_order(self._put, self._hashed(files, Path(scratch) / "large"), WORKERS)

    def _put(self, item: tuple[bytes, bytes | None]) -> bytes:
        md5, data = item
        if data is not None:
            self._remote.put_blob(object_key(md5.hex()), data)
        return md5

    def _hashed(self, files: Iterable[Stored], scratch: Path) -> Iterator[tuple[bytes, bytes | None]]:
        """Yield MD5s, with the bytes of small files that have to be sent; large ones are sent here, one at a time."""
        for file, chunks in contents(self._store, files):
            if file.location == LOOSE:
                yield self._send_large(file, chunks, scratch), None
            else:
                data = b"".join(chunks)
                md5 = hashlib.md5(data, usedforsecurity=False).digest()
                yield md5, data if self._claim(md5) else None

    def _claim(self, md5: bytes) -> bool:
        claimed = self._present.claim(md5)
        self.num_sent += claimed
        return claimed

    def _send_large(self, file: Stored, chunks: Iterable[bytes], scratch: Path) -> bytes:
        if self._copy is None:
            md5 = _hashed_to(chunks, scratch)
            wanted = self._claim(md5)
        else:
            md5 = _hashed_to(chunks, None)
            wanted = self._claim(md5)
            if wanted and self._copy(blob_key(file.entry.digest.hex()), object_key(md5.hex())):
                self.num_copied += 1
                wanted = False
            elif wanted:
                _hashed_to(stream_stored(self._store, file), scratch)
        if wanted:
            self._remote.put_blob(object_key(md5.hex()), scratch)
        scratch.unlink(missing_ok=True)
        return md5


def _hashed_to(chunks: Iterable[bytes], target: Path | None) -> bytes:
    """Return the MD5 of the chunks, which are also written to a new file."""
    seen = hashlib.md5(usedforsecurity=False)
    with Path(os.devnull).open("wb") if target is None else target.open("xb") as file:
        for chunk in chunks:
            seen.update(chunk)
            file.write(chunk)
    return seen.digest()
