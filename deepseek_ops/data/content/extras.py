"""The optional packages of the extra ``data``, asked for before work begins."""

from __future__ import annotations

from importlib.util import find_spec

from deepseek_ops.core.errors import MissingDependencyError


def require(package: str, needed_for: str) -> None:
    """Return when the package can be imported. Raises MissingDependencyError naming the extra."""
    if find_spec(package) is None:
        raise MissingDependencyError(package, "data", needed_for)
