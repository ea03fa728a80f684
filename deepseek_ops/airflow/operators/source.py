"""What a run is of: the pushed commit, its plan, and whether to go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.python import ShortCircuitOperator
from airflow.sdk import Asset, Context
from airflow.sdk.exceptions import AirflowSkipException
from pydantic import JsonValue

from deepseek_ops.airflow.assets import DATASET, MODEL_REPOSITORY, MODEL_SCHEDULE
from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator, as_object

if TYPE_CHECKING:
    from deepseek_ops.pipeline.pushes import Source


class ResolveSourceOperator(DeepSeekOpsOperator):
    """Return the commit this run is of, resolved once: the push that triggered it, or the ref of the form.

    A push that another run has already taken is skipped, so a burst of events trains each push once. Only runs that a
    push started take one: a person's run, a dry run or a sweep of the same commit leaves it to its own run. New data
    and schedules are of ``default_ref``, and skipped unless a trigger of its own pipeline file wants them.

    :param default_ref: branch of scheduled and data-triggered runs (templated).
    :return: a :class:`~deepseek_ops.pipeline.pushes.Source` as JSON.
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "default_ref")

    def __init__(
        self, *, default_ref: str = "main", git_conn_id: str = "{{ params.repository }}", **kwargs: Any
    ) -> None:
        super().__init__(git_conn_id=git_conn_id, **kwargs)
        self.default_ref = default_ref

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.pipeline.pushes import combined, pushes_of, take

        params: Any = context["params"]
        run_id = str(context["run_id"])
        if params.get("ref"):
            return self._asked(context, run_id).dump()
        pushes = pushes_of(payloads(context, MODEL_REPOSITORY))
        beside, problem = self._beside(context)
        if not pushes:
            if beside is None:
                raise AirflowSkipException(problem)
            return beside.dump()
        source = take(self.facts, pushes, run=run_id)
        if source is None and beside is None:
            raise AirflowSkipException(f"every push of {', '.join(push.short for push in pushes)} has a run already")
        return combined(source, beside).dump()

    def _asked(self, context: Context, run_id: str) -> Source:
        """Return what a run with a ref is of, and take the push where it was started for one."""
        from deepseek_ops.pipeline.pushes import PUSH_RUN, Source, asked_for, cause_of, claim

        params: Any = context["params"]
        conf = getattr(context.get("dag_run"), "conf", None)
        source = Source(ref=asked_for(self.git, str(params["ref"]), conf), cause=cause_of(conf))
        if source.cause == "push" and not (params.get("dry_run") or params.get("overrides")):
            holder = claim(self.facts, source.ref, run=run_id)
            # A person who starts a push again, with its conf, wants just that.
            if holder != run_id and run_id.startswith(PUSH_RUN):
                raise AirflowSkipException(f"the push of {source.ref.short} has a run already: {holder}")
        return source

    def _beside(self, context: Context) -> tuple[Source | None, str]:
        """Return what data, a schedule or a person asks for beside pushes; or None and why it is not done."""
        from deepseek_ops.core.config import load_pipeline
        from deepseek_ops.pipeline.pushes import Source, unwanted
        from deepseek_ops.pipeline.runs import PIPELINE_FILE

        events: Any = context.get("triggering_asset_events") or {}
        extras = [
            dict(event.extra or {}) for asset, batch in dict(events).items() if _is(asset, DATASET) for event in batch
        ]
        scheduled = bool(payloads(context, MODEL_SCHEDULE))
        if not extras and not scheduled:
            pushed = bool(payloads(context, MODEL_REPOSITORY))
            return (None, "") if pushed else (Source(ref=self.git.resolve(self.default_ref)), "")
        ref = self.git.resolve(self.default_ref)
        config = load_pipeline(self.git.read_file(ref.commit, PIPELINE_FILE), file=f"{PIPELINE_FILE}@{ref.commit[:12]}")
        problem = unwanted(config, ref, arrived=[str(extra.get("uri", "")) for extra in extras], scheduled=scheduled)
        return (None, problem) if problem else (Source(ref=ref, cause="schedule" if scheduled else "data"), "")


