"""One comment per key in a discussion: found by a marker in its first line, updated, and never doubled.

An answer that is lost leaves nobody knowing whether the comment was made, and two tasks may write at the same time. So
a comment is never posted twice blindly: the discussion is read again first, and where there are two of ours the older
one stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from deepseek_ops.core.reporting import ServiceUnavailableError

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/]{0,99}")
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment as it stands."""

    number: int
    body: str
    url: str


@dataclass(frozen=True, slots=True)
class Discussion:
    """What can be done in the discussion of one request; ``mine`` yields our own comments only, oldest first."""

    mine: Callable[[], Iterable[Comment]]
    create: Callable[[str], Comment]
    update: Callable[[int, str], Comment]
    delete: Callable[[int], None]


def marker(key: str) -> str:
    """Return the line that marks a comment as ours: an HTML comment, which hosts do not show."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"comment key {key!r} must match {_KEY.pattern}")
    return f"<!-- deepseek-ops:{key} -->"


def keep_one(discussion: Discussion, body: str, *, key: str) -> str:
    """Leave exactly one comment of ours under ``key``, with ``body``, and return its URL."""
    wanted = f"{marker(key)}\n{body.strip()}\n"
    for attempt in range(_TRIES):
        found = sorted(_marked(discussion, key), key=lambda comment: comment.number)
        if found:
            return _settle(discussion, found, wanted)
        try:
            discussion.create(wanted)
        except ServiceUnavailableError:
            if attempt == _TRIES - 1:
                raise
            continue
        # Read again: somebody may have posted at the same time, and both see both then.
    found = sorted(_marked(discussion, key), key=lambda comment: comment.number)
    return _settle(discussion, found, wanted) if found else ""


def _settle(discussion: Discussion, found: list[Comment], wanted: str) -> str:
    kept, *doubles = found
    if _normal(kept.body) != _normal(wanted):
        kept = discussion.update(kept.number, wanted)
    for double in doubles:
        discussion.delete(double.number)
    return kept.url


def _marked(discussion: Discussion, key: str) -> list[Comment]:
    return [comment for comment in discussion.mine() if comment.body.lstrip().startswith(marker(key))]


def _normal(body: str) -> str:
    return body.replace("\r\n", "\n").strip()
