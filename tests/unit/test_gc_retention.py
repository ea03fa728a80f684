"""What a collection keeps and what it deletes, on a local store whose content is made to look old."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures_gc import NOTHING_KEPT, age, collect, commit, content, fill, is_whole, naming, nothing_else_names

from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.objects import blob_key, lfs_root_key
from deepseek_ops.core.records import canonical_json, digest_of
from deepseek_ops.data import DatasetRepository, StoreBlobs
from deepseek_ops.data.gc_history import RetentionPolicy
from deepseek_ops.data.gc_marks import DamagedVersionError
from deepseek_ops.data.gc_plan import plan_collection
from deepseek_ops.data.gc_sweep import TooEarlyError, discard_older, sweep
from deepseek_ops.data.gc_whole import VersionGoneError
from deepseek_ops.data.leases import pin

MONTH = RetentionPolicy(keep_days=30, keep_versions=2, grace_days=7, settle_days=0)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def versions(store: LocalStore, tmp_path: Path, count: int, *, days_between: float = 0) -> list[str]:
    """Commit ``count`` different versions, the last one now."""
    made = []
    for seed in range(count):
        age(store, days_between)
        made.append(commit(store, fill(tmp_path / f"v{seed}", seed)).version)
    return made


def test_heads_and_tags_stay_and_the_content_of_other_versions_goes(store: LocalStore, tmp_path: Path) -> None:
    first, second, third = versions(store, tmp_path, 3)
    DatasetRepository(store).tag("dataset-v1", first)
    plan, report = collect(store)
    assert (plan.kept_versions, plan.dropped_versions) == (2, 1)
    assert plan.dropped_examples == (second,)
    assert is_whole(store, first)
    assert is_whole(store, third)
    assert {kind: tally.objects for kind, tally in report.deleted.items()} == {
        "roots": 1, "trees": 1, "packs": 1, "objects": 1,
    }  # fmt: skip
    assert plan.num_bytes == sum(tally.bytes for tally in report.deleted.values()) > 1 << 20


def test_the_history_of_a_branch_stays_readable_when_content_is_dropped(store: LocalStore, tmp_path: Path) -> None:
    made = versions(store, tmp_path, 4)
    collect(store)
    repository = DatasetRepository(store)
    assert [entry.version for entry in repository.log("corpus")] == made[::-1]
    assert repository.load(made[0]).num_files == 6


def test_a_second_collection_finds_nothing(store: LocalStore, tmp_path: Path) -> None:
    versions(store, tmp_path, 3)
    collect(store)
    before = content(store)
    plan, report = collect(store)
    assert plan.num_objects == 0
    assert report.deleted == {}
    assert content(store) == before


def test_versions_stay_by_number_and_by_when_they_were_last_the_head(store: LocalStore, tmp_path: Path) -> None:
    made = versions(store, tmp_path, 5, days_between=20)  # 80, 60, 40, 20, 0 days old
    collect(store, MONTH)
    whole = [DatasetRepository(store).verify(version).problems == () for version in made[2:]]
    # The one of 40 days ago was the head until 20 days ago.
    assert whole == [True, True, True]
    for version in made[:2]:
        assert not store.head(f"trees/{json.loads(store.get(f'commits/{version}'))['tree']}")


def test_what_is_younger_than_the_grace_stays_whoever_names_it(store: LocalStore, tmp_path: Path) -> None:
    versions(store, tmp_path, 3)
    StoreBlobs(store).put(b"a set of files that only a running job knows")
    policy = MONTH.evolve(keep_days=0, keep_versions=1)
    plan, _ = collect(store, policy)
    assert plan.num_objects == 0
    assert plan.kinds["objects"].young.objects == 1
    age(store, 8)
    assert collect(store, policy)[1].deleted["objects"].objects > 0


def test_what_facts_name_stays_with_everything_that_it_lists(store: LocalStore, tmp_path: Path) -> None:
    blobs = StoreBlobs(store)
    files = blobs.put_folder(fill(tmp_path / "code", 1))
    listing = blobs.put(json.dumps(files.dump()).encode())
    version = commit(store, fill(tmp_path / "v1", 2)).version
    commit(store, fill(tmp_path / "v2", 3))
    stray = blobs.put(b"nobody")
    collect(store, names=naming(listing, f"dataset {version}"))
    for entry in files.files:
        blobs.verify(entry)
    assert is_whole(store, version)
    assert store.head(blob_key(stray)) is None


def test_results_of_runs_notes_of_git_lfs_and_pins_name_objects(store: LocalStore) -> None:
    blobs = StoreBlobs(store)
    result, pushed, held, stray = (blobs.put(text) for text in (b"result", b"pushed", b"held", b"stray"))
    body = {"model": {"files": [{"path": "w", "size": 6, "digest": result}]}}
    store.create("runs/1/result.json", canonical_json(body))
    store.create(lfs_root_key("team/model", pushed), b"{}")
    pin(store, holder="a run", digests=[held])
    collect(store)
    assert [store.head(blob_key(one)) is not None for one in (result, pushed, held, stray)] == [True, True, True, False]


def test_nothing_that_only_the_unasked_could_name_is_deleted(store: LocalStore, tmp_path: Path) -> None:
    made = versions(store, tmp_path, 3)
    stray = StoreBlobs(store).put(b"nobody")
    store.put_blob(f"packs/{digest_of(b'orphan')}", b"orphan")
    for asked in ({"asked_facts": True}, {"asked_git": True}, {}):
        names = nothing_else_names()
        names.asked_facts, names.asked_git = asked.get("asked_facts", False), asked.get("asked_git", False)
        plan, _ = collect(store, names=names)
        assert plan.dropped_versions == 0
        assert all(is_whole(store, version) for version in made)
        assert plan.kinds["objects"].unknown.objects == 1
    assert store.head(blob_key(stray)) is not None
    assert store.head(f"packs/{digest_of(b'orphan')}") is None, "a pack is named by pages only"


def test_commits_that_lost_a_race_go_and_their_winners_stay(store: LocalStore, tmp_path: Path) -> None:
    version = commit(store, fill(tmp_path / "v", 1)).version
    body = json.loads(store.get(f"commits/{version}"))
    loser = canonical_json({**body, "message": "was second"})
    store.put_blob(f"commits/{digest_of(loser)}", loser)
    collect(store)
    assert store.head(f"commits/{digest_of(loser)}") is None
    assert is_whole(store, version)


def test_where_two_branches_parted_stays_for_their_merge(store: LocalStore, tmp_path: Path) -> None:
    repository = DatasetRepository(store)
    folder = fill(tmp_path / "v", 1)
    parted = commit(store, folder).version
    repository.branch("corpus", "exp", "corpus")
    for number in range(3):
        (folder / f"main{number}.txt").write_text("m")
        commit(store, folder)
    other = fill(tmp_path / "w", 1)
    (other / "exp.txt").write_text("e")
    commit(store, other, branch="exp")
    plan, _ = collect(store)
    assert plan.dropped_versions == 2
    assert is_whole(store, parted)
    merged = repository.merge("corpus", "corpus@exp", author="a").version.version
    assert {"exp.txt", "main2.txt"} <= set(repository.paths(merged))
    assert is_whole(store, merged)


def test_a_dropped_version_cannot_be_tagged_branched_or_pinned(store: LocalStore, tmp_path: Path) -> None:
    old, _ = versions(store, tmp_path, 2)
    collect(store)
    repository = DatasetRepository(store)
    with pytest.raises(VersionGoneError, match="retention"):
        repository.tag("dataset-v0", old)
    with pytest.raises(VersionGoneError):
        repository.branch("corpus", "old", old)
    with pytest.raises(VersionGoneError):
        pin(store, old, holder="a run")
    assert repository.tags() == {}


def test_content_that_is_committed_again_after_it_was_dropped_is_whole(store: LocalStore, tmp_path: Path) -> None:
    versions(store, tmp_path, 2)
    collect(store)
    again = commit(store, tmp_path / "v0").version
    assert is_whole(store, again)
    collect(store)
    assert is_whole(store, again)


def test_a_pinned_version_stays_until_the_pin_is_released(store: LocalStore, tmp_path: Path) -> None:
    old, _ = versions(store, tmp_path, 2)
    held = pin(store, old, holder="a training")
    collect(store)
    assert is_whole(store, old)
    held.renew()
    held.release()
    assert collect(store)[0].dropped_examples == (old,)


def test_keeping_more_than_before_is_no_damage(store: LocalStore, tmp_path: Path) -> None:
    versions(store, tmp_path, 3)
    collect(store)
    plan, _ = collect(store, MONTH.evolve(grace_days=0))
    assert (plan.dropped_versions, len(plan.problems)) == (0, 2)


def test_damage_stops_a_collection(store: LocalStore, tmp_path: Path) -> None:
    version = commit(store, fill(tmp_path / "v", 1)).version
    StoreBlobs(store).put(b"stray")
    tree = json.loads(store.get(f"commits/{version}"))["tree"]
    page = next(info.key for info in store.list("trees/") if tree not in info.key)
    store.delete([page])
    with pytest.raises(DamagedVersionError, match="nothing is deleted"):
        plan_collection(store, NOTHING_KEPT, nothing_else_names)


def test_a_dry_run_writes_nothing(store: LocalStore, tmp_path: Path) -> None:
    versions(store, tmp_path, 3)
    before = {info.key for info in store.list("")}
    plan = plan_collection(store, NOTHING_KEPT, nothing_else_names)
    assert plan.num_objects > 0
    assert plan.run == ""
    assert {info.key for info in store.list("")} == before


def test_a_sweep_waits_for_the_second_interval(store: LocalStore, tmp_path: Path) -> None:
    versions(store, tmp_path, 2)
    policy = NOTHING_KEPT.evolve(settle_days=1)
    plan = plan_collection(store, policy, nothing_else_names, write=True)
    with pytest.raises(TooEarlyError, match="can be carried out in 86"):
        sweep(store, policy, plan.run, nothing_else_names)
    age(store, 1.1, prefix="gc/")
    assert sweep(store, policy, plan.run, nothing_else_names).deleted


def test_what_is_named_after_the_plan_is_spared_by_the_sweep(store: LocalStore, tmp_path: Path) -> None:
    old, _ = versions(store, tmp_path, 2)
    plan = plan_collection(store, NOTHING_KEPT, nothing_else_names, write=True)
    report = sweep(store, NOTHING_KEPT, plan.run, lambda: naming(old))
    assert report.deleted == {}
    assert report.spared == plan.num_objects
    assert is_whole(store, old)


def test_an_older_plan_is_discarded(store: LocalStore, tmp_path: Path) -> None:
    versions(store, tmp_path, 2)
    runs = [plan_collection(store, NOTHING_KEPT, nothing_else_names, write=True).run for _ in range(2)]
    newest = max(runs)
    assert discard_older(store, newest) == [min(runs)]
    assert sweep(store, NOTHING_KEPT, min(runs), nothing_else_names).deleted == {}
    assert sweep(store, NOTHING_KEPT, newest, nothing_else_names).deleted


def test_a_deleted_branch_keeps_what_was_its_head_lately(store: LocalStore, tmp_path: Path) -> None:
    repository = DatasetRepository(store)
    commit(store, fill(tmp_path / "m", 1))
    version = commit(store, fill(tmp_path / "x", 2), branch="exp").version
    repository.delete_branch("corpus", "exp")
    collect(store, MONTH.evolve(grace_days=0))
    assert is_whole(store, version)
    age(store, 31)
    collect(store, MONTH.evolve(grace_days=0))
    assert store.head(f"trees/{repository.load(version).tree}") is None


def test_a_pack_stays_with_its_last_file_and_the_rest_of_it_is_told(store: LocalStore, tmp_path: Path) -> None:
    folder = tmp_path / "v"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.bin").write_bytes(bytes([number]) * 100_000)
    commit(store, folder)
    for number in range(3):
        (folder / f"{number}.bin").unlink()
    version = commit(store, folder).version
    plan, _ = collect(store)
    assert is_whole(store, version)
    assert plan.sparse_packs.objects == 1
    assert 300_000 - 2 * 8192 < plan.wasted_bytes <= 300_000
