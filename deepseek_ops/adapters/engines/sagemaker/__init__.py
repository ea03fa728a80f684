"""SageMaker training jobs as an engine.

Decisions, and what they cost:

- **Deterministic names**: SageMaker refuses a second job of a name, for ever, so a start that is repeated finds its
  first. Timestamps in names, as its own tools make them, would train twice.
- **Secrets are never in the job**: ``DescribeTrainingJob`` shows the environment to everybody who may look. They are
  kept in Secrets Manager for as long as the job, and the jobs' role reads them on the machines; better still, the role
  opens the store and there are none.
- **Our checkpoints, our store**: no ``CheckpointConfig``, whose copying knows nothing of a checkpoint half written.
"""

from deepseek_ops.adapters.engines.sagemaker.clients import AwsClients, open_clients
from deepseek_ops.adapters.engines.sagemaker.engine import SageMakerEngine
from deepseek_ops.adapters.engines.sagemaker.settings import SageMakerSettings

__all__ = ["AwsClients", "SageMakerEngine", "SageMakerSettings", "open_clients"]
