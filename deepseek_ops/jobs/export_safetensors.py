"""Export to safetensors: the canonical form, the checkpoint's own weights with a config that every engine reads."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.export import BrokenCheckpointError, completed_config
from deepseek_ops.jobs.export_checkpoint import CONFIG_FILE, Runner, SourceModel, load_model, model_runner

WEIGHTS = "*.safetensors"
TEXT_SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model", ".md"})
"""Of tokenizers, templates and licences. Python code and pickles stay behind: they would run on whoever loads them."""


def export_safetensors(source: SourceModel, target: Path) -> tuple[Runner, dict[str, JsonValue]]:
    """Write the hub folder; return the runner of what is on disk and what was made.

    The weights are linked, not rewritten, so they keep their digests and are stored once.
    """
    weights = sorted(source.folder.glob(WEIGHTS))
    if not weights:
        raise BrokenCheckpointError("model.safetensors", "there is no safetensors file")
    for path in sorted(source.folder.iterdir()):
        if path.is_file() and (path in weights or path.suffix in TEXT_SUFFIXES):
            _link(path, target / path.name)
    completed = completed_config(source.config)
    (target / CONFIG_FILE).unlink()
    (target / CONFIG_FILE).write_text(json.dumps(completed, indent=2, sort_keys=True) + "\n")
    details: dict[str, JsonValue] = {
        "num_shards": len(weights),
        "config_added": [key for key in completed if key not in source.config],
    }
    return model_runner(load_model(target, "eager")), details


def runtime_name() -> str:
    """Return the name and version of the runtime."""
    return f"transformers {importlib.metadata.version('transformers')}"


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
