"""``deepseek-ops weights``: what a weight holds and what changed between two, from their headers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deepseek_ops.adapters.git_lfs.config import store_of
from deepseek_ops.adapters.git_lfs.pointer import (
    MAX_POINTER_BYTES,
    LfsPointerError,
    parse_pointer,
    pointer_text,
    read_pointer_file,
)
from deepseek_ops.adapters.git_lfs.worktree_git import git
from deepseek_ops.adapters.stores import STORE_VARIABLE, open_store
from deepseek_ops.core.errors import ConfigError, DeepSeekOpsError, InvalidRecordError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.pipeline.weights import (
    local_object,
    object_ranges,
    parse_oid,
    weights_of_files,
    weights_of_object,
    weights_of_path,
)
from deepseek_ops.registry import resolve
from deepseek_ops.registry.layout import folder_key
from deepseek_ops.registry.reading import read_bundle
from deepseek_ops.registry.weights import (
    LocalRanges,
    WeightFormatError,
    WeightInfo,
    compare_weights,
    diff_lines,
    read_weights,
    weight_lines,
)

app = typer.Typer(name="weights", help="Headers of weight files: nothing is loaded or executed.", no_args_is_help=True)

Weight = Annotated[
    str, typer.Argument(help="File, folder, LFS pointer, REV:PATH of Git, object id, or MODEL@VERSION of the registry.")
]
Store = Annotated[
    str, typer.Option("--store", envvar=STORE_VARIABLE, help="Where objects are; what the clone says by default.")
]
RegistryUri = Annotated[
    str, typer.Option("--registry", envvar="DEEPSEEK_OPS_REGISTRY", help="For MODEL@VERSION: the registry's store.")
]
Format = Annotated[str, typer.Option("--format", help="For MODEL@VERSION: which of its formats.")]


@app.command()
def show(
    weight: Weight,
    store: Store = "",
    registry: RegistryUri = "",
    form: Format = "safetensors",
    summary: Annotated[bool, typer.Option("--summary", help="Without the list of tensors.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Lines for people instead of JSON.")] = False,
) -> None:
    """Print format, framework, dtypes, tensors, parameters, and what the file says about its training."""
    info = _read(weight, store, registry, form)
    if text:
        typer.echo("\n".join(weight_lines(info)))
    else:
        facts = info.summary().dump()
        listed = {} if summary else {"tensors": [one.model_dump(mode="json") for one in info.tensors]}
        typer.echo(json.dumps({**facts, "shards": list(info.shards), **listed}, indent=2, ensure_ascii=False))


@app.command()
def diff(
    old: Weight,
    new: Weight,
    store: Store = "",
    registry: RegistryUri = "",
    form: Format = "safetensors",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of lines.")] = False,
) -> None:
    """Print what differs between two weights; exit status 1 when something does."""
    found = compare_weights(_read(old, store, registry, form), _read(new, store, registry, form))
    if as_json:
        typer.echo(json.dumps({**found.dump(), "different": not found.empty}, indent=2, ensure_ascii=False))
    else:
        for line in diff_lines(found, old=old, new=new):
            typer.echo(line)
    if not found.empty:
        raise typer.Exit(1)


@app.command(hidden=True)
def textconv(file: Path) -> None:
    """Print a weight, or what a pointer names, as lines: Git calls this for `git diff` and never sees it fail.

    Git smudges before it asks, so git-lfs fetches what is not here; with GIT_LFS_SKIP_SMUDGE=1 we get the pointer, and
    only headers are read.
    """
    try:
        pointer = read_pointer_file(file)
        if pointer is not None:
            typer.echo(f"oid sha256:{pointer.oid}")
        info = weights_of_path(file, lambda: _store(""))
    except (LfsPointerError, WeightFormatError) as error:
        typer.echo(f"not readable as weights: {error}")
    except DeepSeekOpsError as error:
        typer.echo(pointer_text(pointer) if pointer else "", nl=False)
        typer.echo(f"the header could not be read: {error}")
    else:
        typer.echo("\n".join(weight_lines(info)))


def _read(weight: str, store: str, registry: str, form: str) -> WeightInfo:
    if Path(weight).exists():
        return weights_of_path(Path(weight), lambda: _store(store))
    if oid := parse_oid(weight):
        return weights_of_object(_store(store), oid)
    if ":" in weight:
        return _committed(weight, store)
    name, at, version = weight.rpartition("@")
    if not at:
        remedy = "Give a path, REV:PATH, an object id of 64 hex digits, or MODEL@VERSION."
        raise ConfigError(weight, 0, "", "is no file, no object id and no MODEL@VERSION.", remedy)
    return _registered(name, version, registry, form)


def _committed(spec: str, store: str) -> WeightInfo:
    """Return what a weight of a commit holds. `git diff` would smudge it, so download all; this reads the header."""
    size = int(git(Path.cwd(), "cat-file", "-s", spec))
    pointer = parse_pointer(git(Path.cwd(), "cat-file", "blob", spec), file=spec) if size <= MAX_POINTER_BYTES else None
    if pointer is None:
        raise ConfigError(spec, 0, "", "is no Git LFS pointer.", "Migrate it: deepseek-ops lfs migrate.")
    here = local_object(Path.cwd(), pointer)
    if here is not None:
        return read_weights(LocalRanges(here, name=spec))
    return read_weights(object_ranges(_store(store), pointer, name=spec))


def _registered(name: str, version: str, registry: str, form: str) -> WeightInfo:
    if not registry:
        raise ConfigError(f"{name}@{version}", 0, "", "is in no known registry.", "Give --registry s3://bucket/prefix.")
    opened = open_store(registry)
    found = resolve(opened, name, version)
    bundle = read_bundle(opened, found.version, digest=found.bundle)
    folder = f"{folder_key(bundle.version)}{form}/"
    info = weights_of_files(bundle.files_of(form), opened, lambda path, _digest: folder + path)
    if info is None:
        raise InvalidRecordError("format with weights", f"{name}@{version} has none in {form}/")
    return info


def _store(given: str) -> ObjectStore:
    return open_store(store_of(Path.cwd(), given))
