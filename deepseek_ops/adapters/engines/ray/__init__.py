"""Ray, the first scale-out engine: a cluster anywhere whose dashboard we reach, on Kubernetes through KubeRay."""

from deepseek_ops.adapters.engines.ray.api import RayJobsApi
from deepseek_ops.adapters.engines.ray.engine import RayEngine
from deepseek_ops.adapters.engines.ray.errors import (
    ForeignRayJobError,
    RayAccessError,
    RayAddressError,
    RayRefusedError,
    RayUnavailableError,
    SealBrokenError,
    UnsealedSecretsError,
)
from deepseek_ops.adapters.engines.ray.sealing import KEY_VARIABLE

__all__ = [
    "KEY_VARIABLE",
    "ForeignRayJobError",
    "RayAccessError",
    "RayAddressError",
    "RayEngine",
    "RayJobsApi",
    "RayRefusedError",
    "RayUnavailableError",
    "SealBrokenError",
    "UnsealedSecretsError",
]
