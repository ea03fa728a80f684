"""Checkpoints reach the store whole or not at all, once, in the end, and without keeping a training waiting."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from fixtures_checkpoint_store import PLAN, Desk, desk, store, until  # noqa: F401  (pytest fixtures)

from deepseek_ops.core.errors import IntegrityError, ObjectNotFoundError
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.core.objects import blob_key
from deepseek_ops.core.records import FileEntry
from deepseek_ops.data.gc_names import Names, add_names_in_store
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.training_keeper import Keeper
from deepseek_ops.jobs.training_ranks import Ranks
from deepseek_ops.jobs.training_shelf import Sealing, leave_part
from deepseek_ops.training.checkpoints import CheckpointName, Life, files_for, to_rewind


def test_an_uploaded_checkpoint_is_whole_named_by_its_digests_and_kept_from_collections(desk, store):  # noqa: F811
    name = desk.make(10)
    desk.uploads.offer(name)
    desk.sent()
    (candidate,) = desk.stored.candidates()
    assert (candidate.name, candidate.healthy, candidate.calm) == (name, False, True)
    record = desk.stored.read(name)
    assert {entry.path for entry in record.files} == {path.name for path in desk.shelf.path(name).iterdir()} - {
        "files.json"
    }
    names = Names()
    add_names_in_store(store, names)
    assert all(bytes.fromhex(entry.digest) in names.leaves for entry in record.files), "a root of the collection"


def test_unchanged_files_are_not_sent_twice(desk, store):  # noqa: F811
    first, second = desk.make(10), desk.make(20)
    for name in (first, second):
        desk.uploads.offer(name)
        desk.sent()
    base = next(entry for entry in desk.stored.read(second).files if entry.path == "base.pt")
    assert store.blobs.count(blob_key(base.digest)) == 1
    sizes = [(fields["bytes"], fields["new_bytes"]) for kind, fields in desk.said if kind == "checkpoint_uploaded"]
    assert sizes[0][0] == sizes[0][1]
    assert sizes[1][1] == sizes[1][0] - 300_000


def test_a_store_that_is_away_delays_uploads_and_the_newest_checkpoint_goes_up_when_it_is_back(desk, store):  # noqa: F811
    store.away.set()
    for step in (10, 20, 30):
        desk.uploads.offer(desk.make(step))
        until(lambda: store.refused)
    until(lambda: store.refused > 2)
    store.away.clear()
    desk.sent()
    assert desk.kinds().count("checkpoint_upload_delayed") == 1, "one outage, one event"
    assert desk.kinds().count("checkpoint_upload_resumed") == 1
    assert max(one.name.step for one in desk.stored.candidates()) == 30


def test_a_newer_checkpoint_takes_the_place_of_a_waiting_one(desk, store):  # noqa: F811
    store.slow.set()
    for step in (10, 20, 30, 40):
        desk.uploads.offer(desk.make(step))
        if step == 10:
            until(lambda: desk.uploads._busy)
    store.slow.clear()
    desk.sent()
    assert sorted(one.name.step for one in desk.stored.candidates()) == [10, 40]


def test_the_disk_lets_nothing_go_that_is_on_its_way_to_the_store(desk, store):  # noqa: F811
    store.slow.set()
    first = desk.make(10)
    desk.uploads.offer(first)
    until(lambda: desk.uploads._busy)
    for step in (20, 30, 40):
        desk.make(step)
        desk.shelf.prune()
    assert sorted(one.name.step for one in desk.shelf.all()) == [10, 30, 40]
    store.slow.clear()
    desk.sent()
    desk.shelf.prune()
    assert sorted(one.name.step for one in desk.shelf.all()) == [30, 40]


def test_an_attempt_that_was_overtaken_declares_nothing(desk, store):  # noqa: F811
    desk.uploads.offer(desk.make(10))
    desk.sent()
    desk.current = False
    desk.uploads.offer(desk.make(20))
    desk.sent()
    assert [one.name.step for one in desk.stored.candidates()] == [10]
    assert desk.kinds()[-1] == "checkpoint_fenced"


def test_an_attempt_that_is_overtaken_while_it_sends_declares_nothing(desk, store):  # noqa: F811
    store.slow.set()
    desk.uploads.offer(desk.make(10))
    until(lambda: desk.uploads._busy)
    desk.current = False
    store.slow.clear()
    desk.sent()
    assert desk.stored.candidates() == []
    assert "checkpoint_fenced" in desk.kinds()


def test_health_is_told_once_the_checkpoint_is_there_and_the_newest_healthy_one_is_kept(desk, store):  # noqa: F811
    first = desk.make(10)
    desk.uploads.mark_healthy(first)
    desk.uploads.offer(first)
    desk.sent()
    assert desk.stored.candidates()[0].healthy
    for step in (20, 30, 40, 50):
        desk.uploads.offer(desk.make(step))
        desk.sent()
    assert [one.name.step for one in desk.stored.candidates()] == [10, 30, 40, 50]


def test_a_checkpoint_that_is_given_up_is_gone_even_if_it_was_waiting(desk, store):  # noqa: F811
    first, second = desk.make(10), desk.make(20)
    desk.uploads.offer(first)
    desk.sent()
    store.away.set()
    desk.uploads.offer(second)
    until(lambda: store.refused)
    desk.uploads.forget([first, second])
    store.away.clear()
    desk.sent()
    assert desk.stored.candidates() == []


def test_two_machines_make_one_checkpoint_and_the_first_declares_it_when_both_are_there(tmp_path, store):  # noqa: F811
    desks = [Desk(tmp_path, store, node=node, num_nodes=2) for node in (0, 1)]
    desks[0].uploads.offer(desks[0].make(10))
    until(lambda: store.head(f"runs/this/checkpoints/{CheckpointName(Life(1, 0), 10)}/node-000.json"))
    assert desks[0].stored.candidates() == [], "half of it is there"
    name = desks[1].make(10)
    desks[1].uploads.offer(name)
    for one in desks:
        one.sent()
    files = desks[0].stored.read(name).files
    assert sum("optim_states" in entry.path for entry in files) == 4
    own = files_for(files, [2, 3])
    assert {entry.path for entry in files} - {entry.path for entry in own} == {
        f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)
    }


def test_parts_of_dead_attempts_go_and_those_of_this_one_stay(desk, store):  # noqa: F811
    dead, own = CheckpointName(Life(1, 0), 10), CheckpointName(Life(2, 0), 30)
    for name in (dead, own):
        store.create(f"runs/this/checkpoints/{name}/node-001.json", b"{}")
    desk.uploads.offer(desk.make(20, attempt=2))
    desk.sent()
    left = {key.key.split("/")[3] for key in store.list("runs/this/checkpoints/")}
    assert left == {str(own), str(CheckpointName(Life(2, 0), 20))}


def test_parts_older_than_the_newest_whole_checkpoint_go(desk, store):  # noqa: F811
    older, newer = (CheckpointName(Life(1, 0), step) for step in (10, 30))
    for name in (older, newer):
        store.create(f"runs/this/checkpoints/{name}/node-001.json", b"{}")
    whole = desk.make(20)
    desk.uploads.offer(whole)
    desk.sent()
    left = {key.key.split("/")[3] for key in store.list("runs/this/checkpoints/")}
    assert left == {str(whole), str(newer)}, "nobody completes the older one any more, the newer one is on its way"


def test_health_that_a_killed_process_could_not_tell_is_told_by_the_next(tmp_path, desk, store):  # noqa: F811
    first, second, unsent = desk.make(10), desk.make(20), desk.make(30)
    for name in (first, second):
        desk.uploads.offer(name)
        desk.sent()
    for name in (first, unsent):
        desk.shelf.mark_healthy(name)  # and killed before the store was told
    again = Desk(tmp_path, store)
    store.away.set()
    again.uploads.catch_up()
    until(lambda: store.refused)
    store.away.clear()
    again.sent()
    assert [(one.name, one.healthy) for one in again.stored.candidates()] == [(first, True), (second, False)]
    assert to_rewind(again.stored.candidates(), before=15) is not None


def test_every_start_of_a_training_tells_the_store_what_its_disk_knows(tmp_path, desk, store):  # noqa: F811
    name = desk.make(10)
    desk.uploads.offer(name)
    desk.sent()
    desk.shelf.mark_healthy(name)
    spec = JobSpec(name="again", kind="train", payload={})
    context = JobContext(spec, tmp_path / "job", store=store)
    shutil.copytree(desk.shelf.folder, context.work / "checkpoints")
    plan = SimpleNamespace(fingerprint=PLAN, run_prefix="runs/this")
    keeper = Keeper(context, plan, Ranks(0, 1, "cpu", lambda: False), say=context.event, settle=lambda: None)
    keeper.begin()
    keeper.finish()
    assert desk.stored.candidates()[0].healthy


def test_a_fetch_that_was_cut_goes_on_and_wrong_bytes_are_refused(desk, store, tmp_path):  # noqa: F811
    name = desk.make(10)
    desk.uploads.offer(name)
    desk.sent()
    files = desk.stored.read(name).files
    target = tmp_path / "back"
    with pytest.raises(InterruptedError):
        desk.stored.fetch(files[:1], target, step=_interrupt)
    kept = (target / files[0].path).stat().st_ino
    desk.stored.fetch(files, target)
    assert (target / files[0].path).stat().st_ino == kept, "what was there already stays"
    assert all(
        (target / entry.path).read_bytes() == (desk.shelf.path(name) / entry.path).read_bytes() for entry in files
    )
    broken = store.folder / blob_key(files[0].digest)
    broken.write_bytes(b"x" * files[0].size)
    with pytest.raises(IntegrityError):
        desk.stored.fetch(files[:1], tmp_path / "again")


def _interrupt() -> None:
    raise InterruptedError


def test_a_checkpoint_with_changed_or_missing_bytes_is_not_believed(desk):  # noqa: F811
    name = desk.make(10)
    shelved = desk.shelf.get(name)
    assert shelved is not None
    assert shelved.damaged(shelved.files) == []
    path = shelved.folder / "mp_rank_00_model_states.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (shelved.folder / "base.pt").unlink()
    assert sorted(shelved.damaged(shelved.files)) == ["base.pt", path.name]


def test_clearing_leaves_no_record_and_collection_may_take_the_files(desk, store):  # noqa: F811
    desk.uploads.offer(desk.make(10))
    desk.sent()
    desk.stored.clear()
    assert list(store.list("runs/this/checkpoints/")) == []
    with pytest.raises(ObjectNotFoundError):
        desk.stored.read(CheckpointName(Life(1, 0), 10))


def test_what_a_killed_process_had_not_sent_is_sent_by_the_next(tmp_path, desk, store):  # noqa: F811
    name = desk.make(10)
    desk.uploads.offer(name)
    desk.sent()
    before = {info.key for info in store.list("runs/")}
    again = Desk(tmp_path, store)
    again.uploads.offer(name)
    again.uploads.mark_healthy(name)
    again.sent()
    assert {info.key for info in store.list("runs/")} - before == {f"runs/this/checkpoints/{name}/healthy.json"}
    assert "checkpoint_upload_failed" not in again.kinds()


def test_health_is_told_of_a_checkpoint_that_came_from_the_store(tmp_path, desk, store):  # noqa: F811
    name = desk.make(10)
    desk.uploads.offer(name)
    desk.sent()
    elsewhere = Desk(tmp_path / "elsewhere", store)
    elsewhere.uploads.assume_sent(name)
    elsewhere.uploads.mark_healthy(name)
    elsewhere.sent()
    assert desk.stored.candidates()[0].healthy


# --- sealing ---


def sealing(desk, name, ranks=(0, 1)):  # noqa: F811
    ended = []
    state = {"plan": PLAN, "world_size": 2, "num_nodes": 1, "calm": True}
    work = Sealing(
        desk.shelf,
        name,
        ranks=ranks,
        state=state,
        sealed=lambda one: ended.append((one, "")),
        failed=lambda one, problem: ended.append((one, problem)),
    )
    return work, ended


def test_a_checkpoint_appears_when_all_ranks_have_written_and_not_before(desk):  # noqa: F811
    name = CheckpointName(Life(1, 0), 10)
    work, ended = sealing(desk, name)
    partial = desk.shelf.partial(name)
    leave_part(partial, 0, [], "")
    until(lambda: partial.exists())
    assert desk.shelf.all() == []
    (partial / "one.pt").write_text("1")
    leave_part(partial, 1, [FileEntry(path="one.pt", size=1, digest="0" * 64)], "")
    work.settle()
    assert ended == [(name, "")]
    assert [one.name for one in desk.shelf.all()] == [name]


@pytest.mark.parametrize("silent", [False, True], ids=["that says so", "that cannot even say so"])
def test_a_rank_with_a_full_disk_costs_this_checkpoint_only(desk, silent):  # noqa: F811
    before = desk.make(5)
    name = CheckpointName(Life(1, 0), 10)
    work, ended = sealing(desk, name)
    leave_part(desk.shelf.partial(name), 0, [], "")
    if not silent:
        leave_part(desk.shelf.partial(name), 1, [], "No space left on device")
    work.settle()
    assert ended[0][0] == name
    assert ("No space left" if not silent else "ranks [1]") in ended[0][1]
    assert [one.name for one in desk.shelf.all()] == [before]
    assert not desk.shelf.partial(name).exists()


def test_what_a_dead_process_left_is_tidied_away_and_whole_checkpoints_stay(desk):  # noqa: F811
    name = desk.make(10)
    desk.shelf.partial(CheckpointName(Life(1, 0), 20)).mkdir()
    other = desk.make(30)
    state = desk.shelf.path(other) / "trainer.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "plan": "0" * 64}))
    (desk.shelf.folder / "guardian.json").write_text("{}")
    desk.shelf.tidy()
    assert sorted(path.name for path in desk.shelf.folder.iterdir()) == ["guardian.json", str(name)]
