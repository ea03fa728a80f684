"""Three-way merges of trees: against a plain dictionary merge, and case by case."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek_ops.core.errors import ObjectExistsError, ObjectNotFoundError
from deepseek_ops.core.ports import ObjectInfo
from deepseek_ops.data import pages as pages_module
from deepseek_ops.data.committing import commit_body, put_commit
from deepseek_ops.data.history import History
from deepseek_ops.data.merge import MergePlan, Preference, merged_splits, plan_merge
from deepseek_ops.data.packs import Stored
from deepseek_ops.data.pages import LOOSE, Entry
from deepseek_ops.data.splice import splice
from deepseek_ops.data.trees import Tree


class Memory:
    """An object store in a dictionary."""

    uri = "memory://"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.gets: list[str] = []

    def create(self, key: str, data: bytes) -> None:
        if key in self.objects:
            raise ObjectExistsError(key)
        self.objects[key] = data

    def put_blob(self, key: str, source: bytes | Path) -> None:
        assert isinstance(source, bytes)
        self.objects[key] = source

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        self.gets.append(key)
        if key not in self.objects:
            raise ObjectNotFoundError(key)
        return self.objects[key][start : None if length is None else start + length]

    def download(self, key: str, target: Path) -> None:
        target.write_bytes(self.get(key))

    def head(self, key: str) -> ObjectInfo | None:
        return ObjectInfo(key, len(self.objects[key])) if key in self.objects else None

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > start_after)
        return iter([ObjectInfo(key, len(self.objects[key])) for key in keys[:limit]])

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)


def stored(path: str, content: str) -> Stored:
    """Content such as ``x`` or ``x@train`` with a split."""
    text, _, split = content.partition("@")
    return Stored(Entry(path, len(text), hashlib.sha256(text.encode()).digest(), split), LOOSE)


def tree_of(store: Memory, files: Mapping[str, str]) -> Tree:
    return splice(store, Tree.empty(store), {path: stored(path, text) for path, text in files.items()})


def entries(tree: Tree) -> dict[str, Entry]:
    return {entry.path: entry for page in tree.read(tree.pages) for entry in page.entries}


def plan(base: Mapping[str, str] | None, ours: Mapping[str, str], theirs: Mapping[str, str], *sides: str) -> MergePlan:
    store = Memory()
    bases = [] if base is None else [tree_of(store, base)]
    preferences = [Preference(*side.split(" ", 1)) for side in sides]  # type: ignore[arg-type]
    trees = bases or [Tree.empty(store)]
    return plan_merge(trees, tree_of(store, ours), tree_of(store, theirs), preferences=preferences)


FILES = st.dictionaries(st.sampled_from([f"d{n % 5}/{n:03}" for n in range(60)]), st.sampled_from("abc"), max_size=40)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_module, "CUT_MASK", 3)


@pytest.mark.usefixtures("small_pages")
class TestSplice:
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(old=FILES, new=FILES)
    def test_the_result_is_the_tree_of_the_same_files(self, old: dict[str, str], new: dict[str, str]) -> None:
        store = Memory()
        edits = {path: stored(path, text) for path, text in new.items() if old.get(path) != text}
        changed = splice(store, tree_of(store, old), {**edits, **dict.fromkeys(old.keys() - new.keys())})
        assert changed.digest == tree_of(Memory(), new).digest or not new
        assert entries(Tree.load(store, changed.digest) if new else changed) == entries(tree_of(store, new))

    def test_full_pages_are_cut_where_a_folder_is_cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pages_module, "MAX_ENTRIES", 4)
        monkeypatch.setattr(pages_module, "CUT_MASK", 31)
        old = {f"{n:03}": "a" for n in range(0, 200, 2)}
        store = Memory()
        changed = splice(store, tree_of(store, old), {"001": stored("001", "b"), "100": None})
        new = {**old, "001": "b"}
        del new["100"]
        assert changed.digest == tree_of(Memory(), new).digest

    def test_pages_without_a_change_are_not_read(self) -> None:
        store = Memory()
        tree = tree_of(store, {f"{n:04}": "a" for n in range(400)})
        store.gets.clear()
        splice(store, tree, {"0200": stored("0200", "b")})
        assert 1 <= len(store.gets) <= 2 < len(tree.pages)


@pytest.mark.usefixtures("small_pages")
class TestMerge:
    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(base=FILES, ours=FILES, theirs=FILES)
    def test_it_is_the_merge_of_three_dictionaries(
        self, base: dict[str, str], ours: dict[str, str], theirs: dict[str, str]
    ) -> None:
        store = Memory()
        trees = [tree_of(store, files) for files in (base, ours, theirs)]
        made = plan_merge(trees[:1], trees[1], trees[2])
        expected, conflicts = {}, set()
        for path in {*base, *ours, *theirs}:
            b, o, t = base.get(path), ours.get(path), theirs.get(path)
            if o != t and b not in (o, t):
                conflicts.add(path)
            elif (value := t if o == b else o) is not None:
                expected[path] = value
        assert {conflict.path for conflict in made.conflicts} == conflicts
        if not conflicts:
            merged = splice(store, trees[1], made.edits)
            assert entries(merged) == entries(tree_of(store, expected))

    def test_only_pages_that_differ_are_read(self) -> None:
        store = Memory()
        files = {f"{n:04}": "a" for n in range(1000)}
        trees = [tree_of(store, files), tree_of(store, {**files, "0100": "b"}), tree_of(store, {**files, "0900": "c"})]
        store.gets.clear()
        made = plan_merge(trees[:1], trees[1], trees[2])
        assert list(made.edits) == ["0900"]
        assert len(store.gets) == 6, "two pages of each tree"

    @pytest.mark.parametrize(
        ("base", "ours", "theirs", "kind"),
        [
            ({}, {"a": "1"}, {"a": "2"}, "both added"),
            ({"a": "0"}, {"a": "1"}, {"a": "2"}, "both modified"),
            ({"a": "0"}, {}, {"a": "2"}, "deleted by us"),
            ({"a": "0"}, {"a": "1"}, {}, "deleted by them"),
            ({"a": "0"}, {"a": "0@train"}, {"a": "0@test"}, "split"),
            ({"a": "0"}, {"a": "0@train"}, {"a": "1"}, "both modified"),
            ({}, {"a": "1"}, {"a/b": "2"}, "file and folder"),
            ({}, {"a/b/c": "1"}, {"a": "2"}, "file and folder"),
        ],
    )
    def test_what_both_changed_is_a_conflict(
        self, base: dict[str, str], ours: dict[str, str], theirs: dict[str, str], kind: str
    ) -> None:
        (conflict,) = plan(base, ours, theirs).conflicts
        assert (conflict.path, conflict.kind) == ("a", kind)
        assert conflict.ours == (
            hashlib.sha256(ours["a"].partition("@")[0].encode()).hexdigest() if "a" in ours else None
        )

    def test_what_both_changed_alike_is_none(self) -> None:
        made = plan({"a": "0", "b": "0"}, {"a": "1"}, {"a": "1"})
        assert (made.conflicts, made.edits, made.additive) == ((), {}, False)

    def test_the_first_glob_that_matches_decides(self) -> None:
        ours, theirs = {"x/1": "o", "x/2": "o", "y": "o"}, {"x/1": "t", "x/2": "t", "y": "t"}
        made = plan({}, ours, theirs, "ours x/2", "theirs x/*", "ours *")
        assert list(made.edits) == ["x/1"]
        assert [conflict.path for conflict in made.resolved] == ["x/1", "x/2", "y"]
        assert not made.additive

    @pytest.mark.parametrize(("side", "left"), [("ours", {"a"}), ("theirs", {"a/b", "a/c"})])
    def test_a_side_settles_a_file_in_the_way_of_a_folder(self, side: str, left: set[str]) -> None:
        store = Memory()
        ours, theirs = tree_of(store, {"a": "1"}), tree_of(store, {"a/b": "2", "a/c": "2"})
        made = plan_merge([Tree.empty(store)], ours, theirs, preferences=[Preference(side, "*")])  # type: ignore[arg-type]
        assert entries(splice(store, ours, made.edits)).keys() == left

    def test_after_a_criss_cross_only_what_all_bases_agree_on_is_unchanged(self) -> None:
        store = Memory()
        bases = [tree_of(store, {"a": "1", "b": "0"}), tree_of(store, {"a": "2", "b": "0"})]
        made = plan_merge(bases, tree_of(store, {"a": "1", "b": "0"}), tree_of(store, {"a": "2", "b": "5"}))
        assert [conflict.path for conflict in made.conflicts] == ["a"]
        assert list(made.edits) == ["b"]

    def test_records_add_up_only_where_that_is_known(self) -> None:
        counts = {"base": {"train": 10}, "ours": {"train": 12}, "theirs": {"train": 15, "test": 1}}
        assert merged_splits(*counts.values(), additive=True) == {"train": 17, "test": 1}
        assert merged_splits(*counts.values(), additive=False) == {}


class TestHistory:
    def graph(self, store: Memory, **parents: str) -> dict[str, str]:
        tree = tree_of(store, {"a": "1"})
        made: dict[str, str] = {}
        for name, names in parents.items():
            body = commit_body(tree, name="corpus", message=name, author="me")
            made[name] = put_commit(store, body, [made[parent] for parent in names]).version
        return made

    def test_bases_of_common_shapes(self) -> None:
        store = Memory()
        made = self.graph(store, r="", a="r", b="a", c="a", d="b", m="bc", n="cb", p="m", q="n", x="", y="x")
        history, of = History(store), {version: name for name, version in made.items()}

        def bases(ours: str, theirs: str) -> str:
            return "".join(sorted(of[base] for base in history.merge_bases(made[ours], made[theirs])))

        assert bases("d", "c") == "a"
        assert bases("d", "b") == "b"
        assert bases("b", "d") == "b"
        assert bases("d", "d") == "d"
        assert bases("p", "q") == "bc", "a criss-cross"
        assert bases("d", "y") == ""
        assert bases("d", "p") == "b"

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.lists(st.integers(0, 30), max_size=2), min_size=2, max_size=25))
    def test_bases_are_the_common_ancestors_behind_no_other(self, shape: list[list[int]]) -> None:
        store, made, ancestors = Memory(), [], []
        tree = tree_of(store, {"a": "1"})
        for number, parents in enumerate(shape):
            known = sorted({parent % number for parent in parents}) if number else []
            body = commit_body(tree, name="corpus", message=str(number), author="me")
            made.append(put_commit(store, body, [made[parent] for parent in known]).version)
            ancestors.append({number}.union(*(ancestors[parent] for parent in known)))
        common = ancestors[-1] & ancestors[-2]
        best = {one for one in common if not any(one in ancestors[other] for other in common - {one})}
        assert set(History(store).merge_bases(made[-1], made[-2])) == {made[one] for one in best}

    def test_looking_for_a_base_reads_only_what_came_after_it(self) -> None:
        store = Memory()
        names = [chr(ord("a") + n) for n in range(20)]
        made = self.graph(store, **{name: names[n - 1] if n else "" for n, name in enumerate(names)}, Z="s")
        store.gets.clear()
        assert History(store).merge_bases(made["t"], made["Z"]) == [made["s"]]
        assert len(store.gets) <= 4
