"""``deepseek-ops demo``: the main job on real servers, from a git push to a deployed model that answers.

The command sets the servers up, pushes a commit, and from there on only watches: every step is done by Airflow.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated

import httpx
import typer
from pydantic import JsonValue
from rich.console import Console

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.cli.demo_report import DemoResult, write_report
from deepseek_ops.cli.demo_repository import BRANCH, DemoRepository
from deepseek_ops.cli.demo_view import SETTLED, ProgressView
from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.records import TrainingPlan
from deepseek_ops.embedded.airflow_standalone import AirflowClient, rows
from deepseek_ops.embedded.corpus import collect_python_corpus
from deepseek_ops.embedded.guard import descendants
from deepseek_ops.embedded.stack import BUCKETS, GIT_USER, LAKE_PREFIX, Stack, stop_kept
from deepseek_ops.pipeline.trainings import training_job_name

DAGS = ("retrain", "release", "deploy")
WATCHED = "deepseek_ops_model_repository"
PROMPT = "The function returns"


@dataclass(eq=False)
class DemoFailedError(DeepSeekOpsError):
    """A task of the demo's run failed."""

    task: str
    reason: str
    logs: str

    def __str__(self) -> str:
        return f"{self.task} failed: {self.reason}\nlogs: {self.logs}"


@dataclass
class Watch:
    """What the demo knows of the run it started."""

    commit: str
    runs: dict[str, str] = field(default_factory=dict)
    job: str = ""
    killed: list[int] = field(default_factory=list)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers up; `deepseek-ops stop` ends them.")] = False,
    kill_ranks: Annotated[
        bool, typer.Option("--kill-ranks", help="SIGKILL the training ranks once, to see the run go on.")
    ] = False,
    root: Annotated[Path, typer.Option(help="Folder of the demo's servers and data.")] = Path(".deepseek-ops/demo"),
    timeout_minutes: Annotated[float, typer.Option(min=1, help="Give up after this.")] = 30.0,
) -> None:
    """Run the main job on a real Airflow: push a commit, and see it trained, validated, released and deployed."""
    console = Console()
    signal.signal(signal.SIGTERM, _interrupt)
    project = Path.cwd()
    started = time.monotonic()
    if stop_kept(root):
        console.print("ended the servers that an earlier demo had left up", style="dim")
    stack = Stack(root, dags=project / "dags", keep=keep)
    try:
        with stack.running():
            with ProgressView(console) as view:
                result = run_demo(stack, view, project=project, kill_ranks=kill_ranks, timeout=timeout_minutes * 60)
            result.seconds["total"] = time.monotonic() - started
            write_report(console, stack, result)
            if keep:
                console.print(
                    f"\nAirflow: {stack.airflow.url}  login [bold]{stack.airflow.username}[/] / "
                    f"[bold]{stack.airflow.password}[/]\nEndpoint: {result.url}\nEnd it with: make stop"
                )
    except KeyboardInterrupt:
        console.print(f"\ninterrupted; every process of the demo was ended. Logs: {stack.root}", style="yellow")
        raise typer.Exit(130) from None
    except (DeepSeekOpsError, httpx.HTTPError) as error:
        console.print(f"\n{error}", style="red", highlight=False, markup=False)
        console.print(f"every process of the demo was ended. Logs: {stack.root}", style="yellow")
        raise typer.Exit(1) from None


def stop(
    root: Annotated[Path, typer.Option(help="Folder of the demo's servers and data.")] = Path(".deepseek-ops/demo"),
) -> None:
    """End the servers that `deepseek-ops demo --keep` left up."""
    for name in stop_kept(root):
        typer.echo(f"ended {name}")


