"""Names that are different to us and the same to a disk: upper and lower case, composed and decomposed letters."""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from deepseek_ops.data.folders import UnsafeTargetError, local_error


def require_distinct(folder: Path, names: Iterable[str]) -> None:
    """Return if the disk below ``folder``, which exists, can hold all of these paths apart.

    Only where two of them may be one does it ask the disk, by making a file. Raises UnsafeTargetError naming both.
    """
    spelled: dict[str, str] = {}
    for name in names:
        part = name
        while part:
            key = part.lower() if part.isascii() else _folded(part)
            known = spelled.setdefault(key, part)
            if known is part:
                part = part.rpartition("/")[0]
                continue
            if known != part and not tells_apart(folder, known, part):
                raise UnsafeTargetError(str(folder), part, f"is the same as {known!r} to this disk")
            break


def tells_apart(folder: Path, one: str, other: str) -> bool:
    """Return whether the disk takes the difference between two spellings for one."""
    mark = secrets.token_hex(8)
    first, second = _difference(one, other)
    made = folder / f".{mark}-{first}"
    try:
        made.touch()
        return not (folder / f".{mark}-{second}").exists()
    except OSError as error:
        raise local_error(made, error) from error
    finally:
        made.unlink(missing_ok=True)


def _difference(one: str, other: str) -> tuple[str, str]:
    """Return the first parts of two paths that are not spelled alike."""
    return next(pair for pair in zip(one.split("/"), other.split("/"), strict=True) if pair[0] != pair[1])


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
