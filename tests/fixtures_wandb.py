"""Reads an offline run of Weights & Biases back: the LevelDB log format, with W&B's own records inside."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
EXIT = {0: "finished", 1: "failed", 255: "killed"}


def records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log: https://github.com/google/leveldb/blob/main/doc/log_format.md, after 7 own bytes."""
    assert data.startswith(b":W&B")
    at, held = HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        held += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield held
            held = b""


def offline_run(folder: Path) -> dict[str, Any]:
    """Return what a run's file holds: ``{place, params, tags, status, curves}``."""
    from wandb.proto import wandb_internal_pb2 as messages

    (path,) = folder.glob("run-*.wandb")
    seen: dict[str, Any] = {"curves": {}, "params": {}, "tags": {}, "status": ""}
    for body in records(path.read_bytes()):
        record = messages.Record()
        record.ParseFromString(body)
        match record.WhichOneof("record_type"):
            case "run":
                seen["place"] = (record.run.entity, record.run.project, record.run.run_id)
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                seen["tags"] = config.pop("deepseek_ops")
                seen["params"] = {name: value for name, value in config.items() if not name.startswith("_")}
            case "history":
                _add(seen["curves"], record.history)
            case "exit":
                seen["status"] = EXIT[record.exit.exit_code]
    return seen


def _add(curves: dict[str, list[tuple[int, float]]], history: Any) -> None:
    values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in history.item}
    for name, value in values.items():
        if not name.startswith("_"):
            curves.setdefault(name, []).append((history.step.num, float(value)))
