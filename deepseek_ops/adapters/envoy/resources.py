"""Traffic plans as Envoy's resources, and back. Pure: what is written, and what a dump of Envoy means.

A cluster is called ``<endpoint>/<version>``. Counters go under a name of digests, because Envoy cuts names at dots.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from pydantic import JsonValue

from deepseek_ops.adapters.envoy.model_name import model_filters
from deepseek_ops.adapters.envoy.plans import GatewayState, address
from deepseek_ops.core.jobs import TrafficPlan
from deepseek_ops.core.records import canonical_json, digest_of

METADATA = "deepseek_ops"
STAT_PREFIX = "deepseek_ops"
SILENCE_SECONDS = 600
"""An answer may take as long as it likes, but a backend that sends nothing for so long is given up on."""
CONNECT_SECONDS = 5
KEEP_ALIVE_SECONDS = 4
"""Below the five seconds after which uvicorn closes an idle connection: a request never meets a closing one."""
VERSION_HEADER = "x-model-version"
"""Names in an answer the version that gave it. A request that names a version goes there, whatever the weights say:
for probes of a candidate, and for people who look at it before everybody does."""
MAX_BUFFERED_BYTES = 32 << 20
"""The longest request whose model name can be rewritten."""

_TYPE = "type.googleapis.com/envoy."
_FORWARDING: Mapping[str, JsonValue] = MappingProxyType(
    {
        "timeout": "0s",
        "idle_timeout": f"{SILENCE_SECONDS}s",
        # Generating twice harms nobody, so a request whose backend hung up before it answered is sent again.
        "retry_policy": {"retry_on": "connect-failure,refused-stream,reset", "num_retries": 2},
    }
)
Json = dict[str, JsonValue]


def stat_name(endpoint: str, version: str = "") -> str:
    """Return the prefix of the counters of an endpoint, or the name of one version's."""
    return f"{METADATA}_{digest_of(endpoint.encode())[:12]}_" + (digest_of(version.encode())[:12] if version else "")


def files(state: GatewayState, *, also: TrafficPlan | None = None) -> dict[str, tuple[str, str]]:
    """Return file name -> (text, version) of everything Envoy reads, in the order in which it must be written.

    Clusters come first, and those of plans in ``state`` stay while ``also`` comes in: a route never names a cluster
    that is not there, and requests in flight to an old version end in peace.
    """
    plans = {**state.plans, **({also.endpoint: also} if also else {})}
    clusters: dict[str, JsonValue] = {}
    for plan in (*state.plans.values(), *plans.values()):
        clusters |= {f"{plan.endpoint}/{version}": _cluster(plan, version) for version in plan.backends}
    written = {"clusters.json": _response("config.cluster.v3.Cluster", clusters.values())}
    for endpoint, plan in plans.items():
        written[route_file(endpoint)] = _response("config.route.v3.RouteConfiguration", [_routes(plan)])
    listeners = [_listener(endpoint, state.ports[endpoint]) for endpoint in plans]
    written["listeners.json"] = _response("config.listener.v3.Listener", listeners)
    return written


def route_file(endpoint: str) -> str:
    return f"routes-{endpoint}.json"


def bootstrap() -> Json:
    """Return what Envoy starts from: its admin socket, for this user only, and where the rest is."""
    watched: Json = {"resource_api_version": "V3"}
    return {
        "node": {"id": METADATA, "cluster": METADATA},
        "admin": {"address": {"pipe": {"path": "admin.sock", "mode": 0o600}}},
        "stats_flush_interval": "0.5s",
        "dynamic_resources": {
            "cds_config": {**watched, "path_config_source": {"path": "live/clusters.json"}},
            "lds_config": {**watched, "path_config_source": {"path": "live/listeners.json"}},
        },
    }


def plan_in(route_config: Mapping[str, JsonValue], clusters: Iterable[Mapping[str, JsonValue]]) -> TrafficPlan:
    """Return the plan that a dumped route configuration and the dumped clusters are.

    Percentages, the header and the addresses are read from where Envoy acts on them, so an edit by hand shows.
    """
    recorded = TrafficPlan.load(json.loads(_text(route_config, "metadata", "filter_metadata", METADATA, "plan")))
    route = _at(_items(route_config, "virtual_hosts", 0, "routes")[-1:], 0, "route")  # the split is the last one
    by_name = {str(cluster["name"]): cluster for cluster in clusters}
    backends = {
        version: _address_of(by_name[name])
        for version in recorded.backends
        if (name := f"{recorded.endpoint}/{version}") in by_name
    }
    weights = {_version(item): _number(item, "weight") for item in _items(route, "weighted_clusters", "clusters")}
    mirrors = {
        _version(item, key="cluster"): _number(item, "runtime_fraction", "default_value", "numerator")
        for item in _items(route, "request_mirror_policies")
    }
    return recorded.evolve(
        weights=weights,
        mirrors=mirrors,
        backends=backends,
        sticky_header=_text(route, "hash_policy", 0, "header", "header_name"),
    )


