"""The machine that an environment's key is made for: where the runs are planned, which need not be where we ask.

A key holds the interpreter, the platform and the C library of the machine that planned the run. Whoever looks from
another one for what runs would find has to use theirs, or finds nothing.
"""

from __future__ import annotations

import platform
import sys

from pydantic import Field

from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.ports import Facts, ObjectStore
from deepseek_ops.core.records import Record

_LOOKED_AT = 20
"""Newest trainings whose machine is asked for: older releases did not note it."""


class Machine(Record):
    """What of a machine decides which packages fit it."""

    python: str = Field(description="Such as 3.11.")
    platform: str = Field(description="Such as linux-x86_64.")
    libc: str = Field(default="", description="Such as glibc-2.36; empty where there is none to name.")

    @classmethod
    def here(cls) -> Machine:
        """Return this machine."""
        return cls(
            python="{}.{}".format(*sys.version_info[:2]),
            platform=f"{platform.system()}-{platform.machine()}".lower(),
            libc="-".join(platform.libc_ver()),
        )

    def __str__(self) -> str:
        return f"Python {self.python} on {self.platform}{f' with {self.libc}' if self.libc.strip('-') else ''}"


class Planner(Record):
    """Who planned a run: its machine, and the release of ours that it had."""

    machine: Machine
    software: str


def newest_planner(store: ObjectStore, facts: Facts, *, name: str) -> Planner | None:
    """Return who planned the newest training of a pipeline (by its name), or None where none has said so."""
    from deepseek_ops.pipeline.lineage_evidence import parse_evidence
    from deepseek_ops.pipeline.once import RESULT

    for fact in facts.find(RESULT, prefix="train-", limit=_LOOKED_AT):
        for info in store.list(f"runs/{fact.body.get('plan')}/lineage/"):
            try:
                evidence = parse_evidence(store.get(info.key))
            except DeepSeekOpsError:
                continue  # the next one may tell; `why` says what is wrong with this one
            if evidence.machine is not None and evidence.manifest.name == name:
                return Planner(machine=evidence.machine, software=evidence.manifest.software)
    return None
