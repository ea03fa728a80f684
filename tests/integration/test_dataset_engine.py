"""The engine under a version: what a killed commit leaves to the next, and how much memory and requests it takes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fixtures_datasets
import fixtures_s3
import pytest
from fixtures_datasets import CountingStore, age, commit, contents, fill

from deepseek_ops.adapters.stores import open_store, store_environment
from deepseek_ops.core.errors import IntegrityError
from deepseek_ops.data import DatasetRepository, UnsafeTargetError
from deepseek_ops.data import listing as listing_module
from deepseek_ops.data import packs as packs_module
from deepseek_ops.data import pages as pages_module
from deepseek_ops.data.checkout import stream_selected, verify_tree, write_folder
from deepseek_ops.data.packs import Stored
from deepseek_ops.data.pages import Entry, Location
from deepseek_ops.data.parallel import MemoryBudget
from deepseek_ops.data.snapshot import store_folder
from deepseek_ops.data.trees import Tree

folder, local, store = fixtures_datasets.folder, fixtures_datasets.local, fixtures_datasets.store
s3_server, s3_store, s3_uri = fixtures_s3.s3_server, fixtures_s3.s3_store, fixtures_s3.s3_uri

KILLED = """
import os, signal, sys
from pathlib import Path
from deepseek_ops.adapters.stores import store_from_environment
from deepseek_ops.data import DatasetRepository

store, left = store_from_environment(os.environ), int(sys.argv[2])
put_blob = store.put_blob

def counted(key, source):
    global left
    put_blob(key, source)
    left -= key.startswith(sys.argv[3])
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

store.put_blob = counted
DatasetRepository.open(store).commit(Path(sys.argv[1]), name="corpus", message="m", author="a")
"""
SMALL, SMALL_BYTES, LARGE, LARGE_BYTES = 3000, 16 << 10, 3, 3 << 20


def corpus(folder: Path, large: int = LARGE) -> Path:
    numbers = random.Random(5)  # noqa: S311
    for index in range(SMALL):
        path = folder / f"part{index // 100:02}" / f"{index:05}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(numbers.randbytes(SMALL_BYTES))
    (folder / "a").mkdir()
    for index in range(large):
        (folder / "a" / f"large{index}.bin").write_bytes(numbers.randbytes(LARGE_BYTES))
    age(folder)
    return folder


def killed_commit(uri: str, environment: dict[str, str], folder: Path, after: int, kind: str) -> None:
    """Commit in a process that is killed with SIGKILL once it has stored so many objects of a kind."""
    command = [sys.executable, "-c", KILLED, str(folder), str(after), kind]
    done = subprocess.run(command, env={**os.environ, **environment}, check=False, stderr=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


class ReadFiles:
    """Counts which files of a folder are opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        real = os.open

        def watched(path: str, *arguments: int, **options: int) -> int:
            self.paths.append(str(path))
            return real(path, *arguments, **options)

        monkeypatch.setattr(os, "open", watched)

    def of(self, folder: Path) -> int:
        return sum(path.startswith(f"{folder}/part") and path.endswith(".bin") for path in self.paths)


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[CountingStore, str, dict[str, str]]:
    """Give a store, its URI and the environment in which a child opens it."""
    if request.param == "s3":
        server = request.getfixturevalue("s3_server")
        uri = request.getfixturevalue("s3_uri")
        return CountingStore(open_store(uri, server.credentials)), uri, store_environment(uri, server.credentials)
    uri = (tmp_path / "store").as_uri()
    return CountingStore(open_store(uri)), uri, store_environment(uri, {})


