"""From an Airflow connection of the Amazon provider to the clients that SageMaker jobs are run with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepseek_ops.airflow.hooks import ConnectionFieldError, PortHook
from deepseek_ops.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from deepseek_ops.adapters.engines.sagemaker import AwsClients


class AwsAccountHook(PortHook):
    """The account behind an ``aws`` connection: its keys or profile, the role it assumes, its region and endpoints.

    The hooks of the Amazon provider make the clients, so a connection means here what it means in every other DAG, and
    an assumed role's credentials are renewed while a training of days is watched.
    """

    conn_type = "aws"
    example = '--conn-type aws --conn-login KEY --conn-password SECRET --conn-extra \'{"region_name": "eu-central-1"}\''

    def clients(self, region: str = "") -> AwsClients:
        """Return clients of the account in ``region``, or the connection's own; a role is assumed now.

        Raises ConnectionMissingError (the provider would silently take the machine's own credentials instead),
        ConnectionFieldError without a region, MissingDependencyError, and SageMakerAccessError or
        SageMakerUnavailableError when the role is refused or nobody answers.
        """
        from deepseek_ops.adapters.engines.sagemaker.clients import asked

        name = self.connection.conn_id or self.conn_id
        opened: Any = asked(f"open connection {name}", lambda: self._opened(region))  # None only for codes to pass over
        return opened  # type: ignore[no-any-return]

    def _opened(self, region: str) -> AwsClients:
        try:
            from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
            from airflow.providers.amazon.aws.hooks.sagemaker import SageMakerHook
            from botocore.exceptions import NoRegionError
        except ImportError as error:
            provider = "apache-airflow-providers-amazon"
            raise MissingDependencyError(provider, "amazon", "running jobs on SageMaker") from error
        from deepseek_ops.adapters.engines.sagemaker import AwsClients

        account: dict[str, Any] = {"aws_conn_id": self.conn_id, "region_name": region or None}
        try:
            sagemaker = _client(SageMakerHook(**account))
        except NoRegionError:
            remedy = "is empty: give extra region_name, or options.region to the launcher's connection"
            raise ConnectionFieldError(self.conn_id, "region", remedy) from None
        return AwsClients(
            sagemaker=sagemaker,
            secrets=_client(AwsBaseHook(client_type="secretsmanager", **account)),
            logs=_client(AwsBaseHook(client_type="logs", **account)),
            region=sagemaker.meta.region_name,
        )


def _client(hook: Any) -> Any:
    """Return the hook's client, bounded as ours are where the connection's ``config_kwargs`` say nothing else."""
    from botocore.config import Config

    from deepseek_ops.adapters.engines.sagemaker.clients import CLIENT_CONFIG

    return hook.get_client_type(region_name=hook.region_name, config=Config(**CLIENT_CONFIG).merge(hook.config))
