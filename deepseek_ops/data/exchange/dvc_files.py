"""DVC's files as they lie in Git and in a remote: ``.dvc``, ``.dir`` and ``files/md5/xx/...``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml
from pydantic import JsonValue

from deepseek_ops.core.errors import ConfigError, IntegrityError, ObjectNotFoundError, PermanentError
from deepseek_ops.core.ports import ObjectStore

CHUNK_BYTES = 1 << 20
"""DVC hashes in chunks of this size, and an old hash of text depends on where they end."""
MAX_LIST_BYTES = 2 << 30
_MD5 = re.compile(r"[0-9a-f]{32}")
_REMEDY = "Give the .dvc file of a folder or file that DVC tracks in a remote of its own."


@dataclass(eq=False)
class DvcObjectMissingError(PermanentError):
    """The cache and the remotes do not hold what a .dvc file names."""

    md5: str
    path: str
    searched: tuple[str, ...]

    def __str__(self) -> str:
        places = ", ".join(self.searched) or "no place at all"
        return f"{self.path}: md5 {self.md5} is in none of {places}; run `dvc push`, or name its remote with --remote."


@dataclass(frozen=True, slots=True)
class DvcOut:
    """One output of a .dvc file."""

    md5: str
    """Without ``.dir``."""
    path: str
    is_folder: bool
    legacy: bool
    """Made by DVC below 3: no ``files/md5`` in keys, and text hashed with its line ends made Unix ones."""


def read_dvc_file(text: str, *, file: str) -> list[DvcOut]:
    """Return the outputs of a .dvc file. Raises ConfigError naming file and key."""
    try:
        body = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(file, 0, "", f"is no YAML ({error}).", _REMEDY) from None
    outs = body.get("outs") if isinstance(body, dict) else None
    if not isinstance(outs, list) or not outs:
        raise ConfigError(file, 0, "outs", "is missing or empty.", _REMEDY)
    return [_out(out, f"outs[{number}]", file) for number, out in enumerate(outs)]


def _out(out: object, key: str, file: str) -> DvcOut:
    if not isinstance(out, dict):
        raise ConfigError(file, 0, key, "is no mapping.", _REMEDY)
    md5, path = str(out.get("md5", "")), str(out.get("path", ""))
    digest = md5.removesuffix(".dir")
    if "files" in out or "cloud" in out:
        raise ConfigError(file, 0, key, "is in a cloud-versioned remote.", _REMEDY)
    if not _MD5.fullmatch(digest):
        raise ConfigError(file, 0, f"{key}.md5", f"{md5!r} is no MD5 digest.", _REMEDY)
    if not path:
        raise ConfigError(file, 0, f"{key}.path", "is missing.", _REMEDY)
    return DvcOut(digest, path, md5 != digest, legacy="hash" not in out)


def dvc_file_text(*, md5: str, size: int, num_files: int, path: str, meta: dict[str, JsonValue]) -> str:
    """Return the text of a .dvc file for a folder."""
    out = {"md5": f"{md5}.dir", "size": size, "nfiles": num_files, "hash": "md5", "path": path}
    return yaml.safe_dump({"outs": [out], "meta": meta}, sort_keys=False, allow_unicode=True, width=10_000)


def object_key(md5: str, *, folder: bool = False) -> str:
    """Return where a remote of DVC 3 keeps an object."""
    return f"files/md5/{md5[:2]}/{md5[2:]}{'.dir' if folder else ''}"


class DvcObjects:
    """Objects of a DVC cache and of remotes, looked for in that order; every byte is checked against its MD5."""

    def __init__(self, stores: Sequence[ObjectStore]) -> None:
        self._stores = tuple(stores)

    def folder(self, out: DvcOut, *, file: str) -> list[tuple[str, str]]:
        """Return (path, md5) of each file of an output; the path of a single file is its own name.

        Raises DvcObjectMissingError, IntegrityError, ConfigError.
        """
        if not out.is_folder:
            return [(out.path.rpartition("/")[2], out.md5)]
        data = bytearray()
        for chunk in self.read(out.md5, out.path, legacy=False, folder=True):
            data += chunk
            if len(data) > MAX_LIST_BYTES:
                raise ConfigError(file, 0, out.path, f"has a list of more than {MAX_LIST_BYTES} bytes.", _REMEDY)
        try:
            listed = [(str(item["relpath"]), str(item["md5"])) for item in json.loads(data)]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(file, 0, out.path, f"has no list of files in {out.md5}.dir.", _REMEDY) from None
        for path, md5 in listed:
            if not _MD5.fullmatch(md5):
                raise ConfigError(file, 0, path, f"{md5!r} in {out.md5}.dir is no MD5 digest.", _REMEDY)
        return listed

    def read(self, md5: str, path: str, *, legacy: bool, folder: bool = False) -> Iterator[bytes]:
        """Yield an object in chunks. Raises DvcObjectMissingError, and IntegrityError at its end."""
        store, key, begin = self._open(md5, path, folder=folder)
        plain = hashlib.md5(usedforsecurity=False)
        unix = hashlib.md5(usedforsecurity=False)
        at, chunk = 0, begin
        while chunk:
            plain.update(chunk)
            if legacy:
                unix.update(chunk.replace(b"\r\n", b"\n"))
            yield chunk
            at += len(chunk)
            chunk = store.get(key, start=at, length=CHUNK_BYTES) if len(chunk) == CHUNK_BYTES else b""
        if plain.hexdigest() != md5 and not (legacy and unix.hexdigest() == md5):
            raise IntegrityError(f"{path} ({store.uri}/{key})", f"md5 {md5}", f"md5 {plain.hexdigest()}")

    def _open(self, md5: str, path: str, *, folder: bool) -> tuple[ObjectStore, str, bytes]:
        suffix = ".dir" if folder else ""
        for store in self._stores:
            for key in (object_key(md5, folder=folder), f"{md5[:2]}/{md5[2:]}{suffix}"):
                try:
                    return store, key, store.get(key, start=0, length=CHUNK_BYTES)
                except ObjectNotFoundError:
                    continue
        raise DvcObjectMissingError(f"{md5}{suffix}", path, tuple(store.uri for store in self._stores))
