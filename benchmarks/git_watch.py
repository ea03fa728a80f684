"""What watching a Git repository costs, and how soon a push is told: ours beside two other ways, in one run.

    python benchmarks/git_watch.py [--files 50000] [--refs 1 100 1000] [--json FILE]

* ours: the poll of ``GitRefTrigger`` (one ``ls-refs`` request), and ``changed_paths`` over a blobless copy;
* clone and diff: a clone, ``git fetch`` for every poll, ``git diff --name-only``;
* tag sensor: what the GitHub provider's ``GithubTagSensor`` asks at every poke (the repository, then all pages of its
  tags), written again here and asked of a local server: there is no GitHub to ask. It watches one tag, so n tags are n
  such sensors; the table multiplies what one was measured at.

Bytes are counted on the wire by a relay, CPU (of the asking thread and its child processes) without it, processes by
Git's own trace. The Git server is a process of its own. Times of one run on a shared machine: read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from git_watch_meter import PAGE, Meter, relay, tag_api

from deepseek_ops.adapters.git import GitRepository, open_git
from deepseek_ops.airflow.triggers.git import GitRefTrigger
from deepseek_ops.embedded.git_server import TOKEN_VARIABLE
from deepseek_ops.pipeline.wakes import Wakes

USER, TOKEN = "git", secrets.token_hex(16)
POLLS = 10
PUSHES = 8


def git(folder: Path, *arguments: str, data: str = "", trace: Path | None = None) -> str:
    """Return what git prints; with ``trace`` every process it starts is noted there."""
    environment = {
        **os.environ,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
    }
    if trace is not None:
        environment["GIT_TRACE2_EVENT"] = str(trace)
    command = ["git", "-C", str(folder), "-c", "gc.auto=0", "-c", "user.name=A", "-c", "user.email=a@example.com"]
    done = subprocess.run(
        [*command, *arguments], input=data, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@contextmanager
def server(root: Path) -> Iterator[str]:
    """Run the embedded Git server as a process and yield its URL."""
    command = [sys.executable, "-m", "deepseek_ops.embedded.git_server", "--root", str(root)]
    for name in ("small", "large"):
        command += ["--create", name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, TOKEN_VARIABLE: TOKEN})
    try:
        yield (process.stdout.readline() if process.stdout else "").strip()
    finally:
        process.terminate()
        process.wait()


def fill(bare: Path, files: int) -> None:
    """Commit that many files of a kilobyte, in folders of a hundred."""
    lines = ["commit refs/heads/main", "committer A <a@b> 1700000000 +0000", "data 1", "x"]
    for number in range(files):
        content = f"{number:08d}" * 128
        lines += [f"M 100644 inline d{number // 10_000}/e{number // 100}/f{number}", f"data {len(content)}", content]
    git(bare, "fast-import", "--quiet", "--force", data="\n".join(lines) + "\n")


def push(bare: Path, branch: str = "main") -> str:
    """Change one file on a branch and return the commit."""
    head = git(bare, "rev-parse", f"refs/heads/{branch}")
    lines = [f"commit refs/heads/{branch}", f"committer A <a@b> {int(time.time())} +0000", "data 1", "x"]
    lines += [f"from {head}", "M 100644 inline d0/e0/f0", "data 16", secrets.token_hex(8)]
    git(bare, "fast-import", "--quiet", data="\n".join(lines) + "\n")
    return git(bare, "rev-parse", f"refs/heads/{branch}")


def cpu() -> float:
    """Return the CPU seconds of this thread (servers and relays have others) and of ended children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + children.ru_utime + children.ru_stime


def median_cost(step: Callable[[], object]) -> dict[str, float]:
    """Return median CPU and wall milliseconds of one step, the first left out."""
    step()
    costs = []
    for _ in range(POLLS):
        started, before = time.perf_counter(), cpu()
        step()
        costs.append((cpu() - before, time.perf_counter() - started))
    return {
        "cpu_ms": round(statistics.median(used for used, _ in costs) * 1000, 2),
        "wall_ms": round(statistics.median(wall for _, wall in costs) * 1000, 1),
    }


def wire(meter: Meter, step: Callable[[], object]) -> int:
    """Return the bytes of one step on the wire."""
    meter.take()
    step()
    time.sleep(0.1)
    return meter.take()[0]


def processes(folder: Path, *arguments: str) -> int:
    """Return how many git processes one command is."""
    with tempfile.TemporaryDirectory() as place:
        trace = Path(place, "trace")
        git(folder, *arguments, trace=trace)
        return sum('"event":"start"' in line for line in trace.read_text().splitlines())


