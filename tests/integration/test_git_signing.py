"""Signed records: what is written with a key is verified by git itself, and a retry writes the very same objects."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from fixtures_git import Developer, file_developer, run_git  # noqa: F401

from deepseek_ops.adapters.git import SigningError, open_git
from deepseek_ops.core.ports import NewCommit, NewTag


@pytest.fixture
def key(tmp_path: Path) -> Path:
    place = tmp_path / "signing"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(place)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return place


def verify(developer: Developer, key: Path, *arguments: str) -> None:
    signers = key.parent / "signers"
    signers.write_text(f"deepseek-ops@localhost {key.with_suffix('.pub').read_text()}")
    settings = ("-c", "gpg.format=ssh", "-c", f"gpg.ssh.allowedSignersFile={signers}")
    run_git(developer.bare, *settings, *arguments)


@pytest.mark.parametrize("given", ["path", "text"])
def test_commits_tags_and_merges_are_signed(file_developer: Developer, key: Path, tmp_path: Path, given: str) -> None:  # noqa: F811
    parent = file_developer.push_commit({"a": "1"})
    url = file_developer.remote.url
    signer = open_git(url, signing_key=str(key) if given == "path" else key.read_text(), cache=tmp_path / "signed")
    commit = NewCommit("exp/x", parent, "Train m on d\n\nRun-Id: 1", {"r": b"1"})
    tags = [NewTag("exp-1", "", "Train m on d\n\nRun-Id: 1")]
    ids = signer.publish(commit=commit, tags=tags)
    assert signer.publish(commit=commit, tags=tags) == ids
    verify(file_developer, key, "verify-tag", "exp-1")
    verify(file_developer, key, "verify-commit", ids["exp/x"])
    merged = signer.merge(file_developer.push_commit({"b": "1"}), ids["exp/x"])
    main = signer.resolve("main").commit
    made = signer.publish_merge("promote/x", merged, parents=(main, ids["exp/x"]), files={}, message="Promote")
    verify(file_developer, key, "verify-commit", made)
    assert run_git(file_developer.bare, "fsck", "--strict", "--no-dangling") == ""
    assert run_git(file_developer.bare, "log", "-1", "--format=%B", "exp/x") == "Train m on d\n\nRun-Id: 1"
    with pytest.raises(AssertionError, match="verify-commit"):
        verify(file_developer, key, "verify-commit", parent)
    unsigned = file_developer.remote.publish(tags=[NewTag("exp-1", ids["exp/x"], "Train m on d\n\nRun-Id: 1")])
    assert unsigned["exp-1"] == ids["exp-1"], "the same statement, signed before: a tag never moves"


def test_a_key_that_cannot_sign_is_named_and_never_shown(file_developer: Developer, tmp_path: Path) -> None:  # noqa: F811
    parent = file_developer.push_commit({"a": "1"})
    broken = "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----\n"
    signer = open_git(file_developer.remote.url, signing_key=broken, cache=tmp_path / "signed")
    with pytest.raises(SigningError, match="does not sign") as caught:
        signer.publish(tags=[NewTag("v1", parent, "m")])
    assert "c2VjcmV0" not in str(caught.value)
    assert file_developer.remote.refs() == {"refs/heads/main": parent}
