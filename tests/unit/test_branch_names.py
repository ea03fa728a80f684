"""Which texts name a branch: exactly those that Git takes."""

from __future__ import annotations

import subprocess

import pytest

from deepseek_ops.pipeline.branches import BranchNameError, branch_name

GOOD = ["main", "exp/x", "a@b", "v1.0", "refs", "tags/x", "é", "a{b}", "a-", "heads/refs/x"]
BAD = [
    *("bad..name", "a b", "x.lock", "a.lock/b", "a/.b", ".a", "-x", "a//b", "x/", "/x", "x.", "a@{1}", "", "HEAD"),
    *("a\x7f", "a\tb", "a~1", "a^", "a:b", "a?", "a*", "a[b", "a\\b"),
]


@pytest.mark.parametrize("name", [*GOOD, *BAD], ids=ascii)
def test_a_name_is_taken_where_git_takes_it(name: str) -> None:
    by_git = subprocess.run(["git", "check-ref-format", "--branch", name], capture_output=True, check=False)
    assert (by_git.returncode == 0) == (name in GOOD)
    if name in GOOD:
        assert branch_name(name) == branch_name(f"refs/heads/{name}") == name
    else:
        with pytest.raises(BranchNameError) as caught:
            branch_name(name)
        assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["refs/tags/zz", "refs/notes/x", "refs/heads/", "refs/x", "@"])
def test_a_name_of_something_else_is_no_branch(name: str) -> None:
    with pytest.raises(BranchNameError):
        branch_name(name)