class TestKilled:
    def test_the_next_try_sends_what_is_missing_and_reads_no_file_for_the_rest(
        self,
        place: tuple[CountingStore, str, dict[str, str]],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """47 MiB of small files are four packs on two or more pages; the kill comes after the third pack is up."""
        monkeypatch.setattr(pages_module, "CUT_MASK", 255)
        store, uri, environment = place
        source = corpus(tmp_path / "corpus")
        killed_commit(uri, environment, source, 3, "packs/")
        there = {info.key for info in store.list("packs/")} | {info.key for info in store.list("objects/")}
        assert len([key for key in there if key.startswith("packs/")]) >= 3
        assert list(store.list("refs/")) == [], "nothing is half-visible"
        reads = ReadFiles(monkeypatch)
        version = commit(store, source)
        sent = [key for key in store.puts if key.startswith(("packs/", "objects/"))]
        assert not set(sent) & there, "what is up is not sent again"
        assert len([key for key in sent if key.startswith("packs/")]) <= 2
        assert version.num_files == SMALL + LARGE
        assert reads.of(source) <= SMALL
        assert DatasetRepository(store).verify("corpus").problems == ()

    def test_what_was_hashed_and_stored_is_not_read_again(
        self,
        place: tuple[CountingStore, str, dict[str, str]],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The kill comes at the commit record: everything below it is up and remembered."""
        store, uri, environment = place
        source = corpus(tmp_path / "corpus")
        killed_commit(uri, environment, source, 1, "commits/")
        reads = ReadFiles(monkeypatch)
        version = commit(store, source)
        assert reads.of(source) == 0
        sent = [key for key in store.puts if key.startswith(("packs/", "objects/"))]
        assert sent == []
        DatasetRepository(store).checkout(version.version, tmp_path / "out")
        assert contents(tmp_path / "out") == contents(source)

    def test_what_has_gone_meanwhile_is_sent_again(self, local: CountingStore, tmp_path: Path) -> None:
        """A collection may have removed what the killed commit left: memory of it is a hint, the store decides."""
        source = corpus(tmp_path / "corpus")
        uri = local.uri
        killed_commit(uri, store_environment(uri, {}), source, 1, "commits/")
        local.delete([info.key for kind in ("packs/", "objects/") for info in local.list(kind)])
        commit(local, source)
        assert DatasetRepository(local).verify("corpus").problems == ()


class TestBounds:
    def test_puts_are_few(self, local: CountingStore, tmp_path: Path) -> None:
        source = corpus(tmp_path / "corpus", large=0)
        DatasetRepository.open(local)
        local.puts.clear()
        version = commit(local, source)
        pages = len(DatasetRepository(local).tree(version.version).pages)
        puts = [key for key in local.puts if not key.startswith("leases/")]
        assert len(puts) <= version.num_bytes / (8 << 20) + pages + 3

    def test_files_without_number_are_stored_in_little_memory(self, tmp_path: Path) -> None:
        """60,000 files would be 60 MB as Python objects; the engine may take a third of that above its start."""
        source = tmp_path / "many"
        for index in range(60_000):
            if index % 1000 == 0:
                (source / f"{index // 1000:03}").mkdir(parents=True)
            (source / f"{index // 1000:03}" / f"{index:06}").write_bytes(index.to_bytes(4, "big"))
        program = (
            "import resource, sys; from pathlib import Path\n"
            "from deepseek_ops.adapters.stores import open_store\n"
            "from deepseek_ops.data import DatasetRepository\n"
            "repository = DatasetRepository.open(open_store(sys.argv[1]))\n"
            "(Path(sys.argv[2]).parent / 'one').mkdir(); (Path(sys.argv[2]).parent / 'one' / 'f').touch()\n"
            "repository.commit(Path(sys.argv[2]).parent / 'one', name='one', message='m', author='a')\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "repository.commit(Path(sys.argv[2]), name='many', message='m', author='a')\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "store"), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) / 1024 < 40

    def test_pages_do_not_wait_without_bound_for_a_pack_to_fill(
        self, local: CountingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One small change in each of very many pages: they would all be in memory until the end."""
        monkeypatch.setattr(pages_module, "CUT_MASK", 3)
        monkeypatch.setattr("deepseek_ops.data.storing.PAGES_WAITING", 5)
        source = tmp_path / "source"
        fill(source, files=200, large=False)
        tree = store_folder(local, source, parent=Tree.empty(local))
        kinds = [key.partition("/")[0] for key in local.puts]
        assert len(tree.pages) > 30
        assert kinds.index("trees") < len(kinds) // 2, "pages go up while others are still read"
        write_folder(local, stream_selected(tree), tmp_path / "out")
        assert contents(tmp_path / "out") == contents(source)

    def test_a_memory_budget_is_never_exceeded_and_serves_all(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        budget, held, worst = MemoryBudget(100), [0], [0]

        def work(size: int) -> None:
            with budget.taken(size):
                held[0] += size
                worst[0] = max(worst[0], held[0])
                held[0] -= size

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, [30, 60, 90] * 60))
        assert worst[0] <= 100
        with budget.taken(1000):  # larger than all of it: alone, but not never
            pass

    def test_pages_are_cut_the_same_whatever_runs_they_come_in(self, tmp_path: Path) -> None:
        names = sorted(f"f{number}" for number in range(30_000))
        stats = [0, 0, 0, 0] * len(names)
        from array import array

        from deepseek_ops.data.folders import Run

        whole = [page.names for page in listing_module.listings([Run(names, array("q", stats))])]
        pieces = [Run(names[at : at + 7], array("q", stats[:28])) for at in range(0, len(names) - 6, 7)]
        pieces.append(Run(names[len(names) // 7 * 7 :], array("q", [0, 0, 0, 0] * (len(names) % 7))))
        assert [page.names for page in listing_module.listings(p for p in pieces if p.names)] == whole
        entries = [Entry(name, 0, b"", "") for name in names]
        assert [[entry.path for entry in page] for page in pages_module.cut(entries)] == whole

    def test_a_pack_is_named_by_its_files_in_order(self) -> None:
        one, two = (b"a" * 32, 3), (b"b" * 32, 5)

        def named(*files: tuple[bytes, int]) -> str:
            return packs_module.pack_digest([digest for digest, _ in files], [size for _, size in files])

        assert named(one, two) != named(two, one)
        assert named(one) != named((one[0], 4))
        assert named(one, two) == "afd722fcdf2a344d44160a4ebaffe99535dc89d72b6910be0dcf54b3a4caa6a1"

    @pytest.mark.parametrize("readers", [1, 3])
    def test_machines_with_few_and_many_cores_make_the_same_packs_and_files(
        self, local: CountingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readers: int
    ) -> None:
        monkeypatch.setattr("deepseek_ops.data.parallel.READERS", readers)
        monkeypatch.setattr(pages_module, "CUT_MASK", 63)
        monkeypatch.setattr(packs_module, "PACK_BYTES", 100_000)
        source = tmp_path / "source"
        fill(source, files=300)
        (source / "part0" / "same").write_bytes((source / "part1" / "0001.bin").read_bytes())
        tree = store_folder(local, source, parent=Tree.empty(local))
        packs = sorted(key for key in local.puts if key.startswith("packs/"))
        assert len(packs) == 5
        assert packs[0] == "packs/0a7a0a779329b06f9e3456799e5e0c847f46b658f7beb77356d3ef05e3988697"
        write_folder(local, stream_selected(tree), tmp_path / "out")
        assert contents(tmp_path / "out") == contents(source)


class Heard:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.fractions: list[float | None] = []

    def __call__(self, line: str, fraction: float | None) -> None:
        self.lines.append(line)
        self.fractions.append(fraction)


class TestProgress:
    @pytest.fixture
    def every_word(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("deepseek_ops.data.progress.INTERVAL_SECONDS", 0.0)

    def _rising(self, heard: Heard) -> None:
        known = [fraction for fraction in heard.fractions if fraction is not None]
        assert known == sorted(known)
        assert known[-1] == 1.0
        assert len(known) > 2

    @pytest.mark.usefixtures("every_word")
    def test_says_how_far_each_long_step_is(
        self, local: CountingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pages_module, "CUT_MASK", 15)
        source = tmp_path / "source"
        fill(source, files=200)
        stored, written, verified = Heard(), Heard(), Heard()
        tree = store_folder(local, source, parent=Tree.empty(local), progress=stored)
        write_folder(local, list(stream_selected(tree)), tmp_path / "out", progress=written)
        verify_tree(local, tree, progress=verified)
        self._rising(stored)
        self._rising(verified)
        assert written.fractions[-1] == 1.0
        total = f"203 of 203 files, {(tree.num_bytes / (1 << 20)):.1f} MiB"
        assert [heard.lines[-1].partition(" ")[2].startswith(total) for heard in (stored, written, verified)] == [
            True,
            True,
            True,
        ]

    def test_is_told_seldom(self, local: CountingStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("deepseek_ops.data.progress.INTERVAL_SECONDS", 3600.0)
        monkeypatch.setattr(pages_module, "CUT_MASK", 3)
        heard = Heard()
        store_folder(local, folder, parent=Tree.empty(local), progress=heard)
        assert len(heard.lines) == 2, "the first word and the last"


class TestWriting:
    def _stored(self, local: CountingStore, folder: Path) -> list[Stored]:
        version = commit(local, folder)
        return list(stream_selected(DatasetRepository(local).tree(version.version)))

    def test_a_damaged_file_is_found_by_policy(self, local: CountingStore, folder: Path, tmp_path: Path) -> None:
        """All files are hashed by default; with none, only sizes are looked at, for stores that are trusted."""
        files = self._stored(local, folder)
        key = next(info.key for info in local.list("packs/"))
        path = Path(local.uri.removeprefix("file://")) / key
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
        with pytest.raises(IntegrityError):
            write_folder(local, files, tmp_path / "all")
        assert not (tmp_path / "all").exists()
        write_folder(local, files, tmp_path / "none", verify="none")
        assert contents(tmp_path / "none") != contents(folder)

    def test_a_sample_checks_some_files_and_others_next_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from deepseek_ops.data.writing import SAMPLE_OF, verification

        digests = [bytes([number]) * 32 for number in range(256)]
        draws = iter(range(SAMPLE_OF))
        monkeypatch.setattr("secrets.randbelow", lambda _limit: next(draws))
        picks = [verification("sample") for _ in range(2)]
        chosen = [{digest for digest in digests if pick(digest)} for pick in picks]
        assert len(chosen[0]) == len(digests) // SAMPLE_OF
        assert not chosen[0] & chosen[1]

    @pytest.mark.parametrize("verify", ["all", "sample", "none"])
    def test_a_pack_that_ends_early_is_found_by_every_policy(
        self, local: CountingStore, folder: Path, tmp_path: Path, verify: str
    ) -> None:
        files = self._stored(local, folder)
        path = Path(local.uri.removeprefix("file://")) / next(info.key for info in local.list("packs/"))
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(IntegrityError):
            write_folder(local, files, tmp_path / "out", verify=verify)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("paths", "problem"),
        [
            (("a", "a"), "appears twice"),
            (("a", "a/b"), "is both a file and a folder"),
            (("a/b", "a"), "is both a file and a folder"),
            (("../a",), "plain relative path"),
            (("a", "/b"), "plain relative path"),
        ],
    )
    def test_a_set_that_is_no_folder_is_refused_and_leaves_nothing(
        self, local: CountingStore, tmp_path: Path, paths: tuple[str, ...], problem: str
    ) -> None:
        source = tmp_path / "source"
        source.mkdir()
        (source / "x").write_bytes(b"x")
        (stored,) = self._stored(local, source)
        files = [stored._replace(entry=stored.entry._replace(path=path)) for path in paths]
        with pytest.raises(UnsafeTargetError, match=problem):
            write_folder(local, iter(files), tmp_path / "target" / "out")
        assert list((tmp_path / "target").iterdir()) == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]

    def test_large_files_twice_under_one_name_are_refused(
        self, local: CountingStore, folder: Path, tmp_path: Path
    ) -> None:
        (large,) = [file for file in self._stored(local, folder) if file.location == Location(b"", 0)]
        with pytest.raises(UnsafeTargetError, match="appears twice"):
            write_folder(local, [large, large], tmp_path / "out")


class TestDiff:
    def test_agrees_with_a_comparison_of_all_rows(
        self, local: CountingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pages_module, "CUT_MASK", 7)
        source = tmp_path / "source"
        numbers = random.Random(3)  # noqa: S311
        source.mkdir()
        repository = DatasetRepository.open(local)
        names = [f"{numbers.randrange(10**6):06}" for _ in range(300)]
        before: dict[str, bytes] = {}
        for round_number in range(6):
            for name in numbers.sample(names, 60):
                path = source / name
                act: Callable[[], object] = path.unlink if path.exists() and numbers.random() < 0.5 else path.touch
                act()
                if path.exists():
                    path.write_bytes(numbers.randbytes(8))
            after = contents(source)
            version = commit(local, source, message=str(round_number))
            if before:
                parent = str(repository.describe(version.version)["parents"][0])  # type: ignore[index,call-overload]
                found = repository.diff(parent, version.version)
                assert set(found.added) == after.keys() - before.keys()
                assert set(found.removed) == before.keys() - after.keys()
                assert set(found.modified) == {n for n in after.keys() & before.keys() if after[n] != before[n]}
                back = repository.diff(version.version, parent)
                assert (back.added, back.removed) == (found.removed, found.added)
            before = after
