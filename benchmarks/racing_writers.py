"""Race writers for the same branch, round after round, and count what must never happen.

In each round every writer, a process of its own, has seen the same head. In a ``parent`` round all commit on that head:
exactly one may win. In an ``any`` round all commit on whatever is there: all must get in, one after the other. In a
``delete`` round half of them delete the branch: one writer wins the place, whatever it wants. Afterwards every branch's
log is read back, its chain of digests verified, and compared with what the writers were told.

    python benchmarks/racing_writers.py --rounds 10000 --writers 8 --store file

``--store`` takes ``file`` (a temporary folder), ``s3`` (a real S3 server started for this), or the URI of an empty
store. Prints JSON; exit status 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.data import BranchMovedError, BranchNotFoundError, DatasetRepository
from deepseek_ops.data.branching import delete_branch
from deepseek_ops.data.committing import append_commit, commit_body
from deepseek_ops.data.layout import require_format
from deepseek_ops.data.packs import Stored
from deepseek_ops.data.pages import LOOSE, Entry
from deepseek_ops.data.refs import RefLog
from deepseek_ops.data.splice import splice
from deepseek_ops.data.trees import Tree

ROUNDS_PER_BRANCH = 200
"""A new branch after so many rounds: most stores list a branch's whole log to find its head."""
KINDS = ("parent", "parent", "any", "delete")
DATASET = "race"

Won = tuple[int, str]
"""Round, and the version that got a place; empty for a deletion."""


@dataclass
class Report:
    """What was counted."""

    rounds: int
    writers: int
    store: str
    seconds: float
    commits: int
    deletions: int
    refused: int
    broken: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--store", default="file", help="file, s3, or the URI of an empty store")
    arguments = parser.parse_args()
    with _opened(arguments.store) as (uri, environment):
        report = race(uri, environment, rounds=arguments.rounds, writers=arguments.writers)
    sys.stdout.write(f"{json.dumps(asdict(report), indent=2)}\n")
    return 1 if report.broken else 0


@contextmanager
def _opened(store: str) -> Iterator[tuple[str, dict[str, str]]]:
    with tempfile.TemporaryDirectory(prefix="racing-writers-") as folder:
        if store == "file":
            yield (Path(folder) / "store").as_uri(), {}
        elif store == "s3":
            from deepseek_ops.embedded.seaweedfs import SeaweedServer

            server = SeaweedServer(Path(folder), buckets=["race"])
            server.start()
            try:
                yield "s3://race/store", server.credentials
            finally:
                server.stop()
        else:
            yield store, {}


def race(uri: str, environment: dict[str, str], *, rounds: int, writers: int) -> Report:
    """Run the rounds and return what was counted; ``broken`` is empty when every promise was kept."""
    store = open_store(uri, environment or None)
    require_format(store)
    tree = splice(store, Tree.empty(store), {"a": Stored(Entry("a", 1, bytes(32), ""), LOOSE)})
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(writers), context.SimpleQueue()
    work = (uri, environment, tree.digest, rounds, barrier, results)
    started = time.monotonic()
    processes = [context.Process(target=_write, args=(number, *work)) for number in range(writers)]
    for process in processes:
        process.start()
    told = [results.get() for _ in processes]
    for process in processes:
        process.join()
    seconds = time.monotonic() - started
    wins = [win for won in told for win in won]
    broken = [*_wrong_rounds(wins, rounds, writers), *_wrong_logs(store, wins, rounds)]
    commits = sum(bool(version) for _, version in wins)
    tries = rounds * writers
    return Report(
        rounds, writers, store.uri, round(seconds, 1), commits, len(wins) - commits, tries - len(wins), broken[:20]
    )


def _branch(number: int) -> str:
    return f"b{number // ROUNDS_PER_BRANCH}"


def _write(
    writer: int,
    uri: str,
    environment: dict[str, str],
    tree_digest: str,
    rounds: int,
    barrier: Barrier,
    results: SimpleQueue[list[Won]],
) -> None:
    store = open_store(uri, environment or None)
    tree = Tree.load(store, tree_digest)
    won: list[Won] = []
    for number in range(rounds):
        log = RefLog(store, DATASET, _branch(number))
        barrier.wait(600)
        last = log.last()
        barrier.wait(600)
        kind = KINDS[number % len(KINDS)]
        head = None if last is None or last.deleted else last.version
        lineage = {"round": number, "writer": writer}
        body = commit_body(tree, name=DATASET, message="race", author=str(writer), lineage=lineage)
        try:
            if kind == "delete" and writer % 2 and head:
                delete_branch(store, DATASET, _branch(number), expected=head)
                won.append((number, ""))
            else:
                parent = None if kind == "any" else head
                won.append((number, append_commit(store, log, last, body, parent).version))
        except (BranchMovedError, BranchNotFoundError):
            continue
    results.put(won)


def _wrong_rounds(wins: list[Won], rounds: int, writers: int) -> Iterator[str]:
    """Yield each round whose number of winners is not what its kind promises.

    On a branch that is not there nobody has a head to insist on, so there all may get in.
    """
    of_round: dict[int, list[str]] = {}
    for number, version in wins:
        of_round.setdefault(number, []).append(version)
    gone = True
    for number in range(rounds):
        gone = gone or number % ROUNDS_PER_BRANCH == 0
        won, kind = of_round.get(number, []), KINDS[number % len(KINDS)]
        all_win = kind == "any" or (gone and kind == "parent")
        if len(won) != (writers if all_win else 1):
            yield f"round {number} ({kind}) had {len(won)} winners"
        gone = "" in won and len(won) == 1


def _wrong_logs(store: ObjectStore, wins: list[Won], rounds: int) -> Iterator[str]:
    """Yield each branch whose log is not made of exactly what the writers were told, in the order of the rounds."""
    repository = DatasetRepository(store)
    round_of = {version: number for number, version in wins if version}
    for first in range(0, rounds, ROUNDS_PER_BRANCH):
        entries = list(RefLog(store, DATASET, _branch(first)).all_entries())[::-1]
        mine = [(number, version) for number, version in wins if _branch(number) == _branch(first)]
        if sorted(entry.version for entry in entries) != sorted(version for _, version in mine):
            yield f"branch {_branch(first)}: {len(entries)} entries, {len(mine)} writers were told that they won"
        numbers = [round_of.get(entry.version, -1) for entry in entries if entry.version]
        if numbers != sorted(numbers):
            yield f"branch {_branch(first)}: entries are not in the order of the rounds"
        previous: list[str] = []
        for entry in entries:
            if entry.version and repository.describe(entry.version)["parents"] != previous:
                yield f"branch {_branch(first)}: {entry.version} does not continue {previous}"
            previous = [entry.version] if entry.version else []


if __name__ == "__main__":
    sys.exit(main())
