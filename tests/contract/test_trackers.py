"""What every tracker promises: a run of ours is one run there, with every point once, whatever is lost on the way."""

from __future__ import annotations

import json
import math
import uuid
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fixtures_mlflow import mlflow_url  # noqa: F401
from fixtures_review_hosts import Fault, Host, serving
from fixtures_wandb import offline_run

import deepseek_ops
from deepseek_ops.adapters.trackers import MLflowTracker, WandbTracker
from deepseek_ops.adapters.trackers.mlflow import KEY_TAG, key_tag
from deepseek_ops.core.errors import MissingDependencyError
from deepseek_ops.core.reporting import (
    MetricPoint,
    ServiceAccessError,
    ServiceRefusedError,
    ServiceUnavailableError,
    TrackedRun,
)

pytestmark = pytest.mark.slow
START = 1_790_000_000_000


def tracked(**changes: Any) -> TrackedRun:
    values = {
        "key": f"run-{uuid.uuid4()}",
        "name": "main abcdef12",
        "experiment": "deepseek-tiny",
        "params": {"learning_rate": "0.001", "batch_size": "32"},
        "tags": {"deepseek_ops.commit": "a" * 40, "mlflow.source.git.commit": "a" * 40},
    }
    return TrackedRun(**{**values, **changes})


def curve(steps: range, name: str = "training_loss") -> list[MetricPoint]:
    return [MetricPoint(name, 5 / (1 + step), step, START + step) for step in steps]


def relay(target: str, host: Host) -> FastAPI:
    """A server in front of the real one, which loses answers and turns requests away as a test asks."""
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    def forward(path: str, request: Request, body: dict[str, Any] | None = None) -> Response:
        line = f"{request.method} {request.url.path}"
        host.requests.append(line)
        fault = next((one for one in host.faults if one.method == request.method and one.part in line), None)
        if fault is not None:
            host.faults.remove(fault)
            if not fault.after:
                return Response(json.dumps(fault.body), fault.status, fault.headers)
        params = dict(request.query_params)
        reply = httpx.request(request.method, f"{target}/{path}", params=params, json=body, timeout=30)
        if fault is not None:
            return Response(json.dumps(fault.body), fault.status, fault.headers)
        return Response(reply.content, reply.status_code, media_type="application/json")

    return app


class TrackerContract:
    """Subclasses provide ``tracker`` and ``seen``: the run as people see it, ``{params, tags, status, curves}``."""

    tracker: Any

    def seen(self, run_id: str) -> dict[str, Any]:
        raise NotImplementedError

    def count(self, run: TrackedRun) -> int:
        raise NotImplementedError

    def test_a_run_is_made_once_and_found_again(self) -> None:
        run = tracked()
        first = self.tracker.start(run)
        assert self.tracker.start(run) == first
        assert self.count(run) == 1
        assert self.tracker.start(tracked()).run_id != first.run_id

    def test_parameters_and_tags_are_shown(self) -> None:
        run = tracked()
        seen = self.seen(self.tracker.start(run).run_id)
        assert seen["params"] == run.params
        assert run.tags.items() <= seen["tags"].items()

    def test_points_stand_at_their_steps_however_often_they_are_sent(self) -> None:
        run_id = self.tracker.start(tracked()).run_id
        self.tracker.log(run_id, curve(range(8)))
        self.tracker.log(run_id, curve(range(4, 12)))
        assert self.seen(run_id)["curves"]["training_loss"] == [(step, 5 / (1 + step)) for step in range(12)]

    def test_a_long_curve_arrives_whole(self) -> None:
        run_id = self.tracker.start(tracked()).run_id
        self.tracker.log(run_id, curve(range(1203)))
        assert [step for step, _ in self.seen(run_id)["curves"]["training_loss"]] == list(range(1203))

    def test_a_loss_that_is_not_finite_is_shown_as_such(self) -> None:
        run_id = self.tracker.start(tracked()).run_id
        values = (math.nan, math.inf, 1.5)
        self.tracker.log(run_id, [MetricPoint("loss", value, at, START) for at, value in enumerate(values)])
        shown = [value for _, value in self.seen(run_id)["curves"]["loss"]]
        assert math.isnan(shown[0])
        assert shown[1] > 1e300
        assert shown[2] == 1.5

    @pytest.mark.parametrize("end", ["finished", "failed", "killed"])
    def test_the_end_is_shown_and_may_be_told_twice(self, end: Any) -> None:
        run_id = self.tracker.start(tracked()).run_id
        for _ in range(2):
            self.tracker.finish(run_id, end, {"deepseek_ops.version": "0.3.0"})
        seen = self.seen(run_id)
        assert seen["status"] == end
        assert seen["tags"]["deepseek_ops.version"] == "0.3.0"


