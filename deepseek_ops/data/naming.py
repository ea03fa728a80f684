"""What people call a version, and which version that is."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest, Name
from deepseek_ops.data.layout import commit_key
from deepseek_ops.data.refs import RefLog, is_branch_name, read_tag

MIN_PREFIX = 8
_NAME = TypeAdapter(Name)


@dataclass(eq=False)
class VersionNotFoundError(PermanentError):
    """No version, branch or tag has this name."""

    uri: str
    name: str

    def __str__(self) -> str:
        return f"{self.name!r} is no dataset, dataset@branch, tag or version in {self.uri}; `data log` shows versions."


@dataclass(eq=False)
class InvalidNameError(PermanentError):
    """A dataset, branch or tag name that is no plain name."""

    kind: str
    name: str

    def __str__(self) -> str:
        more = ", and '/' between parts" if self.kind == "branch" else ""
        return f"{self.kind} name {self.name!r} is not valid; use up to 100 letters, digits, '.', '_' and '-'{more}."


def resolve(store: ObjectStore, name_or_id: str) -> Digest:
    """Return the version id of a tag, ``dataset`` (its main branch), ``dataset@branch``, id or unique id prefix.

    Raises VersionNotFoundError.
    """
    if _is_hex(name_or_id, 64):
        if store.head(commit_key(name_or_id)) is None:
            raise VersionNotFoundError(store.uri, name_or_id)
        return name_or_id
    found = _by_name(store, name_or_id)
    if found is None and MIN_PREFIX <= len(name_or_id) < 64 and _is_hex(name_or_id, len(name_or_id)):
        keys = [info.key for info in store.list(commit_key(name_or_id), limit=2)]
        found = keys[0].rpartition("/")[2] if len(keys) == 1 else None
    if found is None:
        raise VersionNotFoundError(store.uri, name_or_id)
    return found


def _by_name(store: ObjectStore, name: str) -> Digest | None:
    dataset, _, branch = name.partition("@")
    if not is_name(dataset):
        return None
    if not branch and (tagged := read_tag(store, name)) is not None:
        return tagged
    if branch and not is_branch_name(branch):
        return None
    head = RefLog(store, dataset, branch or "main").head()
    return head.version if head else None


def branch_in(store: ObjectStore, name: str) -> str:
    """Return the branch that a name of a version stands for, or empty for a tag or an id: those are on none."""
    dataset, _, branch = name.partition("@")
    if branch:
        return branch
    named = is_name(dataset) and read_tag(store, dataset) is None
    return "main" if named and RefLog(store, dataset, "main").head() is not None else ""


def checked_name(kind: str, name: str) -> str:
    """Return the name. Raises InvalidNameError saying what kind of name it was to be."""
    if not is_name(name):
        raise InvalidNameError(kind, name)
    return name


def checked_branch(name: str) -> str:
    """Return the name of a branch. Raises InvalidNameError."""
    if not is_branch_name(name):
        raise InvalidNameError("branch", name)
    return name


def is_name(name: str) -> bool:
    """Return whether this can name a dataset or a tag: it is safe as a segment of paths, keys and Git refs."""
    try:
        _NAME.validate_python(name)
    except ValidationError:
        return False
    return True


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and not set(text) - set("0123456789abcdef")
