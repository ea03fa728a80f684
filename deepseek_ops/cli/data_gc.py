"""``deepseek-ops data gc``: delete what nothing names any more. JSON on stdout, progress on stderr.

Exit status 0: done, or said what would be done. 75: not now, call again (the second interval is not over, writers are
busy, another collection runs). 1: an error. A token for Git comes from ``$DEEPSEEK_OPS_GIT_TOKEN``, a DSN with a
password from ``$DEEPSEEK_OPS_FACTS``: a command line is visible to every user of the machine.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from deepseek_ops.adapters.stores import STORE_VARIABLE, open_store
from deepseek_ops.core.errors import TransientError
from deepseek_ops.core.jobs import EXIT_RETRY
from deepseek_ops.core.ports import Facts, GitRemote, ObjectStore
from deepseek_ops.data.gc_history import RetentionPolicy
from deepseek_ops.pipeline.collection import Witnesses, collect

GIT_TOKEN = "DEEPSEEK_OPS_GIT_TOKEN"  # noqa: S105  (the name of a variable)

Store = Annotated[
    str, typer.Option("--store", envvar=STORE_VARIABLE, help="s3://bucket/prefix, file:///folder or a path.")
]
FactsDsn = Annotated[
    str, typer.Option("--facts", envvar="DEEPSEEK_OPS_FACTS", help="Such as sqlite:////folder/facts.db.")
]


def register(app: typer.Typer) -> None:
    """Add the command to ``deepseek-ops data``."""
    app.command("gc")(collect_garbage)


def collect_garbage(
    store: Store,
    delete: Annotated[
        bool, typer.Option("--delete/--dry-run", help="Plan, and carry out an earlier plan; else only look.")
    ] = False,
    keep_days: Annotated[float, typer.Option(min=0, help="Versions that were a head so lately stay.")] = 30,
    keep_versions: Annotated[int, typer.Option(min=1, help="So many of each branch stay in any case.")] = 10,
    grace_days: Annotated[float, typer.Option(min=0, help="Nothing younger goes; no job may run longer.")] = 7,
    settle_days: Annotated[float, typer.Option(min=0, help="From the plan to the earliest deletion.")] = 1,
    repository: Annotated[list[str] | None, typer.Option(help="Git repository with pointers; repeatable.")] = None,
    history: Annotated[
        bool, typer.Option("--history/--tips-only", help="Whether old commits of the repositories count.")
    ] = True,
    facts: FactsDsn = "",
    registry: Annotated[list[str] | None, typer.Option(help="Registry that the facts do not name.")] = None,
    standalone: Annotated[
        bool, typer.Option(help="No Git repository and no database names anything in this store.")
    ] = False,
) -> None:
    """Delete content that no branch, tag, pin, fact, registry or commit names; without --delete, say what would go."""
    policy = RetentionPolicy(
        keep_days=keep_days, keep_versions=keep_versions, grace_days=grace_days, settle_days=settle_days
    )
    if standalone and (repository or facts or registry):
        raise typer.BadParameter("--standalone says that there are no repositories, facts and registries to ask")
    with ExitStack() as stack:
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deepseek-ops-gc-")))
        witnesses = Witnesses(
            facts=_facts(facts, stack),
            repositories=[_git(url, cache) for url in repository] if repository else None,
            registries=tuple(registry or ()),
            stores=_Stores(),
            history=history,
            standalone=standalone,
        )
        try:
            outcome = collect(open_store(store), policy, witnesses, delete=delete, say=_say)
        except TransientError as error:
            _say(str(error))
            raise typer.Exit(EXIT_RETRY) from None
    typer.echo(json.dumps(outcome.dump(), indent=2, ensure_ascii=False))
    if outcome.waiting_run:
        _say(f"plan {outcome.waiting_run} can be carried out in {outcome.waiting_seconds:.0f} s")
        raise typer.Exit(EXIT_RETRY)


class _Stores:
    def at(self, uri: str) -> ObjectStore:
        return open_store(uri)


def _facts(dsn: str, stack: ExitStack) -> Facts | None:
    if not dsn:
        return None
    from deepseek_ops.adapters.facts import open_facts

    return stack.enter_context(open_facts(dsn, migrate=False))


def _git(url: str, cache: Path) -> GitRemote:
    from deepseek_ops.adapters.git import open_git

    return open_git(url, password=os.environ.get(GIT_TOKEN, ""), cache=cache)


def _say(line: str) -> None:
    typer.echo(line, err=True)