class TestMLflow(TrackerContract):
    @pytest.fixture(autouse=True)
    def _server(self, mlflow_url: str) -> Iterator[None]:  # noqa: F811
        self.direct = httpx.Client(base_url=f"{mlflow_url}/api/2.0/mlflow", timeout=30)
        self.host = Host()
        with serving(relay(mlflow_url, self.host), self.host):
            self.tracker = MLflowTracker(self.host.url, password="token", sleep=lambda _: None)
            yield

    def seen(self, run_id: str) -> dict[str, Any]:
        run = self.direct.get("/runs/get", params={"run_id": run_id}).json()["run"]
        data = run["data"]
        curves = {}
        for metric in data.get("metrics", []):
            asked = {"run_id": run_id, "metric_key": metric["key"], "max_results": 5000}
            rows = self.direct.get("/metrics/get-history", params=asked).json()["metrics"]
            points = [(int(row.get("step", 0)), float(row.get("value", 0))) for row in rows]
            curves[metric["key"]] = sorted(points, key=lambda point: point[0])
        return {
            "params": {one["key"]: one["value"] for one in data.get("params", [])},
            "tags": {one["key"]: one["value"] for one in data.get("tags", [])},
            "status": run["info"]["status"].lower(),
            "inputs": run.get("inputs", {}),
            "curves": curves,
        }

    def count(self, run: TrackedRun) -> int:
        named = self.direct.get("/experiments/get-by-name", params={"experiment_name": run.experiment}).json()
        body = {
            "experiment_ids": [named["experiment"]["experiment_id"]],
            "filter": f"tags.`{KEY_TAG}` = '{key_tag(run.key)}'",
        }
        return len(self.direct.post("/runs/search", json=body).json().get("runs", []))

    @pytest.mark.parametrize("path", ["/runs/create", "/experiments/create", "/runs/log-batch", "/runs/update"])
    @pytest.mark.parametrize("after", [True, False])
    def test_a_server_that_stumbles_leaves_one_run(self, path: str, after: bool) -> None:
        run = tracked(experiment=f"e-{uuid.uuid4()}")
        self.host.faults.append(Fault("POST", path, 503, after=after))
        place = self.tracker.start(run)
        assert self.count(run) == 1
        assert self.seen(place.run_id)["params"] == run.params

    def test_of_many_that_start_a_run_at_once_all_have_the_same(self) -> None:
        run = tracked(experiment=f"e-{uuid.uuid4()}")
        with ThreadPoolExecutor(4) as pool:
            places = list(pool.map(lambda _: self.tracker.start(run), range(4)))
        assert self.tracker.start(run) in places
        assert self.count(run) == 1

    def test_a_run_key_with_quotes_is_found_again(self) -> None:
        run = tracked(key=f"manual__it's \\ `odd` {uuid.uuid4()}")
        assert self.tracker.start(run) == self.tracker.start(run)

    def test_parameters_of_a_run_that_is_there_do_not_change(self) -> None:
        run = tracked()
        place = self.tracker.start(run)
        other = TrackedRun(run.key, run.name, run.experiment, {"learning_rate": "9", "new": "1"}, run.tags)
        assert self.tracker.start(other) == place
        assert self.seen(place.run_id)["params"] == {**run.params, "new": "1"}

    def test_the_dataset_version_is_shown_as_an_input(self) -> None:
        tags = {"deepseek_ops.dataset": "corpus", "deepseek_ops.dataset_version": "c" * 64}
        run = tracked(tags=tags)
        for _ in range(2):
            run_id = self.tracker.start(run).run_id
        (used,) = self.seen(run_id)["inputs"]["dataset_inputs"]
        assert used["dataset"]["name"] == "corpus"
        assert used["dataset"]["digest"] == "c" * 36

    def test_long_texts_are_cut_and_many_are_sent(self) -> None:
        params = {f"p{at:03d}": "x" * 9000 for at in range(120)}
        run_id = self.tracker.start(tracked(params=params, tags={"long": "y" * 9000})).run_id
        assert len(self.seen(run_id)["params"]) == 120

    def test_an_experiment_that_was_deleted_is_a_permanent_error_in_its_words(self) -> None:
        run = tracked(experiment=f"e-{uuid.uuid4()}")
        self.tracker.start(run)
        named = self.direct.get("/experiments/get-by-name", params={"experiment_name": run.experiment}).json()
        self.direct.post("/experiments/delete", json={"experiment_id": named["experiment"]["experiment_id"]})
        with pytest.raises(ServiceRefusedError, match="deleted"):
            self.tracker.start(run)

    def test_refused_credentials_are_a_permanent_error_without_the_token(self) -> None:
        self.host.faults.append(Fault("GET", "get-by-name", 401, body={"message": "no entry for token"}))
        with pytest.raises(ServiceAccessError, match=r"no entry for \*\*\*"):
            self.tracker.start(tracked())

    def test_a_server_that_is_away_is_a_transient_error(self) -> None:
        with pytest.raises(ServiceUnavailableError):
            MLflowTracker("http://127.0.0.1:9", sleep=lambda _: None).start(tracked())


