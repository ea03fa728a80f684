"""Who trained on what: the records of all lives of a training, kept by rank 0 and as hard to kill as the kernel.

``lives.json`` holds the lives before this one; the running life writes one line of 40 bytes in place after every step,
so a kill -9 loses nothing that was done. A full copy goes into every checkpoint, for a machine that has only that.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.jobs.training_shelf import read_json, write_json
from deepseek_ops.training.checkpoints import Life
from deepseek_ops.training.proof import LifeRecord, Run

_LINE = struct.Struct("<4qd")
"""First step, last step, batch position of the first, samples in each; seconds that the life has trained."""
_LIVES = "lives.json"


class Lives:
    """The lives of one training, oldest first; the last one is the running life once ``begin`` was called."""

    def __init__(self, folder: Path) -> None:
        self.records: list[LifeRecord] = []
        self._folder = folder
        self._file: int | None = None

    @property
    def newest(self) -> Life | None:
        """The newest life that is recorded."""
        return max((Life.parse(record.life) for record in self.records), default=None)

    def read(self, copies: Iterable[JsonValue] = ()) -> None:
        """Take in what this machine has recorded, and ``copies`` from checkpoints; of a life the longest record."""
        known: dict[str, LifeRecord] = {}
        for value in (read_json(self._folder / _LIVES), *copies):
            for record in _records_in(value):
                held = known.get(record.life)
                if held is None or _steps(record) > _steps(held):
                    known[record.life] = record
        for record in known.values():
            self._read_lines(record)
        self.records = [known[life] for life in sorted(known)]

    def begin(self, life: Life, *, from_step: int, world_size: int) -> None:
        """Start the record of a life; the ones before are on the disk when this returns, if it has room."""
        self.close()
        self.records.append(LifeRecord(str(life), from_step, world_size))
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC
            self._file = os.open(self._lines_of(str(life)), flags, 0o600)
            write_json(self._folder / _LIVES, self.dump())

    def add(self, step: int, position: int, samples: int, seconds: float) -> None:
        """Record that the running life has done a step."""
        record = self.records[-1]
        record.seconds = seconds
        if not record.runs or not record.runs[-1].extend(step, position, samples):
            record.runs.append(Run(step, step, position, samples))
        run, number = record.runs[-1], len(record.runs) - 1
        line = _LINE.pack(run.first_step, run.last_step, run.position, run.samples, seconds)
        if self._file is not None:
            with suppress(OSError):  # a full disk: the copy in memory goes on
                os.pwrite(self._file, line, number * _LINE.size)

    def dump(self) -> JsonValue:
        """Return all lives as JSON."""
        return [record.dump() for record in self.records]

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _lines_of(self, life: str) -> Path:
        return self._folder / f"life-{life}.bin"

    def _read_lines(self, record: LifeRecord) -> None:
        """Replace the runs by those that the life wrote line by line, where they go further."""
        with suppress(OSError):
            data = self._lines_of(record.life).read_bytes()
            lines = list(_LINE.iter_unpack(data[: len(data) // _LINE.size * _LINE.size]))
            runs = [Run(*(int(value) for value in line[:4])) for line in lines if line[3] > 0]
            if runs and sum(run.steps for run in runs) >= _steps(record):
                record.runs, record.seconds = runs, float(lines[-1][4])


def _steps(record: LifeRecord) -> int:
    return sum(run.steps for run in record.runs)


def _records_in(value: JsonValue) -> list[LifeRecord]:
    """Return the lives in JSON that may be anything."""
    found = []
    for item in value if isinstance(value, list) else []:
        with suppress(KeyError, TypeError, ValueError):
            record = LifeRecord.load(item)
            Life.parse(record.life)
            found.append(record)
    return found
