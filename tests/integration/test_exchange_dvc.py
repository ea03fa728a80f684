"""DVC itself pulls what we export and we take in what it pushed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import fixtures_datasets
import fixtures_exchange
import pytest
from fixtures_datasets import CountingStore, commit, contents, fill
from typer.testing import CliRunner

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.cli.data import data_app
from deepseek_ops.core.errors import ConfigError, DeepSeekOpsError, IntegrityError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.data import DatasetRepository
from deepseek_ops.data.exchange import (
    DvcObjectMissingError,
    DvcObjects,
    DvcRevision,
    DvcSource,
    Origin,
    RefusedMemberError,
    export_dvc,
    import_dvc,
    import_dvc_history,
    revisions_of,
    split_by_name,
)
from deepseek_ops.data.exchange.dvc_files import object_key, read_dvc_file
from deepseek_ops.embedded.seaweedfs import SeaweedServer

folder = fixtures_datasets.folder
local = fixtures_datasets.local
s3_server = fixtures_datasets.s3_server
s3_store = fixtures_datasets.s3_store
s3_uri = fixtures_datasets.s3_uri
store = fixtures_datasets.store
dvc = fixtures_exchange.dvc

Dvc = Callable[..., str]


def exported(store: ObjectStore, version: str, remote: ObjectStore, **options: object):
    tree = DatasetRepository(store).tree(version)
    return export_dvc(store, tree, remote, path="corpus", dataset="corpus", version=version, **options)  # type: ignore[arg-type]


def taken(store: ObjectStore, remote: ObjectStore, text: str, *, name: str = "back", **rules: object):
    source = DvcSource(DvcObjects([remote]), "corpus.dvc", **rules)  # type: ignore[arg-type]
    return import_dvc(DatasetRepository.open(store), source, text, Origin(name, "from DVC", "me"))


@pytest.fixture
def remote(tmp_path: Path) -> CountingStore:
    return CountingStore(open_store(str(tmp_path / "remote")))


def new_project(dvc: Dvc, folder: Path, remote: str) -> None:
    folder.mkdir()
    dvc(folder, "init", "-q", "-b", "main", tool="git")
    dvc(folder, "init", "-q")
    dvc(folder, "remote", "add", "-q", "-d", "ours", remote)


@pytest.mark.slow
def test_dvc_pulls_what_we_export(
    dvc: Dvc,
    store: CountingStore,
    folder: Path,
    tmp_path: Path,
) -> None:
    version = commit(store, folder)
    remote = open_store(str(tmp_path / "remote"))
    done = exported(store, version.version, remote)
    project = tmp_path / "project"
    new_project(dvc, project, str(tmp_path / "remote"))
    (project / "corpus.dvc").write_text(done.text)
    dvc(project, "pull", "-q")
    assert contents(project / "corpus") == contents(folder)
    assert "in sync" in dvc(project, "status", "-c")
    assert "up to date" in dvc(project, "status")
    dvc(project, "add", "-q", "corpus")
    assert f"{done.md5}.dir" in (project / "corpus.dvc").read_text(), "DVC gives the folder the digest we gave it"


@pytest.mark.slow
def test_dvc_pulls_from_s3_what_the_server_copied_itself(
    dvc: Dvc,
    s3_server: SeaweedServer,
    s3_uri: str,
    s3_store: ObjectStore,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = commit(s3_store, folder)
    for key, value in s3_server.credentials.items():
        monkeypatch.setenv(key, value)
    target = f"{s3_uri}-dvc/remote"
    arguments = ["export", version.version, target, "--format", "dvc", "--store", s3_uri]
    result = CliRunner().invoke(data_app, [*arguments, "--dvc-file", str(tmp_path / "corpus.dvc")])
    assert result.exit_code == 0, result.output
    done = json.loads(result.output)
    assert done["num_copied"] == 1, "the one large file never left the server"
    project = tmp_path / "project"
    new_project(dvc, project, target)
    dvc(project, "remote", "modify", "ours", "endpointurl", s3_server.credentials["AWS_ENDPOINT_URL"])
    (project / "corpus.dvc").write_text((tmp_path / "corpus.dvc").read_text())
    dvc(project, "pull", "-q", env=dict(s3_server.credentials))
    assert contents(project / "corpus") == contents(folder)


@pytest.mark.slow
def test_a_history_that_dvc_made_becomes_versions(
    dvc: Dvc,
    local: CountingStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = tmp_path / "project"
    new_project(dvc, project, str(tmp_path / "remote"))
    states = []
    for number in range(3):
        fill(project / "corpus", files=10 + number, seed=1, large=number > 0)
        (project / "corpus" / "latest.txt").write_text(str(number))
        dvc(project, "add", "-q", "corpus")
        dvc(project, "add", ".", tool="git")
        dvc(project, "commit", "-q", "-m", f"state {number}", tool="git")
        states.append(contents(project / "corpus"))
    dvc(project, "push", "-q", "--all-commits")

    def run(*extra: str) -> list[dict[str, object]]:
        arguments = ["import", str(project / "corpus.dvc"), "--name", "corpus", "--history", *extra]
        result = CliRunner().invoke(data_app, [*arguments, "--store", local.uri])
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    # The cache is in the project; without it the remote has everything, too.
    made = run("--remote", str(tmp_path / "remote"))
    repository = DatasetRepository(local)
    for version, state in zip(made, states, strict=True):
        assert {path: repository.read_file(str(version["version"]), path) for path in state} == state
    assert [entry.message for entry in repository.log("corpus")] == ["state 2", "state 1", "state 0"]
    assert repository.log("corpus")[0].author == "Ada"
    commits = dvc(project, "log", "--format=%H", tool="git").split()
    lineage = repository.describe(str(made[-1]["version"]))["lineage"]
    assert lineage["imported"]["git"]["commit"] == commits[0]  # type: ignore[index,call-overload]
    assert run() == [], "a second call finds nothing new"
    # What DVC adds later goes on from there, read from the project's own cache.
    (project / "corpus" / "latest.txt").write_text("3")
    dvc(project, "add", "-q", "corpus")
    dvc(project, "commit", "-q", "-a", "-m", "state 3", tool="git")
    (last,) = run()
    assert repository.read_file(str(last["version"]), "latest.txt") == b"3"


def test_a_second_export_reads_and_sends_only_what_changed(
    local: CountingStore,
    folder: Path,
    remote: CountingStore,
) -> None:
    first = commit(local, folder)
    done = exported(local, first.version, remote)
    distinct = len({hashlib.sha256(data).digest() for data in contents(folder).values()})
    assert (done.num_files, done.num_sent) == (first.num_files, distinct)
    local.gets.clear()
    again = exported(local, first.version, remote)
    assert (again.md5, again.num_sent, again.text) == (done.md5, 0, done.text)
    assert not [key for key in local.gets if key.startswith(("packs/", "objects/"))], "no file is read again"
    # What somebody removed from the remote goes there again: the index is a hint.
    gone = [info.key for info in remote.list("files/md5/") if not info.key.endswith(".dir")][:3]
    remote.delete(gone)
    assert exported(local, first.version, remote).num_sent == 3
    assert all(remote.head(key) for key in gone)


def test_an_export_that_was_killed_goes_on(local: CountingStore, folder: Path, remote: CountingStore) -> None:
    version = commit(local, folder)
    sent = 0

    def die(key: str) -> None:
        nonlocal sent
        sent += key.startswith("files/")
        if sent > 10:
            raise KeyboardInterrupt

    remote.before_write = die
    with pytest.raises(KeyboardInterrupt):
        exported(local, version.version, remote)
    assert not [info for info in remote.list("files/") if info.key.endswith(".dir")], "nothing names half a folder"
    remote.before_write = lambda key: None
    done = exported(local, version.version, remote)
    assert 0 < done.num_sent < version.num_files - 5
    assert taken(local, remote, done.text).tree == version.tree


def test_an_import_reads_only_what_the_branch_does_not_have(
    local: CountingStore,
    folder: Path,
    remote: CountingStore,
) -> None:
    first = exported(local, commit(local, folder).version, remote)
    (folder / "part0" / "new.bin").write_bytes(b"new")
    second = exported(local, commit(local, folder).version, remote)
    taken(local, remote, first.text)
    remote.gets.clear()
    made = taken(local, remote, second.text)
    read = [key for key in remote.gets if not key.endswith(".dir")]
    assert read == [object_key(hashlib.md5(b"new", usedforsecurity=False).hexdigest())]
    assert made.tree == DatasetRepository(local).load(DatasetRepository(local).resolve("corpus")).tree


def test_a_single_file_an_old_layout_and_old_hashes_of_text_come_in(
    local: CountingStore, remote: CountingStore
) -> None:
    text = b"one\r\ntwo\r\n"
    md5 = hashlib.md5(text.replace(b"\r\n", b"\n"), usedforsecurity=False).hexdigest()
    remote.create(f"{md5[:2]}/{md5[2:]}", text)
    made = taken(local, remote, f"outs:\n- md5: {md5}\n  size: 10\n  path: sub/table.csv\n")
    assert DatasetRepository(local).read_file(made.version, "table.csv") == text
    with pytest.raises(IntegrityError):
        taken(local, remote, f"outs:\n- md5: {md5}\n  hash: md5\n  path: table.csv\n", name="other")


def hostile(remote: CountingStore, *paths: str) -> str:
    """Put a folder of these paths into a remote and return its .dvc file."""
    data = b"x"
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    remote.put_blob(object_key(md5), data)
    listed = json.dumps([{"md5": md5, "relpath": path} for path in paths]).encode()
    whole = hashlib.md5(listed, usedforsecurity=False).hexdigest()
    remote.put_blob(object_key(whole, folder=True), listed)
    return f"outs:\n- md5: {whole}.dir\n  hash: md5\n  path: corpus\n"


@pytest.mark.parametrize(
    "path", ["../evil", "/etc/passwd", "a/../b", "", "a\x00b", "a\\b", ".git/config", "A/../../x", "n" * 2000]
)
def test_a_hostile_list_is_refused(local: CountingStore, remote: CountingStore, path: str) -> None:
    with pytest.raises(RefusedMemberError):
        taken(local, remote, hostile(remote, "ok", path))
    assert list(local.list("refs/")) == []


def test_damage_is_named_and_leaves_no_version(local: CountingStore, folder: Path, remote: CountingStore) -> None:
    done = exported(local, commit(local, folder).version, remote)
    keys = [info.key for info in remote.list("files/md5/") if info.size > 100 and not info.key.endswith(".dir")]
    data = remote.get(keys[0])
    remote.delete(keys[:1])
    with pytest.raises(DvcObjectMissingError):
        taken(local, remote, done.text)
    remote.create(keys[0], data[:-1] + b"?")
    with pytest.raises(IntegrityError, match="md5"):
        taken(local, remote, done.text)
    remote.delete(keys[:1])
    remote.create(keys[0], data)
    remote.delete([object_key(done.md5, folder=True)])
    remote.create(object_key(done.md5, folder=True), b"[]")
    with pytest.raises(IntegrityError):
        taken(local, remote, done.text)
    assert [info.key for info in local.list("refs/heads/back/")] == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "outs"),
        ("outs: []", "outs"),
        ("outs: [1]", "outs[0]"),
        ("outs:\n- {md5: zz, path: a}", "outs[0].md5"),
        ("outs:\n- {md5: d41d8cd98f00b204e9800998ecf8427e}", "outs[0].path"),
        ("outs:\n- {md5: d41d8cd98f00b204e9800998ecf8427e, path: a, cloud: {}}", "outs[0]"),
        (": :", "YAML"),
    ],
)
def test_a_dvc_file_that_is_none_is_refused_by_key(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_dvc_file(text, file="x.dvc")
    assert "x.dvc" in str(caught.value)
    assert named in str(caught.value)


def test_a_history_goes_on_after_the_newest_revision_the_branch_has(
    local: CountingStore,
    remote: CountingStore,
) -> None:
    revisions = [
        DvcRevision(f"{number}" * 40, "Ada", "2026-01-01T00:00:00+00:00", f"state {number}", hostile(remote, *names))
        for number, names in enumerate((("train/a",), ("train/a", "test/b"), ("train/a",)))
    ]
    source = DvcSource(DvcObjects([remote]), "corpus.dvc", split_by_name)
    repository, origin = DatasetRepository.open(local), Origin("corpus", "import", "me")
    first = import_dvc_history(repository, source, revisions[:2], origin)
    second = import_dvc_history(repository, source, revisions, origin)
    assert (len(first), len(second)) == (2, 1)
    assert first[0].tree == second[0].tree, "a state that comes back is a version of its own with the same tree"
    assert [entry.message for entry in repository.log("corpus")] == ["state 2", "state 1", "state 0"]
    assert import_dvc_history(repository, source, revisions, origin) == []
    assert [file.entry.split for file in repository.files(first[1].version)] == ["test", "train"]


def test_a_dvc_file_without_history_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.dvc").write_text("outs: []")
    env = dict(os.environ)
    with pytest.raises(DeepSeekOpsError, match="history"):
        revisions_of(tmp_path / "x.dvc")
    assert env == dict(os.environ)
