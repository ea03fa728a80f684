"""What every traffic gateway promises, held against each of them. Requests, backends and the proxy are real."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fixtures_gateway import Backend, Client, eventually

from deepseek_ops.adapters.envoy import VERSION_HEADER, EnvoyGateway, GatewayPortError, PlanError, PlanRejectedError
from deepseek_ops.core.jobs import TrafficPlan
from deepseek_ops.core.ports import TrafficGateway

OLD, NEW = "1.0.0", "1.10.0"
_ENDPOINTS = itertools.count()


@pytest.fixture
def old() -> Iterator[Backend]:
    with Backend(OLD) as backend:
        yield backend


@pytest.fixture
def new() -> Iterator[Backend]:
    with Backend(NEW) as backend:
        yield backend


@pytest.fixture
def plan(old: Backend, new: Backend) -> TrafficPlan:
    """A fifth of the traffic for the new version, on an endpoint of the test's own."""
    return TrafficPlan(
        endpoint=f"chat.v{next(_ENDPOINTS)}",
        weights={OLD: 80, NEW: 20},
        backends={OLD: old.address, NEW: new.address},
    )


def share(plan: TrafficPlan, percent: int) -> TrafficPlan:
    return plan.evolve(weights={OLD: 100 - percent, NEW: percent})


def settled(plan: TrafficPlan, percent: int) -> TrafficPlan:
    """Return the plan of a rollout that has ended: the loser is out of it."""
    winner = NEW if percent else OLD
    return plan.evolve(weights={winner: 100}, backends={winner: plan.backends[winner]})


