"""When silence is a hang and who is slow, judged on pages written with a clock of our own."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from deepseek_ops.jobs import hang, progress
from deepseek_ops.jobs.hang import HangWatch
from deepseek_ops.jobs.progress import RING, ProgressPage
from deepseek_ops.jobs.stragglers import WINDOW, StragglerWatch, stragglers
from deepseek_ops.jobs.working import Working


class Clock:
    """The monotonic clock, moved by hand."""

    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def group(clock: Clock, *, steps: int, seconds: float, ranks: int = 2) -> dict[int, ProgressPage]:
    """Return pages of ranks that have done ``steps`` steps of ``seconds`` each."""
    pages = {rank: ProgressPage() for rank in range(ranks)}
    for page in pages.values():
        page.beat(0, "starting")
    for step in range(steps + 1):
        for page in pages.values():
            page.beat(step, "step")
        clock.now += seconds
    return pages


def hung_after(pages: dict[int, ProgressPage], clock: Clock, limit: float | None = None) -> float:
    """Return the seconds of silence after which the watch speaks, looked at every second."""
    watch, began = HangWatch(limit), clock.now
    while watch.look(pages, clock.now) is None:
        clock.now += 1
        assert clock.now < began + 10_000, "it never spoke"
    return clock.now - began


@pytest.mark.parametrize(
    ("seconds", "limit", "expected"), [(1, None, 60), (40, None, 200), (40, 7.0, 7), (1, 90.0, 90)]
)
def test_silence_of_five_steps_or_a_minute_is_a_hang_unless_the_job_says_otherwise(clock, seconds, limit, expected):
    pages = group(clock, steps=10, seconds=seconds)
    clock.now -= seconds
    assert hung_after(pages, clock, limit) == expected + 1


def test_a_hang_says_who_is_behind_and_where(clock: Clock) -> None:
    pages = group(clock, steps=10, seconds=1, ranks=3)
    for rank in (0, 2):
        pages[rank].beat(11, "step")
    clock.now += 70
    found = HangWatch(None).look(pages, clock.now)
    assert found is not None
    assert found.behind == (1,)
    assert (found.pulses[1].step, found.pulses[1].phase) == (10, "step")


def test_one_silent_rank_among_busy_ones_is_a_hang(clock: Clock) -> None:
    pages, watch = group(clock, steps=3, seconds=1), HangWatch(None)
    for step in range(4, 80):
        pages[0].beat(step, "step")
        found = watch.look(pages, clock.now)
        if found is not None:
            break
        clock.now += 1
    assert found is not None
    assert found.behind == (1,)


def scripted(clock: Clock, *, steps: int, seconds: float) -> dict[int, ProgressPage]:
    """Return pages of ranks in somebody else's loop, which have done ``steps`` steps of ``seconds`` each."""
    pages = {rank: ProgressPage() for rank in range(2)}
    for page in pages.values():
        page.beat(0, "away")
    clock.now += 500  # a model is compiled
    for step in range(steps + 1):
        for page in pages.values():
            page.beat(step, "scripted")
        clock.now += seconds
    clock.now -= seconds
    return pages


@pytest.mark.parametrize(
    ("steps", "seconds", "limit", "expected"),
    [(10, 1, None, 60), (10, 40, None, 200), (3, 1, None, 60), (2, 1, None, 1800), (10, 40, 7.0, 7), (10, 1, 90.0, 90)],
)
def test_a_script_is_judged_by_its_own_steps_once_some_are_known(clock, steps, seconds, limit, expected) -> None:
    assert hung_after(scripted(clock, steps=steps, seconds=seconds), clock, limit) == expected + 1


def test_the_limit_of_a_job_wins_in_a_script_from_its_first_whole_step_on(clock: Clock) -> None:
    assert hung_after(scripted(clock, steps=0, seconds=1), clock, 60.0) == hang.FIRST_STEP_SECONDS + 1
    assert hung_after(scripted(clock, steps=1, seconds=1), clock, 60.0) == 61


def test_an_evaluation_of_a_script_is_no_step(clock: Clock) -> None:
    pages = scripted(clock, steps=10, seconds=1)
    for page in pages.values():
        page.beat(10, "evaluating")
    clock.now += 800
    assert HangWatch(60.0).look(pages, clock.now) is None
    for page in pages.values():
        page.beat(10, "scripted")
        assert page.intervals == [1.0] * 10
    assert hung_after(pages, clock) == 61


def test_one_rank_of_a_script_that_gets_no_further_is_a_hang_while_the_other_goes_on(clock: Clock) -> None:
    pages, watch = scripted(clock, steps=10, seconds=1), HangWatch(None)
    for step in range(11, 100):
        pages[0].beat(step, "scripted")
        found = watch.look(pages, clock.now)
        if found is not None:
            break
        clock.now += 1
    assert found is not None
    assert (found.behind, found.limit) == ((1,), 60.0)


@pytest.mark.parametrize(
    ("phase", "expected"),
    [("evaluating", 900), ("checkpointing", 900), ("publishing", 3600), ("restoring", 1800)],
)
def test_what_takes_long_has_more_patience_even_when_one_rank_does_it_for_all(clock, phase, expected) -> None:
    pages = group(clock, steps=10, seconds=1)
    pages[0].beat(11, phase)
    assert hung_after(pages, clock, limit=2.0) == expected + 1


def test_patience_grows_with_the_longest_checkpoint_seen(clock: Clock) -> None:
    pages = group(clock, steps=10, seconds=1)
    for page in pages.values():
        page.beat(10, "checkpointing")
    clock.now += 600
    for page in pages.values():
        page.beat(10, "step")
        page.beat(11, "checkpointing")
    assert hung_after(pages, clock) == 5 * 600 + 1