class TestWandb(TrackerContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.tracker = WandbTracker(tmp_path, entity="team")

    def seen(self, run_id: str) -> dict[str, Any]:
        """Read the offline run back from its file; what was not finished yet is written for it."""
        folders = list((self.folder / "wandb").glob(f"offline-run-*-{run_id}")) or [self.tracker.write(run_id)]
        return offline_run(*folders)

    def count(self, run: TrackedRun) -> int:
        return len(list((self.folder / "told").glob(self.tracker.start(run).run_id)))

    def test_the_address_is_known_before_the_run_is_sent(self) -> None:
        run = tracked(experiment="deepseek tiny/2")
        place = self.tracker.start(run)
        assert place.url == f"https://wandb.ai/team/deepseek-tiny-2/runs/{place.run_id}"
        self.tracker.finish(place.run_id, "finished", {})
        assert self.seen(place.run_id)["place"] == ("team", "deepseek-tiny-2", place.run_id)

    def test_finishing_again_leaves_one_run_with_everything(self) -> None:
        run_id = self.tracker.start(tracked()).run_id
        self.tracker.log(run_id, curve(range(3)))
        self.tracker.finish(run_id, "killed", {})
        self.tracker.log(run_id, curve(range(3, 6)))
        self.tracker.finish(run_id, "finished", {})
        assert len(list((self.folder / "wandb").iterdir())) == 1
        seen = self.seen(run_id)
        assert (seen["status"], len(seen["curves"]["training_loss"])) == ("finished", 6)

    def test_metrics_of_a_step_that_came_in_two_parts_are_one_row(self) -> None:
        run_id = self.tracker.start(tracked()).run_id
        self.tracker.log(run_id, curve(range(4)))
        self.tracker.log(run_id, curve(range(4), "val_loss"))
        curves = self.seen(run_id)["curves"]
        assert curves["training_loss"] == curves["val_loss"]
        assert len(curves["val_loss"]) == 4

    def test_no_credential_reaches_the_writing_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "correct-horse-battery-staple")
        run_id = self.tracker.start(tracked()).run_id
        self.tracker.finish(run_id, "finished", {})
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        assert files
        assert not [path for path in files if b"battery-staple" in path.read_bytes()]

    def test_an_interpreter_without_the_package_is_named_with_the_remedy(self, tmp_path: Path) -> None:
        venv.create(tmp_path / "bare", with_pip=False)
        source = str(Path(deepseek_ops.__file__).parents[1])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", source)
            tracker = WandbTracker(tmp_path, python=str(tmp_path / "bare" / "bin" / "python"))
            run_id = tracker.start(tracked()).run_id
            with pytest.raises(MissingDependencyError, match=r"deepseek-ops\[wandb\]"):
                tracker.finish(run_id, "finished", {})

    def test_a_folder_that_cannot_be_written_is_a_transient_error_with_its_path(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ServiceUnavailableError, match="file/told"):
            WandbTracker(tmp_path / "file").start(tracked())