class TrafficGatewayContract:
    """Subclasses provide ``gateway``, and ``another``: a second object on the same place, as another task makes it."""

    def test_the_split_is_near_the_weights(self, gateway: TrafficGateway, plan: TrafficPlan) -> None:
        gateway.apply(plan)
        with Client(gateway.url(plan.endpoint)) as client:
            seen = Counter(client.version() for _ in range(400))
        assert 40 <= seen[NEW] <= 130, seen  # 80 expected, standard deviation 8
        assert seen.total() == 400

    def test_a_user_keeps_the_version_and_a_growing_share_only_takes_users_in(
        self, gateway: TrafficGateway, plan: TrafficPlan
    ) -> None:
        users = [f"user-{number}" for number in range(80)]
        taken: set[str] = set()
        with Client(gateway.url(plan.endpoint)) as client:
            for percent in (20, 50, 100):
                gateway.apply(share(plan, percent))
                now = {user for user in users if client.version(user) == NEW}
                assert {user for user in users if client.version(user) == NEW} == now, "a user changed the version"
                assert taken <= now, "a user was moved back"
                assert len(now) > len(taken)
                taken = now
        assert taken == set(users)

    def test_no_request_fails_while_weights_are_switched_ten_times(
        self, gateway: TrafficGateway, plan: TrafficPlan
    ) -> None:
        gateway.apply(plan)
        done = threading.Event()

        def load(_: int) -> Counter[str]:
            seen: Counter[str] = Counter()
            with Client(gateway.url(plan.endpoint)) as client:
                while not done.is_set() or seen.total() < 500:
                    status, text = client.ask()
                    seen[text if status == 200 else "failed"] += 1
                    if seen.total() >= 2000:  # a bound for fast machines: the switches are over long before
                        break
                    time.sleep(0.001)
            return seen

        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(load, number) for number in range(4)]
            for percent in (40, 0, 100, 20, 60, 0, 80, 100, 50, 30):
                gateway.apply(settled(plan, percent) if percent in (0, 100) else share(plan, percent))
            done.set()
            seen = sum((client.result() for client in clients), Counter())
        assert seen["failed"] == 0, seen
        assert seen.total() >= 2000
        assert seen[OLD] > 0
        assert seen[NEW] > 0

    def test_a_slow_mirror_gets_copies_and_delays_nobody(
        self, gateway: TrafficGateway, plan: TrafficPlan, new: Backend
    ) -> None:
        new.delay_seconds = 0.3
        gateway.apply(plan.evolve(weights={OLD: 100}, mirrors={NEW: 100}))
        with Client(gateway.url(plan.endpoint)) as client:
            started = time.monotonic()
            assert {client.version() for _ in range(20)} == {OLD}
            spent = time.monotonic() - started
        assert spent < 20 * 0.3 / 2, "clients waited for the mirror"
        assert eventually(lambda: len(new.bodies) == 20), "the mirror did not get every request"
        assert eventually(lambda: gateway.stats(plan.endpoint)[NEW].requests == 20)

    def test_an_equal_plan_has_the_same_revision_and_another_plan_another(
        self, gateway: TrafficGateway, another: TrafficGateway, plan: TrafficPlan
    ) -> None:
        first = gateway.apply(plan)
        turned = plan.evolve(weights=dict(reversed(plan.weights.items())))
        assert another.apply(turned) == first
        assert gateway.apply(share(plan, 30)) != first

    def test_what_is_observed_is_what_was_applied_and_nothing_before(
        self, gateway: TrafficGateway, another: TrafficGateway, plan: TrafficPlan
    ) -> None:
        assert another.observed(plan.endpoint) is None
        rich = plan.evolve(
            weights={OLD: 100, NEW: 0}, mirrors={NEW: 7}, sticky_header="X-Session", models={NEW: 'say "ü"\\'}
        )
        gateway.apply(rich)
        assert another.observed(plan.endpoint) == rich
        another.apply(plan)
        assert gateway.observed(plan.endpoint) == plan

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"weights": {OLD: 80, NEW: 10}}, "weights: they sum to 90"),
            ({"weights": {OLD: 120, NEW: -20}}, "weights.1.0.0: 120"),
            ({"weights": {OLD: 80, "2.0.0": 20}}, "weights.2.0.0: the version has no backend"),
            ({"mirrors": {"2.0.0": 5}}, "mirrors.2.0.0: the version has no backend"),
            ({"models": {"2.0.0": "x"}}, "models.2.0.0: the version has no backend"),
            ({"backends": {OLD: "127.0.0.1:1", NEW: "http://127.0.0.1"}}, "backends.1.10.0: 'http://127.0.0.1'"),
        ],
    )
    def test_an_impossible_plan_names_the_field_and_leaves_the_old_one_effective(
        self, gateway: TrafficGateway, plan: TrafficPlan, changes: dict[str, dict[str, object]], field: str
    ) -> None:
        gateway.apply(plan)
        with pytest.raises(PlanError) as failed:
            gateway.apply(plan.evolve(**changes))
        assert f"traffic plan of {plan.endpoint}: {field}" in str(failed.value)
        assert gateway.observed(plan.endpoint) == plan

    def test_counters_tell_requests_errors_and_latency_of_each_version(
        self, gateway: TrafficGateway, plan: TrafficPlan, old: Backend, new: Backend
    ) -> None:
        new.status, old.delay_seconds = 500, 0.01
        gateway.apply(share(plan, 50))
        with Client(gateway.url(plan.endpoint)) as client:
            seen = Counter(client.ask()[0] for _ in range(40))
        assert eventually(lambda: sum(one.requests for one in gateway.stats(plan.endpoint).values()) == 40)
        assert eventually(lambda: gateway.stats(plan.endpoint)[OLD].latency_p99_ms is not None)
        stats = gateway.stats(plan.endpoint)
        assert (stats[OLD].requests, stats[OLD].errors) == (seen[200], 0)
        assert (stats[NEW].requests, stats[NEW].errors) == (seen[500], seen[500])
        assert 10 <= (stats[OLD].latency_p50_ms or 0) <= (stats[OLD].latency_p99_ms or 0)

    def test_requests_to_a_dead_backend_are_errors_of_its_version(
        self, gateway: TrafficGateway, plan: TrafficPlan, new: Backend
    ) -> None:
        new.close()
        gateway.apply(share(plan, 100))
        with Client(gateway.url(plan.endpoint)) as client:
            assert {client.ask()[0] for _ in range(5)} == {503}
        assert eventually(lambda: gateway.stats(plan.endpoint)[NEW].errors == 5)
        assert gateway.stats(plan.endpoint)[NEW].requests == 5

    def test_each_backend_gets_the_model_name_it_expects(
        self, gateway: TrafficGateway, plan: TrafficPlan, old: Backend, new: Backend
    ) -> None:
        names = {OLD: "engine/old", NEW: 'engine "new" ü'}
        gateway.apply(plan.evolve(weights={OLD: 100}, mirrors={NEW: 100}, models=names))
        asked = {
            "messages": [{"role": "user", "content": 'write {"model": "mine"} \\', "model": "inner"}],
            "model": "chat",
            "stop": ["]", '"model":'],
        }
        with Client(gateway.url(plan.endpoint)) as client:
            client.ask(body=asked)
        assert eventually(lambda: len(new.bodies) == 1)
        assert json.loads(old.bodies[0]) == {**asked, "model": names[OLD]}
        assert json.loads(new.bodies[0]) == {**asked, "model": names[NEW]}

    def test_an_answer_under_way_ends_in_peace_after_its_version_has_left(
        self, gateway: TrafficGateway, plan: TrafficPlan, old: Backend
    ) -> None:
        old.hold = threading.Event()
        gateway.apply(share(plan, 0))
        with Client(gateway.url(plan.endpoint)) as client:
            answer = client.send()
            assert answer.read(len(OLD)) == OLD.encode()
            only_new = {"weights": {NEW: 100}, "backends": {NEW: plan.backends[NEW]}}
            gateway.apply(plan.evolve(**only_new))
            gateway.apply(plan.evolve(**only_new, sticky_header="x-other"))
            time.sleep(0.2)
            old.hold.set()
            assert answer.read() == b"end"
            assert client.version() == NEW

    def test_endpoints_have_urls_of_their_own_and_do_not_mix(self, gateway: TrafficGateway, plan: TrafficPlan) -> None:
        second = f"{plan.endpoint}-second"
        gateway.apply(share(plan, 0))
        gateway.apply(share(plan, 100).evolve(endpoint=second))
        assert gateway.url(plan.endpoint) != gateway.url(second)
        with Client(gateway.url(plan.endpoint)) as one, Client(gateway.url(second)) as other:
            assert [one.version(), other.version(), one.version()] == [OLD, NEW, OLD]
        assert gateway.observed(second).endpoint == second

    def test_concurrent_applies_leave_one_of_the_plans_whole(
        self, gateway: TrafficGateway, another: TrafficGateway, plan: TrafficPlan
    ) -> None:
        plans = [share(plan, percent) for percent in range(10, 70, 10)]
        with ThreadPoolExecutor(6) as pool:
            revisions = list(pool.map(lambda n: (gateway, another)[n % 2].apply(plans[n]), range(6)))
        assert len({*revisions}) == 6
        assert gateway.observed(plan.endpoint) in plans
        with Client(gateway.url(plan.endpoint)) as client:
            assert client.version() in (OLD, NEW)