def _response(kind: str, resources: Iterable[JsonValue]) -> tuple[str, str]:
    typed: list[JsonValue] = [{"@type": _TYPE + kind, **one} for one in resources if isinstance(one, dict)]
    version = digest_of(canonical_json(typed))
    return json.dumps({"version_info": version, "resources": typed}, indent=1, ensure_ascii=False), version


def _cluster(plan: TrafficPlan, version: str) -> Json:
    name = f"{plan.endpoint}/{version}"
    host, port = address(plan, version)
    endpoint: Json = {"address": {"socket_address": {"address": host, "port_value": port}}}
    limits: Json = {f"max_{what}": 100_000 for what in ("connections", "pending_requests", "requests", "retries")}
    protocol: Json = {
        "@type": _TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {}},
        "common_http_protocol_options": {"idle_timeout": f"{KEEP_ALIVE_SECONDS}s"},
    }
    if version in plan.models:
        protocol["http_filters"] = model_filters(plan.models[version])
    return {
        "name": name,
        "alt_stat_name": stat_name(plan.endpoint, version),
        "type": "STATIC" if _is_ip(host) else "STRICT_DNS",
        "connect_timeout": f"{CONNECT_SECONDS}s",
        "per_connection_buffer_limit_bytes": MAX_BUFFERED_BYTES,
        "circuit_breakers": {"thresholds": [limits]},  # queueing is the serving engine's job
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol},
    }


def _routes(plan: TrafficPlan) -> Json:
    # In one order for ever: a user's place on the hash circle then stays, and a growing share only takes users in.
    shares: list[JsonValue] = [
        {
            "name": f"{plan.endpoint}/{version}",
            "weight": plan.weights[version],
            "response_headers_to_add": [_version_header(version)],
        }
        for version in sorted(plan.weights)
    ]
    mirrors: list[JsonValue] = [
        {
            "cluster": f"{plan.endpoint}/{version}",
            "runtime_fraction": {"default_value": {"numerator": plan.mirrors[version], "denominator": "HUNDRED"}},
        }
        for version in sorted(plan.mirrors)
    ]
    split: Json = {
        "weighted_clusters": {"clusters": shares, "use_hash_policy": True},
        "hash_policy": [{"header": {"header_name": plan.sticky_header}}],
        "request_mirror_policies": mirrors,
        **_FORWARDING,
    }
    named: list[JsonValue] = [
        {
            "match": {
                "prefix": "/",
                "headers": [{"name": VERSION_HEADER, "string_match": {"exact": version}}],
            },
            "route": {"cluster": f"{plan.endpoint}/{version}", **_FORWARDING},
            "response_headers_to_add": [_version_header(version)],
        }
        for version in sorted(plan.backends)
    ]
    routes: list[JsonValue] = [*named, {"match": {"prefix": "/"}, "route": split}]
    text = canonical_json(plan.dump()).decode()
    return {
        "name": plan.endpoint,
        "metadata": {"filter_metadata": {METADATA: {"plan": text}}},
        "virtual_hosts": [{"name": plan.endpoint, "domains": ["*"], "routes": routes}],
        "validate_clusters": True,  # a route to nowhere is refused as a whole, not answered with 503
    }


def _version_header(version: str) -> Json:
    value = version.replace("%", "%%")  # percent signs begin Envoy's own variables
    return {"header": {"key": VERSION_HEADER, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _listener(endpoint: str, port: int) -> Json:
    router: Json = {
        "@type": _TYPE + "extensions.filters.http.router.v3.Router",
        "suppress_envoy_headers": True,
    }
    rds: Json = {
        "route_config_name": endpoint,
        "config_source": {
            "resource_api_version": "V3",
            "path_config_source": {"path": f"live/{route_file(endpoint)}"},
        },
    }
    http: Json = {
        "@type": _TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": STAT_PREFIX,
        "rds": rds,
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    return {
        "name": endpoint,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "enable_reuse_port": False,  # or a second program could take half of the requests
        "per_connection_buffer_limit_bytes": MAX_BUFFERED_BYTES,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": http}]}
        ],
    }


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _address_of(cluster: Mapping[str, JsonValue]) -> str:
    socket = _at(cluster, "load_assignment", "endpoints", 0, "lb_endpoints", 0, "endpoint", "address", "socket_address")
    host = _text(socket, "address")
    return f"[{host}]:{_number(socket, 'port_value')}" if ":" in host else f"{host}:{_number(socket, 'port_value')}"


def _version(item: JsonValue, *, key: str = "name") -> str:
    return _text(item, key).partition("/")[2]


def _at(value: object, *path: str | int) -> JsonValue:
    for step in path:
        if isinstance(step, int) and isinstance(value, list) and step < len(value):
            value = value[step]
        elif isinstance(step, str) and isinstance(value, Mapping):
            value = value.get(step)
        else:
            return None
    return value  # type: ignore[return-value]


def _items(value: object, *path: str | int) -> list[JsonValue]:
    found = _at(value, *path)
    return found if isinstance(found, list) else []


def _text(value: object, *path: str | int) -> str:
    found = _at(value, *path)
    return found if isinstance(found, str) else ""


def _number(value: object, *path: str | int) -> int:
    found = _at(value, *path)
    return int(found) if isinstance(found, int | float) else 0  # a dump leaves zeros out
