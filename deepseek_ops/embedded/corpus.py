"""The quick start's raw corpus: English and code prose that every CPython installation carries.

``pydoc_data.topics`` (the language reference as shown by ``help()``) and the docstrings of the standard library are
real text, some two megabytes, under the PSF licence, and need no download. Files are parsed, never imported: importing
``this``, ``antigravity`` or ``idlelib`` has side effects. What is collected depends on the interpreter alone, so one
machine makes the same bytes each time.
"""

from __future__ import annotations

import ast
import json
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from platform import python_version

from deepseek_ops.core.errors import PermanentError

SHARD_BYTES = 256 * 1024
"""A shard is closed once it holds this much, so that the raw data arrives as several objects."""
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "_bundled", "lib2to3", "idlelib"}
)
_LICENCE_NAMES = ("LICENSE.txt", "LICENSE", "../../LICENSE", "../../LICENSE.txt")
_LICENCE_POINTER = (
    "Python Software Foundation License Version 2.\n"
    "Full text: the `license` command of this Python interpreter, and https://docs.python.org/3/license.html.\n"
)


@dataclass(eq=False)
class CorpusUnavailableError(PermanentError):
    """This Python installation carries no standard library sources to read."""

    folder: str

    def __str__(self) -> str:
        return f"no Python sources with docstrings below {self.folder}; use a CPython with its library's sources."


def collect_python_corpus(out: Path, *, stdlib: Path | None = None) -> list[Path]:
    """Write the raw corpus below ``out`` and return the JSON-lines shards, sorted by name.

    Each line is ``{"id": ..., "source": ..., "text": ...}``; ``LICENSE`` and ``ORIGIN.md`` lie beside the shards.
    Order and bytes depend only on the sources found in ``stdlib`` (default: this interpreter's).

    Raises:
        CorpusUnavailableError: The folder holds no documented Python source.
    """
    stdlib = stdlib or Path(sysconfig.get_paths()["stdlib"])
    out.mkdir(parents=True, exist_ok=True)
    shards = _write_shards(out, "topics", _topics(stdlib)) + _write_shards(out, "docstrings", _docstrings(stdlib))
    if not shards:
        raise CorpusUnavailableError(str(stdlib))
    _write(out / "LICENSE", _licence(stdlib))
    _write(out / "ORIGIN.md", _origin())
    return sorted(shards)


def _topics(stdlib: Path) -> Iterator[dict[str, str]]:
    path = stdlib / "pydoc_data" / "topics.py"
    if not path.is_file():
        return
    for node in _parse(path).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            for name in sorted(topics):
                yield {"id": f"topic:{name}", "source": "pydoc_data/topics.py", "text": topics[name]}


def _docstrings(stdlib: Path) -> Iterator[dict[str, str]]:
    for path in sorted(stdlib.rglob("*.py")):
        relative = path.relative_to(stdlib)
        if _SKIPPED_FOLDERS.intersection(relative.parts) or relative.name.startswith("_sysconfigdata"):
            continue
        try:
            tree = _parse(path)
        except (SyntaxError, UnicodeDecodeError):  # sample files of the library that are wrong on purpose
            continue
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        for name, text in _documented(tree, module):
            yield {"id": name, "source": relative.as_posix(), "text": text}


def _documented(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted name, docstring) of a module or class and of the classes and functions in it."""
    if text := ast.get_docstring(node):
        yield name, text
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _documented(child, f"{name}.{child.name}")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(child)):
            yield f"{name}.{child.name}", text


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old modules
        return ast.parse(path.read_bytes(), filename=path.name)


def _write_shards(out: Path, stem: str, documents: Iterable[dict[str, str]]) -> list[Path]:
    shards: list[Path] = []
    lines: list[str] = []
    size = 0

    def close() -> None:
        path = out / f"{stem}-{len(shards):05d}.jsonl"
        _write(path, "".join(lines))
        shards.append(path)
        lines.clear()

    for document in documents:
        lines.append(json.dumps(document, ensure_ascii=False, sort_keys=True) + "\n")
        size += len(lines[-1])
        if size >= SHARD_BYTES:
            close()
            size = 0
    if lines:
        close()
    return shards


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(text.encode("utf-8", errors="replace"))
    partial.replace(path)


def _licence(stdlib: Path) -> str:
    for name in _LICENCE_NAMES:
        path = stdlib / name
        if path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")
    return _LICENCE_POINTER


def _origin() -> str:
    return (
        "# Origin of this corpus\n\n"
        f"Collected from CPython {python_version()}: `pydoc_data.topics` and the docstrings of the standard library,\n"
        "read from the installed source files. Copyright Python Software Foundation; licence: see `LICENSE`.\n"
        "Each line of a shard is one document: `id` (dotted name or topic), `source` (file), `text`.\n"
    )
