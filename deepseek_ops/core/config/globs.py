"""Globs over branches, tags and paths, as CI systems read them; matching takes time linear in pattern x text.

``*`` matches within one path segment, ``**`` across segments, ``?`` one character that is not ``/``, ``[a-z]`` one of a
set (``[!a-z]`` one outside it), a backslash takes the next character as it stands. A pattern that ends in ``/`` means
everything below. ``!pattern`` takes back what an earlier pattern let in; the last pattern that matches decides. A list
that begins with ``!`` starts from everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_Reach = Callable[[str, list[bool]], list[bool]]
"""Maps the positions of a text reached so far to those reached after one more piece of the pattern."""


def matches_ref(globs: Sequence[str], short_name: str) -> bool:
    """Return whether the list lets in a branch or tag given by its short name, such as ``exp/first``."""
    return _admits(globs, short_name)


def matches_paths(globs: Sequence[str], paths: Sequence[str]) -> bool:
    """Return whether the list lets in at least one of the changed paths; an empty list lets in any change.

    An unknown change (no paths at all, as for a new branch) is let in: missing a run is worse than one too many.
    """
    return not globs or not paths or any(_admits(globs, path) for path in paths)


def check_glob(glob: str) -> str:
    """Return ``glob`` unchanged. Raises ValueError saying what is wrong with it."""
    body = glob.removeprefix("!")
    if not body or body.startswith("/") or any(ord(character) < 32 for character in body):
        raise ValueError(f"{glob!r} is not a glob; write a pattern relative to the root, such as deepseek/**")
    _compile(body)
    return glob


def _admits(globs: Sequence[str], text: str) -> bool:
    admitted = bool(globs) and globs[0].startswith("!")
    for glob in globs:
        if _matches(glob.removeprefix("!"), text):
            admitted = not glob.startswith("!")
    return admitted


def _matches(glob: str, text: str) -> bool:
    reached = [True] + [False] * len(text)
    for piece in _compile(glob):
        reached = piece(text, reached)
    return reached[-1]


def _compile(glob: str) -> list[_Reach]:
    pieces: list[_Reach] = []
    rest = whole = glob + "**" if glob.endswith("/") else glob
    while rest:
        starts_segment = len(rest) == len(whole) or whole[-len(rest) - 1] == "/"
        if rest.startswith("**/") and starts_segment:
            pieces.append(_folders)
            rest = rest[3:]
        elif rest.startswith("**"):
            pieces.append(_anything)
            rest = rest.lstrip("*")
        elif rest[0] == "*":
            pieces.append(_segment)
            rest = rest[1:]
        else:
            width, allowed = _character(rest, glob)
            pieces.append(_one(allowed))
            rest = rest[width:]
    return pieces


def _character(rest: str, glob: str) -> tuple[int, Callable[[str], bool]]:
    """Return how many characters of the pattern the next one takes, and what it allows."""
    if rest[0] == "?":
        return 1, lambda character: character != "/"
    if rest[0] == "\\":
        if len(rest) == 1:
            raise ValueError(f"{glob!r} ends in a backslash; write \\\\ for a backslash itself")
        literal = rest[1]
        return 2, lambda character: character == literal
    if rest[0] != "[":
        literal = rest[0]
        return 1, lambda character: character == literal
    end = rest.find("]", 2)
    if end < 0:
        raise ValueError(f"{glob!r} has a '[' without ']'; write \\[ for a bracket itself")
    body = rest[1:end]
    negated = body.startswith("!")
    ranges = _ranges(body.removeprefix("!"))
    return (
        end + 1,
        lambda character: character != "/" and any(low <= character <= high for low, high in ranges) != negated,
    )


def _ranges(body: str) -> list[tuple[str, str]]:
    ranges, at = [], 0
    while at < len(body):
        if body[at + 1 : at + 2] == "-" and at + 2 < len(body):
            ranges.append((body[at], body[at + 2]))
            at += 3
        else:
            ranges.append((body[at], body[at]))
            at += 1
    return ranges


def _one(allowed: Callable[[str], bool]) -> _Reach:
    def reach(text: str, reached: list[bool]) -> list[bool]:
        return [False] + [before and allowed(character) for before, character in zip(reached, text, strict=False)]

    return reach


def _segment(text: str, reached: list[bool]) -> list[bool]:
    after = list(reached)
    for at, character in enumerate(text):
        after[at + 1] = after[at + 1] or (after[at] and character != "/")
    return after


def _anything(text: str, reached: list[bool]) -> list[bool]:
    first = next((at for at, there in enumerate(reached) if there), len(text) + 1)
    return [at >= first for at in range(len(text) + 1)]


def _folders(text: str, reached: list[bool]) -> list[bool]:
    first = next((at for at, there in enumerate(reached) if there), len(text) + 1)
    return [there or (at > first and text[at - 1] == "/") for at, there in enumerate(reached)]
