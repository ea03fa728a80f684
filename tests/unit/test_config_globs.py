"""Branch and path globs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.core.config import GitPushTrigger, matches_paths, matches_ref
from deepseek_ops.core.config.globs import check_glob


@pytest.mark.parametrize(
    ("glob", "text", "matches"),
    [
        ("main", "main", True),
        ("main", "maintenance", False),
        ("exp/*", "exp/first", True),
        ("exp/*", "exp/a/b", False),
        ("exp/**", "exp/a/b", True),
        ("exp/**", "exp", False),
        ("*", "main", True),
        ("*", "exp/first", False),
        ("**", "exp/first", True),
        ("**/tests/*", "tests/a.py", True),
        ("**/tests/*", "a/b/tests/a.py", True),
        ("**/tests/*", "mytests/a.py", False),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("a**/b", "ab", False),
        ("a**/b", "ax/y/b", True),
        ("docs/", "docs/a/b.md", True),
        ("docs/", "docs", False),
        ("*.py", "a.py", True),
        ("*.py", "src/a.py", False),
        ("**.py", "src/a.py", True),
        ("v?.[0-9]", "v1.2", True),
        ("v?.[!0-9]", "v1.2", False),
        ("a?b", "a/b", False),
        ("a[!x]b", "a/b", False),
        ("a[b-]c", "a-c", True),
        (r"a\*b", "a*b", True),
        (r"a\*b", "axb", False),
        ("a.b", "axb", False),
        ("a+(b)", "a+(b)", True),
    ],
)
def test_a_glob_matches_whole_names(glob, text, matches):
    assert matches_ref([glob], text) is matches


def test_the_last_pattern_that_matches_decides():
    globs = ["deepseek/**", "!deepseek/docs/**", "deepseek/docs/conf.py"]
    assert matches_ref(globs, "deepseek/model.py")
    assert not matches_ref(globs, "deepseek/docs/index.md")
    assert matches_ref(globs, "deepseek/docs/conf.py")


def test_a_list_that_begins_with_an_exclusion_starts_from_everything():
    assert matches_paths(["!docs/**"], ["src/a.py"])
    assert not matches_paths(["!docs/**"], ["docs/a.md"])


def test_no_patterns_let_in_any_path_but_no_branch():
    assert matches_paths([], ["a"])
    assert not matches_ref([], "main")


def test_one_wanted_path_among_many_is_enough_and_unknown_changes_count():
    assert matches_paths(["src/**"], ["README.md", "src/a.py"])
    assert not matches_paths(["src/**"], ["README.md"])
    assert matches_paths(["src/**"], [])


def test_a_trigger_wants_branch_and_path_together():
    trigger = GitPushTrigger(type="git-push", branches=("main", "exp/*"), paths=("src/**", "!**.md"))
    assert trigger.wants("exp/a", ["src/a.py"])
    assert not trigger.wants("exp/a", ["src/a.md"])
    assert not trigger.wants("dev", ["src/a.py"])


@pytest.mark.timeout(60)  # a backtracking matcher needs longer than the universe is old
def test_many_stars_cost_no_more_than_their_number():
    assert not matches_ref(["*a" * 60 + "b"], "a" * 400)


@pytest.mark.parametrize("glob", ["", "!", "/abs", "a[", "a\\", "a\nb"])
def test_what_is_no_glob_is_refused(glob):
    with pytest.raises(ValueError, match=r".+"):
        check_glob(glob)


names = st.lists(st.text("abc.", min_size=1, max_size=4), min_size=1, max_size=4).map("/".join)


@given(names)
def test_a_name_matches_itself_and_everything(name):
    assert matches_ref([name], name)
    assert matches_ref(["**"], name)
    assert matches_ref(["*"], name) is ("/" not in name)
    assert not matches_ref(["**", "!" + name], name)
