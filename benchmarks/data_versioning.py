"""Dataset versions beside DVC and beside the floor of the machine, in one run, on a folder and on a real S3 server.

    python benchmarks/data_versioning.py [--without-dvc] [--small 20000] [--large 4] [--json FILE]
    python benchmarks/data_versioning.py --entries 1000000

Each operation is a process of its own; its CPU seconds (with its children's), wall time and peak memory are its own,
and what it needs for imports is said beside it. DVC's figures are whole commands, as its users run them, with the
start of the program on a line of its own. Times of one run on a shared machine: read the ratios, and those of CPU
before those of wall. Floors and our own steps run ``--repeat`` times and the best counts, DVC's steps once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import data_versioning_data as data
from data_versioning_peers import Cost, DvcRun, measured, s5cmd_put
from data_versioning_report import Figures, Goal, goals, table

from deepseek_ops.embedded.seaweedfs import SeaweedServer

OPERATIONS = Path(__file__).with_name("data_versioning_ops.py")
BUCKET = "benchmark"
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
TINY_BYTES = 64


class Place:
    """One store that is measured, with the data it gets."""

    def __init__(self, work: Path, where: str, options: argparse.Namespace, server: SeaweedServer | None) -> None:
        self.where = where
        self._work = work / where
        self._work.mkdir()
        self._options = options
        self._server = server
        self._data = self._work / "data"
        self._numbers = count()
        self.ours: dict[str, dict[str, float]] = {}
        self.floor: dict[str, dict[str, float]] = {}
        self.peer: dict[str, dict[str, float]] = {}
        data.make(self._data, **_sizes(options))

    def store(self, name: str) -> str:
        return f"s3://{BUCKET}/{name}" if self._server else str(self._work / name)

    def _once(self, operation: str, store: str, folder: Path, *words: str) -> dict[str, float]:
        environment = {**os.environ, **(self._server.credentials if self._server else {})}
        command = [sys.executable, str(OPERATIONS), operation, store, str(folder), *words]
        before = self._server_cpu()
        cost = measured(command, folder=self._work, environment=environment)
        figures: dict[str, float] = json.loads(cost.output.splitlines()[-1])
        server = {"server_cpu": self._server_cpu() - before} if self._server else {}
        return {**figures, "rss_mb": cost.rss_mb, **server}

    def _best(self, operation: str, store: str, folder: Path, *words: str) -> dict[str, float]:
        return _best_of([self._once(operation, store, folder, *words) for _ in range(self._options.repeat)])

    def _new_folder(self) -> Path:
        """Return a name that was never used: right after many files were deleted ext4 takes long to create others."""
        return self._work / f"new{next(self._numbers)}"

    def _server_cpu(self) -> float:
        return _tree_cpu(self._work.parent / "server") if self._server else 0.0

    def measure_floor(self) -> None:
        """Measure what the machine needs for the same bytes without versions."""
        repeat = range(self._options.repeat)
        self.floor["stat"] = self._best("floor_stat", "-", self._data)
        if self._server:
            self.floor["put"] = self._best("floor_put", self.store("raw"), self._data)
            self.floor["write"] = self._best("floor_hash_put", self.store("raw"), self._data)
            self.floor["s5cmd"] = _figures(self._s5cmd(self._new_folder()))
        else:
            writes = [
                self._once("floor_hash_write", str(self._new_folder()), self._data, n) for n in "12" for _ in repeat
            ]
            self.floor["write"] = _best_of(writes)
        creates = [self._once("floor_create_hash", "-", self._data, str(self._new_folder())) for _ in repeat]
        self.floor["create"] = _best_of(creates)

    def _s5cmd(self, packs: Path) -> Cost:
        assert self._server is not None
        packs.mkdir()
        small = sum(size for _, size in data.sizes(self._data) if size < data.BLOCK_BYTES)
        for number in range(-(-small // (12 << 20))):
            (packs / f"{number}").write_bytes(os.urandom(min(12 << 20, small - number * (12 << 20))))
        return s5cmd_put(packs, f"s3://{BUCKET}/s5cmd/", self._server.credentials)

    def measure_ours(self) -> None:
        """Measure every step of ours, in the order of a user's day."""
        tries = []
        for number in range(self._options.repeat):
            shutil.rmtree(self._data / ".deepseek-ops", ignore_errors=True)
            store = self.store(f"ours{number}")
            tries.append(self._once("commit", store, self._data))
        self.ours["first"] = _best_of(tries)
        self.ours["unchanged"] = self._best("commit", store, self._data)
        data.change(self._data, files=self._options.small, file_bytes=self._options.small_bytes)
        self.ours["changed"] = self._once("commit", store, self._data)
        self.ours["diff"] = self._best("diff", store, self._data)
        out = self._new_folder()
        self._once("worktree", store, out)
        self.ours["back"] = self._once("switch_back", store, out)
        self.ours["forth"] = self._once("switch_forth", store, out)
        writes = [self._once("fresh", store, self._new_folder()) for _ in range(self._options.repeat)]
        self.ours["fresh"] = _best_of(writes)
        self.ours["collect"] = self._once("collect", store, self._data)
        if self._server:
            self.ours["push"] = self._push()

    def _push(self) -> dict[str, float]:
        tries = [self._once("push_packs", self.store(f"push{n}"), self._data) for n in range(self._options.repeat)]
        # The files are in memory before the clock starts: memory is the measurement's, not the engine's.
        return {**_best_of(tries), "rss_mb": 0}

    def measure_dvc(self) -> None:
        """Measure DVC on the same data as it was before the change."""
        source = self._work / "source"
        data.make(source, **_sizes(self._options))
        credentials = self._server.credentials if self._server else {}
        run = DvcRun(self._work / "dvc", source, self.store("dvc"), credentials, **_sizes(self._options))
        before = self._server_cpu()
        self.peer = {name: _figures(cost) for name, cost in run.run().items()}
        if self._server:
            self.peer["fresh"]["server_cpu"] = self._server_cpu() - before


