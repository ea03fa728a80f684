"""Delivery: start a version, move traffic, promote."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context
from pydantic import JsonValue

from deepseek_ops.airflow.hooks import GatewayHook
from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator, as_object

if TYPE_CHECKING:
    from deepseek_ops.core.records import Deployment
    from deepseek_ops.pipeline.deployments import Delivery


class DeliveryOperator(DeepSeekOpsOperator):
    """Base of the delivery operators: the gateway beside the other ports.

    :param version: what ``LoadModelVersionOperator`` returned (templated).
    :param gateway_conn_id: connection of the traffic gateway (templated).
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "version", "gateway_conn_id")

    def __init__(self, *, version: Any, gateway_conn_id: str = "deepseek_ops_gateway", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.version = version
        self.gateway_conn_id = gateway_conn_id

    def delivery(self, context: Context) -> Delivery:
        """Return the version on its way, with every port it needs."""
        from deepseek_ops.core.records import ModelVersion
        from deepseek_ops.pipeline.deployments import Delivery

        version = ModelVersion.load(as_object(self.version))
        return Delivery(
            version=version,
            stores=self.store_hook,
            facts=self.facts,
            launcher=self.launcher,
            gateway=GatewayHook(self.gateway_conn_id).gateway,
            run=str(context["run_id"]),
            progress=self.log.info,
        )


class StartServingOperator(DeliveryOperator):
    """Start the version's serving job and return it once it answers a real completion request.

    :return: a :class:`~deepseek_ops.pipeline.deployments.Serving` as JSON.
    """

    def execute(self, context: Context) -> dict[str, JsonValue]:
        return self.delivery(context).start(secrets=self.store_hook.environment()).dump()


class RollOutOperator(DeliveryOperator):
    """Move the traffic step by step until the rollout is promoted or rolled back.

    The state is stored after every look: a retry goes on where the last one stopped, and moves nothing twice.

    :param candidate: what ``StartServingOperator`` returned (templated).
    :return: a :class:`~deepseek_ops.core.records.Rollout` as JSON.
    """

    template_fields: Sequence[str] = (*DeliveryOperator.template_fields, "candidate")

    def __init__(self, *, candidate: Any, poll_interval: timedelta = timedelta(seconds=1), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.candidate = candidate
        self.poll_interval = poll_interval

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.pipeline.deployments import RolledBackError, Serving

        candidate = Serving.load(as_object(self.candidate))
        rollout = self.delivery(context).roll_out(candidate, poll_seconds=self.poll_interval.total_seconds())
        if rollout.phase == "rolled_back":
            raise RolledBackError(rollout.endpoint, rollout.candidate, rollout.reason)
        return rollout.dump()


class PromoteOperator(DeliveryOperator):
    """Point the alias ``champion`` at the version that took over, and end the jobs of the versions it replaced.

    :param rollout: what ``RollOutOperator`` returned (templated).
    :return: a :class:`~deepseek_ops.core.records.Deployment` as JSON.
    """

    template_fields: Sequence[str] = (*DeliveryOperator.template_fields, "rollout")

    def __init__(self, *, rollout: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rollout = rollout

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.core.records import Rollout

        deployment: Deployment = self.delivery(context).promote(Rollout.load(as_object(self.rollout)))
        self.log.info("%s %s answers at %s", deployment.endpoint, deployment.version, deployment.url)
        return deployment.dump()
