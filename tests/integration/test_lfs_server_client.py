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
from fixtures_lfs_server import LfsServer, MakeClone, lfs_server

from deepseek_ops.core.objects import lfs_root_key
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