def run_demo(stack: Stack, view: ProgressView, *, project: Path, kill_ranks: bool, timeout: float) -> DemoResult:
    """Set up, push, watch the runs of the commit to their ends, ask the deployed model, and return what came of it."""
    seconds: dict[str, float] = {}
    begun = time.monotonic()
    view.update("servers", "start S3 and Git", "running")
    stack.start_servers()
    stack.start_airflow()
    view.update("servers", "start S3 and Git", "success", f"{stack.s3.endpoint}, {stack.git_url}")
    view.update("airflow", "start Airflow", "running", stack.airflow.url)
    corpus = threading.Thread(target=_upload_corpus, args=(stack,), name="corpus")
    corpus.start()
    user = DemoRepository(
        stack.git_url,
        username=GIT_USER,
        token=stack.git_token,
        folder=stack.root / "clone",
        template=project / "include" / "examples" / "tiny-deepseek",
    )
    user.prepare()
    stack.airflow.wait_healthy()
    corpus.join()
    stack.prepare_airflow(unpause=DAGS)
    wait_for_watcher(stack.client)
    seconds["airflow_start"] = time.monotonic() - begun
    view.update("airflow", "start Airflow", "success", stack.airflow.url)
    pushed = time.monotonic()
    commit, change = user.push_change()
    view.update("push", f"push {BRANCH}", "success", f"{commit[:12]} {change}")
    watch = Watch(commit)
    _follow(stack, view, watch, kill_ranks=kill_ranks, deadline=pushed + timeout)
    seconds["push_to_deployed"] = time.monotonic() - pushed
    return _result(stack, watch, seconds)


def _upload_corpus(stack: Stack) -> None:
    """Put the raw corpus into the data lake, as an upload job of the team would."""
    folder = stack.root / "corpus"
    lake = open_store(f"s3://{BUCKETS[1]}/{LAKE_PREFIX.rstrip('/')}", stack.s3.credentials)
    present = {item.key for item in lake.list("")}
    if not present:
        for path in sorted(collect_python_corpus(folder)):
            lake.create(path.relative_to(folder).as_posix(), path.read_bytes())


def wait_for_watcher(client: AirflowClient, timeout: float = 120.0) -> None:
    """Return when the triggerer watches the repository: a push before its first look would be history to it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        watched = (asset for asset in rows(client.get("/assets", limit=100), "assets") if asset["name"] == WATCHED)
        if any(client.get(f"/assets/{asset['id']}/state-store").get("total_entries") for asset in watched):
            return
        time.sleep(0.5)
    raise DemoFailedError("the repository watcher", f"no watermark after {timeout:.0f} s", "airflow.log")


def _follow(stack: Stack, view: ProgressView, watch: Watch, *, kill_ranks: bool, deadline: float) -> None:
    client = stack.client
    while time.monotonic() < deadline:
        for dag_id in DAGS:
            run_id = _find_run(client, dag_id, watch)
            if run_id:
                _show_run(stack, view, client, dag_id, run_id)
        job = _training_job(stack, view, watch)
        if kill_ranks and job and not watch.killed:
            watch.killed = _kill_ranks(stack, view, job)
        if _finished(client, watch):
            return
        time.sleep(1.0)
    raise DemoFailedError("the run", "it took too long", str(stack.root))


def _find_run(client: AirflowClient, dag_id: str, watch: Watch) -> str:
    """Return the id of the DAG's run for the pushed commit, once it is there."""
    if dag_id in watch.runs:
        return watch.runs[dag_id]
    if dag_id == "retrain":
        for run in client.runs(dag_id):
            try:
                source = client.xcom(dag_id, str(run["dag_run_id"]), "resolve_source")
            except httpx.HTTPStatusError:
                continue
            if isinstance(source, dict) and watch.commit in str(source.get("ref")):
                watch.runs[dag_id] = str(run["dag_run_id"])
    elif "retrain" in watch.runs:
        try:
            recorded = client.xcom("retrain", watch.runs["retrain"], "record_experiment")
        except httpx.HTTPStatusError:
            return ""
        release = str(recorded.get("release_run")) if isinstance(recorded, dict) else ""
        known = {str(run["dag_run_id"]) for run in client.runs(dag_id)}
        wanted = next((run_id for run_id in known if release and run_id.endswith(release)), "")
        if wanted:
            watch.runs[dag_id] = wanted
    return watch.runs.get(dag_id, "")


