"""``deepseek-ops data add|status|commit|checkout|materialise|verify``: folders of this machine and their versions.

There is no staging area, as in DVC: ``add`` says that a folder is a dataset's working folder (and hashes it, so that
the commit is quick), and a commit takes everything that is in it. ``add`` on a path inside a working folder says what a
commit would take there. ``checkout`` writes a new folder or switches one in place; ``materialise`` is for jobs: it
shares files with the machine's cache and does not care about branches.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue

from deepseek_ops.cli.data_options import (
    AsTable,
    Author,
    CacheFolder,
    ExitCode,
    MaybeStore,
    Patterns,
    Splits,
    author_or_login,
    cache_or_default,
    opened,
    print_json,
    read_text,
    write_text,
)
from deepseek_ops.cli.data_progress import shown_progress
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.data import (
    DatasetPointer,
    DatasetRepository,
    Status,
    Worktree,
    WorktreeRecord,
    commit_worktree,
    materialise,
    pointer_text,
    read_pointer,
    recover,
    switch,
)
from deepseek_ops.data.checkout import VerifyReport
from deepseek_ops.data.guard import verify_folder
from deepseek_ops.data.naming import branch_in
from deepseek_ops.data.worktree_commit import adopt

Folder = Annotated[Path, typer.Argument(help="Working folder.")]
VersionOption = Annotated[str, typer.Option("--version", help="dataset, dataset@branch, tag or id.")]
Pointer = Annotated[Path | None, typer.Option(help="Pointer file of a model repository: names version and store.")]
MODES = ("auto", "hardlink", "reflink", "copy")
POLICIES = ("all", "sample", "none")


def register(app: typer.Typer) -> None:
    """Add the commands to the ``data`` group."""
    for function in (add, status, commit, checkout, verify):
        app.command()(function)
    app.command("materialise")(materialise_version)


def add(
    folder: Annotated[Path, typer.Argument(help="Folder, or a path in a working folder.")] = Path(),
    store: MaybeStore = "",
    name: Annotated[str, typer.Option(help="Name of the dataset.")] = "",
    branch: Annotated[str, typer.Option(help="Where commits go.")] = "main",
    pointer: Annotated[Path | None, typer.Option(help="Pointer file that commits are to write.")] = None,
) -> None:
    """Make a folder the working folder of a dataset; inside of one, show what a commit takes. Stores nothing."""
    inside = _enclosing(folder)
    if inside is None:
        if not name:
            raise typer.BadParameter("say which dataset this is: --name")
        inside = Worktree(folder)
        adopt(
            DatasetRepository(opened(store)), inside, name, branch, pointer=str(pointer.absolute()) if pointer else ""
        )
    prefix = "" if folder.absolute() == inside.folder else str(folder.absolute().relative_to(inside.folder))
    _print_status(inside, _status(inside), prefix=prefix)


def status(folder: Folder = Path(), table: AsTable = False, exit_code: ExitCode = False) -> None:
    """Show what a commit of a working folder would take. Asks nobody, and reads only what may have changed."""
    worktree = _enclosing(folder) or Worktree(folder)
    found = _status(worktree)
    if table:
        for letter, paths in (("A", found.added), ("D", found.removed), ("M", found.modified)):
            for path in paths:
                typer.echo(f"{letter} {path}")
    else:
        _print_status(worktree, found)
    if found and exit_code:
        raise typer.Exit(1)


def commit(
    folder: Annotated[Path, typer.Argument(help="Folder that is to be the newest version.")],
    message: Annotated[str, typer.Option("--message", "-m", help="What changed and why.")],
    store: MaybeStore = "",
    name: Annotated[str, typer.Option(help="Name of the dataset; a working folder knows it.")] = "",
    author: Author = "",
    branch: Annotated[str, typer.Option(help="Branch; a working folder's own, else main.")] = "",
    parent: Annotated[str, typer.Option(help="Version the branch must be at; not for working folders.")] = "",
    rebase: Annotated[bool, typer.Option("--rebase", help="Redo the changes on top of what others committed.")] = False,
    pointer: Annotated[Path | None, typer.Option(help="Also write the pointer file of a model repository.")] = None,
) -> None:
    """Store a folder as the newest version of a dataset; a working folder's own version is the parent."""
    worktree, who = Worktree(folder), author_or_login(author)
    if not worktree.exists or (name and worktree.record().dataset != name):
        _commit_folder(folder, store, name, message, who, branch or "main", parent, pointer)
        return
    with worktree.locked(), shown_progress() as progress:
        recover(worktree)
        record = worktree.record()
        repository = DatasetRepository(opened(store, fallback=record.store))
        made = commit_worktree(
            repository, worktree, message=message, author=who, branch=branch, rebase=rebase, progress=progress
        )
    target = pointer or (Path(record.pointer) if record.pointer else None)
    if target is not None:
        write_text(target, pointer_text(DatasetPointer.of(made.version, repository.store.uri)))
    rebased = asdict(made.rebased) if made.rebased else None
    print_json({**made.version.dump(), "committed": asdict(made.status), "rebased": rebased})


def _commit_folder(
    folder: Path, store: str, name: str, message: str, author: str, branch: str, parent: str, pointer: Path | None
) -> None:
    """Commit a folder that no version was written to: it is the dataset, whatever the branch has."""
    if not name:
        raise typer.BadParameter("say which dataset this is: --name")
    repository = DatasetRepository.open(opened(store))
    with shown_progress() as progress:
        dataset = repository.commit(
            folder,
            name=name,
            message=message,
            author=author,
            branch=branch,
            parent=repository.resolve(parent) if parent else None,
            progress=progress,
        )
    if pointer is not None:
        write_text(pointer, pointer_text(DatasetPointer.of(dataset, repository.store.uri)))
    print_json(dataset.dump())


