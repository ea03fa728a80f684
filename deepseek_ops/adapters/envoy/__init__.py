"""Envoy on this machine: the adapter of ``core.ports.TrafficGateway`` that drops no request.

Decisions. Envoy, because a weight switch costs no request and a slow mirror does not hold the client up, where nginx
and Caddy cut keep-alive connections and stall behind their mirrors. **One listener port per endpoint**: every client
can be given a host and a port, many tools take no path before ``/v1`` and no header of ours; the first endpoint gets
the gateway's ``port``, every other one a free port that is recorded and kept. Configuration travels in files that are
renamed into place and that Envoy watches, so no control plane has to stay up. Envoy outlives the process that started
it; any process with the same root drives it. Linux only.
"""

from deepseek_ops.adapters.envoy.errors import (
    GatewayPortError,
    GatewayStartError,
    GatewayTimeoutError,
    PlanError,
    PlanRejectedError,
)
from deepseek_ops.adapters.envoy.gateway import EnvoyGateway
from deepseek_ops.adapters.envoy.resources import VERSION_HEADER

__all__ = [
    "VERSION_HEADER",
    "EnvoyGateway",
    "GatewayPortError",
    "GatewayStartError",
    "GatewayTimeoutError",
    "PlanError",
    "PlanRejectedError",
]
