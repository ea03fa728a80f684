"""Archives: equal versions give equal bytes; what is hostile or damaged is refused by name and leaves nothing."""

from __future__ import annotations

import bz2
import gzip
import io
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import fixtures_datasets
import pytest
import zstandard
from fixtures_datasets import CountingStore, commit, contents

from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.records import digest_of
from deepseek_ops.data import DatasetRepository, EmptyDatasetError
from deepseek_ops.data.exchange import (
    Limits,
    Origin,
    RefusedMemberError,
    TargetTakenError,
    UnreadableArchiveError,
    archive_members,
    commit_arriving,
    split_by_name,
    stored_in_order,
    write_archive,
)
from deepseek_ops.data.exchange.archives import ArchiveFormat

folder = fixtures_datasets.folder
local = fixtures_datasets.local
s3_server = fixtures_datasets.s3_server
s3_store = fixtures_datasets.s3_store
s3_uri = fixtures_datasets.s3_uri
store = fixtures_datasets.store


KINDS: tuple[ArchiveFormat, ...] = ("tar", "tar.zst", "zip")


def taken(store: CountingStore, path: Path, *, limits: Limits | None = None, name: str = "corpus", **rules: object):
    members = archive_members(path, limits=limits or Limits(), **rules)  # type: ignore[arg-type]
    origin = Origin(name, "import", "me")
    return commit_arriving(DatasetRepository.open(store), members, origin, source=path.name, sequential=True)


def refused(store: CountingStore, path: Path, **rules: object) -> str:
    """Return the message of the refusal, which left no branch behind."""
    with pytest.raises(DeepSeekOpsError) as caught:
        taken(store, path, **rules)
    assert isinstance(caught.value, RefusedMemberError | UnreadableArchiveError), caught.value
    assert list(store.list("refs/")) == [], "no version may appear"
    assert list(store.list("commits/")) == []
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_goes_through_an_archive_and_comes_back_the_same(
    store: CountingStore,
    folder: Path,
    tmp_path: Path,
    kind: ArchiveFormat,
) -> None:
    version = commit(store, folder)
    tree = DatasetRepository(store).tree(version.version)
    target = tmp_path / f"corpus.{kind}"
    written = write_archive(store, stored_in_order(tree), target, kind)
    assert (written.num_files, written.num_bytes) == (version.num_files, target.stat().st_size)
    assert written.sha256 == digest_of(target.read_bytes())
    back = taken(store, target, name="back")
    assert back.tree == version.tree
    assert taken(store, target, name="back").version == back.version, "the same again makes no new version"
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


@pytest.mark.parametrize("kind", KINDS)
def test_equal_versions_give_equal_archives(
    local: CountingStore,
    folder: Path,
    tmp_path: Path,
    kind: ArchiveFormat,
) -> None:
    one = commit(local, folder, name="one")
    (folder / "zzz").write_bytes(b"later")
    commit(local, folder, name="two")
    (folder / "zzz").unlink()
    two = commit(local, folder, name="two", message="other words")
    tree = DatasetRepository(local).tree
    first = write_archive(local, stored_in_order(tree(one.version)), tmp_path / "1", kind)
    second = write_archive(local, stored_in_order(tree(two.version)), tmp_path / "2", kind)
    assert first.sha256 == second.sha256
    again = write_archive(local, stored_in_order(tree(one.version)), tmp_path / "1", kind)
    assert again == first, "what is there already and equal stays"
    (tmp_path / "2").write_bytes(b"mine")
    with pytest.raises(TargetTakenError):
        write_archive(local, stored_in_order(tree(one.version)), tmp_path / "2", kind)
    assert (tmp_path / "2").read_bytes() == b"mine"


def test_the_tools_of_the_machine_read_what_we_write_and_we_what_they_write(
    local: CountingStore,
    folder: Path,
    tmp_path: Path,
) -> None:
    long = folder / ("d" * 120) / ("ü" * 60)
    long.parent.mkdir()
    long.write_bytes(b"long name")
    version = commit(local, folder)
    files = stored_in_order(DatasetRepository(local).tree(version.version))
    write_archive(local, files, tmp_path / "ours.tar", "tar")
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "xf", tmp_path / "ours.tar", "-C", tmp_path / "out"], check=True)
    assert contents(tmp_path / "out") == contents(folder)
    for style in ("gnu", "pax", "ustar"):
        theirs = tmp_path / f"{style}.tar"
        skipped = ["--exclude", "d" * 120] if style == "ustar" else []
        excluded = ["--exclude", ".deepseek-ops", *skipped]
        subprocess.run(["tar", f"--format={style}", *excluded, "-cf", theirs, "-C", folder, "."], check=True)
        back = taken(local, theirs, name=style)
        if style != "ustar":
            assert back.tree == version.tree
        else:
            assert back.num_files == version.num_files - 1


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zstandard.compress])
def test_an_archive_is_what_its_bytes_say(
    local: CountingStore,
    tmp_path: Path,
    pack: Callable[[bytes], bytes],
) -> None:
    (tmp_path / "data.bin").write_bytes(pack(tar_of({"train/a.jsonl": b"1", "test/b.jsonl": b"2" * (3 << 20)})))
    version = taken(local, tmp_path / "data.bin", split_of=split_by_name)
    files = DatasetRepository(local).files(version.version)
    assert [(file.entry.path, file.entry.split) for file in files] == [
        ("test/b.jsonl", "test"),
        ("train/a.jsonl", "train"),
    ]
    assert DatasetRepository(local).read_file(version.version, "test/b.jsonl") == b"2" * (3 << 20)


