"""A GitHub Actions workflow read as a pipeline file, so that a team can start from the one it has.

Decision: what a workflow says about *when* and *with which packages* is taken over (``on`` -> triggers, ``pip install
-r`` -> ``jobs.setup.requirements``). Its commands are not run: a training that is a shell line has no plan, no gates
and no resume. Each step that is left out gives a warning that names what does the work here.
"""

from __future__ import annotations

import re

from deepseek_ops.core.config.document import Located
from deepseek_ops.core.config.setup import SetupStep

_OURS = {"triggers", "training", "data", "sweep", "alerts", "validation", "deployment", "experiment", "release"}
_REPLACED = {
    "actions/checkout": "the run checks out the commit itself",
    "actions/cache": "environments are cached by their key",
    "actions/setup-python": "the environment is made from the requirements file and the image",
    "actions/upload-artifact": "results go to the registry that deployment.destination names",
}


def is_workflow(tree: Located) -> bool:
    """Return whether the document is a GitHub Actions workflow and not a pipeline file."""
    value = tree.value
    return isinstance(value, dict) and "on" in value and "jobs" in value and not _OURS & set(value)


def translate(tree: Located) -> tuple[Located, list[str]]:
    """Return the pipeline document that the workflow amounts to, with its own lines and keys, and warnings."""
    source = _children(tree)
    warnings = ["this is a GitHub Actions workflow: its triggers and requirements are used, its commands are not run"]
    setup: dict[str, Located] = {}
    for name, job in _children(source["jobs"]).items():
        for step in _entries(_children(job).get("steps")):
            _read_step(name, step, setup, warnings)
    content = {"triggers": Located(_triggers(source["on"], warnings), source["on"].line, "on")}
    if "name" in source and isinstance(source["name"].value, str):
        content["name"] = _slug(source["name"], warnings)
    if setup:
        content["jobs"] = _made({"setup": _made(dict(setup), source["jobs"])}, source["jobs"])
    return _made(content, tree), warnings


def _children(node: Located | None) -> dict[str, Located]:
    return node.value if node is not None and isinstance(node.value, dict) else {}


def _entries(node: Located | None) -> list[Located]:
    return node.value if node is not None and isinstance(node.value, list) else []


def _made(value: dict[str, Located], like: Located) -> Located:
    return Located(value, like.line, like.key)


def _slug(name: Located, warnings: list[str]) -> Located:
    slug = re.sub(r"[^a-z0-9._-]+", "-", str(name.value).lower()).strip("-._") or "deepseek"
    if slug != name.value:
        warnings.append(f"name {name.value!r} becomes {slug!r}, which is safe in paths and tags")
    return Located(slug[:100], name.line, name.key)


def _triggers(on: Located, warnings: list[str]) -> list[Located]:
    events = _children(on)
    if not events:  # the short forms: `on: push`, `on: [push, pull_request]`
        names = [child.value for child in _entries(on)] if isinstance(on.value, list) else [on.value]
        events = {str(name): Located({}, on.line, on.key) for name in names}
    found: list[Located] = []
    for event, node in events.items():
        if event == "push":
            found += _push(node)
        elif event == "schedule":
            found += [
                Located({"type": Located("schedule", entry.line, entry.key), **_children(entry)}, entry.line, entry.key)
                for entry in _entries(node)
            ]
        elif event != "workflow_dispatch":  # a person can always start a run
            warnings.append(f"on.{event} starts nothing here; triggers are push, tag, schedule and data arrival")
    return found


def _push(node: Located) -> list[Located]:
    given = _children(node)
    found = []
    if "tags" in given:
        found.append(_trigger("git-tag", {"tags": given["tags"]}, node))
    if "branches" in given or "tags" not in given:
        every = Located([Located("**", node.line, node.key)], node.line, node.key)
        push = {"branches": given.get("branches", every)}
        found.append(_trigger("git-push", {**push, **{key: given[key] for key in ("paths",) if key in given}}, node))
    unknown = {key: child for key, child in given.items() if key not in ("branches", "tags", "paths")}
    if found and unknown:
        _children(found[-1]).update(unknown)  # refused by name when the trigger is validated
    return found


def _trigger(kind: str, content: dict[str, Located], node: Located) -> Located:
    return _made({"type": Located(kind, node.line, node.key), **content}, node)


def _read_step(job: str, step: Located, setup: dict[str, Located], warnings: list[str]) -> None:
    content = _children(step)
    command, action = content.get("run"), content.get("uses")
    if command is not None and isinstance(command.value, str):
        installs = SetupStep(run=command.value).installs if command.value else None
        if installs and "requirements" not in setup:
            setup["requirements"] = Located(installs, command.line, command.key)
            return
        first = command.value.strip().splitlines()[0][:60] if command.value.strip() else ""
        warnings.append(
            f"jobs.{job}, line {command.line}: {first!r} is not run; describe the training under 'training:'"
        )
    elif action is not None:
        name = str(action.value).partition("@")[0]
        reason = _REPLACED.get(name, "actions are not run")
        warnings.append(f"jobs.{job}, line {action.line}: {name[:60]} is left out: {reason}")
