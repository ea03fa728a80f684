"""The gateway: plans in, effective plans and counters out, from any process that knows its folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from deepseek_ops.adapters.envoy import resources
from deepseek_ops.adapters.envoy.admin import Admin, Intake
from deepseek_ops.adapters.envoy.errors import GatewayPortError, GatewayTimeoutError, PlanRejectedError
from deepseek_ops.adapters.envoy.plans import GatewayState, check, disk, read_state, write_file
from deepseek_ops.adapters.envoy.process import EnvoyProcess
from deepseek_ops.core.jobs import TrafficPlan, TrafficStats
from deepseek_ops.core.records import Digest

START_SECONDS = 30.0
INTAKE_SECONDS = 20.0
STOP_SECONDS = 10.0
_POLL_SECONDS = 0.01


class EnvoyGateway:
    """Envoy below ``root`` (adapter of ``core.ports.TrafficGateway``).

    ``state.json`` holds ports and accepted plans, ``live/`` what Envoy reads, ``envoy.log`` what it complains about.
    Objects of several processes may share a root: changes are serialised by a lock, and reading needs none.

    Args:
        root: Folder of this gateway; made on the first apply.
        port: Loopback port of the first endpoint; 0 chooses a free one. Chosen ports are kept over restarts.
    """

    def __init__(self, root: Path, *, port: int = 0) -> None:
        self.root = root.absolute()
        self.port = port
        self._state = self.root / "state.json"
        self._live = self.root / "live"
        self._admin = Admin(self.root)
        self._process = EnvoyProcess(self.root)

    def apply(self, plan: TrafficPlan) -> Digest:
        """Make the plan effective and return its fingerprint, the revision; starts Envoy when it is not running.

        An equal plan changes nothing. Requests that are under way go on to the end with the version they have.
        Raises PlanError, PlanRejectedError (in both cases the plan before stays), GatewayPortError,
        GatewayStartError, GatewayTimeoutError, MissingDependencyError.
        """
        check(plan)
        with self._changing():
            state = self._with_port(plan.endpoint)
            self._ensure_running(state)
            if self.observed(plan.endpoint) != plan or self._listeners_differ(state):
                self._switch(state, plan)
            if state.plans.get(plan.endpoint) != plan:
                self._remember(state.evolve(plans={**state.plans, plan.endpoint: plan}))
        return plan.fingerprint

    def observed(self, endpoint: str) -> TrafficPlan | None:
        """Return the plan that Envoy acts on now; None when Envoy does not run or has none for the endpoint."""
        routes = self._admin.dump("dynamic_route_configs")
        clusters = self._admin.dump("dynamic_active_clusters")
        if routes is None or clusters is None:
            return None
        for one in routes:
            config = one.get("route_config")
            if isinstance(config, dict) and config.get("name") == endpoint:
                bodies = [body for item in clusters if isinstance(body := item.get("cluster"), dict)]
                return resources.plan_in(config, bodies)
        return None

    def stats(self, endpoint: str) -> dict[str, TrafficStats]:
        """Return counters per version of the effective plan, mirrored requests included under the mirror's version.

        They start at zero when Envoy starts. Percentiles are over all requests since then and lag by half a second.
        Empty when Envoy does not run.
        """
        plan = self.observed(endpoint)
        return {} if plan is None else self._admin.traffic(endpoint, sorted(plan.backends)) or {}

    def url(self, endpoint: str) -> str:
        """Return the base URL of the endpoint, without a path: OpenAI clients add ``/v1``. It stays."""
        known = read_state(self._state)
        if endpoint not in known.ports or self._placed(known, endpoint) != known:
            with self._changing():
                known = self._with_port(endpoint)
        return f"http://127.0.0.1:{known.ports[endpoint]}"

    @property
    def running(self) -> bool:
        """Whether Envoy answers."""
        return self._admin.ready()

    @property
    def pids(self) -> list[int]:
        """Ids of this gateway's processes: one while Envoy runs, none otherwise."""
        return self._process.pids

    def start(self) -> None:
        """Bring Envoy up with the last accepted plans; a running one is left alone."""
        with self._changing():
            self._ensure_running(read_state(self._state))

    def stop(self) -> None:
        """End Envoy and return when it is gone; ports and plans stay recorded. Ends nothing when nothing runs."""
        if self.root.exists():
            with self._changing():
                self._process.stop(grace_seconds=STOP_SECONDS)

    def _ensure_running(self, state: GatewayState) -> None:
        if self._admin.ready():
            return
        if not self._process.pids:
            self._write(resources.files(state))
            write_file(self.root / "bootstrap.json", json.dumps(resources.bootstrap(), indent=1))
            for endpoint in state.plans:
                _require_free(endpoint, state.ports[endpoint])
        self._process.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._admin.ready():
            self._process.require_alive()
            if time.monotonic() > deadline:
                raise GatewayTimeoutError("Envoy's start", START_SECONDS, str(self._process.log))
            time.sleep(_POLL_SECONDS)

    def _switch(self, state: GatewayState, plan: TrafficPlan) -> None:
        """Have Envoy take the plan file by file; puts the files of the plans before back when it refuses one."""
        before = self._intake()
        since = self._process.log_size()
        wanted = resources.files(state, also=plan)
        try:
            for name, (text, version) in wanted.items():
                write_file(self._live / name, text)
                if name != resources.route_file(plan.endpoint) or plan.endpoint in state.plans:
                    self._wait(plan, {name: version}, before, since)
            self._wait(plan, {name: version for name, (_, version) in wanted.items()}, before, since)
        except PlanRejectedError:
            self._write(resources.files(state))
            raise

    def _wait(self, plan: TrafficPlan, wanted: Mapping[str, str], before: Intake, since: int) -> None:
        """Return when Envoy acts on the versions. Raises PlanRejectedError with what Envoy says about them."""
        deadline = time.monotonic() + INTAKE_SECONDS
        while time.monotonic() < deadline:
            now = self._intake()
            if all(now.versions.get(name) == version for name, version in wanted.items()) and not now.warming:
                return
            if any(now.refused.get(name, 0) > before.refused.get(name, 0) for name in wanted):
                raise PlanRejectedError(plan.endpoint, self._process.complaint(since) or "it gives no reason")
            time.sleep(_POLL_SECONDS)
        raise GatewayTimeoutError("taking the configuration", INTAKE_SECONDS, str(self._process.log))

    def _intake(self) -> Intake:
        found = self._admin.intake()
        if found is None:
            self._process.require_alive()
            raise GatewayTimeoutError("an answer of Envoy's admin socket", INTAKE_SECONDS, str(self._process.log))
        return found

    def _write(self, wanted: Mapping[str, tuple[str, str]]) -> None:
        with disk(self._live):
            self._live.mkdir(exist_ok=True)
        for name, (text, _) in wanted.items():
            write_file(self._live / name, text)
        for path in self._live.iterdir():
            if path.name not in wanted:
                path.unlink()

    def _with_port(self, endpoint: str) -> GatewayState:
        """Return the state with a port for the endpoint, recorded before anybody is told of it."""
        state = read_state(self._state)
        placed = self._placed(state, endpoint)
        if placed != state:
            self._remember(placed)
        return placed

    def _placed(self, state: GatewayState, endpoint: str) -> GatewayState:
        """Return the state in which the endpoint has a port; a new ``port`` of the gateway moves its first endpoint."""
        ports = dict(state.ports)
        if endpoint not in ports:
            ports[endpoint] = _free_port(set(ports.values()))
        first = next(iter(ports))
        if self.port and ports[first] != self.port:
            _require_free(first, self.port)
            ports[first] = self.port
        return state.evolve(ports=ports)

    def _listeners_differ(self, state: GatewayState) -> bool:
        path = self._live / "listeners.json"
        return not path.exists() or path.read_text() != resources.files(state)["listeners.json"][0]

    def _remember(self, state: GatewayState) -> None:
        write_file(self._state, json.dumps(state.dump(), indent=1))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock that serialises changes over all objects and processes; the kernel frees it on death."""
        with disk(self.root):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.root / "changing.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _free_port(taken: set[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
            return port


def _require_free(endpoint: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise GatewayPortError(endpoint, port) from error