class TestEnvoyGateway(TrafficGatewayContract):
    """One Envoy for all tests, each with an endpoint of its own; tests that end it have ``alone``."""

    @pytest.fixture(scope="class")
    def gateway(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvoyGateway]:
        gateway = EnvoyGateway(tmp_path_factory.mktemp("gateway") / ("longer than a socket may be " * 4))
        yield gateway
        gateway.stop()

    @pytest.fixture
    def another(self, gateway: EnvoyGateway) -> EnvoyGateway:
        return EnvoyGateway(gateway.root)

    @pytest.fixture
    def alone(self, tmp_path: Path) -> Iterator[EnvoyGateway]:
        gateway = EnvoyGateway(tmp_path / "alone")
        yield gateway
        gateway.stop()

    def test_a_plan_that_envoy_refuses_says_why_and_leaves_the_old_one_effective(
        self, gateway: EnvoyGateway, plan: TrafficPlan
    ) -> None:
        gateway.apply(plan)
        before = {file.name for file in (gateway.root / "live").iterdir()}
        with pytest.raises(PlanRejectedError, match=f"{plan.endpoint}.*does not match regex"):
            gateway.apply(plan.evolve(sticky_header="x\nuser"))
        with pytest.raises(PlanRejectedError):
            gateway.apply(plan.evolve(endpoint=f"{plan.endpoint}-2", sticky_header="x\nuser"))
        assert gateway.observed(plan.endpoint) == plan
        assert {file.name for file in (gateway.root / "live").iterdir()} == before
        gateway.apply(share(plan, 100))
        with Client(gateway.url(plan.endpoint)) as client:
            assert client.version() == NEW

    def test_a_request_that_names_a_version_goes_there_and_every_answer_names_its_own(
        self, gateway: EnvoyGateway, plan: TrafficPlan
    ) -> None:
        gateway.apply(share(plan, 0))
        with Client(gateway.url(plan.endpoint)) as client:
            for asked, answers in (({}, OLD), ({VERSION_HEADER: NEW}, NEW), ({VERSION_HEADER: "none"}, OLD)):
                answer = client.send(headers=asked)
                assert (answer.read().decode(), answer.getheader(VERSION_HEADER)) == (answers, answers)

    def test_an_equal_plan_writes_nothing(self, gateway: EnvoyGateway, plan: TrafficPlan) -> None:
        gateway.apply(plan)
        files = [gateway.root / "state.json", *(gateway.root / "live").iterdir()]
        before = [file.stat().st_mtime_ns for file in files]
        gateway.apply(plan)
        assert [file.stat().st_mtime_ns for file in files] == before

    def test_it_outlives_the_process_that_started_it_and_knows_none_of_its_secrets(
        self, alone: EnvoyGateway, plan: TrafficPlan
    ) -> None:
        code = (
            "import json, sys; from pathlib import Path; from deepseek_ops.adapters.envoy import EnvoyGateway;"
            "from deepseek_ops.core.jobs import TrafficPlan;"
            "EnvoyGateway(Path(sys.argv[1])).apply(TrafficPlan.load(json.loads(sys.argv[2])))"
        )
        subprocess.run(
            [sys.executable, "-c", code, str(alone.root), json.dumps(plan.dump())],
            check=True,
            timeout=60,
            env={**os.environ, "AWS_SECRET_ACCESS_KEY": "hush"},
        )
        assert alone.observed(plan.endpoint) == plan
        (pid,) = alone.pids
        assert b"hush" not in Path(f"/proc/{pid}/environ").read_bytes()
        with Client(alone.url(plan.endpoint)) as client:
            assert client.version() in (OLD, NEW)

    def test_stop_leaves_no_process_and_the_url_stays(self, alone: EnvoyGateway, plan: TrafficPlan) -> None:
        alone.stop()
        alone.apply(plan)
        (pid,), url = alone.pids, alone.url(plan.endpoint)
        EnvoyGateway(alone.root).stop()
        assert alone.pids == []
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        assert alone.observed(plan.endpoint) is None
        assert alone.stats(plan.endpoint) == {}
        alone.start()
        assert alone.url(plan.endpoint) == url
        assert alone.observed(plan.endpoint) == plan

    def test_after_a_kill_the_next_apply_or_start_brings_every_endpoint_back(
        self, alone: EnvoyGateway, plan: TrafficPlan
    ) -> None:
        other = plan.evolve(endpoint="other")
        alone.apply(plan)
        alone.apply(other)
        os.kill(alone.pids[0], signal.SIGKILL)
        assert eventually(lambda: not alone.pids)
        for file in (alone.root / "live").iterdir():
            file.write_text("{")  # as a writer leaves a folder that is killed on a full disk
        EnvoyGateway(alone.root).apply(plan)
        assert alone.observed("other") == other
        os.kill(alone.pids[0], signal.SIGKILL)
        alone.start()
        assert len(alone.pids) == 1
        with Client(alone.url("other")) as client:
            assert client.version() in (OLD, NEW)

    def test_the_first_endpoint_has_the_port_given_and_moves_with_it(self, tmp_path: Path, plan: TrafficPlan) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = int(taken.getsockname()[1])
            with pytest.raises(GatewayPortError, match=f"port {port} of endpoint {plan.endpoint}"):
                EnvoyGateway(tmp_path, port=port).apply(plan)
        gateway = EnvoyGateway(tmp_path, port=port)
        try:
            gateway.apply(plan)
            assert gateway.url(plan.endpoint) == f"http://127.0.0.1:{port}"
            assert gateway.url("second") != gateway.url(plan.endpoint)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                elsewhere = int(probe.getsockname()[1])
            moved = EnvoyGateway(tmp_path, port=elsewhere)
            moved.apply(plan)
            with Client(f"http://127.0.0.1:{elsewhere}") as client:
                assert client.version() in (OLD, NEW)
        finally:
            gateway.stop()
