"""What the documents of each split look like: counts, lengths, scripts, languages. Stored with a version."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b

from pydantic import JsonValue

from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.data.content.languages import LANGUAGE_CHARACTERS, language_of, scripts_of, shares, shift
from deepseek_ops.data.content.lengths import Lengths
from deepseek_ops.data.repository import DatasetRepository

REPORT_FILE = "report.json"

SAMPLE = 400
"""Texts per split whose language is looked at: those with the least digests, so the same ones everywhere."""


class SplitProfile:
    """The documents of one split."""

    def __init__(self, *, languages: bool = True) -> None:
        self.documents = 0
        self.characters = 0
        self.tokens = Lengths()
        self.num_tokens = 0
        self.scripts: Counter[str] = Counter()
        self._sample: list[tuple[int, str]] | None = [] if languages else None

    def add(self, text: str, tokens: int) -> None:
        """Count one document of so many tokens, or of whatever unit the caller measures in."""
        self.documents += 1
        self.characters += len(text)
        self.num_tokens += tokens
        self.tokens.add(tokens)
        self.scripts.update(scripts_of(text))
        if self._sample is None:
            return
        rank = -int.from_bytes(blake2b(text[:LANGUAGE_CHARACTERS].encode("utf-8", "replace"), digest_size=8).digest())
        if len(self._sample) < SAMPLE:
            heapq.heappush(self._sample, (rank, text[:LANGUAGE_CHARACTERS]))
        elif rank > self._sample[0][0]:
            heapq.heapreplace(self._sample, (rank, text[:LANGUAGE_CHARACTERS]))

    def languages(self) -> Counter[str]:
        """Return the sampled documents by language; texts too short to tell are left out."""
        return Counter(name for name in (language_of(text) for _, text in self._sample or ()) if name)

    def dump(self) -> dict[str, JsonValue]:
        """Return the profile as JSON."""
        languages = self.languages()
        lengths: dict[str, JsonValue] = dict(self.tokens.dump())
        quantiles: dict[str, JsonValue] = dict(self.tokens.quantiles())
        return {
            "documents": self.documents,
            "characters": self.characters,
            "tokens": self.num_tokens,
            "length_quantiles": quantiles,
            "length_histogram": lengths,
            "scripts": dict(shares(self.scripts)),
            "languages": dict(shares(languages)),
            "language_sample": sum(languages.values()),
        }


def drift(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return how far two dumped profiles of a split are apart: ``ks``, ``wasserstein``, ``scripts``, ``languages``."""
    distances = _lengths(old).distances(_lengths(new))
    moved: dict[str, JsonValue] = dict(distances)
    for name in ("scripts", "languages"):
        apart = shift(_weights(old.get(name)), _weights(new.get(name)))
        if apart is not None:
            moved[name] = apart
    return moved


def _lengths(profile: Mapping[str, JsonValue]) -> Lengths:
    histogram = profile.get("length_histogram")
    return Lengths.load(histogram if isinstance(histogram, dict) else {})


def _weights(value: JsonValue) -> dict[str, int]:
    """Return shares as parts of ten thousand."""
    return {name: round(float(str(share)) * 10_000) for name, share in value.items()} if isinstance(value, dict) else {}


def stored_profiles(repository: DatasetRepository, version: str) -> dict[str, JsonValue]:
    """Return the profile of each split that a version's own report holds; empty when it has none."""
    try:
        body = json.loads(repository.read_file(version, REPORT_FILE))
    except (DeepSeekOpsError, ValueError):
        return {}
    profiles = body.get("profiles") if isinstance(body, dict) else None
    return profiles if isinstance(profiles, dict) else {}
