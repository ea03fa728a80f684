"""Of several jobs that train one plan the newest writes its run, and the others declare nothing."""

from __future__ import annotations

from pathlib import Path

from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.errors import StoreUnavailableError
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.training_ledger import LedgerFile
from deepseek_ops.jobs.training_ranks import Ranks
from deepseek_ops.jobs.training_turn import take_turn
from deepseek_ops.training.guardian_ledger import Entry

RUN = "runs/this"
ALONE = Ranks(0, 1, "cpu", lambda: False)


def context_of(folder: Path, name: str, attempt: int = 1, *, restarts: int = 0) -> JobContext:
    spec = JobSpec(name=name, kind="train", payload={})
    store = LocalStore(folder / "store")
    return JobContext(spec, folder / name, attempt=attempt, restarts=restarts, store=store)


def begun(folder: Path, name: str, attempt: int = 1, *, restarts: int = 0) -> JobContext:
    context = context_of(folder, name, attempt, restarts=restarts)
    take_turn(context, RUN, ALONE)
    return context


def test_another_job_of_the_plan_takes_over_and_the_first_declares_nothing(tmp_path: Path) -> None:
    first = begun(tmp_path, "long-a")
    assert first.is_current
    second = begun(tmp_path, "long-b")
    assert (first.is_current, second.is_current) == (False, True)
    assert (first.turn, second.turn) == (1, 2), "and their checkpoints have different names"
    ledger = LedgerFile(first, RUN)
    ledger.add([Entry(1, 9, "", "checkpoint")])
    ledger.finish()
    assert list(second.store.list(f"{RUN}/guardian/")) == []


def test_jobs_of_one_name_on_two_engines_are_two(tmp_path: Path) -> None:
    first, second = (context_of(tmp_path / engine, "long") for engine in ("local", "cluster"))
    second._store = first.store
    for context in (first, second):
        take_turn(context, RUN, ALONE)
    assert (first.is_current, second.is_current) == (False, True)


def test_ranks_that_start_again_keep_their_turn_and_do_not_take_it_back(tmp_path: Path) -> None:
    begun(tmp_path, "long-a")
    again = begun(tmp_path, "long-a", restarts=1)
    assert (again.turn, again.is_current) == (1, True)
    second = begun(tmp_path, "long-b")
    assert not begun(tmp_path, "long-a", restarts=2).is_current
    assert second.is_current


def test_the_next_attempt_takes_over_and_an_older_one_that_comes_late_does_not(tmp_path: Path) -> None:
    begun(tmp_path, "long-a")
    begun(tmp_path, "long-b")
    newest = begun(tmp_path, "long-a", attempt=2)
    assert (newest.turn, newest.is_current) == (3, True)
    late = begun(tmp_path, "long-a", attempt=1)
    assert (late.is_current, newest.is_current) == (False, True)
    assert begun(tmp_path, "long-c", attempt=9).turn == 9, "lives are named by attempts where nobody else writes"


def test_an_attempt_whose_first_turn_was_never_heard_of_comes_too_late(tmp_path: Path) -> None:
    newest = begun(tmp_path, "long", attempt=2)
    late = begun(tmp_path, "long", attempt=1)
    assert (late.turn, late.is_current, newest.is_current) == (1, False, True)


def test_a_store_that_is_away_fences_nobody(tmp_path: Path) -> None:
    class Away(LocalStore):
        def list(self, *_arguments: object, **_fields: object):  # type: ignore[no-untyped-def]
            raise StoreUnavailableError(self.uri, "it is away")

    first = begun(tmp_path, "long-a")
    vars(first)["store"] = Away(tmp_path / "store")  # in place of the one that it has looked up
    assert first.is_current