def checkout(
    target: Annotated[Path, typer.Argument(help="New or empty folder, or a working folder to switch.")],
    version: VersionOption = "",
    pointer: Pointer = None,
    store: MaybeStore = "",
    pattern: Patterns = None,
    split: Splits = None,
    force: Annotated[bool, typer.Option("--force", help="Give up changes that were not committed.")] = False,
    cache: CacheFolder = None,
) -> None:
    """Write a version to a folder, every byte verified, or switch a working folder to it in place."""
    worktree = Worktree(target)
    fallback = worktree.record().store if worktree.exists else ""
    source, named, branch = _named(version, pointer, store, fallback)
    kept = str(pointer.absolute()) if pointer else ""
    with shown_progress() as progress:
        if not worktree.exists:
            report = materialise(
                source,
                named,
                target,
                cache=cache_or_default(cache),
                mode="copy",
                branch=branch,
                pointer=kept,
                patterns=tuple(pattern or ()),
                splits=tuple(split or ()),
                progress=progress,
            )
            print_json({**report.version.dump(), "target": str(target), "branch": branch})
            return
        with worktree.locked():
            recover(worktree)
            record = _switched(DatasetRepository(source), worktree.record(), named, branch, kept, pattern, split)
            done = switch(source, worktree, record, force=force, progress=progress)
    print_json({**asdict(done), "target": str(target), "branch": branch})


def _named(version: str, pointer: Path | None, store: str, fallback: str) -> tuple[ObjectStore, str, str]:
    """Return the store, a version's id, and the branch that its name stands for."""
    if bool(version) == (pointer is not None):
        raise typer.BadParameter("give either --version or --pointer")
    if pointer is None:
        source = opened(store, fallback=fallback)
        return source, DatasetRepository(source).resolve(version), branch_in(source, version)
    pointed = read_pointer(read_text(pointer), file=str(pointer))
    source = opened(store, fallback=pointed.store)
    head = DatasetRepository(source).log_of(pointed.name, "main").head()
    return source, pointed.version, "main" if head and head.version == pointed.version else ""


def _switched(
    repository: DatasetRepository,
    record: WorktreeRecord,
    version: str,
    branch: str,
    pointer: str,
    pattern: list[str] | None,
    split: list[str] | None,
) -> WorktreeRecord:
    """Return what a working folder is to be; the part of the dataset stays unless another is asked for."""
    return record.evolve(
        dataset=repository.load(version).name,
        store=repository.store.uri,
        version=version,
        branch=branch,
        pointer=pointer or record.pointer,
        patterns=record.patterns if pattern is None else tuple(pattern),
        splits=record.splits if split is None else tuple(split),
    )


def materialise_version(
    target: Annotated[Path, typer.Argument(help="Folder to make.")],
    version: VersionOption = "",
    pointer: Pointer = None,
    store: MaybeStore = "",
    pattern: Patterns = None,
    split: Splits = None,
    cache: CacheFolder = None,
    mode: Annotated[str, typer.Option(help=f"{', '.join(MODES)}; falls back to a copy.")] = "auto",
    check: Annotated[str, typer.Option("--verify", help=f"Cached files to hash: {', '.join(POLICIES)}.")] = "sample",
) -> None:
    """Write a version for a job, from this machine's cache where it is there; hard-linked files are read-only."""
    if mode not in MODES or check not in POLICIES:
        raise typer.BadParameter(f"--mode is one of {', '.join(MODES)}; --verify one of {', '.join(POLICIES)}")
    source, named, _ = _named(version, pointer, store, "")
    with shown_progress() as progress:
        report = materialise(
            source,
            named,
            target,
            cache=cache_or_default(cache),
            mode=mode,  # type: ignore[arg-type]
            patterns=tuple(pattern or ()),
            splits=tuple(split or ()),
            verify=check,  # type: ignore[arg-type]
            progress=progress,
        )
    body: dict[str, JsonValue] = {"target": str(target), "present": report.present, "ways": dict(report.ways)}
    print_json({**report.version.dump(), **body, "hits": report.hits, "fetched": report.fetched})


def verify(
    version: Annotated[str, typer.Argument(help="A version, or a folder that one was written to.")],
    store: MaybeStore = "",
    sample: Annotated[float, typer.Option(min=0.0, max=1.0, help="Fraction to read; all by default.")] = 1.0,
) -> None:
    """Read every byte of a version or of a folder; exit status 1 when something is missing or damaged."""
    folder = Worktree(Path(version))
    with shown_progress() as progress:
        report: VerifyReport
        if folder.exists:
            with folder.locked():
                recover(folder)
                report = verify_folder(folder.folder, fraction=sample)
        else:
            report = DatasetRepository(opened(store)).verify(version, fraction=sample, progress=progress)
    print_json(asdict(report))
    for problem in report.problems:
        typer.echo(problem, err=True)
    if report.problems:
        raise typer.Exit(1)


def _enclosing(folder: Path) -> Worktree | None:
    """Return the working folder that a path is, or is in."""
    for place in (folder.absolute(), *folder.absolute().parents):
        if Worktree(place).exists:
            return Worktree(place)
    return None


def _status(worktree: Worktree) -> Status:
    with worktree.locked():
        recover(worktree)
        return worktree.status()


def _print_status(worktree: Worktree, found: Status, *, prefix: str = "") -> None:
    record = worktree.record()
    body = {
        key: [path for path in paths if f"{path}/".startswith(f"{prefix}/" if prefix else "")]
        for key, paths in asdict(found).items()
    }
    named = {"dataset": record.dataset, "branch": record.branch, "version": record.version}
    print_json({**named, "clean": not found, **body})
