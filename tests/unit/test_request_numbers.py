"""What people ask is obeyed once, also where the numbers of their requests begin again."""

from __future__ import annotations

from pathlib import Path

from deepseek_ops.adapters.local_launcher.folder import JobFolder
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.training_ledger import LedgerFile
from deepseek_ops.training.guardian_ledger import Entry, Ledger


def context_of(tmp_path: Path, name: str, *, attempt: int = 1) -> JobContext:
    spec = JobSpec(name=name, kind="train", payload={})
    return JobContext(spec, tmp_path / name, attempt=attempt, store=LocalStore(tmp_path / "store"))


def obey(context: JobContext, *, keep: bool = True) -> list[int]:
    """Return the numbers of the requests that a start of the training finds, and note them as obeyed."""
    file = LedgerFile(context, "runs/this")
    found = [request.number for request in context.requests(file.ledger.obeyed)]
    if keep:
        first = file.ledger.next_number
        file.add([Entry(first + at, 9, "", "checkpoint", request=number) for at, number in enumerate(found)])
        file.finish()
    return found


def test_requests_to_another_job_of_the_same_plan_are_obeyed(tmp_path: Path) -> None:
    first, second = (context_of(tmp_path, name) for name in ("long-a", "long-b"))
    for _ in range(4):
        JobFolder(first.folder).ask("checkpoint", step=None, by="me")
    assert obey(first) == [1, 2, 3, 4]
    assert JobFolder(second.folder).ask("checkpoint", step=None, by="me") == 1
    assert obey(second) == [1]
    assert obey(second) == []
    assert obey(first) == []


def test_a_request_is_obeyed_once_in_all_attempts_of_a_job(tmp_path: Path) -> None:
    JobFolder(context_of(tmp_path, "long").folder).ask("rewind", step=5, by="me")
    assert obey(context_of(tmp_path, "long")) == [1]
    assert obey(context_of(tmp_path, "long", attempt=2)) == []


def test_requests_to_a_job_that_takes_the_name_of_a_retired_one_are_obeyed(tmp_path: Path) -> None:
    for _ in range(2):
        context = context_of(tmp_path, "long")
        JobFolder(context.folder).ask("checkpoint", step=None, by="me")
        assert obey(context) == [1]
        context.folder.rename(tmp_path / f"retired-{id(context)}")


def test_a_request_is_obeyed_once_where_an_engine_goes_on_with_the_attempt_on_another_machine(tmp_path: Path) -> None:
    for machine in ("one", "other"):
        spec = JobSpec(name="long", kind="train", payload={})
        folder = tmp_path / machine / "long-0f3a-0"
        context = JobContext(spec, folder, store=LocalStore(tmp_path / "store"))
        JobFolder(folder).ask("rewind", step=5, by="me")  # as the mirror brings it
        assert obey(context) == ([1] if machine == "one" else [])


def test_the_newest_entry_of_a_job_says_which_requests_were_obeyed() -> None:
    ledger = Ledger([Entry(1, 9, "", "checkpoint", request=4, requests_of="a")], requests_of="b")
    assert ledger.obeyed == 0
    ledger.add(Entry(2, 9, "", "checkpoint", request=1))
    assert Ledger.load(ledger.dump(), job_attempt=1, requests_of="b").obeyed == 1
    assert Ledger.load(ledger.dump(), job_attempt=1, requests_of="a").obeyed == 4
    old = Entry(3, 9, "", "checkpoint", request=7).dump()
    del old["requests_of"]
    assert Ledger.load([old], job_attempt=1, requests_of="a").obeyed == 7, "before there were names of jobs in it"