class OtherPushesOperator(DeepSeekOpsOperator):
    """Return trigger arguments for the pushes that came in the same event batch: each gets a run of its own.

    :param source: what ``ResolveSourceOperator`` returned (templated).
    :return: a list of ``{trigger_run_id, conf}``, mostly empty.
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "source")

    def __init__(self, *, source: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.source = source

    def execute(self, context: Context) -> list[dict[str, JsonValue]]:
        from deepseek_ops.pipeline.pushes import Source, run_of

        params: Any = context["params"]
        source = Source.load(as_object(self.source))
        starts = [run_of(push) for push in source.others]
        if (beside := source.beside) is not None:
            conf = {"ref": f"{beside.name}@{beside.commit}", "cause": source.beside_cause}
            starts.append((f"beside__{context['run_id']}", conf))
        return [
            {"trigger_run_id": run_id, "conf": {"repository": params["repository"], **conf}} for run_id, conf in starts
        ]


class PlanRunOperator(DeepSeekOpsOperator):
    """Read the commit's pipeline file, resolve it to digests, and log what will run, what is found done, and why.

    The text is the XCom ``note`` too: Airflow lets no task write its run's note.

    :param source: what ``ResolveSourceOperator`` returned (templated).
    :return: a :class:`~deepseek_ops.pipeline.runs.RunPlan` as JSON.
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "source")

    def __init__(self, *, source: Any, git_conn_id: str = "{{ params.repository }}", **kwargs: Any) -> None:
        super().__init__(git_conn_id=git_conn_id, **kwargs)
        self.source = source

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.pipeline.forecast import change_of_run, explain_plan, forecast
        from deepseek_ops.pipeline.pushes import Source
        from deepseek_ops.pipeline.registration import resolve_base
        from deepseek_ops.pipeline.runs import plan_run

        params: Any = context["params"]
        source = Source.load(as_object(self.source))
        run = plan_run(
            self.git,
            self.store_hook.blobs,
            source.ref,
            resolve_base=lambda config: resolve_base(config, self.store_hook, self.facts),
            overrides=as_object(params.get("overrides") or {}),
            budget_usd=params.get("budget_usd"),
            dry_run=bool(params.get("dry_run")),
            nonce=str(context["run_id"]) if params.get("train_again") else "",
        )
        config = self.config(run)
        for warning in config.warnings:
            self.log.warning("%s", warning)
        change = change_of_run(self.git, run, config)
        hook = self.store_hook
        newest = source.cause in ("data", "schedule")
        run = forecast(self.git, run, change, stores=hook, datasets=hook.datasets, facts=self.facts, newest=newest)
        self.note(context, explain_plan(run, change))
        if not run.dry_run:
            self.launcher.prewarm()
        return run.dump()


class ProceedOperator(ShortCircuitOperator):
    """Go on unless the run is a dry run; everything after it is skipped then.

    :param run: what ``PlanRunOperator`` returned (templated).
    """

    template_fields: Sequence[str] = ("run",)

    def __init__(self, *, run: Any, **kwargs: Any) -> None:
        super().__init__(python_callable=_unless_dry, **kwargs)
        self.run = run

    def execute(self, context: Context) -> Any:
        from deepseek_ops.pipeline.runs import RunPlan

        self.op_args = (RunPlan.load(as_object(self.run)).dry_run,)
        return super().execute(context)


def _unless_dry(dry_run: bool) -> bool:
    return not dry_run


def payloads(context: Context, watched: Asset) -> list[Any]:
    """Return the payloads of the watcher's events that triggered this run, oldest first."""
    events: Any = context.get("triggering_asset_events") or {}
    found = [event for asset, batch in dict(events).items() if _is(asset, watched) for event in batch]
    return [event.extra["payload"] for event in sorted(found, key=lambda event: event.timestamp)]


def _is(asset: Any, watched: Asset) -> bool:
    return bool(getattr(asset, "name", "") == watched.name)