def test_start_and_first_step_may_be_slow(clock: Clock) -> None:
    pages = {0: ProgressPage(), 1: ProgressPage()}
    pages[0].beat(0, "starting")
    assert hung_after(pages, clock, limit=1.0) == hang.PATIENCE["starting"] + 1
    for page in pages.values():
        page.beat(0, "step")
    assert hung_after(pages, clock, limit=1.0) == hang.FIRST_STEP_SECONDS + 1


def test_trainers_that_say_nothing_and_jobs_without_a_limit_are_never_judged(clock: Clock) -> None:
    assert HangWatch(None).look({0: ProgressPage()}, clock.now + 1e6) is None
    assert HangWatch(0.0).look(group(clock, steps=5, seconds=1), clock.now + 1e6) is None


def test_what_says_nothing_on_purpose_is_waited_for(clock: Clock) -> None:
    pages = group(clock, steps=10, seconds=1)
    for page in pages.values():
        page.beat(10, "away")
    clock.now += 1_000_000
    assert HangWatch(None).look(pages, clock.now) is None


def test_ranks_that_wait_for_a_long_restore_on_another_machine_are_not_hung(clock: Clock) -> None:
    pages = group(clock, steps=10, seconds=1)
    for page in pages.values():
        page.beat(10, "restoring")
    watch, began = HangWatch(None), clock.now
    while clock.now < began + 10_000:
        assert watch.look(pages, clock.now, heard=clock.now - 7) is None
        clock.now += 5
    assert watch.look(pages, clock.now, heard=began) is not None, "and once that one is silent they are"


def test_work_that_gets_on_is_no_hang_however_long_it_takes_and_work_that_stands_still_is_silent() -> None:
    page = ProgressPage()
    with Working(page, every=0.05):
        sum(range(3_000_000))
    assert page.pulse is None, "a rank that never spoke stays unwatched"
    page.beat(7, "restoring")
    with Working(page, every=0.05):
        deadline = time.monotonic() + 10
        while page.beats < 3 and time.monotonic() < deadline:
            sum(range(10_000))
    assert page.beats >= 3
    assert (page.pulse.step, page.pulse.phase) == (7, "restoring")
    before = page.beats
    with Working(page, every=0.05):
        time.sleep(0.5)
    assert page.beats == before


def test_a_machine_that_was_frozen_is_given_time_to_go_on(clock: Clock) -> None:
    pages, watch = group(clock, steps=10, seconds=1), HangWatch(None)
    assert watch.look(pages, clock.now) is None
    clock.now += 3600
    assert watch.look(pages, clock.now) is None
    for _ in range(62):
        clock.now += 1
        found = watch.look(pages, clock.now)
    assert found is not None


def test_the_page_keeps_the_newest_steps_and_leaves_out_what_lay_between(clock: Clock) -> None:
    (page,) = group(clock, steps=RING + 10, seconds=2, ranks=1).values()
    page.beat(RING + 10, "evaluating")
    clock.now += 100
    page.beat(RING + 10, "step")
    clock.now += 3
    page.beat(RING + 11, "step", busy_seconds=0.5)
    assert page.intervals == [2.0] * (RING - 1) + [3.0]
    assert page.longest("evaluating") == 100
    assert (page.busy, page.num_busy) == ([0.5], 1)


def paced(*busy: float, hiccup: float = 0.0) -> dict[int, ProgressPage]:
    """Return the pages of ranks with these own seconds a step, rank 0 with a hiccup in every third."""
    pages = {rank: ProgressPage() for rank in range(len(busy))}
    for step in range(WINDOW):
        for rank, page in pages.items():
            page.beat(step, "step", busy[rank] + (hiccup if rank == 0 and step % 3 == 0 else 0.0))
    return pages


@pytest.mark.parametrize(
    ("busy", "named"),
    [
        ((0.1, 0.1), []),
        ((0.1, 0.2), [1]),
        ((0.1, 0.12, 0.1), []),
        ((0.1, 0.1, 0.5, 0.2), [2, 3]),
        ((0.0001, 0.0009), []),
    ],
    ids=["alike", "two", "a little", "two of four", "noise"],
)
def test_the_slower_ranks_are_named_slowest_first(busy: tuple[float, ...], named: list[int]) -> None:
    assert [straggler.rank for straggler in stragglers(paced(*busy), {}, {})] == named


def test_hiccups_are_no_slowness_and_other_nodes_count(clock: Clock) -> None:
    assert stragglers(paced(0.1, 0.1, hiccup=3.0), {}, {}) == []
    (slow,) = stragglers(paced(0.2), {1: 0.1, 2: 0.1}, {0: 0.4})
    assert (slow.rank, slow.ratio, slow.others_seconds, slow.cpu_share) == (0, 2.0, 0.1, 0.4)


def test_a_straggler_is_reported_when_it_begins_and_when_it_ends_and_not_in_between() -> None:
    pages = {rank: ProgressPage() for rank in range(2)}
    watch = StragglerWatch({0: 1, 1: 1}, now=0.0)
    said = []
    for step in range(8 * WINDOW):
        slow = 2 * WINDOW <= step < 6 * WINDOW
        pages[0].beat(step, "step", 0.1)
        pages[1].beat(step, "step", 0.3 if slow else 0.1)
        report = watch.look(pages, {}, float(step))
        if report is not None:
            said.append((step + 1, [straggler.rank for straggler in report]))
    assert said == [(3 * WINDOW, [1]), (7 * WINDOW, [])]
