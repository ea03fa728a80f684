"""Which split a file belongs to, as its path says it: the rule that Hugging Face datasets follow."""

from __future__ import annotations

import re

_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(_SPLIT_OF, key=len, reverse=True))})(?![a-z])")
HUGGING_FACE_NAMES = {"train": "train", "val": "validation", "test": "test"}
"""What `datasets` calls our splits."""


def split_by_name(path: str) -> str:
    """Return train, val or test when a word of the path says so (``data/train-00000.parquet``), or nothing.

    The first segment that says something decides: ``train/test_cases.jsonl`` is for training.
    """
    for segment in path.lower().split("/"):
        if found := _WORD.search(segment):
            return _SPLIT_OF[found[1]]
    return ""


def no_split_by_name(_path: str) -> str:
    """Return nothing: the paths of this dataset say nothing about splits."""
    return ""
