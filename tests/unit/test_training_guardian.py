"""Rules decide by the metrics and a small state: at the right step, one rung at a time, never for ever."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.core.config.alerts import Alert
from deepseek_ops.core.jobs import JobRequest
from deepseek_ops.training.guardian import ELAPSED, Guardian, Memory, widened
from deepseek_ops.training.guardian_defaults import default_alerts
from deepseek_ops.training.guardian_ledger import Entry, Ledger
from deepseek_ops.training.guardian_verdict import SIZE, Stop, Verdict, verdict_of

NAN = math.nan
STOP = {"type": "stop_training"}
PAGE = {"type": "page"}


def alert(**fields) -> Alert:
    return Alert.model_validate(fields)


def rows(metric, values, seconds=1.0):
    return [{"step": float(step), metric: value, ELAPSED: step * seconds} for step, value in enumerate(values, start=1)]


def replay(guardian, history, ledger=None, memory=None):
    """Return (step, action) of what fires, noting every action in the ledger as the trainer does."""
    ledger, memory, fired = ledger or Ledger(), memory or Memory(), []
    for row in history:
        memory, decisions = guardian.judge(memory, row, ledger)
        for decision in decisions:
            fired.append((decision.step, decision.action))
            if decision.act is not None and not decision.repeated:
                ledger.add(
                    Entry(ledger.next_number, decision.step, decision.rule, decision.act.type, decision.rung,
                          decision.attempt)
                )  # fmt: skip
    return fired


def one(*actions, condition="value > 5", metric="loss", **fields):
    return Guardian([alert(metric=metric, condition=condition, actions=list(actions), **fields)])


class TestFiring:
    def test_a_rule_fires_when_it_has_held_for_its_steps(self):
        guardian = one(STOP, metric="training_loss", condition="value > 20 or is_nan()", **{"for": "3 steps"})
        assert replay(guardian, rows("training_loss", [3, 25, NAN, 2, 30, NAN, 40, 50])) == [(7, "stop")]

    def test_one_that_only_tells_fires_again_only_after_it_was_false(self):
        assert replay(one(PAGE), rows("loss", [1, 9, 9, 9, 1, 9])) == [(2, "record"), (6, "record")]

    def test_a_cooldown_makes_it_a_reminder_and_keeps_it_silent_in_between(self):
        values = [1, 9, 9, 9, 9, 1, 9, 9, 9]
        assert replay(one(PAGE, cooldown="3 steps"), rows("loss", values)) == [
            (2, "record"),
            (5, "record"),
            (8, "record"),
        ]
        assert replay(one(PAGE, cooldown="30s"), rows("loss", values, seconds=10)) == [
            (2, "record"), (5, "record"), (8, "record"),
        ]  # fmt: skip

    def test_a_rule_with_a_duration_uses_the_clock_of_the_training(self):
        guardian = one(PAGE, metric="tokens_per_second", condition="value < 10", **{"for": "30s"})
        assert replay(guardian, rows("tokens_per_second", [50, 5, 5, 5, 5, 5], seconds=10)) == [(5, "record")]
        assert replay(guardian, rows("tokens_per_second", [50, 5, 5, 50, 5, 5], seconds=10)) == []

    def test_metrics_that_are_not_measured_at_a_step_are_not_judged_then(self):
        guardian = one(PAGE, metric="val_loss", **{"for": "2 steps"})
        history = [{"step": float(step), **({"val_loss": 9.0} if step % 10 == 0 else {})} for step in range(1, 31)]
        assert replay(guardian, history) == [(20, "record")]

    def test_windows_of_a_rare_metric_reach_over_all_its_points(self):
        guardian = one(PAGE, metric="val_loss", condition="value > 1.5 * median(3)")
        history = [
            {"step": float(step), **({"val_loss": 9.0 if step == 400 else 3.0} if step % 100 == 0 else {})}
            for step in range(1, 401)
        ]
        assert replay(guardian, history) == [(400, "record")]

    def test_two_rules_with_one_text_are_told_apart(self):
        rule = alert(metric="loss", condition="value > 5", actions=[PAGE])
        first, second = (title for title, _ in Guardian([rule, rule]).rules)
        assert first != second


class TestLadder:
    def test_each_firing_takes_the_first_action_with_attempts_left(self):
        guardian = one(PAGE, {"type": "skip_batches"}, {"type": "lower_lr", "max_attempts": 2}, STOP)
        assert replay(guardian, rows("loss", [9] * 4)) == [
            (1, "skip_batches"), (2, "lower_lr"), (3, "lower_lr"), (4, "stop"),
        ]  # fmt: skip

    def test_it_is_taken_again_only_after_the_condition_has_held_anew(self):
        guardian = one({"type": "skip_batches"}, STOP, **{"for": "3 steps"})
        assert replay(guardian, rows("loss", [9] * 6)) == [(3, "skip_batches"), (6, "stop")]

    def test_a_ladder_that_is_used_up_only_tells(self):
        guardian = one(PAGE, {"type": "rewind", "max_attempts": 1})
        assert replay(guardian, rows("loss", [9, 9, 9, 1, 9])) == [(1, "rewind"), (5, "record")]

    def test_the_rules_own_bound_counts_all_actions_but_the_stop(self):
        guardian = one({"type": "rewind"}, {"type": "lower_lr"}, STOP, max_attempts=2)
        assert replay(guardian, rows("loss", [9] * 3)) == [(1, "rewind"), (2, "rewind"), (3, "stop")]

    def test_what_cannot_be_done_is_passed_over_in_the_same_step(self):
        guardian = one(PAGE, {"type": "rewind"}, {"type": "lower_lr"})
        _, (decision,) = guardian.judge(Memory(), rows("loss", [9])[0], Ledger())
        assert decision.action == "rewind"
        (again,) = [guardian.without({(decision.rule, decision.rung)}, decision, Ledger())]
        assert (again.action, again.attempt) == ("lower_lr", 1)
        assert guardian.without({(decision.rule, 0), (decision.rule, 1)}, again, Ledger()).action == "record"

    def test_a_rewind_names_the_first_step_of_the_stretch(self):
        guardian = one({"type": "rewind"}, **{"for": "3 steps"})
        memory, ledger = Memory(), Ledger()
        for row in rows("loss", [1, 9, 1, 1, 9, 9, 9]):
            memory, decisions = guardian.judge(memory, row, ledger)
        assert decisions[0].first == 5
        assert widened(decisions[0]) == 5, "the first attempt leaves out what the rule saw"

    def test_a_rare_metric_blames_all_steps_since_it_was_good(self):
        guardian = one({"type": "rewind"}, metric="val_loss")
        memory = Memory()
        for step, value in ((100, 3.0), (200, 9.0)):
            memory, decisions = guardian.judge(memory, {"step": float(step), "val_loss": value}, Ledger())
        assert decisions[0].first == 101

    def test_each_further_rewind_begins_further_back(self):
        guardian = one({"type": "rewind", "max_attempts": 9})
        ledger, starts = Ledger(), []
        for attempt in range(1, 5):
            memory = Memory()
            for row in rows("loss", [1] * 49 + [9]):
                memory, decisions = guardian.judge(memory, row, ledger)
            starts.append(widened(decisions[0]))
            ledger.add(Entry(attempt, 50, decisions[0].rule, "rewind", attempt=attempt, went_to=40))
        assert starts == [50, 49, 47, 43]

    @given(st.lists(st.sampled_from([1.0, 9.0, NAN]), max_size=200), st.integers(1, 4))
    def test_no_history_makes_it_act_more_often_than_it_may(self, values, hold):
        guardian = one({"type": "skip_batches"}, {"type": "rewind"}, {"type": "lower_lr"}, **{"for": f"{hold} steps"})
        acts = [action for _, action in replay(guardian, rows("loss", values)) if action != "record"]
        assert len(acts) <= 1 + 3 + 1


class TestResume:
    @given(st.lists(st.floats(0, 10), min_size=2, max_size=80), st.data())
    def test_a_resumed_run_comes_to_the_same_decisions(self, values, data):
        """Killed after any step, resumed from any checkpoint before it, with the ledger that nothing undoes."""
        guardian = one({"type": "skip_batches", "max_attempts": 2}, {"type": "lower_lr"}, cooldown="4 steps",
                       condition="value > 5 or zscore(6) > 3", **{"for": "2 steps"})  # fmt: skip
        history = rows("loss", values)
        whole = replay(guardian, history)
        killed = data.draw(st.integers(1, len(values)))
        saved = data.draw(st.integers(0, killed))
        ledger, memory = Ledger(), Memory()
        for row in history[:saved]:
            memory, _ = guardian.judge(memory, row, Ledger())
        state = json.loads(json.dumps(_memory_after(guardian, history[:saved], ledger).dump()))
        replay(guardian, history[:killed], ledger=(before := Ledger()))
        resumed = Ledger.load(json.loads(json.dumps(before.dump())), job_attempt=1)
        again = replay(guardian, history[saved:], ledger=resumed, memory=Memory.load(state))
        assert again == [fired for fired in whole if fired[0] > saved]

    def test_attempts_survive_a_rewind(self):
        ledger = Ledger([Entry(1, 30, "r", "rewind", went_to=20), Entry(2, 28, "r", "rewind", went_to=10)])
        assert ledger.used("r", 0) == 2
        assert (ledger.rewinds, ledger.last_rewind_to) == (2, 10)

    def test_what_a_rewind_undid_is_decided_anew_and_still_counted(self):
        ledger = Ledger(
            [Entry(1, 25, "r", "skip_batches", skipped=((25, 27),)), Entry(2, 30, "s", "rewind", went_to=20)]
        )
        assert ledger.taken("r", 25) is None
        assert ledger.used("r") == 1
        assert ledger.skipped() == [(25, 27)]

    def test_a_rate_is_lowered_from_its_step_on(self):
        ledger = Ledger([Entry(1, 25, "r", "lower_lr", factor=0.5)])
        assert (ledger.factor_at(20), ledger.factor_at(25)) == (1.0, 0.5)
        ledger.add(Entry(2, 30, "s", "rewind", went_to=10))
        assert ledger.factor_at(10) == 0.5, "going back heals the weights, not the cause"

    def test_resubmitting_a_stopped_run_gives_new_attempts(self):
        entries = [Entry(1, 5, "r", "rewind", went_to=3), Entry(2, 9, "r", "stop_training", rung=1)]
        assert Ledger(list(entries), job_attempt=1).used("r", 0) == 1
        assert Ledger(list(entries), job_attempt=1).taken("r", 9) is not None
        assert Ledger(list(entries), job_attempt=2).used("r", 0) == 0
        assert Ledger(list(entries), job_attempt=2).taken("r", 9) is None

    def test_of_two_entries_with_one_number_the_first_counts(self):
        bodies = [
            Entry(1, 5, "r", "rewind").dump(),
            Entry(1, 5, "other", "rewind").dump(),
            Entry(2, 6, "r", "x").dump(),
        ]
        assert [entry.rule for entry in Ledger.load(bodies, job_attempt=1).entries] == ["r", "r"]


class TestVerdict:
    def test_it_travels_as_numbers(self):
        verdict = Verdict(stop=Stop.RULE, rewind_before=0, bad_from=7, skip=3, factor=0.1, checkpoint=True, clean=False)
        assert len(verdict.encode()) == SIZE
        assert Verdict.decode(verdict.encode()) == verdict
        assert Verdict.decode(Verdict().encode()) == Verdict()

    def test_a_rule_that_stops_wins_over_everything(self):
        guardian = Guardian([
            alert(metric="loss", condition="value > 5", actions=[{"type": "rewind"}]),
            alert(metric="loss", condition="value > 6", actions=[STOP]),
        ])  # fmt: skip
        _, decisions = guardian.judge(Memory(), rows("loss", [9])[0], Ledger())
        verdict = verdict_of(decisions, [], step=1, asked=True, clean=True)
        assert (verdict.stop, verdict.rewind_before) == (Stop.RULE, None)

    def test_a_persons_rewind_leaves_out_what_came_after(self):
        asked = [JobRequest(number=1, verb="rewind", step=20)]
        verdict = verdict_of([], asked, step=30, asked=False, clean=True)
        assert (verdict.rewind_before, verdict.bad_from) == (20, 21)
        newest = verdict_of([], [JobRequest(number=2, verb="rewind")], step=30, asked=False, clean=True)
        assert (newest.rewind_before, newest.bad_from) == (30, None)


class TestDefaults:
    def fired(self, history, **fields):
        return replay(Guardian([], default_alerts([], **fields)), history)

    def test_a_nan_that_entered_the_weights_rewinds_and_then_stops(self):
        history = [{"step": float(step), "poisoned": float(step > 3)} for step in range(1, 9)]
        assert self.fired(history) == [(4, "rewind"), (5, "rewind"), (6, "rewind"), (7, "stop"), (8, "stop")]

    def test_skipping_again_and_again_skips_batches_rewinds_and_stops(self):
        history = [{"step": float(step), "skipped": 1.0} for step in range(1, 16)]
        assert [action for _, action in self.fired(history)] == [
            "skip_batches", "skip_batches", "rewind", "rewind", "stop",
        ]  # fmt: skip
        assert self.fired([{"step": float(step), "skipped": float(step % 2)} for step in range(1, 50)]) == []

    def test_a_nan_on_any_rank_is_told(self):
        history = [{"step": float(step), "loss_nan_ranks": float(step == 5)} for step in range(1, 9)]
        assert self.fired(history) == [(5, "record")]

    def test_a_lasting_spike_rewinds_and_a_short_one_does_not(self):
        noise = random.Random(1)  # noqa: S311
        values = [4 + noise.gauss(0, 0.1) for _ in range(100)]
        assert self.fired(rows("training_loss", [*values, 8, 8, 4, 4])) == []
        assert self.fired(rows("training_loss", [*values, 8, 8, 8])) == [(103, "rewind")]

    def test_an_exploding_gradient_is_told_from_an_infinite_one(self):
        noise = random.Random(2)  # noqa: S311
        values = [1 + noise.gauss(0, 0.2) for _ in range(80)]
        assert self.fired(rows("grad_norm", [*values, math.inf, math.inf, math.inf])) == []
        assert self.fired(rows("grad_norm", [*values, 900.0, 800.0])) == [(82, "rewind")]

    def test_half_of_the_experts_dead_is_a_collapse_and_one_is_not(self):
        model = {"experts": 64, "experts_per_token": 4, "layers": 2}
        assert self.fired(rows("experts_dead", [0.0] * 30 + [5.0] * 60), **model) == []
        assert self.fired(rows("experts_dead", [0.0] * 30 + [90.0] * 20), **model) == [(50, "rewind")]
        assert self.fired(rows("expert_load_max", [3.0] * 30 + [12.0] * 20), **model) == [(50, "rewind")]
        assert self.fired(rows("expert_load_max", [1.99] * 90), experts=4, experts_per_token=2) == []

    def test_a_throughput_that_collapses_is_told_once(self):
        assert self.fired(rows("tokens_per_second", [1000.0] * 80 + [100.0] * 40)) == [(96, "record")]
        assert self.fired(rows("tokens_per_second", ([1000.0] * 20 + [100.0] * 10) * 8)) == []

    def test_a_step_that_stalls_is_told(self):
        assert self.fired(rows("step_seconds", [2.0] * 80 + [65.0] + [2.0] * 10)) == [(81, "record")]
        assert self.fired(rows("step_seconds", [0.01] * 80 + [5.0] * 10)) == []

    @pytest.mark.parametrize("seed", range(2))
    def test_they_are_silent_on_noise_with_heavy_tails(self, seed):
        """A falling loss with student-t noise (3 degrees of freedom), a skewed gradient norm, a busy machine."""
        noise = random.Random(seed)  # noqa: S311

        def student() -> float:
            return noise.gauss(0, 1) / math.sqrt(sum(noise.gauss(0, 1) ** 2 for _ in range(3)) / 3)

        history = [
            {
                "step": float(step),
                "training_loss": 2 + 6 * math.exp(-step / 300) + 0.05 * student(),
                "grad_norm": 0.6 * math.exp(0.5 * noise.gauss(0, 1)),
                "tokens_per_second": 1e4 * min(1.0, noise.lognormvariate(0, 0.4)),
                "step_seconds": 0.1 * noise.lognormvariate(0, 0.5),
                "loss_nan_ranks": 0.0,
                "skipped": 0.0,
                "poisoned": 0.0,
                "experts_dead": float(noise.random() < 0.1),
                "expert_load_max": 1.5 + noise.random(),
            }
            for step in range(1, 1501)
        ]
        assert self.fired(history, experts=64, experts_per_token=6, layers=4) == []

    def test_an_own_rule_replaces_the_default_for_its_metric(self):
        own = [alert(metric="skipped", condition="value > 0", actions=[STOP], **{"for": "50 steps"})]
        guardian = Guardian(own, default_alerts(own))
        assert replay(guardian, rows("skipped", [1] * 20)) == []

    def test_who_says_what_a_nan_means_is_not_contradicted(self):
        own = [alert(metric="training_loss", condition="value > 20 or is_nan()", actions=[STOP], **{"for": "3 steps"})]
        assert not {"poisoned", "skipped", "training_loss"} & {rule.metric for rule in default_alerts(own)}
        told = [alert(metric="training_loss", condition="is_nan()", actions=[PAGE])]
        assert {"poisoned", "skipped"} <= {rule.metric for rule in default_alerts(told)}, "telling heals nothing"

    def test_a_trial_that_diverges_is_stopped_and_not_healed(self):
        history = [{"step": float(step), "poisoned": float(step > 3)} for step in range(1, 6)]
        assert self.fired(history, recovers=False) == [(4, "stop"), (5, "stop")]
        assert {act.type for rule in default_alerts([], recovers=False) for act in rule.ladder} == {"stop_training"}


class TestHealth:
    def test_a_state_is_clean_only_while_nothing_speaks_against_it(self):
        guardian = one({"type": "rewind", "max_attempts": 1}, **{"for": "3 steps"})
        memory, ledger, clean = Memory(), Ledger(), []
        for row in rows("loss", [1, 9, 9, 1, 9, 9, 9, 9]):
            memory, _ = guardian.judge(memory, row, ledger)
            clean.append(guardian.is_clean(memory, row, ledger))
        assert clean == [True, False, False, True, False, False, True, True], "held against it until it was decided"
        assert not guardian.is_clean(memory, {"step": 5.0, "skipped": 1.0}, ledger)

    def test_a_rewind_that_is_used_up_forbids_no_more_checkpoints(self):
        guardian = one({"type": "rewind", "max_attempts": 1})
        ledger = Ledger([Entry(1, 3, "loss: value > 5", "rewind", went_to=2)])
        row = rows("loss", [9])[0]
        memory, _ = guardian.judge(Memory(), row, ledger)
        assert guardian.is_clean(memory, row, ledger)


class TestEvidence:
    def test_a_decision_carries_its_evidence_and_who_is_told(self):
        guardian = one({"type": "email", "recipients": ["a@example.com"]}, STOP, condition="value > 20")
        memory = Memory()
        for row in rows("loss", [4.0, 5.0, 21.0]):
            memory, decisions = guardian.judge(memory, row, Ledger())
        told = decisions[0].dump()
        assert told["evidence"] == ["4.0", "5.0", "21.0"]
        assert told["notify"] == [{"type": "email", "recipients": ["a@example.com"]}]
        assert "value > 20" in decisions[0].reason
        assert "21" in decisions[0].reason


def _memory_after(guardian, history, ledger) -> Memory:
    memory = Memory()
    for row in history:
        memory, decisions = guardian.judge(memory, row, ledger)
        for decision in decisions:
            if decision.act is not None:
                ledger.add(Entry(ledger.next_number, decision.step, decision.rule, decision.act.type, decision.rung,
                                 decision.attempt))  # fmt: skip
    return memory