def opened(url: str, cache: Path) -> GitRepository:
    return open_git(url, username=USER, password=TOKEN, cache=cache)


def with_login(url: str) -> str:
    return url.replace("http://", f"http://{USER}:{TOKEN}@")


def polls(work: Path, url: str, bare: Path, refs: int, meter: Meter) -> dict[str, dict[str, float]]:
    """Return the cost of one poll that finds nothing new, by each way, with that many branches and tags."""
    tip = git(bare, "rev-parse", "refs/heads/main")
    names = [f"refs/{kind}/w{number}" for number in range(refs) for kind in ("heads/exp", "tags")]
    git(bare, "update-ref", "--stdin", data="".join(f"update {name} {tip}\n" for name in names))
    name = bare.name
    with asyncio.Runner() as runner:

        def look(base: str) -> None:
            runner.run(opened(f"{base}/{name}", work / "cache").look_async())

        ours = median_cost(lambda: look(url)) | {"bytes": wire(meter, lambda: look(meter.url)), "processes": 0}
    clone = work / f"clone-{refs}"
    git(work, "clone", "--quiet", "--bare", with_login(f"{url}/{name}"), str(clone))
    fetch = ["fetch", "--quiet", "--prune", "--tags"]
    every = ["+refs/*:refs/*"]
    plain = median_cost(lambda: git(clone, *fetch, with_login(f"{url}/{name}"), *every))
    plain["bytes"] = wire(meter, lambda: git(clone, *fetch, with_login(f"{meter.url}/{name}"), *every))
    plain["processes"] = processes(clone, *fetch, with_login(f"{url}/{name}"), *every)
    return {"ours": ours, "clone and diff": plain, "tag sensor": tag_sensor(refs, tip)}


def tag_sensor(refs: int, commit: str) -> dict[str, float]:
    """Return the cost of one poke for each of that many watched tags: one is measured."""
    tags = [(f"w{number}", commit) for number in range(refs)]
    with tag_api(lambda: tags) as url, relay(url) as meter, httpx.Client() as client:

        def poke(base: str) -> None:
            client.get(f"{base}/repos/o/r").raise_for_status()
            found: list[str] = []
            for page in range(1, math.ceil(refs / PAGE) + 1):
                found += [tag["name"] for tag in client.get(f"{base}/repos/o/r/tags?page={page}").json()]
            assert "w0" in found

        one = median_cost(lambda: poke(url)) | {"bytes": wire(meter, lambda: poke(meter.url))}
    requests = 1 + math.ceil(refs / PAGE)
    return {key: round(value * refs, 2) for key, value in one.items()} | {"processes": 0, "requests": requests * refs}


def change(work: Path, bare: Path, meter: Meter) -> dict[str, dict[str, float]]:
    """Return what it costs to learn which paths a push changed: the first time, and each time after."""
    name = bare.name
    old = git(bare, "rev-parse", "refs/heads/main")
    new = push(bare)
    cache = work / f"cache-{bare.stem}"
    ours = opened(f"{meter.url}/{name}", cache)
    first = wire(meter, lambda: ours.changed_paths(old, new))
    newer = push(bare)
    started, before = time.perf_counter(), cpu()
    later = wire(meter, lambda: ours.changed_paths(new, newer))
    ours_cost = {"first_bytes": first, "bytes": later, "cpu_ms": round((cpu() - before) * 1000, 1)}
    ours_cost["wall_ms"] = round((time.perf_counter() - started - 0.1) * 1000, 1)
    clone = work / f"plain-{bare.stem}"
    whole = wire(meter, lambda: git(work, "clone", "--quiet", "--bare", with_login(f"{meter.url}/{name}"), str(clone)))
    newest = push(bare)

    def fetch_and_diff() -> None:
        git(clone, "fetch", "--quiet", with_login(f"{meter.url}/{name}"), "+refs/heads/*:refs/heads/*")
        assert git(clone, "diff", "--name-only", newer, newest) == "d0/e0/f0"

    started, before = time.perf_counter(), cpu()
    later = wire(meter, fetch_and_diff)
    plain = {"first_bytes": whole, "bytes": later, "cpu_ms": round((cpu() - before) * 1000, 1)}
    plain["wall_ms"] = round((time.perf_counter() - started - 0.1) * 1000, 1)
    return {"ours": ours_cost, "clone and diff": plain}


