"""A version as a folder that ``datasets.load_dataset`` reads by itself: its splits under their usual names."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from deepseek_ops.core.records import DatasetVersion
from deepseek_ops.data.exchange.splits import HUGGING_FACE_NAMES
from deepseek_ops.data.pages import Entry

CARD = "README.md"


def dataset_card(version: DatasetVersion, entries: Sequence[Entry]) -> str | None:
    """Return the text of ``README.md`` that says which files are which split; None when the version brings its own.

    Only a version whose files have splits gets a configuration: `datasets` finds other layouts itself.
    """
    if any(entry.path == CARD for entry in entries):
        return None
    by_split: dict[str, list[str]] = {}
    for entry in entries:
        if entry.split:
            by_split.setdefault(HUGGING_FACE_NAMES.get(entry.split, entry.split), []).append(entry.path)
    files = [{"split": split, "path": by_split[split]} for split in sorted(by_split, key=_order)]
    configs = {"configs": [{"config_name": "default", "data_files": files}]} if files else {}
    head = yaml.safe_dump({"pretty_name": version.name, **configs}, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n# {version.name}\n\nVersion `{version.version}`, written by deepseek-ops.\n"


def _order(split: str) -> tuple[int, str]:
    known = list(HUGGING_FACE_NAMES.values())
    return (known.index(split) if split in known else len(known), split)
