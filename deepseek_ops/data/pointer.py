"""The pointer file of a model repository: which dataset version belongs to a commit.

Six lines of text, one fact a line, so that Git shows and merges them. ``git checkout`` brings the pointer, ``data
checkout`` the bytes it names.
"""

from __future__ import annotations

import yaml
from pydantic import Field, ValidationError

from deepseek_ops.core.errors import ConfigError
from deepseek_ops.core.records import DatasetVersion, Digest, Name, Record

HEADER = "# Written by deepseek-ops; `deepseek-ops data checkout` fetches what it names.\n"


class DatasetPointer(Record):
    """What a pointer file says."""

    name: Name
    version: Digest
    files: int = Field(ge=0)
    bytes: int = Field(ge=0)
    store: str = Field(description="URI of the object store, without credentials.")

    @classmethod
    def of(cls, dataset: DatasetVersion, store: str) -> DatasetPointer:
        """Return the pointer to a version in the store with this URI."""
        return cls(
            name=dataset.name, version=dataset.version, files=dataset.num_files, bytes=dataset.num_bytes, store=store
        )


def pointer_path(name: str) -> str:
    """Return where a dataset's pointer lies in a model repository."""
    return f"data/{name}.dataset.yaml"


def pointer_text(pointer: DatasetPointer) -> str:
    """Return the file's text; equal pointers give equal text."""
    body = pointer.model_dump(mode="json")
    return HEADER + yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=10_000)


def read_pointer(text: str, *, file: str) -> DatasetPointer:
    """Return what the file says. Raises ConfigError naming file, line, key and value; merge markers are one."""
    remedy = "Take the file from one side of the merge, or write it again with `deepseek-ops data commit`."
    try:
        body = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ConfigError(file, line, "", f"is no YAML: {error.problem or 'unreadable'}.", remedy) from None
    except yaml.YAMLError:
        raise ConfigError(file, 0, "", "is no YAML.", remedy) from None
    if not isinstance(body, dict):
        raise ConfigError(file, 1, "", "is no mapping of name, version, files, bytes, store.", remedy)
    try:
        return DatasetPointer.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        lines = [number for number, line in enumerate(text.splitlines(), 1) if line.startswith(f"{key}:")]
        shown = f"{body.get(key)!r} is wrong: {first['msg']}." if key in body else f"{first['msg']}."
        raise ConfigError(file, lines[0] if lines else 0, key, shown, remedy) from None