def tar_of(files: dict[str, bytes], *members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in members:
            archive.addfile(member)
    return buffer.getvalue()


def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


HOSTILE_TARS = {
    "/etc/passwd": tar_of({"/etc/passwd": b"x"}),
    "../evil": tar_of({"ok": b"1", "../evil": b"x"}),
    "a/../../evil": tar_of({"a/../../evil": b"x"}),
    "a//b": tar_of({"a//b": b"x"}),
    "C:/evil": tar_of({"C:/evil": b"x"}),
    "a\\\\b": tar_of({"a\\b": b"x"}),
    "link": tar_of({"ok": b"1"}, member("link", tarfile.SYMTYPE, "/etc/passwd")),
    "hard": tar_of({"ok": b"1"}, member("hard", tarfile.LNKTYPE, "ok")),
    "dev": tar_of({"ok": b"1"}, member("dev", tarfile.CHRTYPE)),
    "pipe": tar_of({"ok": b"1"}, member("pipe", tarfile.FIFOTYPE)),
    "../out": tar_of({"ok": b"1"}, member("../out", tarfile.DIRTYPE)),
    "Readme": tar_of({"README": b"1", "Readme": b"2"}),
    "a\u0301": tar_of({"\u00e1": b"1", "a\u0301": b"2"}),
    "twice": tar_of({"ok": b"1"}, *[member("twice", tarfile.REGTYPE)] * 2),
    "file/below": tar_of({"file": b"1", "file/below": b"2"}),
    "file": tar_of({"file/below": b"2", "file": b"1"}),
    ".git": tar_of({".git/hooks/pre-commit": b"x"}),
    "x" * 120: tar_of({"x" * 300: b"x"}),
}


@pytest.mark.parametrize("shown", HOSTILE_TARS)
def test_a_hostile_tar_is_refused_naming_the_member(local: CountingStore, tmp_path: Path, shown: str) -> None:
    outside = set(tmp_path.rglob("*"))
    path = tmp_path / "evil.tar"
    path.write_bytes(HOSTILE_TARS[shown])
    assert shown in refused(local, path)
    assert set(tmp_path.rglob("*")) == outside | {path}, "nothing is written outside the store"


def test_names_that_differ_in_case_are_let_in_when_that_is_asked_for(local: CountingStore, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of({"README": b"1", "Readme": b"2"}))
    assert taken(local, tmp_path / "a.tar", case_sensitive=True).num_files == 2


def test_a_name_of_four_gigabytes_is_refused_before_it_is_read(local: CountingStore, tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 4 << 30
    data = header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16)
    (tmp_path / "long.tar").write_bytes(data)
    assert "4294967296 bytes" in refused(local, tmp_path / "long.tar")
    # The same with the name really there, compressed to nothing.
    compressor = zstandard.ZstdCompressor().compressobj()
    with (tmp_path / "long.tar.zst").open("wb") as file:
        file.write(compressor.compress(header.tobuf(tarfile.GNU_FORMAT)))
        for _ in range(64):
            file.write(compressor.compress(b"n" * (1 << 20)))
        file.write(compressor.flush())
    assert "4294967296 bytes" in refused(local, tmp_path / "long.tar.zst")
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = tarfile.XHDTYPE, 4 << 30
    (tmp_path / "pax.tar").write_bytes(pax.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 16))
    assert "4294967296 bytes" in refused(local, tmp_path / "pax.tar")


def test_a_nul_in_a_name_is_refused(local: CountingStore, tmp_path: Path) -> None:
    record = b"17 path=a\x00.sh.txt\n"
    record = str(len(record)).encode() + record[2:]
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    body = header.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + tar_of({"plain": b"1"})
    (tmp_path / "nul.tar").write_bytes(body)
    assert "a\\x00.sh.txt" in refused(local, tmp_path / "nul.tar")
    with zipfile.ZipFile(tmp_path / "nul.zip", "w") as archive:
        archive.writestr("harmless#.sh", b"x")
    data = (tmp_path / "nul.zip").read_bytes().replace(b"harmless#.sh", b"harmless\x00.sh")
    (tmp_path / "nul.zip").write_bytes(data)
    assert "harmless\\x00.sh" in refused(local, tmp_path / "nul.zip")


