"""What the documents say is so: links resolve, commands and targets exist, snippets are what they claim to be."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
import yaml
from typer.core import TyperGroup

from deepseek_ops.cli.main import COMMANDS, GROUPS
from deepseek_ops.core.config import load_pipeline

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "docker/*.md", "include/**/*.md")
    for path in ROOT.glob(pattern)
)
DOCKERFILES = sorted(
    path.relative_to(ROOT).as_posix() for path in [ROOT / "Dockerfile", *ROOT.glob("docker/*.Dockerfile")]
)

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MAKE = re.compile(r"(?:`|^|\s)make ([a-z]+)", re.MULTILINE)
_COMMAND = re.compile(r"(?:`|bin/)deepseek-ops ([a-z-]+)(?: ([a-z-]+))?")
_SUBCOMMANDS = re.compile(r"`deepseek-ops ([a-z-]+) ([a-z-]+)`((?:,\s+`[a-z-]+`)+)")
_REPOSITORY_PATH = re.compile(r"`((?:core|airflow|jobs|export|rollout|training|pipeline)/[\w/]+\.py)`")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose_of(name: str) -> str:
    """Return a document without its fenced blocks."""
    return _FENCE.sub("", text_of(name))


def blocks_of(name: str, language: str) -> list[str]:
    return [body for found, body in _FENCE.findall(text_of(name)) if found == language]


def words_of(name: str) -> str:
    """Return where commands can stand: prose in backticks, and shell blocks without their comments."""
    shell = "\n".join(line.split(" #")[0] for block in blocks_of(name, "sh") for line in block.splitlines())
    quoted = "\n".join(f"`{code}`" for code in re.findall(r"`([^`\n]+)`", prose_of(name)))
    return f"{shell}\n{quoted}"


def subcommands(group: str) -> set[str]:
    module, attribute, _ = GROUPS[group]
    found = getattr(importlib.import_module(module), attribute)
    assert isinstance(found, typer.Typer)
    command = typer.main.get_command(found)
    assert isinstance(command, TyperGroup)
    return set(command.commands)


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def commands_in(name: str) -> Iterator[tuple[str, str]]:
    words = words_of(name)
    for command, sub in _COMMAND.findall(words):
        yield command, sub
    for command, first, more in _SUBCOMMANDS.findall(prose_of(name)):
        for sub in (first, *re.findall(r"`([a-z-]+)`", more)):
            yield command, sub


def test_the_documents_people_start_with_are_here() -> None:
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/operations.md"} <= {
        *DOCUMENTS
    }


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_relative_link_resolves(name: str) -> None:
    for link in _LINK.findall(prose_of(name)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert target.is_relative_to(ROOT), f"{name} links to {link}, outside the project"
        assert target.exists(), f"{name} links to {link}, which is not there"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{name} links to {link}, which has no such heading"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_named_exists(name: str) -> None:
    for command, sub in commands_in(name):
        assert command in {*COMMANDS, *GROUPS}, f"{name}: deepseek-ops {command}"
        if sub and command in GROUPS:
            assert sub in subcommands(command), f"{name}: deepseek-ops {command} {sub}"


@pytest.mark.parametrize("group", GROUPS)
def test_the_readme_lists_every_subcommand(group: str) -> None:
    assert subcommands(group) == {sub for command, sub in commands_in("README.md") if command == group}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_make_target_named_exists(name: str) -> None:
    targets = {*re.findall(r"^([a-z]+):", text_of("Makefile"), re.MULTILINE)}
    named = {*_MAKE.findall(words_of(name))}
    assert named <= targets, f"{name}: make {', '.join(named - targets)}"


@pytest.mark.parametrize("number", range(len(blocks_of("README.md", "yaml"))))
def test_every_fragment_of_a_pipeline_file_in_the_readme_loads(number: int) -> None:
    fragment = blocks_of("README.md", "yaml")[number]
    named = fragment if "name:" in fragment.split("\n")[0] else f"name: fragment\n{fragment}"
    load_pipeline(named, file=f"README.md, fragment {number + 1}")


def test_the_fragments_of_the_readme_are_one_pipeline_file() -> None:
    load_pipeline("".join(blocks_of("README.md", "yaml")), file="README.md")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_python_in_documents_imports_what_exists(name: str) -> None:
    for block in blocks_of(name, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), f"{name}: {ast.unparse(node)}"


def test_the_modules_that_contributors_are_sent_to_exist() -> None:
    named = _REPOSITORY_PATH.findall(text_of("CONTRIBUTING.md"))
    assert named
    assert [path for path in named if not (ROOT / "deepseek_ops" / path).is_file()] == []


def test_the_readme_lists_the_dags_and_connections_that_exist() -> None:
    readme = text_of("README.md")
    assert [path.stem for path in sorted(ROOT.glob("dags/*.py")) if f"| `{path.stem}` |" not in readme] == []
    used = {*re.findall(r'"(deepseek_ops_(?:git|store|lake|facts|launcher|gateway))"', source_of("airflow"))}
    assert {name for name in used if f"| `{name}` |" not in readme} == set()


def source_of(package: str) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "deepseek_ops" / package).rglob("*.py"))


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len(text_of("README.md").splitlines()) <= 250


def test_the_changelog_knows_this_version() -> None:
    from deepseek_ops import __version__

    assert re.search(rf"^## {re.escape(__version__)}\b", text_of("CHANGELOG.md"), re.MULTILINE)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_base_images_are_pinned_to_a_tag(name: str) -> None:
    text = text_of(name)
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
    images = re.findall(r"^(?:FROM|COPY --from=)\s*(\S+)", text, re.MULTILINE) + re.findall(r"--from=(\S+)", text)
    for image in images:
        pinned = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], image)
        assert re.search(r":(?!latest$)[\w.-]+$", pinned), f"{name}: {pinned}"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_that_sets_a_user_does_not_end_as_root(name: str) -> None:
    users = re.findall(r"^USER (\S+)$", text_of(name), re.MULTILINE)
    assert not users or users[-1].partition(":")[0] not in ("root", "0")


def test_the_jobs_image_uses_the_locks_installer() -> None:
    lock = dict(re.findall(r"^([\w.-]+)==(\S+)$", text_of("requirements.lock"), re.MULTILINE))
    assert f"/uv:{lock['uv']} " in text_of("docker/jobs.Dockerfile")


def test_the_airflow_image_is_based_on_the_locks_airflow() -> None:
    lock = dict(re.findall(r"^([\w.-]+)==(\S+)$", text_of("requirements.lock"), re.MULTILINE))
    assert f"apache/airflow:{lock['apache-airflow']}-python3.11" in text_of("docker/airflow.Dockerfile")


def test_the_astro_requirements_are_the_projects_own() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["airflow"], *extras["sweep"], *extras["postgres"]]
    listed = [line for line in text_of("requirements.txt").splitlines() if not line.startswith("#")]
    assert sorted(listed) == sorted(line for line in wanted if not line.startswith("apache-airflow>="))


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text_of("docker/compose.yaml"))
    return loaded


def test_compose_publishes_on_loopback_only_and_pins_its_images() -> None:
    for name, service in compose()["services"].items():
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])), name
        tag = service["image"].rpartition(":")[2]
        assert tag not in ("", "latest", service["image"]), name


def test_compose_takes_every_secret_from_the_env_file() -> None:
    variables = {*re.findall(r"\$\{(\w+)", text_of("docker/compose.yaml"))}
    offered = {*re.findall(r"^(\w+)=$", text_of("docker/env.example"), re.MULTILINE)}
    assert variables == offered
    assert not re.search(r"\$\{\w+:?-", text_of("docker/compose.yaml")), "a secret has a default"


def test_every_lasting_service_of_compose_has_a_health_check() -> None:
    lasting = {name: service for name, service in compose()["services"].items() if service["restart"] != "no"}
    assert [name for name, service in lasting.items() if "healthcheck" not in service] == []


def test_settings_of_the_astro_cli_name_the_connections_of_the_readme() -> None:
    settings = yaml.safe_load(text_of("airflow_settings.example.yaml"))["airflow"]
    assert {one["conn_id"] for one in settings["connections"]} == {
        *re.findall(r"^\| `(deepseek_ops_\w+)` \|", text_of("README.md"), re.MULTILINE)
    }
    assert [pool["pool_name"] for pool in settings["pools"]] == ["gpu"]
