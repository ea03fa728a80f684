"""Links of a training's task: pushed at the start, right for whoever follows them, and never the end of a training."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fixtures_training_streams import HOSTILE

from deepseek_ops.airflow.links import EngineLink, TrainingRunLink, push_links
from deepseek_ops.airflow.operators.training import DeepSpeedTrainOperator
from deepseek_ops.airflow.plugin import DeepSeekOpsPlugin
from deepseek_ops.airflow.provider_info import get_provider_info
from deepseek_ops.core.errors import StoreUnavailableError
from deepseek_ops.core.records import DatasetVersion, Hyperparameters, TrainingPlan


class Task:
    """A task instance that remembers what was pushed."""

    def __init__(self) -> None:
        self.pushed: dict[str, object] = {}

    def xcom_push(self, *, key: str, value: object) -> None:
        self.pushed[key] = value


@pytest.fixture
def plan() -> TrainingPlan:
    dataset = DatasetVersion(name="corpus", version="a" * 64, tree="b" * 64, num_files=1, num_bytes=1)
    hyper = Hyperparameters(learning_rate=0.001, batch_size=8, max_steps=2)
    return TrainingPlan(dataset=dataset, model={"model_type": "deepseek_v3"}, hyperparameters=hyper)


def test_the_operator_has_both_links_and_airflow_is_told_of_them() -> None:
    assert [type(link) for link in DeepSpeedTrainOperator.operator_extra_links] == [TrainingRunLink, EngineLink]
    named = [f"{kind.__module__}.{kind.__qualname__}" for kind in (TrainingRunLink, EngineLink)]
    assert get_provider_info()["extra-links"] == named


def test_the_training_link_is_the_page_of_the_plan_that_the_plugin_mounts(plan: TrainingPlan) -> None:
    task = Task()
    operator = SimpleNamespace(plan=plan.dump(), engine_page=lambda: "http://ray.example:8265/#/jobs/1")
    push_links(operator, {"ti": task}, TrainingRunLink(), EngineLink())  # type: ignore[arg-type]
    page, engine = task.pushed["_link_TrainingRunLink"], task.pushed["_link_EngineLink"]
    mounted = [str(app["url_prefix"]) for app in DeepSeekOpsPlugin.fastapi_apps if "training" in str(app["url_prefix"])]
    assert str(page).endswith(f"{mounted[0]}/runs/{plan.fingerprint}")
    assert engine == "http://ray.example:8265/#/jobs/1"
    assert DeepSeekOpsPlugin.external_views[0]["href"] == f"{mounted[0].removeprefix('/')}/"


@pytest.mark.parametrize("url", ["", "javascript:alert(1)", "file:///etc/passwd", "https://user:word@host/", HOSTILE])
def test_an_engine_sends_nobody_where_a_browser_would_not_go(url: str) -> None:
    task = Task()
    operator = SimpleNamespace(plan="{{ unrendered }}", engine_page=lambda: url)
    push_links(operator, {"ti": task}, TrainingRunLink(), EngineLink())  # type: ignore[arg-type]
    assert task.pushed == {}


def test_an_engine_that_is_away_costs_a_link_and_not_the_training(plan: TrainingPlan) -> None:
    def away() -> str:
        raise StoreUnavailableError("s3://store", "it is away")

    task = Task()
    operator = SimpleNamespace(plan=plan.dump(), engine_page=away)
    push_links(operator, {"ti": task}, EngineLink(), TrainingRunLink())  # type: ignore[arg-type]
    assert list(task.pushed) == ["_link_TrainingRunLink"]
