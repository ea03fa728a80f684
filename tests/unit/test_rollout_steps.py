"""The rollout state machine: what moves it, what stops it, and what it never does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from deepseek_ops.core.config import Deployment
from deepseek_ops.core.jobs import TrafficStats
from deepseek_ops.core.records import Phase, Rollout
from deepseek_ops.rollout import (
    BlueGreenPolicy,
    CanaryPolicy,
    MissingBackendError,
    NobodyToServeError,
    Observation,
    RolloutPolicy,
    ShadowPolicy,
    StrategyMismatchError,
    first_rollout,
    next_step,
    observe,
    policy_for,
    traffic_plan,
)

BACKENDS = {"1.0.0": "127.0.0.1:8001", "1.1.0": "127.0.0.1:8002", "0.9.0": "127.0.0.1:8003"}
GOOD = Observation(
    healthy=True,
    requests=50,
    latency_p50_ms=100,
    latency_p99_ms=300,
    stable_requests=50,
    stable_latency_p50_ms=100,
    stable_latency_p99_ms=300,
)
QUIET = Observation(healthy=True)


def deployment(strategy: str = "canary", steps: tuple[int, ...] | None = None) -> Deployment:
    chosen = {} if steps is None else {"steps": steps}
    return Deployment.model_validate(
        {"destination": {"type": "local", "path": "file:///srv/models/"}, "strategy": strategy, **chosen}
    )


def begin(strategy: str = "canary", *, stable: str = "1.0.0", steps: tuple[int, ...] | None = None) -> Rollout:
    return first_rollout("chat", stable, "1.1.0", deployment(strategy, steps))


def walk(rollout: Rollout, policy: RolloutPolicy, seen: Observation, looks: int) -> list[Rollout]:
    states = [rollout]
    for _ in range(looks):
        states.append(next_step(states[-1], seen, policy))
    return states


def test_a_clean_canary_goes_up_its_steps_and_is_promoted_after_the_last() -> None:
    states = walk(begin(steps=(10, 40, 100)), CanaryPolicy(steps=(10, 40, 100)), GOOD, 5)
    assert [state.percent for state in states] == [0, 10, 40, 100, 100, 100]
    assert [state.phase for state in states[3:]] == [Phase.PROGRESSING, Phase.PROMOTED, Phase.PROMOTED]
    assert states[-1].reason == "all steps held"


def test_a_step_waits_for_requests_of_its_own() -> None:
    at_10 = begin().evolve(percent=20)
    few = GOOD.evolve(requests=19, latency_p50_ms=None, latency_p99_ms=None)
    assert next_step(at_10, few, CanaryPolicy(min_requests=20)) == at_10
    assert next_step(at_10, few.evolve(requests=20), CanaryPolicy(min_requests=20)).percent == 50


def test_a_look_taken_at_another_share_widens_nothing_but_still_stops() -> None:
    at_20 = begin().evolve(percent=20)
    stale = GOOD.evolve(percent=5)
    assert next_step(at_20, stale, CanaryPolicy()) == at_20
    assert next_step(at_20, stale.evolve(errors=50), CanaryPolicy()).phase is Phase.ROLLED_BACK


def test_blue_green_takes_all_at_once_and_is_promoted_after_it_held() -> None:
    states = walk(begin("blue-green"), BlueGreenPolicy(), GOOD, 2)
    assert [(state.percent, state.phase) for state in states] == [
        (0, Phase.PROGRESSING),
        (100, Phase.PROGRESSING),
        (100, Phase.PROMOTED),
    ]


def test_a_shadow_gets_copies_only_until_it_is_promoted() -> None:
    first = begin("shadow")
    plan = traffic_plan(first, BACKENDS)
    assert (plan.weights, plan.mirrors) == ({"1.0.0": 100}, {"1.1.0": 100})
    assert next_step(first, QUIET, ShadowPolicy()) == first
    promoted = next_step(first, GOOD, ShadowPolicy())
    assert (promoted.percent, promoted.phase) == (100, Phase.PROMOTED)
    assert traffic_plan(promoted, BACKENDS).mirrors == {}


@pytest.mark.parametrize("strategy", ["canary", "blue-green", "shadow"])
def test_a_first_deployment_takes_everything_after_a_health_check_and_needs_no_requests(strategy: str) -> None:
    first = begin(strategy, stable="")
    policy = policy_for(deployment(strategy))
    with pytest.raises(NobodyToServeError, match="no stable version"):
        traffic_plan(first, BACKENDS)
    promoted = next_step(first, QUIET, policy)
    assert (promoted.percent, promoted.phase) == (100, Phase.PROMOTED)
    assert traffic_plan(promoted, BACKENDS).weights == {"1.1.0": 100}
    sick = next_step(first, Observation(healthy=False), policy)
    assert (sick.percent, sick.phase) == (0, Phase.ROLLED_BACK)


def test_deploying_what_serves_already_moves_nothing() -> None:
    again = first_rollout("chat", "1.1.0", "1.1.0", deployment())
    assert again.phase is Phase.PROMOTED
    assert next_step(again, Observation(healthy=False), CanaryPolicy()) == again


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (Observation(healthy=False), "health probe"),
        (Observation(healthy=True, requests=3, errors=1), "1 of 3 requests failed: 33.3%"),
        (GOOD.evolve(latency_p50_ms=201), "latency p50 is 201 ms against 100 ms"),
        (GOOD.evolve(requests=100, stable_requests=100, latency_p99_ms=700), "latency p99 is 700 ms against 300 ms"),
    ],
)
@pytest.mark.parametrize("percent", [0, 20, 100])
def test_a_breach_rolls_back_at_once_and_says_why(seen: Observation, reason: str, percent: int) -> None:
    after = next_step(begin().evolve(percent=percent), seen, CanaryPolicy(min_requests=1000))
    assert (after.percent, after.phase) == (0, Phase.ROLLED_BACK)
    assert reason in after.reason
    assert traffic_plan(after, BACKENDS).weights == {"1.0.0": 100}


@pytest.mark.parametrize(
    "seen",
    [
        GOOD.evolve(requests=5, latency_p50_ms=900),  # the first answers of a fresh server
        GOOD.evolve(stable_requests=5, latency_p50_ms=900),
        GOOD.evolve(latency_p99_ms=9000),  # one slow request of fifty
        GOOD.evolve(stable_latency_p50_ms=None, latency_p50_ms=900),
    ],
)
def test_latencies_of_a_handful_of_requests_stop_nothing(seen: Observation) -> None:
    assert next_step(begin().evolve(percent=20), seen, CanaryPolicy()).phase is Phase.PROGRESSING


def test_a_rollout_is_judged_by_the_policy_of_its_strategy_only() -> None:
    with pytest.raises(StrategyMismatchError, match=r"canary.*shadow"):
        next_step(begin("canary"), GOOD, ShadowPolicy())


def test_the_policy_is_the_one_of_the_pipeline_file_and_survives_json() -> None:
    assert policy_for(deployment("canary", (1, 100))) == CanaryPolicy(steps=(1, 100))
    assert begin(steps=(1, 100)).steps == (1, 100)
    for strategy in ("canary", "blue-green", "shadow"):
        policy = policy_for(deployment(strategy))
        assert policy.strategy == strategy
        assert TypeAdapter(RolloutPolicy).validate_python(policy.model_dump(mode="json")) == policy


def test_more_errors_than_requests_are_no_observation() -> None:
    with pytest.raises(ValidationError, match="3 errors in 2 requests"):
        Observation(healthy=True, requests=2, errors=3)


def test_a_look_counts_what_came_since_the_step_began() -> None:
    rollout = begin().evolve(percent=20)
    since = {"1.1.0": TrafficStats(requests=100, errors=2)}
    stats = {
        "1.0.0": TrafficStats(requests=900, errors=1, latency_p50_ms=80),
        "1.1.0": TrafficStats(requests=130, errors=3, latency_p50_ms=90),
    }
    seen = observe(rollout, stats, healthy=True, since=since)
    assert (seen.requests, seen.errors, seen.percent) == (30, 1, 20)
    assert (seen.stable_requests, seen.latency_p50_ms, seen.stable_latency_p50_ms) == (900, 90, 80)


def test_a_gateway_that_counts_from_zero_again_loses_no_look() -> None:
    since = {"1.1.0": TrafficStats(requests=100, errors=2)}
    seen = observe(begin(), {"1.1.0": TrafficStats(requests=7, errors=1)}, healthy=True, since=since)
    assert (seen.requests, seen.errors) == (7, 1)
    assert observe(begin(), {}, healthy=True).requests == 0


def test_a_plan_names_the_versions_it_needs_and_no_other() -> None:
    plan = traffic_plan(begin().evolve(percent=20), BACKENDS, models={"1.1.0": "deepseek-1.1.0", "0.9.0": "old"})
    assert plan.weights == {"1.0.0": 80, "1.1.0": 20}
    assert plan.backends.keys() == plan.weights.keys()
    assert plan.models == {"1.1.0": "deepseek-1.1.0"}
    with pytest.raises(MissingBackendError, match=r"1\.1\.0 of chat \(known: 1\.0\.0\)"):
        traffic_plan(begin(), {"1.0.0": "127.0.0.1:8001"})


# --- properties -------------------------------------------------------------------------------------------------------

STEPS = st.sets(st.integers(1, 99), max_size=5).map(lambda some: (*sorted(some), 100))


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[Rollout, RolloutPolicy]:
    strategy = draw(st.sampled_from(["canary", "blue-green", "shadow"]))
    steps = draw(STEPS) if strategy == "canary" else None
    policy = policy_for(deployment(strategy, steps)).evolve(min_requests=draw(st.integers(0, 60)))
    return begin(strategy, stable=draw(st.sampled_from(["", "1.0.0", "1.1.0"])), steps=steps), policy


@st.composite
def looks(draw: st.DrawFn) -> Observation:
    requests, stable = draw(st.integers(0, 200)), draw(st.integers(0, 200))
    latency = st.none() | st.floats(0, 10_000)
    return Observation(
        healthy=draw(st.integers(0, 9)) > 0,
        requests=requests,
        errors=min(requests, draw(st.sampled_from([0, 0, 0, 0, 1, 5]))),
        latency_p50_ms=draw(latency),
        latency_p99_ms=draw(latency),
        stable_requests=stable,
        stable_latency_p50_ms=draw(latency),
        stable_latency_p99_ms=draw(latency),
        percent=draw(st.none() | st.integers(0, 100)),
    )


@settings(max_examples=60, deadline=None)
@given(rollouts(), st.lists(looks(), max_size=12))
def test_traffic_only_grows_until_the_rollout_is_settled_and_never_moves_after(
    start: tuple[Rollout, RolloutPolicy], seen: list[Observation]
) -> None:
    rollout, policy = start
    for look in seen:
        after = next_step(rollout, look, policy)
        assert 0 <= after.percent <= 100
        if rollout.phase is not Phase.PROGRESSING:
            assert after == rollout
        elif after.phase is Phase.ROLLED_BACK:
            assert (after.percent, bool(after.reason)) == (0, True)
        else:
            assert after.percent >= rollout.percent
            assert look.healthy, "an unhealthy candidate kept its traffic"
        if after.phase is Phase.PROMOTED:
            assert after.percent == 100
        rollout = after


@settings(max_examples=60, deadline=None)
@given(rollouts(), st.lists(looks(), max_size=8), looks())
def test_an_unhealthy_or_failing_candidate_always_ends_at_zero(
    start: tuple[Rollout, RolloutPolicy], seen: list[Observation], last: Observation
) -> None:
    rollout, policy = start
    for look in seen:
        rollout = next_step(rollout, look, policy)
    breach = last.evolve(healthy=False) if last.requests == 0 else last.evolve(errors=last.requests)
    after = next_step(rollout, breach, policy)
    if rollout.phase is Phase.PROGRESSING:
        assert (after.percent, after.phase) == (0, Phase.ROLLED_BACK)
        assert after.reason


@settings(max_examples=60, deadline=None)
@given(rollouts(), st.lists(looks(), max_size=12))
def test_the_same_look_twice_moves_traffic_once(start: tuple[Rollout, RolloutPolicy], seen: list[Observation]) -> None:
    rollout, policy = start
    for look in seen:
        here = look.evolve(percent=rollout.percent)
        once = next_step(rollout, here, policy)
        twice = next_step(once, here, policy)
        assert twice.percent == once.percent
        rollout = once


@settings(max_examples=60, deadline=None)
@given(rollouts(), st.lists(looks(), max_size=12))
def test_every_plan_sums_to_100_and_gives_the_candidate_its_percent(
    start: tuple[Rollout, RolloutPolicy], seen: list[Observation]
) -> None:
    rollout, policy = start
    for look in seen:
        rollout = next_step(rollout, look, policy)
        if not rollout.stable and rollout.percent < 100:
            with pytest.raises(NobodyToServeError):
                traffic_plan(rollout, BACKENDS)
            continue
        plan = traffic_plan(rollout, BACKENDS)
        assert sum(plan.weights.values()) == 100
        assert {*plan.weights, *plan.mirrors} == {*plan.backends}
        assert plan.weights.get("1.1.0", 0) == rollout.percent