def _show_run(stack: Stack, view: ProgressView, client: AirflowClient, dag_id: str, run_id: str) -> None:
    tasks = client.tasks(dag_id, run_id)
    for task in sorted(tasks, key=lambda row: (str(row.get("start_date") or "9"), int(str(row.get("map_index"))))):
        state, index = str(task.get("state") or ""), int(str(task.get("map_index")))
        if not state or (state == "skipped" and index < 0):
            continue
        name = str(task["task_id"])
        label = f"{name}[{index}]" if index >= 0 else name
        duration = task.get("duration")
        seconds = float(duration) if isinstance(duration, int | float) else None
        view.update(f"{dag_id}/{label}", f"{dag_id}.{label}"[-40:], state, "", seconds)
        if state == "failed":
            raise DemoFailedError(
                f"{dag_id}.{label}",
                _reason(client, dag_id, run_id, name, int(str(task.get("try_number"))), index),
                f"{stack.root / 'airflow' / 'logs'}; job logs: {stack.root / 'jobs'}",
            )


def _reason(client: AirflowClient, dag_id: str, run_id: str, task: str, try_number: int, index: int) -> str:
    """Return the last error line of a task's log."""
    try:
        lines = client.task_log(dag_id, run_id, task, try_number, index).splitlines()
    except httpx.HTTPStatusError:
        return "its log cannot be read"
    return next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "no log")


def _training_job(stack: Stack, view: ProgressView, watch: Watch) -> str:
    """Show the loss of the run's training and return its job's name; empty until it runs."""
    if "retrain" not in watch.runs:
        return ""
    if not watch.job:
        try:
            plan = stack.client.xcom("retrain", watch.runs["retrain"], "plan_training")
        except httpx.HTTPStatusError:
            return ""
        watch.job = training_job_name(TrainingPlan.load(plan if isinstance(plan, dict) else {}))
    rows = [event for event in stack.launcher.events(watch.job) if event.get("kind") == "metric"]
    losses = [float(str(row["training_loss"])) for row in rows if "training_loss" in row]
    if losses:
        view.loss(losses, f"{losses[-1]:.3f} at step {rows[-1].get('step')}")
    return watch.job


def _kill_ranks(stack: Stack, view: ProgressView, job: str) -> list[int]:
    """SIGKILL every rank of the job once it has a checkpoint, and return the pids."""
    status = stack.launcher.status(job)
    saved = any(event.get("kind") == "checkpoint" for event in stack.launcher.events(job))
    if status is None or status.settled or status.pid is None or not saved:
        return []
    # The ranks are the leaves of the job's process tree: what is above them supervises, and is left to do its work.
    pids = [pid for pid in descendants(status.pid) if not descendants(pid)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    view.say(f"    SIGKILL to the ranks {pids}: the job has to go on from its last checkpoint")
    return pids


def _finished(client: AirflowClient, watch: Watch) -> bool:
    if "deploy" in watch.runs:
        states = [row["state"] for row in client.tasks("deploy", watch.runs["deploy"])]
        return bool(states) and all(state in SETTLED for state in states)
    if "retrain" not in watch.runs:
        return False
    run = client.get(f"/dags/retrain/dagRuns/{watch.runs['retrain']}")
    if run.get("state") != "success":
        return False
    ended = {str(row["task_id"]): row["state"] for row in client.tasks("retrain", watch.runs["retrain"])}
    return ended.get("start_release") == "skipped"


def _result(stack: Stack, watch: Watch, seconds: Mapping[str, float]) -> DemoResult:
    client = stack.client
    returned: dict[str, JsonValue] = {}
    for dag_id, run_id in watch.runs.items():
        for task in client.tasks(dag_id, run_id):
            if task["state"] != "success":
                continue
            index = int(str(task["map_index"]))
            key = f"{dag_id}.{task['task_id']}" + (f"[{index}]" if index >= 0 else "")
            try:
                returned[key] = client.xcom(dag_id, run_id, str(task["task_id"]), index)
            except httpx.HTTPStatusError:
                continue
    deployment = returned.get("deploy.promote")
    url = str(deployment["url"]) if isinstance(deployment, dict) else ""
    name = str(deployment["endpoint"]) if isinstance(deployment, dict) else ""
    return DemoResult(
        commit=watch.commit,
        runs=dict(watch.runs),
        returned=returned,
        url=url,
        answer=ask(url, name) if url else "",
        killed=watch.killed,
        seconds=dict(seconds),
    )


def ask(url: str, model: str) -> str:
    """Return the deployed model's completion of a fixed prompt. Raises httpx.HTTPError when it does not answer."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["text"])


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
