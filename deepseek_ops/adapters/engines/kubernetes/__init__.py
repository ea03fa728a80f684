"""Kubernetes as an engine: JobSet, or Kubeflow Trainer's TrainJob, with Kueue where there is a queue.

Decisions, and what they cost:

- **JobSet, not a Job of pods of our own**: a headless service, one life for all pods, and Kueue's admission of all or
  nothing. A TrainJob is a JobSet made by a runtime that the platform team owns.
- **Nothing is restarted by Kubernetes**: see ``objects``. A job that Kueue evicts is withdrawn and remembered.
- **Cancelling deletes**, because suspending is Kueue's to decide; a ConfigMap remembers what was cancelled.
"""

from deepseek_ops.adapters.engines.kubernetes.api import KubernetesApi, KubernetesClient, open_client
from deepseek_ops.adapters.engines.kubernetes.engine import KubernetesEngine
from deepseek_ops.adapters.engines.kubernetes.settings import KubernetesSettings

__all__ = ["KubernetesApi", "KubernetesClient", "KubernetesEngine", "KubernetesSettings", "open_client"]
