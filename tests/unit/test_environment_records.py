"""What a job ran with: read from the interpreter, stored once, compared, and held against the lock."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

import deepseek_ops
from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.environments import ResolvedEnvironment, ResolvedPackage, canonical_name
from deepseek_ops.data import StoreBlobs
from deepseek_ops.jobs.environment import resolved_environment
from deepseek_ops.pipeline.environment import EnvironmentMismatchError
from deepseek_ops.pipeline.environment_records import (
    check_drift,
    environment_diff,
    environments_of_run,
    link_environment,
    record_environment,
    said_by,
)
from deepseek_ops.pipeline.environment_requirements import parse_requirements


def resolved(python="CPython 3.11.9", hardware=None, **versions):
    packages = {name: ResolvedPackage(version=version) for name, version in versions.items()}
    return ResolvedEnvironment(packages=packages, python=python, platform="linux", hardware=hardware or {})


def event(environment, **more):
    return {"kind": "environment", "time": "now", "attempt": 1, "rank": 0, **environment.body(), **more}


@pytest.fixture
def places(tmp_path):
    return StoreBlobs(LocalStore(tmp_path / "store")), open_facts(f"sqlite:///{tmp_path / 'facts.db'}")


def test_this_interpreter_is_read_as_importlib_reads_it():
    found = resolved_environment().packages
    # Of a package that lies on the path twice, the first one is imported.
    known = {canonical_name(one.name): metadata.version(one.name) for one in metadata.distributions()}
    assert {name: one.version for name, one in found.items() if name in known} == {
        name: version for name, version in known.items() if name in found
    }
    assert set(known) <= set(found)
    assert found["deepseek-ops"].version == deepseek_ops.__version__


def test_a_package_from_a_repository_is_recorded_with_its_commit_and_no_password(tmp_path, monkeypatch):
    folder = tmp_path / "fetched-1.0.dist-info"
    folder.mkdir()
    source = {"url": "https://me:hush@h/r", "vcs_info": {"vcs": "git", "commit_id": "c" * 40}}
    (folder / "direct_url.json").write_text(json.dumps(source))
    monkeypatch.syspath_prepend(tmp_path)
    assert resolved_environment().packages["fetched"].source == f"https://h/r@{'c' * 40}"


def test_the_newest_attempt_counts_and_a_run_that_reuses_a_result_has_its_environment(places):
    blobs, facts = places
    old, new = resolved(a="1"), resolved(a="2")
    for _twice in range(2):
        assert record_environment(blobs, facts, [event(old), {"kind": "metric"}], job="j", run="r1") == old
    assert record_environment(blobs, facts, [event(old), event(new)], job="j", run="r1") == new
    assert record_environment(blobs, facts, [{"kind": "started"}], job="other", run="r1") is None
    link_environment(facts, job="j", run="r2")
    link_environment(facts, job="never-ran", run="r2")
    assert environments_of_run(blobs, facts, "r1") == environments_of_run(blobs, facts, "r2") == {"j": new}
    assert said_by([event(new, python=3)]) is None


def test_a_difference_names_what_changed_came_and_went():
    before = resolved(a="1", b="1", c="1", hardware={"gpu": "A100"})
    after = resolved(a="2", b="1", d="1", python="CPython 3.12.1", hardware={"gpu": "H100", "driver": "nvidia 580"})
    found = environment_diff(before, after)
    assert found.lines() == [
        "~ driver (none) -> nvidia 580",
        "~ gpu A100 -> H100",
        "~ python CPython 3.11.9 -> CPython 3.12.1",
        "~ a 1 -> 2",
        "+ d 1",
        "- c 1",
    ]
    assert not environment_diff(before, before)


def test_a_job_that_ran_with_other_versions_than_locked_fails_or_warns_as_configured():
    lock = parse_requirements("a==1\nb==1 ; os_name == 'nt'\nc==2.13.0\n", file="requirements.txt")
    assert check_drift(lock, resolved(a="1", c="2.13.0+cpu"), policy="error") == ()
    assert check_drift(lock, resolved(a="2"), policy="warn") == ("a==1, ran with 2", "c==2.13.0 was not installed")
    with pytest.raises(EnvironmentMismatchError, match=r"requirements\.txt: a==1, ran with 2"):
        check_drift(lock, resolved(a="2", c="2.13.0"), policy="error")
    assert check_drift(None, resolved(), policy="error") == ()
