"""``environment.yml``: what conda installs and what pip installs, all of it pinned.

A conda package is pinned by ``name=version=build``, ``name==version`` or ``name=version`` as ``conda env export
--no-builds`` writes it. Python itself may be named by minor version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from deepseek_ops.core.config.document import Located, parse_document
from deepseek_ops.core.environments import EnvironmentLock
from deepseek_ops.core.masking import masked
from deepseek_ops.pipeline.environment_requirements import (
    LockFileError,
    Read,
    UnpinnedLockError,
    parse_requirements,
)

_PINNED = re.compile(r"^(?:(?P<channel>[\w.-]+)::)?(?P<name>[A-Za-z0-9_.-]+)={1,2}(?P<version>[^=*<>!~|,\s]+)(=\S+)?$")
_KEYS = frozenset({"name", "channels", "dependencies", "prefix", "variables"})
_TOOLS = frozenset({"pip", "setuptools", "wheel"})
_LIST = "Write a list of name=version entries, and a pip section where needed."


@dataclass
class _Found:
    """What the entries of ``dependencies`` ask for, and what is wrong with them."""

    conda: list[str] = field(default_factory=list)
    pip: list[str] = field(default_factory=list)
    python: str = ""
    wrong: list[tuple[int, str]] = field(default_factory=list)

    def add(self, entry: Located) -> None:
        said = re.sub(r"\s+", "", str(entry.value))
        match = _PINNED.match(said)
        name = match["name"] if match else said
        if name in _TOOLS:
            return
        if match is None:
            self.wrong.append((entry.line, str(entry.value)))
        elif name == "python":
            self.python = ".".join(match["version"].split(".")[:2])
        else:
            self.conda.append(said)


def parse_conda(text: str, *, file: str, read: Read = lambda _path: None) -> EnvironmentLock:
    """Return the lock of an ``environment.yml``. Raises UnpinnedLockError naming the lines, LockFileError."""
    top = _top(text, file)
    found = _Found()
    for entry in _dependencies(top, file):
        if isinstance(entry.value, dict):
            found.pip += _pip_lines(entry, file, found.wrong)
        else:
            found.add(entry)
    if found.wrong:
        raise UnpinnedLockError(file, tuple(found.wrong))
    lock = parse_requirements("\n".join(found.pip), file=file, read=read)
    notes = (f"{file}: variables are not set: put them into the pipeline",) if "variables" in top else ()
    channels = tuple(masked(str(one.value)) for one in _items(top.get("channels")))
    return lock.evolve(
        format="conda",
        conda=tuple(sorted(found.conda)),
        channels=channels if found.conda else (),
        python=found.python,
        notes=(*lock.notes, *notes),
    )


def _top(text: str, file: str) -> dict[str, Located]:
    tree, problems = parse_document(text, file=file)
    if tree is None or problems:
        raise LockFileError(file, problems[0].line, problems[0].problem, problems[0].remedy)
    top = tree.value if isinstance(tree.value, dict) else {}
    for key, child in top.items():
        if key not in _KEYS:
            raise LockFileError(file, child.line, f"{key!r} is not a key of an environment file.", "Remove it.")
    return top


def _dependencies(top: dict[str, Located], file: str) -> list[Located]:
    dependencies = top.get("dependencies")
    if dependencies is None or not isinstance(dependencies.value, list):
        raise LockFileError(file, dependencies.line if dependencies else 0, "`dependencies` is no list.", _LIST)
    return dependencies.value


def _pip_lines(entry: Located, file: str, wrong: list[tuple[int, str]]) -> list[str]:
    """Return the entries of a ``pip:`` section; what does not pin is added to ``wrong`` with its line in this file."""
    section = entry.value if isinstance(entry.value, dict) else {}
    if set(section) != {"pip"}:
        raise LockFileError(file, entry.line, f"{', '.join(section)} is no dependency.", _LIST)
    lines = []
    for one in _items(section["pip"]):
        line = str(one.value)
        try:
            # An include is followed once all lines are together: alone it would be read twice.
            if not line.startswith("-"):
                parse_requirements(line, file=file)
        except UnpinnedLockError:
            wrong.append((one.line, line))
        lines.append(line)
    return lines


def _items(node: Located | None) -> list[Located]:
    return node.value if node is not None and isinstance(node.value, list) else []
