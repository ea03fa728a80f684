"""The real git-lfs client against our server, over an S3 server and over a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import fixtures_git
import fixtures_git_lfs
import fixtures_lfs_server
import fixtures_s3
import pytest
from fixtures_lfs_server import Clone, LfsServer, MakeClone, lfs_server

from deepseek_ops.core.objects import blob_key, lfs_root_key
from deepseek_ops.data import StoreBlobs

git_lfs = fixtures_git_lfs.git_lfs
lfs_environment = fixtures_git_lfs.lfs_environment
git_server = fixtures_git.git_server
make_clone = fixtures_lfs_server.make_clone
s3_server = fixtures_s3.s3_server
s3_uri = fixtures_s3.s3_uri


@pytest.fixture(params=["s3", "folder"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LfsServer]:
    if request.param == "s3":
        s3 = request.getfixturevalue("s3_server")
        uri, credentials = request.getfixturevalue("s3_uri"), s3.credentials
    else:
        uri, credentials = str(tmp_path / "store"), {}
    with lfs_server(uri, credentials) as running:
        yield running


def weights(seed: int, size: int = 300_000) -> bytes:
    return hashlib.shake_128(str(seed).encode()).digest(size)


def commit_pointer(clone: Clone, digest: str, size: int) -> None:
    """Commit model.bin as a pointer, without the object in the clone."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n"
    blob = clone.git("hash-object", "-w", "--stdin", data=pointer)
    clone.git("add", ".gitattributes")
    clone.git("update-index", "--add", "--cacheinfo", f"100644,{blob},model.bin")
    clone.git("commit", "--quiet", "-m", "Use a registered model")


def test_a_pushed_weight_is_a_blob_of_the_store_and_comes_back_with_a_pull(
    server: LfsServer, make_clone: MakeClone
) -> None:
    ada = make_clone("ada", server.url, server.token())
    ada.git("lfs", "track", "*.bin")
    files = {f"w{n}.bin": weights(n) for n in range(5)}
    ada.commit(files)
    ada.git("push", "--quiet", "origin", "HEAD:main")

    blobs = StoreBlobs(server.service.store)
    for content in files.values():
        assert blobs.get(hashlib.sha256(content).hexdigest()) == content
        assert server.service.store.head(lfs_root_key("team/model", hashlib.sha256(content).hexdigest()))

    bob = make_clone("bob", server.url, server.token("read", subject="bob"))
    bob.git("fetch", "--quiet", "origin")
    bob.git("checkout", "--quiet", "main")
    assert {name: (bob.folder / name).read_bytes() for name in files} == files


def test_an_object_that_is_in_the_store_is_committed_as_a_pointer_and_never_sent(
    server: LfsServer, make_clone: MakeClone
) -> None:
    content = weights(7)
    digest = StoreBlobs(server.service.store).put(content)
    ada = make_clone("ada", server.url, server.token())
    ada.git("lfs", "track", "*.bin")
    commit_pointer(ada, digest, len(content))
    before = server.service.store.head(blob_key(digest))
    ada.git("push", "--quiet", "origin", "HEAD:main")

    after = server.service.store.head(blob_key(digest))
    assert server.seen.count("PUT") == 0
    assert after.modified == before.modified, "a presigned upload would not pass by the server, but it would be newer"
    assert server.service.store.head(lfs_root_key("team/model", digest)) is not None
    bob = make_clone("bob", server.url, server.token("read"))
    bob.git("fetch", "--quiet", "origin")
    bob.git("checkout", "--quiet", "main")
    assert (bob.folder / "model.bin").read_bytes() == content


def test_a_second_push_of_the_same_weight_sends_nothing(server: LfsServer, make_clone: MakeClone) -> None:
    content = weights(9)
    digest = hashlib.sha256(content).hexdigest()
    stamps = []
    for name in ("ada", "bob"):
        clone = make_clone(name, server.url, server.token(subject=name))
        clone.git("lfs", "track", "*.bin")
        clone.commit({f"{name}.bin": content})
        clone.git("push", "--quiet", "origin", f"HEAD:{name}")
        stamps.append(server.service.store.head(blob_key(digest)).modified)
    assert stamps[0] == stamps[1]