def _best_of(tries: list[dict[str, float]]) -> dict[str, float]:
    best = min(tries, key=lambda one: one["cpu"])
    return {**best, "wall": min(one["wall"] for one in tries), "rss_mb": max(one["rss_mb"] for one in tries)}


def _figures(cost: Cost) -> dict[str, float]:
    return {"cpu": cost.cpu, "wall": cost.wall, "rss_mb": cost.rss_mb}


def _sizes(options: argparse.Namespace) -> dict[str, int]:
    return {
        "files": options.small,
        "file_bytes": options.small_bytes,
        "large": options.large,
        "large_bytes": options.large_bytes,
    }


def _tree_cpu(root: Path) -> float:
    """Return the CPU seconds of the server whose data lie below ``root``."""
    total = 0.0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(root) not in (entry / "cmdline").read_text():
                    continue
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            total += (int(fields[11]) + int(fields[12])) / CLOCK_TICKS
    return total


def many_entries(work: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure a folder of very many tiny files on the local store: first commit, nothing, 1 %, diff."""
    folder, store = work / "entries", str(work / "store")
    print(f"making {options.entries:,} files of {TINY_BYTES} bytes", flush=True)
    data.make(folder, files=options.entries, file_bytes=TINY_BYTES, large=0, large_bytes=0)
    found: dict[str, dict[str, float]] = {}

    def step(name: str, operation: str, *words: str) -> None:
        cost = measured(
            [sys.executable, str(OPERATIONS), operation, store, *words], folder=work, environment=os.environ
        )
        found[name] = {**json.loads(cost.output.splitlines()[-1]), "rss_mb": cost.rss_mb}
        figures = found[name]
        print(f"{name:<18} cpu {figures['cpu']:8.2f}  wall {figures['wall']:8.2f}  {cost.rss_mb:6.0f} MB", flush=True)

    step("stat floor", "floor_stat", str(folder))
    step("first commit", "commit", str(folder))
    step("nothing changed", "commit", str(folder))
    data.change(folder, files=options.entries, file_bytes=TINY_BYTES)
    step("1 % changed", "commit", str(folder))
    step("diff", "diff", str(folder))
    if options.checkout:
        step("fresh", "fresh", str(work / "out"))
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=20_000, help="number of small files")
    parser.add_argument("--small-bytes", type=int, default=16 << 10)
    parser.add_argument("--large", type=int, default=4, help="number of large files")
    parser.add_argument("--large-bytes", type=int, default=64 << 20)
    parser.add_argument("--entries", type=int, default=0, help="measure so many tiny files instead")
    parser.add_argument("--checkout", action="store_true", help="with --entries: write them all out again too")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--without-dvc", action="store_true")
    parser.add_argument("--only", choices=["folder", "s3"], help="measure one store only")
    parser.add_argument("--root", type=Path, help="where the data go (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write every figure here")
    return parser.parse_args()


def _measure(work: Path, options: argparse.Namespace) -> tuple[dict[str, Mapping[str, Figures]], list[Goal]]:
    figures: dict[str, Mapping[str, Figures]] = {}
    found: list[Goal] = []
    for where in [options.only] if options.only else ["folder", "s3"]:
        with ExitStack() as stack:
            server = None
            if where == "s3":
                server = stack.enter_context(SeaweedServer(work / "server", buckets=[BUCKET]))
            place = Place(work, where, options, server)
            place.measure_floor()
            place.measure_ours()
            if not options.without_dvc:
                place.measure_dvc()
        print("\n".join(table(where, place.ours, place.floor, place.peer)), flush=True)
        figures[where] = {"ours": place.ours, "floor": place.floor, "dvc": place.peer}
        found += goals(where, place.ours, place.floor, place.peer)
    return figures, found


def main() -> None:
    options = _arguments()
    work = Path(tempfile.mkdtemp(prefix="deepseek-ops-benchmark-", dir=options.root))
    try:
        if options.entries:
            result: dict[str, object] = {"entries": many_entries(work, options)}
        else:
            figures, found = _measure(work, options)
            print(f"\n{'goal':<52}{'CPU':>9}{'wall':>8}")
            print("\n".join(goal.line() for goal in found))
            result = {**figures, "goals": [{**vars(goal), "met": goal.met} for goal in found]}
        if options.json:
            options.json.write_text(json.dumps(result, indent=1))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
