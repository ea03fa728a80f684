"""Which checkpoint a training goes on from, which ones stay, and what its weights have seen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.core.records import FileEntry
from deepseek_ops.jobs.training_health import Health
from deepseek_ops.training.checkpoints import (
    Candidate,
    CheckpointName,
    Life,
    files_for,
    kept,
    to_resume,
    to_rewind,
)
from deepseek_ops.training.proof import LifeRecord, Run, prove


def name(step, attempt=1, restart=0, rewind=0):
    return CheckpointName(Life(attempt, restart, rewind), step)


def test_a_name_says_step_and_life_and_is_read_back():
    assert str(name(50, 2, 1)) == "step-00000050.002-001-000"
    assert CheckpointName.parse(str(name(123456789, 2, 1, 7))) == name(123456789, 2, 1, 7)
    for text in ("step-00000050", "step-00000050.002-001-000.partial", "latest", "step-5.1-0-0"):
        assert CheckpointName.parse(text) is None


def test_a_resume_takes_the_latest_life_before_the_highest_step():
    """After a rewind to step 40 the checkpoint of step 60 belongs to a history that was given up."""
    assert to_resume([Candidate(name(60), healthy=True), Candidate(name(45, rewind=1))]).name == name(45, rewind=1)


def test_a_resume_takes_an_unproven_checkpoint_only_after_calm_steps():
    older = Candidate(name(40), healthy=True)
    assert to_resume([older, Candidate(name(50), calm=True)]).name == name(50)
    assert to_resume([older, Candidate(name(50), calm=False)]) == older
    assert to_resume([Candidate(name(50), calm=False)]) is None


def test_a_rewind_takes_healthy_checkpoints_only():
    candidates = [Candidate(name(10), healthy=True), Candidate(name(20), healthy=True), Candidate(name(30))]
    assert to_rewind(candidates, before=40).name == name(20)
    assert to_rewind(candidates, before=19).name == name(10)
    assert to_rewind(candidates, before=9) is None


def test_the_newest_healthy_checkpoint_stays_however_old_it_is():
    candidates = [Candidate(name(10), healthy=True), *(Candidate(name(step)) for step in (20, 30, 40))]
    assert kept(candidates, 2) == {name(10), name(30), name(40)}
    assert kept(candidates, 2, held=[name(20), name(99)]) == {name(10), name(20), name(30), name(40)}


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 3), st.booleans()), min_size=1), st.integers(1, 4))
def test_what_a_resume_or_rewind_would_take_is_never_let_go(rows, keep):
    candidates = list({name(s, a): Candidate(name(s, a), healthy=h) for s, a, h in rows}.values())
    stay = kept(candidates, keep)
    assert to_resume(candidates).name in stay
    if (healthy := to_rewind(candidates, before=100)) is not None:
        assert healthy.name in stay


def test_n_clean_steps_make_a_checkpoint_healthy_and_an_unclean_one_before_that_makes_it_suspect():
    health = Health("auto")
    health.begin(None)
    health.saved(name(5))
    assert [health.observe(step, True) for step in range(6, 15)] == [([], [])] * 9
    assert health.observe(15, True) == ([name(5)], [])
    health.saved(name(15))
    assert health.observe(16, False) == ([], [name(15)])
    assert not health.calm
    for step in range(17, 26):
        health.observe(step, True)
        assert not health.calm
    health.observe(26, True)
    assert health.calm


def test_a_machine_reads_the_files_of_its_own_ranks_and_all_when_the_number_of_ranks_changes():
    paths = ["mp_rank_00_model_states.pt", "trainer.json"]
    paths += [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(12)]
    paths += [f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(12)]
    files = [FileEntry(path=path, size=1, digest="0" * 64) for path in paths]
    own = {entry.path for entry in files_for(files, [1, 2])}
    assert own == {path for path in paths if "rank_1_" in path or "rank_2_" in path or path in paths[:2]}
    assert len(files_for(files, None)) == len(files)


# --- the proof ---


def life(number, from_step, *runs, samples=8):
    record = LifeRecord(f"00{number}-000-000", from_step, 2)
    record.runs = [Run(first, last, position, samples) for first, last, position in runs]
    return record


def test_a_training_that_was_killed_is_proved_exact_and_what_ran_twice_is_counted_apart():
    proof = prove([life(1, 0, (1, 57, 0)), life(2, 50, (51, 100, 50))], steps=100)
    assert proof.exact
    assert (proof.samples, proof.samples_repeated, proof.samples_skipped) == (800, 0, 0)
    assert proof.steps_recomputed == 7
    assert [(record.life, runs[0].last_step) for record, runs in proof.history] == [
        ("001-000-000", 50),
        ("002-000-000", 100),
    ]


def test_a_loader_that_starts_over_after_a_resume_is_found_out():
    proof = prove([life(1, 0, (1, 50, 0)), life(2, 50, (51, 100, 0))], steps=100)
    assert not proof.exact
    assert proof.samples_repeated == 50 * 8


def test_a_resume_that_jumps_ahead_is_found_out():
    proof = prove([life(1, 0, (1, 50, 0)), life(2, 50, (51, 100, 60))], steps=100)
    assert not proof.exact
    assert proof.samples_skipped == 10 * 8


def test_batches_that_the_guardian_left_out_are_named_and_not_counted_as_skipped():
    lives = [life(1, 0, (1, 30, 0)), life(2, 20, (21, 23, 20), (24, 40, 26))]
    proof = prove(lives, steps=40, left_out=[(23, 26)])
    assert proof.exact
    assert proof.left_out == ((23, 26),)
    assert proof.steps_recomputed == 10


def test_steps_that_no_record_covers_are_no_proof():
    proof = prove([life(1, 0, (1, 40, 0)), life(2, 50, (51, 100, 50))], steps=100)
    assert proof.steps_unrecorded == 10
    assert not proof.exact


def test_a_life_that_made_no_step_and_one_that_was_overtaken_count_for_nothing():
    lives = [life(1, 0, (1, 60, 0)), life(2, 50), life(3, 50, (51, 55, 50)), life(4, 40, (41, 100, 40))]
    proof = prove(lives, steps=100)
    assert proof.exact
    assert proof.steps_recomputed == 20 + 5


@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0, 1)), max_size=8), st.integers(1, 30))
def test_every_honest_history_is_exact(stretches, last):
    """However often and wherever it is interrupted: a life that goes on from where it began repeats nothing."""
    lives, at = [], 0
    for number, (steps, back) in enumerate(stretches, start=1):
        lives.append(life(number, at, (at + 1, at + steps, at)))
        at = int((at + steps) * back)
    lives.append(life(99, at, (at + 1, at + last, at)))
    proof = prove(lives, steps=at + last)
    assert proof.exact
    assert proof.steps_recomputed == sum(run.steps for record in lives for run in record.runs) - (at + last)


def test_the_record_of_a_life_is_read_back():
    record = life(3, 20, (21, 23, 20), (24, 40, 26))
    assert LifeRecord.load(record.dump()) == record