def test_locks_keep_others_from_pushing_until_they_are_given_back(server: LfsServer, make_clone: MakeClone) -> None:
    ada = make_clone("ada", server.url, server.token(subject="ada"))
    ada.git("lfs", "track", "--lockable", "*.bin")
    ada.commit({"a.bin": weights(1), "sub/b.bin": weights(2)})
    ada.git("push", "--quiet", "origin", "HEAD:main")
    bob = make_clone("bob", server.url, server.token(subject="bob"))
    bob.git("fetch", "--quiet", "origin")
    bob.git("checkout", "--quiet", "main")

    ada.git("lfs", "lock", "a.bin")
    assert "ada" in bob.git("lfs", "locks")
    refused = bob.run("lfs", "lock", "a.bin", check=False)
    assert refused.returncode
    assert "locked by ada" in refused.stderr + refused.stdout
    assert bob.run("lfs", "unlock", "a.bin", check=False).returncode
    (bob.folder / "a.bin").chmod(0o644)
    bob.git("config", f"lfs.{server.url}/team/model.locksverify", "true")  # without it git-lfs only warns
    bob.commit({"a.bin": weights(3)})
    blocked = bob.run("push", "origin", "HEAD:main", check=False)
    assert blocked.returncode
    assert "Cannot update locked files" in blocked.stderr

    assert '"owner":{"name":"ada"}' in ada.git("lfs", "locks", "--verify", "--json").replace(": ", ":")
    ada.git("lfs", "unlock", "a.bin")
    bob.git("push", "--quiet", "origin", "HEAD:main")
    bob.git("lfs", "lock", "sub/b.bin")
    ada.git("lfs", "unlock", "--force", "sub/b.bin")
    assert ada.git("lfs", "locks") == ""


def test_a_history_with_big_files_is_migrated_and_pushed(server: LfsServer, make_clone: MakeClone) -> None:
    ada = make_clone("ada", server.url, server.token())
    versions = [{"model.bin": weights(n), "readme.txt": str(n).encode()} for n in range(3)]
    for files in versions:
        ada.commit(files)
    ada.git("lfs", "migrate", "import", "--everything", "--include=*.bin")
    ada.git("push", "--quiet", "origin", "HEAD:main")
    blobs = StoreBlobs(server.service.store)
    for files in versions:
        assert blobs.get(hashlib.sha256(files["model.bin"]).hexdigest()) == files["model.bin"]
    bob = make_clone("bob", server.url, server.token("read"))
    bob.git("fetch", "--quiet", "origin")
    bob.git("checkout", "--quiet", "main")
    bob.git("lfs", "fetch", "--all", "origin")
    bob.git("checkout", "--quiet", "main~1")
    assert (bob.folder / "model.bin").read_bytes() == versions[1]["model.bin"]
    assert int(bob.git("cat-file", "-s", "HEAD:model.bin")) < 200, "history holds pointers, not weights"


@pytest.mark.parametrize("kind", ["none", "wrong", "reading", "another repository's", "revoked"])
def test_a_push_without_the_right_token_is_refused(server: LfsServer, make_clone: MakeClone, kind: str) -> None:
    revoked, grant = server.service.tokens.issue("team/model", "write", "ada", days=1)
    server.service.tokens.revoke(grant.id, by="operator")
    token = {
        "none": "",
        "wrong": server.token()[:-3] + "AAA",
        "reading": server.token("read"),
        "another repository's": server.token(repository="team/other"),
        "revoked": revoked,
    }[kind]
    eve = make_clone("eve", server.url, token)
    eve.git("lfs", "track", "*.bin")
    content = weights(5, 2000)
    eve.commit({"w.bin": content})
    done = eve.run("push", "origin", "HEAD:main", check=False)
    assert done.returncode, done.stderr
    assert server.service.store.head(blob_key(hashlib.sha256(content).hexdigest())) is None


def test_a_pull_without_a_token_is_refused(server: LfsServer, make_clone: MakeClone) -> None:
    ada = make_clone("ada", server.url, server.token())
    ada.git("lfs", "track", "*.bin")
    ada.commit({"w.bin": weights(6, 2000)})
    ada.git("push", "--quiet", "origin", "HEAD:main")
    eve = make_clone("eve", server.url, "")
    eve.git("fetch", "--quiet", "origin")
    assert eve.run("checkout", "main", check=False).returncode
    assert not list((eve.folder / ".git/lfs/objects").rglob("*/*/*"))


def test_a_damaged_local_object_is_not_published(server: LfsServer, make_clone: MakeClone) -> None:
    ada = make_clone("ada", server.url, server.token())
    ada.git("lfs", "track", "*.bin")
    content = weights(8, 5000)
    oid = hashlib.sha256(content).hexdigest()
    ada.commit({"w.bin": content})
    damaged = ada.folder / ".git/lfs/objects" / oid[:2] / oid[2:4] / oid
    damaged.chmod(0o644)
    damaged.write_bytes(b"x" + content[1:])
    assert ada.run("push", "origin", "HEAD:main", check=False).returncode
    assert server.service.store.head(blob_key(oid)) is None
    damaged.write_bytes(content)
    ada.git("push", "--quiet", "origin", "HEAD:main")
    assert StoreBlobs(server.service.store).get(oid) == content


def test_a_pointer_with_a_wrong_size_cannot_be_pushed(server: LfsServer, make_clone: MakeClone) -> None:
    content = weights(10, 5000)
    digest = StoreBlobs(server.service.store).put(content)
    ada = make_clone("ada", server.url, server.token())
    ada.git("lfs", "track", "*.bin")
    commit_pointer(ada, digest, 4999)
    assert ada.run("push", "origin", "HEAD:main", check=False).returncode
    assert StoreBlobs(server.service.store).get(digest) == content
