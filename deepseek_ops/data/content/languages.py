"""Which scripts and languages texts are written in: exact shares of scripts, languages of a sample."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from deepseek_ops.data.content.extras import require

SCRIPT_CHARACTERS = 2000
"""Of each text, from its beginning."""
LANGUAGE_CHARACTERS = 600
LEAST_CHARACTERS = 20
"""A text with fewer letters says nothing about its language."""
_NO_LETTERS = bytes(code for code in range(128) if not chr(code).isalpha())
_NAMES = {"CJK": "HAN", "IDEOGRAPHIC": "HAN", "FULLWIDTH": "LATIN", "MATHEMATICAL": "SYMBOL"}


@lru_cache(maxsize=1 << 16)
def script_of(char: str) -> str:
    """Return the script of a letter in capitals (LATIN, HAN, CYRILLIC, ...); empty for what is no letter."""
    if char.isascii():
        return "LATIN" if char.isalpha() else ""
    if not char.isalpha():
        return ""
    first = unicodedata.name(char, "OTHER").partition(" ")[0].partition("-")[0]
    return _NAMES.get(first, first)


def scripts_of(text: str) -> Counter[str]:
    """Return the letters by script in the beginning of a text."""
    beginning = text[:SCRIPT_CHARACTERS]
    if beginning.isascii():
        letters = len(beginning.encode().translate(None, _NO_LETTERS))
        return Counter({"LATIN": letters}) if letters else Counter()
    counts: Counter[str] = Counter()
    for char, count in Counter(beginning).items():
        if script := script_of(char):
            counts[script] += count
    return counts


def require_languages() -> None:
    """Return when languages can be told apart. Raises MissingDependencyError."""
    require("py3langid", "telling languages apart")


def language_of(text: str) -> str:
    """Return the language of the beginning of a text (ISO 639-1), or empty when it is too short to tell."""
    beginning = text[:LANGUAGE_CHARACTERS]
    if sum(map(str.isalpha, beginning)) < LEAST_CHARACTERS:
        return ""
    import py3langid  # type: ignore[import-untyped]

    return str(py3langid.classify(beginning)[0])


def shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Return each name's share of the total, largest first, rounded to a hundredth of a percent."""
    total = sum(counts.values()) or 1
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return {name: round(count / total, 4) for name, count in ordered}


def shift(old: Mapping[str, int], new: Mapping[str, int]) -> float | None:
    """Return the total variation distance of two distributions, 0 (equal) to 1; None when either is empty."""
    before, after = sum(old.values()), sum(new.values())
    if not before or not after:
        return None
    return round(sum(abs(old.get(name, 0) / before - new.get(name, 0) / after) for name in {*old, *new}) / 2, 4)