@pytest.mark.parametrize("shift", [0, 7, 511, 512, 1024])
def test_an_archive_that_was_cut_is_refused(local: CountingStore, tmp_path: Path, shift: int) -> None:
    whole = tar_of({"a": b"1" * 3000, "b": b"2" * 3000})
    end = 512 + 3072 + 512 + 3072  # where the two members end
    path = tmp_path / "cut"
    for data in (whole[: end - shift], zstandard.compress(whole[: end - shift]), gzip.compress(whole)[:-20]):
        path.write_bytes(data)
        refused(local, path)
    path.write_bytes(zstandard.compress(whole)[:-5])
    refused(local, path)


def test_what_is_no_archive_is_refused(local: CountingStore, tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data in (b"", b"hello", b"\x28\xb5\x2f\xfd", b"PK\x03\x04 nothing", b"\x1f\x8b" + b"x" * 100, b"x" * 2000):
        path.write_bytes(data)
        refused(local, path)
    path.write_bytes(tar_of({}))
    with pytest.raises(EmptyDatasetError):
        taken(local, path)


def test_a_bomb_is_stopped_early(local: CountingStore, tmp_path: Path) -> None:
    compressor = zstandard.ZstdCompressor().compressobj()
    member = tarfile.TarInfo("zeros")
    member.size = 1 << 40
    with (tmp_path / "bomb.tar.zst").open("wb") as file:
        file.write(compressor.compress(member.tobuf()))
        for _ in range(200):
            file.write(compressor.compress(bytes(1 << 20)))
        file.write(compressor.flush())
    assert "built to fill a disk" in refused(local, tmp_path / "bomb.tar.zst")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(80 << 20))
    assert "built to fill a disk" in refused(local, tmp_path / "bomb.zip")
    (tmp_path / "many.tar").write_bytes(tar_of({str(number): b"" for number in range(30)}))
    assert "more than 20 members" in refused(local, tmp_path / "many.tar", limits=Limits(max_files=20))
    (tmp_path / "big.tar").write_bytes(tar_of({"big": bytes(1 << 20)}))
    assert "more than 1000 bytes" in refused(local, tmp_path / "big.tar", limits=Limits(max_bytes=1000))


def test_a_zip_that_lies_is_refused(local: CountingStore, tmp_path: Path) -> None:
    path = tmp_path / "evil.zip"

    def zipped(write: Callable[[zipfile.ZipFile], None]) -> bytes:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            write(archive)
        return path.read_bytes()

    for name in ("../evil", "/abs", "a/../../b", "a\\b"):
        zipped(lambda archive, name=name: archive.writestr(name, b"x"))
        assert repr(name).strip("'") in refused(local, path)
    link = zipfile.ZipInfo("link")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    zipped(lambda archive: archive.writestr(link, b"/etc/passwd"))
    assert "symbolic link" in refused(local, path)
    data = zipped(lambda archive: archive.writestr("file", b"hello" * 100))
    path.write_bytes(data.replace(struct.pack("<L", zipfile.crc32(b"hello" * 100)), b"\1\2\3\4"))
    assert "file" in refused(local, path)
    zipped(lambda archive: [archive.writestr(name, b"1") for name in "Aa"].clear())
    assert "'a'" in refused(local, path)


def test_members_of_a_zip_that_share_their_bytes_are_refused(local: CountingStore, tmp_path: Path) -> None:
    path = tmp_path / "overlap.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one", b"x" * 100)
        archive.filelist[0].header_offset  # noqa: B018
        twin = zipfile.ZipInfo("one", archive.filelist[0].date_time)
        for field in ("CRC", "compress_size", "file_size", "header_offset", "external_attr"):
            setattr(twin, field, getattr(archive.filelist[0], field))
        twin.filename = "two"
        archive.filelist.append(twin)
    assert "overlaps" in refused(local, path)


def test_a_damaged_store_gives_no_archive(local: CountingStore, folder: Path, tmp_path: Path) -> None:
    version = commit(local, folder)
    digest = digest_of((folder / "weights.bin").read_bytes())
    key = next(info.key for info in local.list("objects/") if info.key.endswith(digest))
    local.delete([key])
    local.create(key, bytes((1 << 20) + 17))
    files = stored_in_order(DatasetRepository(local).tree(version.version))
    for kind in KINDS:
        with pytest.raises(DeepSeekOpsError, match=r"weights\.bin"):
            write_archive(local, stored_in_order(DatasetRepository(local).tree(version.version)), tmp_path / "a", kind)
    del files
    assert list(tmp_path.glob("a")) == []
    assert list(tmp_path.glob(".*.part")) == []
