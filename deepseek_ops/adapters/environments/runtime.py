"""What our jobs need in every environment, whatever the lock says: our code, and the packages it imports."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from deepseek_ops.core.environments import canonical_name

PROJECT = "deepseek-ops"
EXTRAS = ("data", "train", "export")
"""What jobs use. Airflow's side is none of it."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """Our own part of an environment."""

    package: Path
    """Folder of the package ``deepseek_ops``: environments link to it, so that they run the code that made them."""
    requirements: tuple[str, ...]
    """What our jobs need, as ranges."""
    versions: tuple[tuple[str, str], ...]
    """(package, version) of all that these need, as this interpreter has it: taken where the lock says nothing."""
    check: str = "import deepseek_ops.jobs.__main__"
    """What every new environment has to be able to run before anybody gets it."""
    torch_build: str = ""
    """Build of torch that this interpreter has, such as cpu or cu130; empty = the index's own."""

    @classmethod
    def of_this_interpreter(cls) -> Runtime:
        """Return what the running interpreter has; extras it lacks are left out, as it could not run their jobs."""
        package = Path(__file__).resolve().parents[2]
        wanted = {name: line for extra in ("", *EXTRAS) for name, line in _direct(extra).items()}
        versions = _closure(wanted)
        torch = versions.get("torch", "")
        return cls(
            package=package,
            requirements=tuple(sorted(line for name, line in wanted.items() if name in versions)),
            versions=tuple(sorted((name, version.partition("+")[0]) for name, version in versions.items())),
            torch_build=torch.partition("+")[2],
        )


def _direct(extra: str) -> dict[str, str]:
    """Return name -> requirement of ours under one extra ("" = always), without its marker."""
    found: dict[str, str] = {}
    for requirement in _own(extra):
        if canonical_name(requirement.name) == PROJECT:
            for one in requirement.extras:
                found.update(_direct(one))
        else:
            extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
            found[canonical_name(requirement.name)] = f"{requirement.name}{extras}{requirement.specifier}"
    return found


def _own(extra: str) -> list[Requirement]:
    """Return our requirements under an extra. In a checkout its pyproject.toml is newer than what was installed."""
    file = Path(__file__).resolve().parents[3] / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text())["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        project = {}
    if project.get("name") != PROJECT:
        always = {str(one) for one in _requires(PROJECT, ("",))} if extra else set[str]()
        return [one for one in _requires(PROJECT, (extra,)) if str(one) not in always]
    lines = project["optional-dependencies"].get(extra, []) if extra else project["dependencies"]
    wanted = [Requirement(line) for line in lines]
    return [one for one in wanted if one.marker is None or one.marker.evaluate()]


def _closure(names: Iterable[str]) -> dict[str, str]:
    """Return name -> installed version of the packages and all they need; what is not installed is left out."""
    found: dict[str, str] = {}
    waiting = [(name, frozenset[str]()) for name in names]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        for requirement in _requires(name, ("", *extras)):
            entry = (canonical_name(requirement.name), frozenset(requirement.extras))
            if entry not in seen:
                seen.add(entry)
                waiting.append(entry)
    return found


def _requires(name: str, extras: Iterable[str]) -> list[Requirement]:
    """Return what an installed package needs here with these extras."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue  # an old package's metadata; its versions are resolved again anyway
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            found.append(requirement)
    return found
