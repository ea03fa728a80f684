"""The process in which a model repository's own ``prepare`` runs: confined before a line of foreign code is imported.

``python -m deepseek_ops.jobs.prepare_child ORDER`` with the order as JSON. The variables it starts with are chosen by
``deepseek_ops.jobs.prepare``. The callable is a function ``prepare(raw, out, **parameters)`` that writes below ``out``,
or a generator function that yields documents, which are written as ``documents-00000.jsonl`` and so on: then neither
side holds more than one document in memory.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher import processes
from deepseek_ops.jobs.prepare_sandbox import Limits, confine

SHARD_BYTES = 64 << 20
SHARD_NAME = "documents-{:05d}.jsonl"


class Order(TypedDict):
    """What the child is told; nothing in it is secret."""

    target: str
    raw: str
    code: str
    scratch: str
    parameters: dict[str, JsonValue]
    limits: dict[str, int | None]
    parent: int


def main(order: Order) -> int:
    """Run the callable and return the exit status; its traceback goes to stderr."""
    processes.die_with_parent(order["parent"])
    scratch, raw, code = Path(order["scratch"]), Path(order["raw"]), Path(order["code"])
    for gap in confine(readable=[raw, code], writable=[scratch], limits=Limits(**order["limits"])):
        sys.stderr.write(f"prepare is not fully confined: {gap}.\n")
    module, _, name = order["target"].partition(":")
    result = getattr(importlib.import_module(module), name)(raw, scratch / "out", **order["parameters"])
    if isinstance(result, Iterator):
        write_shards(result, scratch / "out")
    return 0


def write_shards(documents: Iterator[object], folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the documents as JSON lines in shards that end with the document that reaches ``shard_bytes``."""
    shard, written = 0, shard_bytes
    file = None
    try:
        for document in documents:
            if written >= shard_bytes:
                if file is not None:
                    file.close()
                folder.mkdir(exist_ok=True)
                file, written = (folder / SHARD_NAME.format(shard)).open("wb"), 0
                shard += 1
            record = dict(zip(("id", "text"), document, strict=True)) if isinstance(document, tuple) else document
            line = json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
            written += file.write(line) if file is not None else 0
    finally:
        if file is not None:
            file.close()


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