async def latencies(bare: Path, interval: float, ring: Callable[[], object] | None) -> list[float]:
    """Return the seconds from each push until the trigger tells it."""
    trigger = GitRefTrigger(git_conn_id="bench", poll_interval=interval, refs=["refs/heads/main"], on_start="announce")
    trigger.handover_seconds = 0.0
    events = trigger.run()
    await anext(events)
    found = []
    for number in range(PUSHES):
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.37 * number % 1.0)
        await asyncio.to_thread(push, bare)
        started = time.perf_counter()
        if ring is not None:
            await asyncio.to_thread(ring)
        await waiting
        found.append(time.perf_counter() - started)
    await events.aclose()  # type: ignore[attr-defined]
    return found


def reaction(work: Path, url: str, bare: Path, facts: str) -> dict[str, dict[str, float]]:
    """Return how long after a push its event is there, in seconds: by polling, and woken by a webhook."""
    from deepseek_ops.adapters.facts import open_facts

    os.environ["AIRFLOW_CONN_BENCH"] = json.dumps(
        {"conn_type": "git", "host": f"{url}/{bare.name}", "login": USER, "password": TOKEN}
    )
    os.environ["AIRFLOW_CONN_DEEPSEEK_OPS_FACTS"] = json.dumps({"conn_type": "deepseek_facts", "host": facts})
    os.environ["DEEPSEEK_OPS_CACHE"] = str(work / "trigger-cache")
    bell = Wakes(open_facts(facts))
    found = {}
    for title, interval, ring in (
        ("poll every 2 s", 2.0, None),
        ("poll every 60 s, webhook", 60.0, lambda: bell.ring("bench", secrets.token_hex(8))),
    ):
        seconds = asyncio.run(latencies(bare, interval, ring))
        found[title] = {"median_s": round(statistics.median(seconds), 2), "max_s": round(max(seconds), 2)}
    cost = median_cost(lambda: [bell.count("bench") for _ in range(100)])
    found["a look at the bell"] = {"cpu_ms": round(cost["cpu_ms"] / 100, 3), "wall_ms": round(cost["wall_ms"] / 100, 3)}
    return found


def show(title: str, rows: dict[str, dict[str, float]]) -> Iterator[str]:
    """Yield the lines of one table, with ratios to ours."""
    yield f"\n{title}"
    ours = rows.get("ours", {})
    for name, row in rows.items():
        cells = []
        for key, value in row.items():
            ratio = f" ({value / ours[key]:,.1f}x)" if name != "ours" and ours.get(key) else ""
            cells.append(f"{key} {value:,}{ratio}")
        yield f"  {name:<45}" + ", ".join(cells)


def goals(found: dict[str, dict[str, dict[str, float]]], refs: int) -> dict[str, bool]:
    """Return which goals hold."""
    late = found["reaction"]
    first, large = found["change, small"]["ours"]["bytes"], found["change, large"]["ours"]["bytes"]
    return {
        "an event within 1 s of the poll interval": late["poll every 2 s"]["max_s"] <= 3.0,
        "a webhook within 3 s at any interval": late["poll every 60 s, webhook"]["max_s"] <= 3.0,
        f"{refs} refs in one poll without a process": found[f"poll, {refs} refs"]["ours"]["processes"] == 0,
        "bytes of a poll do not depend on the files": found["poll, large"]["ours"]["bytes"]
        <= 1.05 * found["poll, small"]["ours"]["bytes"],
        "bytes of a push do not depend on the files": large <= 4 * first,
    }


def main() -> int:
    """Print the tables; exit status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=50_000, help="files of the large repository")
    parser.add_argument("--refs", type=int, nargs="+", default=[1, 100, 1000], help="branches (and as many tags)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="git-watch-") as place:
        work = Path(place)
        root = work / "repositories"
        with server(root) as url, relay(url) as meter:
            small, large = root / "small.git", root / "large.git"
            fill(small, 50)
            fill(large, options.files)
            for bare in (small, large):
                found[f"poll, {bare.stem}"] = polls(work / _made(work, bare.stem), url, bare, 1, meter)
                found[f"change, {bare.stem}"] = change(work, bare, meter)
            for number in options.refs:
                found[f"poll, {number} refs"] = polls(work / _made(work, f"r{number}"), url, small, number, meter)
            found["reaction"] = reaction(work, url, small, f"sqlite:///{work / 'facts.db'}")
    found["goals"] = {name: {"held": float(held)} for name, held in goals(found, max(options.refs)).items()}
    for title, rows in found.items():
        print("\n".join(show(title, rows)))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0 if all(row["held"] for row in found["goals"].values()) else 1


def _made(work: Path, name: str) -> str:
    (work / name).mkdir()
    return name


if __name__ == "__main__":
    sys.exit(main())
