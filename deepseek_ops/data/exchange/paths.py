"""Names that come from elsewhere: which of them may become paths of a version.

An archive, a `.dir` list or a bucket can name anything. A name that would mean another file on another machine, or that
leaves the folder it is written to, is refused by name, before anything is stored under it.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.data.folders import MAX_NAME, SKIPPED

MAX_SEGMENT_BYTES = 255
SHOWN = 120


@dataclass(eq=False)
class RefusedMemberError(PermanentError):
    """One member of what was to be imported is not safe, not portable or not what it says."""

    source: str
    member: str
    problem: str

    def __str__(self) -> str:
        shown = (
            self.member if len(self.member) <= SHOWN else f"{self.member[:SHOWN]}... ({len(self.member)} characters)"
        )
        return f"{self.source}: member {shown!r} {self.problem}; nothing was imported. Correct or remove it."


class PathGate:
    """Lets each name in once. ``source`` is what errors call the origin.

    :param case_sensitive: let names in that differ only in upper and lower case (or in the form of an accent): such a
        version cannot be written on Windows and macOS.
    """

    def __init__(self, source: str, *, case_sensitive: bool = False) -> None:
        self.source = source
        self._case_sensitive = case_sensitive
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def admit(self, name: str) -> str:
        """Return the name as a path of a version. Raises RefusedMemberError."""
        path = self.plain(name)
        key = self._key(path)
        if key in self._files:
            raise RefusedMemberError(
                self.source, name, "appears twice, or differs from another only in case or accents"
            )
        if key in self._folders:
            raise RefusedMemberError(self.source, name, "is both a file and a folder")
        self._files.add(key)
        folder = key.rpartition("/")[0]
        while folder and folder not in self._folders:
            if folder in self._files:
                raise RefusedMemberError(self.source, name, "lies below another file")
            self._folders.add(folder)
            folder = folder.rpartition("/")[0]
        return path

    def plain(self, name: str) -> str:
        """Return the name without a leading ``./``. Raises RefusedMemberError; does not remember it."""
        path = name
        while path.startswith("./"):
            path = path[2:]
        if problem := _problem(path):
            raise RefusedMemberError(self.source, name, problem)
        return path

    def _key(self, path: str) -> str:
        return path if self._case_sensitive else unicodedata.normalize("NFC", path).casefold()


def _problem(path: str) -> str:
    if not path:
        return "has no name"
    if len(path) > MAX_NAME:
        return f"has a name of more than {MAX_NAME} characters"
    if any(char < " " or char == "\x7f" for char in path) or "\\" in path:
        return "has a control character or a backslash in its name"
    if path.startswith("/") or path[1:2] == ":":
        return "has an absolute path"
    return _segment_problem(path.split("/"))


def _segment_problem(segments: list[str]) -> str:
    if any(segment in ("", ".", "..") for segment in segments):
        return "has an empty, '.' or '..' segment in its path"
    if not SKIPPED.isdisjoint(segments):
        return f"lies in a folder that no version holds ({' or '.join(sorted(SKIPPED))})"
    try:
        longest = max(len(segment.encode()) for segment in segments)
    except UnicodeEncodeError:
        return "has a name that is no valid Unicode"
    return f"has a name part of more than {MAX_SEGMENT_BYTES} bytes" if longest > MAX_SEGMENT_BYTES else ""
