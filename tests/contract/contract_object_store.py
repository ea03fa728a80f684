"""The contracts of every object store and of the blobs above it; ``test_object_store`` runs them."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import fixtures_s3
import pytest
from fixtures_patterns import LARGE, keys, pattern

from deepseek_ops.adapters.stores import (
    InvalidKeyError,
    store_from_environment,
)
from deepseek_ops.core.errors import (
    IntegrityError,
    LocalDiskError,
    ObjectExistsError,
    ObjectNotFoundError,
)
from deepseek_ops.core.ports import ObjectInfo, ObjectStore
from deepseek_ops.core.records import FileEntry, digest_of
from deepseek_ops.data import StoreBlobs, UnsafeTargetError, UnstorableFileError, blob_key

s3_server, s3_store, s3_uri = fixtures_s3.s3_server, fixtures_s3.s3_store, fixtures_s3.s3_uri


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let this process write no file beyond ``num_bytes``: what a full disk does, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class ObjectStoreContract:
    """Inherit it and provide ``store``, empty, and ``scribble(store, key, data)`` that changes an object behind it."""

    def test_gives_back_what_was_created(self, store: ObjectStore) -> None:
        store.create("a/b.json", b"{}")
        assert store.get("a/b.json") == b"{}"
        assert store.head("a/b.json") == ObjectInfo("a/b.json", 2)

    def test_says_when_an_object_was_last_stored_also_when_the_same_bytes_were_there(self, store: ObjectStore) -> None:
        key = "objects/aa"
        store.put_blob(key, b"same")
        first = store.head(key)
        time.sleep(1.1)  # S3 counts whole seconds
        store.put_blob(key, b"same")
        again, listed = store.head(key), next(store.list("objects/"))
        assert first is not None
        assert again is not None
        assert abs(first.modified - time.time()) < 60
        assert first.modified < again.modified == listed.modified

    def test_of_many_writers_exactly_one_wins_and_its_bytes_stay(self, store: ObjectStore) -> None:
        def write(number: int) -> bool:
            try:
                store.create(f"versions/{number // 8:04}", f"{number}".encode() * 1000)
            except ObjectExistsError:
                return False
            return True

        with ThreadPoolExecutor(16) as pool:
            wins = list(pool.map(write, range(80)))
        for slot in range(10):
            mine = wins[slot * 8 : slot * 8 + 8]
            assert mine.count(True) == 1
            assert store.get(f"versions/{slot:04}") == f"{slot * 8 + mine.index(True)}".encode() * 1000

    def test_a_taken_key_names_itself_in_the_error(self, store: ObjectStore) -> None:
        store.create("refs/tags/v1", b"one")
        with pytest.raises(ObjectExistsError, match="refs/tags/v1"):
            store.create("refs/tags/v1", b"one")

    def test_a_blob_may_be_put_again(self, store: ObjectStore, tmp_path: Path) -> None:
        data = b"weights"
        source = tmp_path / "file"
        source.write_bytes(data)
        for what in (data, source, data):
            store.put_blob(blob_key(digest_of(data)), what)
        assert store.get(blob_key(digest_of(data))) == data

    def test_empty_objects_exist(self, store: ObjectStore, tmp_path: Path) -> None:
        store.create("empty", b"")
        (tmp_path / "nothing").touch()
        store.put_blob("also-empty", tmp_path / "nothing")
        store.download("empty", tmp_path / "out")
        assert store.get("empty") == store.get("also-empty") == (tmp_path / "out").read_bytes() == b""

    @pytest.mark.parametrize(
        ("start", "length", "expected"),
        [
            (0, None, b"0123456789"),
            (3, None, b"3456789"),
            (3, 4, b"3456"),
            (8, 100, b"89"),
            (10, 5, b""),
            (99, None, b""),
            (4, 0, b""),
        ],
    )
    def test_ranges_are_those_of_a_file(
        self, store: ObjectStore, start: int, length: int | None, expected: bytes
    ) -> None:
        store.create("digits", b"0123456789")
        assert store.get("digits", start=start, length=length) == expected

    def test_missing_objects_are_named(self, store: ObjectStore, tmp_path: Path) -> None:
        assert store.head("no/such") is None
        for call in (
            lambda: store.get("no/such"),
            lambda: store.get("no/such", start=1, length=2),
            lambda: store.get("no/such", length=0),
            lambda: store.download("no/such", tmp_path / "out"),
        ):
            with pytest.raises(ObjectNotFoundError, match="no/such"):
                call()
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_of_keys_is_no_object(self, store: ObjectStore) -> None:
        store.create("a/b/c", b"1")
        assert store.head("a/b") is None
        with pytest.raises(ObjectNotFoundError):
            store.get("a/b")

    def test_lists_in_key_order_within_the_prefix(self, store: ObjectStore) -> None:
        made = ["p/a", "p/a-b", "p/a/b", "p/a/b-c", "p/a/c", "p/ab", "p/b", "pa", "q/z"]
        # S3 can hold both "p/a" and "p/a/b"; a server on folders cannot, and refuses. All list the rest alike.
        stored = []
        for key in reversed(made):
            try:
                store.create(key, key.encode())
                stored.append(key)
            except (InvalidKeyError, ObjectExistsError):
                assert key == "p/a", "only the key that is a folder's name may be refused"
        stored.sort()
        below = [key for key in stored if key.startswith("p/")]
        assert keys(store.list("")) == stored
        assert keys(store.list("p/")) == below
        assert keys(store.list("p/a")) == [key for key in below if key.startswith("p/a")]
        assert keys(store.list("p/a/")) == ["p/a/b", "p/a/b-c", "p/a/c"]
        assert keys(store.list("none/")) == keys(store.list("p/zz")) == []
        assert [info.size for info in store.list("q/")] == [3]

    @pytest.mark.parametrize("start_after", ["p/a-b", "p/a/b", "p/a/bb", "p/a", "p", "p/b", "zzz"])
    def test_lists_from_a_watermark(self, store: ObjectStore, start_after: str) -> None:
        made = ["p/a-b", "p/a/b", "p/a/c", "p/ab", "p/b"]
        for key in made:
            store.create(key, b"")
        assert keys(store.list("p/", start_after=start_after)) == [key for key in made if key > start_after]
        assert keys(store.list("", start_after=start_after, limit=2)) == [key for key in made if key > start_after][:2]

    def test_lists_more_than_a_page(self, store: ObjectStore) -> None:
        made = [f"many/{number:05}" for number in range(1100)]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda key: store.put_blob(key, b"x"), made))
        assert keys(store.list("many/")) == made
        assert keys(store.list("many/", start_after=made[1003], limit=3)) == made[1004:1007]

    def test_deletes_what_is_there_and_ignores_the_rest(self, store: ObjectStore) -> None:
        store.create("gone", b"")
        store.create("stays", b"")
        store.delete(["gone", "never/was"])
        store.delete([])
        assert keys(store.list("")) == ["stays"]

    @pytest.mark.parametrize(
        "key", ["", "/etc/passwd", "a/../b", "..", "a//b", "a/", "a\x00b", "a\\b", ".tmp/x", "x" * 300]
    )
    def test_keys_that_mean_something_else_are_refused(self, store: ObjectStore, key: str) -> None:
        for call in (lambda: store.create(key, b""), lambda: store.get(key), lambda: store.delete([key])):
            with pytest.raises(InvalidKeyError):
                call()

    def test_keys_keep_their_letters(self, store: ObjectStore) -> None:
        odd = ["a b+c%20d", "größe/日本", "q?x=1#frag", "~!$&'()*,;=:@"]
        for key in odd:
            store.create(key, key.encode())
        assert keys(store.list("")) == sorted(odd)
        assert [store.get(key).decode() for key in odd] == odd

    def test_large_objects_come_back_equal(self, store: ObjectStore, tmp_path: Path) -> None:
        data = pattern(LARGE)
        source = tmp_path / "source"
        source.write_bytes(data)
        key = blob_key(digest_of(data))
        store.put_blob(key, source)
        store.download(key, tmp_path / "new" / "folder" / "copy")
        assert digest_of((tmp_path / "new" / "folder" / "copy").read_bytes()) == digest_of(data)
        assert store.get(key, start=LARGE - 5) == data[-5:]

    @pytest.mark.parametrize("size", [10, LARGE])
    def test_a_file_that_changed_since_it_was_hashed_is_not_stored(
        self, store: ObjectStore, tmp_path: Path, size: int
    ) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"2" * size)
        key = blob_key(digest_of(b"1" * size))
        with pytest.raises(IntegrityError):
            store.put_blob(key, source)
        assert store.head(key) is None

    def test_a_disk_that_takes_no_more_says_so_and_keeps_nothing(self, store: ObjectStore, tmp_path: Path) -> None:
        store.put_blob("blob", b"x" * 200_000)
        with largest_file(100_000), pytest.raises(LocalDiskError, match="too large"):
            store.download("blob", tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_downloads_replace_a_file_as_a_whole(self, store: ObjectStore, tmp_path: Path) -> None:
        store.put_blob("blob", b"new")
        (tmp_path / "out").write_bytes(b"older and longer")
        store.download("blob", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == b"new"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_is_rebuilt_from_its_environment(self, store: ObjectStore, environment: dict[str, str]) -> None:
        store.create("hello", b"you")
        assert store_from_environment(environment).get("hello") == b"you"


class BlobsContract:
    """The content-addressed space over each store."""

    def test_a_folder_comes_back_equal(self, store: ObjectStore, tmp_path: Path) -> None:
        source = tmp_path / "model"
        for name, data in {"config.json": b"{}", "w/1.bin": pattern(300_000), "w/2.bin": b"", "größe": b"u"}.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(data)
        (source / ".git").mkdir()
        (source / ".git" / "HEAD").write_text("ref")
        blobs = StoreBlobs(store)
        files = blobs.put_folder(source)
        assert [entry.path for entry in files.files] == ["config.json", "größe", "w/1.bin", "w/2.bin"]
        assert blobs.put_folder(source) == files
        blobs.fetch_folder(files, tmp_path / "copy")
        assert StoreBlobs(store).put_folder(tmp_path / "copy") == files
        assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "model"]

    def test_fetching_again_repairs_only_what_is_wrong(self, store: ObjectStore, tmp_path: Path) -> None:
        source = tmp_path / "model"
        source.mkdir()
        (source / "a").write_bytes(b"aaa")
        (source / "b").write_bytes(b"bbb")
        blobs = StoreBlobs(store)
        files = blobs.put_folder(source)
        (source / "b").write_bytes(b"bad")
        (source / "extra").write_bytes(b"mine")
        before = (source / "a").stat()
        blobs.fetch_folder(files, source)
        assert (source / "b").read_bytes() == b"bbb"
        assert (source / "extra").read_bytes() == b"mine"
        assert (source / "a").stat().st_ino == before.st_ino

    @pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
    def test_damaged_objects_are_found_and_never_delivered(
        self, store: ObjectStore, tmp_path: Path, damage: str
    ) -> None:
        blobs = StoreBlobs(store)
        data = pattern(10_000)
        digest = blobs.put(data)
        entry = FileEntry(path="weights.bin", size=len(data), digest=digest)
        blobs.verify(entry)
        store.delete([blob_key(digest)])
        if damage != "gone":
            self.scribble(store, blob_key(digest), data[:-1] if damage == "cut" else b"X" + data[1:])
        error = ObjectNotFoundError if damage == "gone" else IntegrityError
        for call in (
            lambda: blobs.get(digest),
            lambda: blobs.verify(entry),
            lambda: blobs.fetch_folder(_set(entry), tmp_path / "out"),
        ):
            with pytest.raises(error):
                call()
        assert list(tmp_path.iterdir()) == []

    def test_refuses_links_and_devices(self, store: ObjectStore, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("/etc/passwd")
        with pytest.raises(UnstorableFileError, match="symbolic link"):
            StoreBlobs(store).put_folder(tmp_path)
        (tmp_path / "link").unlink()
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UnstorableFileError, match="no plain file"):
            StoreBlobs(store).put_folder(tmp_path)

    @pytest.mark.parametrize("paths", [["../evil"], ["/evil"], ["a/../../evil"], ["a", "a/b"], ["a", "a"], ["in/evil"]])
    def test_writes_nothing_outside_the_target(self, store: ObjectStore, tmp_path: Path, paths: list[str]) -> None:
        blobs = StoreBlobs(store)
        digest = blobs.put(b"evil")
        target = tmp_path / "target"
        target.mkdir()
        (tmp_path / "outside").mkdir()
        (target / "in").symlink_to(tmp_path / "outside")
        hostile = [FileEntry.model_construct(path=path, size=4, digest=digest) for path in paths]
        with pytest.raises(UnsafeTargetError):
            blobs.fetch_folder(_set(*hostile), target)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def _set(*entries: FileEntry):
    from deepseek_ops.core.records import FileSet

    return FileSet.model_construct(files=entries)
