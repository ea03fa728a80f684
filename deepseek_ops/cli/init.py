"""``deepseek-ops init``: a folder becomes a model repository, or an existing repository gets what it lacks."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

import deepseek_ops
from deepseek_ops.adapters.git_lfs.attributes import DIFF_DRIVER, LFS_CONFIG, MERGE_DRIVER, merge_attributes
from deepseek_ops.adapters.git_lfs.config import STORE_FILE, committed_store, install_agent, set_config
from deepseek_ops.adapters.git_lfs.hooks import SharedHooksError, install_hooks
from deepseek_ops.adapters.git_lfs.worktree_git import git, top_folder, try_git
from deepseek_ops.adapters.stores import STORE_VARIABLE, StoreUri
from deepseek_ops.core.errors import ConfigError

TEMPLATE = "tiny-deepseek"
_LEFT_OUT = frozenset({"__pycache__", ".gitattributes"})


@dataclass
class Report:
    """What was done: printed as JSON."""

    folder: str
    written: list[str] = field(default_factory=list)
    extended: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """Files of the user's that differ from ours; --force replaces them."""
    configured: list[str] = field(default_factory=list)
    hooks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def init(
    folder: Annotated[Path, typer.Argument(help="New, empty, or an existing repository.")] = Path(),
    from_template: Annotated[
        bool, typer.Option("--from-template/--bare-settings", help="Also write the example model to start from.")
    ] = True,
    store: Annotated[
        str, typer.Option("--store", envvar=STORE_VARIABLE, help="Where weights and datasets are; committed for all.")
    ] = "",
    lfs_url: Annotated[str, typer.Option(help="URL of an LFS server, for clones without our agent.")] = "",
    hooks: Annotated[bool, typer.Option("--hooks/--no-hooks", help="Check before each commit and push.")] = True,
    force: Annotated[bool, typer.Option(help="Replace files and rules that are there and differ.")] = False,
) -> None:
    """Make a model repository; nothing of yours is overwritten, and doing it again changes nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    if try_git(folder, "rev-parse", "--show-toplevel")[0]:
        git(folder, "init", "--quiet", "--initial-branch=main")
    top = top_folder(folder)
    report = Report(str(top))
    if from_template:
        for path, data in _template_files():
            _write(top / path, data, report, force=force)
    _write_attributes(top, report, force=force)
    _write(top / ".lfsconfig", _lfs_config(lfs_url), report, force=force)
    _write_store(top, store, report, force=force)
    _configure(top, report, use_server=bool(lfs_url))
    if hooks:
        _install_hooks(top, report)
    typer.echo(json.dumps(report.__dict__, indent=2, ensure_ascii=False))


def template_folder() -> Path:
    """Return the example model repository: of the installed package, or of the source tree. Raises ConfigError."""
    package = Path(deepseek_ops.__file__).parent
    for root in (package / "include", package.parent / "include"):
        if (root / "examples" / TEMPLATE).is_dir():
            return root / "examples" / TEMPLATE
    raise ConfigError(str(package), 0, "", "carries no example model.", "Use --bare-settings, or install it again.")


def _template_files() -> Iterator[tuple[Path, bytes]]:
    root = template_folder()
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.is_file() and not _LEFT_OUT.intersection(relative.parts):
            yield relative, path.read_bytes()


def _write_attributes(top: Path, report: Report, *, force: bool) -> None:
    path = top / ".gitattributes"
    before = path.read_text() if path.exists() else ""
    merged = merge_attributes(before, replace=force)
    report.kept += [f".gitattributes: {pattern}" for pattern in merged.kept]
    if merged.text != before:
        _replace(path, merged.text.encode())
        (report.extended if before else report.written).append(".gitattributes")


def _lfs_config(url: str) -> bytes:
    return (LFS_CONFIG + (f"\turl = {url}\n" if url else "")).encode()


def _write_store(top: Path, store: str, report: Report, *, force: bool) -> None:
    if not store:
        if not committed_store(top):
            report.notes.append(
                f"no store is named: run this again with --store s3://bucket/prefix, or set {STORE_VARIABLE}"
            )
        return
    StoreUri.parse(store)
    text = (
        "# Where this repository's weights and datasets are. Keys never stand here; they come from AWS_* variables.\n"
    )
    _write(top / STORE_FILE, f'{text}[deepseek-ops]\n\tstore = "{store}"\n'.encode(), report, force=force)


def _configure(top: Path, report: Report, *, use_server: bool) -> None:
    """Write the clone's own settings: what a repository must not choose for those who clone it."""
    if shutil.which("git-lfs") is None:
        report.notes.append("git-lfs is not installed: install it, then run this again")
    command = f'"{sys.executable}" -P -m deepseek_ops.cli.main'
    wanted = {
        "filter.lfs.clean": "git-lfs clean -- %f",
        "filter.lfs.smudge": "git-lfs smudge -- %f",
        "filter.lfs.process": "git-lfs filter-process",
        "filter.lfs.required": "true",
        f"diff.{DIFF_DRIVER}.textconv": f"{command} weights textconv",
        f"merge.{MERGE_DRIVER}.name": "dataset pointers, merged in the store",
        f"merge.{MERGE_DRIVER}.driver": f"{command} data merge-pointer %O %A %B",
    }
    report.configured += [change for key, value in wanted.items() if (change := set_config(top, key, value))]
    if not use_server:
        report.configured += install_agent(top)


def _install_hooks(top: Path, report: Report) -> None:
    try:
        report.hooks += install_hooks(top)
    except SharedHooksError as error:
        report.notes.append(str(error))
    except FileExistsError as error:
        report.notes.append(str(error))


def _write(path: Path, data: bytes, report: Report, *, force: bool) -> None:
    name = path.name if path.parent == Path(report.folder) else path.relative_to(report.folder).as_posix()
    if path.is_symlink() or path.exists():
        if not path.is_symlink() and path.is_file() and path.read_bytes() == data:
            return
        if not force:
            report.kept.append(name)
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, data)
    report.written.append(name)


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(data)
    fresh.replace(path)
