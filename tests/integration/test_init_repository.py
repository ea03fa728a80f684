"""``deepseek-ops init`` with real git and git-lfs: the settings work, nothing of the user's is lost."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import fixtures_git_lfs
import pytest

from deepseek_ops.adapters.git_lfs.attributes import merge_attributes
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.objects import blob_key

git_lfs = fixtures_git_lfs.git_lfs
lfs_environment = fixtures_git_lfs.lfs_environment
MAIN = [sys.executable, "-P", "-m", "deepseek_ops.cli.main"]


class Person:
    """Somebody at a shell."""

    def __init__(self, variables: dict[str, str], folder: Path, store: Path) -> None:
        self.variables = variables
        self.folder = folder
        self.store = store

    def run(self, *command: str, status: int = 0, folder: Path | None = None, **more: str) -> str:
        done = subprocess.run(
            command,
            cwd=folder or self.folder,
            env={**self.variables, **more},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, f"{command}: {done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def ops(self, *arguments: str, status: int = 0) -> str:
        return self.run(*MAIN, *arguments, status=status)

    def init(self, *arguments: str) -> dict:
        return json.loads(self.ops("init", *arguments, "--store", str(self.store)))

    def git(self, *arguments: str, status: int = 0, **more: str) -> str:
        return self.run("git", *arguments, status=status, **more)

    def write(self, path: str, data: bytes | str) -> None:
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data if isinstance(data, bytes) else data.encode())

    def commit(self, message: str = "Change", status: int = 0) -> str:
        self.git("add", "--all")
        return self.git("commit", "--quiet", "--message", message, status=status)


def weights(value: int, size: int = 300_000) -> bytes:
    """Return a safetensors file of one tensor."""
    data = hashlib.sha256(bytes([value])).digest() * (size // 32)
    entry = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    header = json.dumps({"__metadata__": {"step": str(value)}, "w": entry}).encode()
    return len(header).to_bytes(8, "little") + header + data


@pytest.fixture
def person(lfs_environment: dict[str, str], tmp_path: Path) -> Person:
    folder = tmp_path / "model"
    folder.mkdir()
    subprocess.run(
        ["git", "init", "-q", "--bare", "--initial-branch=main", str(tmp_path / "team" / "model.git")], check=True
    )
    return Person(lfs_environment, folder, tmp_path / "store")


@pytest.fixture
def repository(person: Person, tmp_path: Path) -> Person:
    person.init()
    person.git("remote", "add", "origin", str(tmp_path / "team" / "model.git"))
    return person


class TestTheArticlesWorkflow:
    def test_a_tag_brings_back_code_and_weights_together(self, repository: Person, tmp_path: Path):
        repository.write("model.pt", b"weights 1.1" * 1000)
        repository.write("weights/deep.safetensors", weights(1))
        repository.write("train.py", "LEARNING_RATE = 3e-5\n")
        repository.commit("Train DeepSeek-R1 on dataset-v1.1")
        repository.git("push", "--quiet", "origin", "main")
        repository.git("tag", "-a", "deepseek-v1.1", "-m", "Release v1.1")
        repository.git("push", "--quiet", "origin", "--tags")
        repository.write("model.pt", b"weights 1.2" * 1000)
        repository.write("weights/deep.safetensors", weights(2))
        repository.write("train.py", "LEARNING_RATE = 1e-3\n")
        repository.commit("Train again")
        repository.git("push", "--quiet", "origin", "main")
        assert repository.git("cat-file", "-p", "HEAD:model.pt").startswith("version https://git-lfs")

        other = Person(repository.variables, tmp_path / "other", repository.store)
        repository.git(
            "clone", "--quiet", str(tmp_path / "team" / "model.git"), str(other.folder), GIT_LFS_SKIP_SMUDGE="1"
        )
        assert other.init()["written"] == []
        other.git("lfs", "pull")
        assert (other.folder / "weights" / "deep.safetensors").read_bytes() == weights(2)
        other.git("checkout", "--quiet", "deepseek-v1.1")
        assert (other.folder / "model.pt").read_bytes() == b"weights 1.1" * 1000
        assert (other.folder / "weights" / "deep.safetensors").read_bytes() == weights(1)
        assert (other.folder / "train.py").read_text() == "LEARNING_RATE = 3e-5\n"
        assert other.git("status", "--porcelain") == ""

        target = tmp_path / "restored"
        remote = str(tmp_path / "team" / "model.git")
        done = json.loads(other.ops("checkout", "deepseek-v1.1", str(target), "--repository", remote))
        assert done["weights"]["fetched"] == ["model.pt", "weights/deep.safetensors"]
        assert (target / "model.pt").read_bytes() == b"weights 1.1" * 1000
        assert (target / "train.py").read_text() == "LEARNING_RATE = 3e-5\n"
        assert not (target / ".git").exists()

    def test_a_template_repository_is_valid_and_pushes(self, repository: Person):
        repository.commit("Start")
        assert "OK" in repository.ops("validate", "deepseek.yaml")
        repository.git("push", "--quiet", "origin", "main")

    def test_git_lfs_honours_every_line_of_the_file(self, repository: Person):
        told = repository.git("lfs", "env")
        assert "unsafe" not in told
        assert "FetchInclude=*" in told

    def test_the_articles_own_settings_are_not_honoured(self, repository: Person):
        text = "[lfs]\n\tcachedir = ~/.git/lfs/cache\n\tfetchinclude = *.pt,*.bin\n"
        repository.write(".lfsconfig", text)
        told = repository.git("lfs", "env")
        assert "unsafe '.lfsconfig' keys were ignored:\n\n  lfs.cachedir" in told
        assert f"LfsStorageDir={repository.folder}/.git/lfs" in told
        assert "FetchInclude=*.pt, *.bin" in told


class TestNothingIsLost:
    def test_a_second_time_changes_nothing(self, repository: Person):
        repository.commit("Start")
        report = repository.init()
        assert not any(report[key] for key in ("written", "extended", "kept", "configured", "hooks", "notes"))
        assert repository.git("status", "--porcelain") == ""

    def test_files_of_the_users_stay(self, person: Person):
        person.git("init", "--quiet")
        person.write("README.md", "Mine.\n")
        person.write(".gitattributes", "*.bin -text\ndocs/* linguist-documentation\n")
        report = person.init()
        assert "README.md" in report["kept"]
        assert ".gitattributes: *.bin" in report["kept"]
        assert report["extended"] == [".gitattributes"]
        assert (person.folder / "README.md").read_text() == "Mine.\n"
        attributes = (person.folder / ".gitattributes").read_text().splitlines()
        assert {"*.bin -text", "docs/* linguist-documentation"} <= set(attributes)
        assert attributes[0] == "* text=auto eol=lf"
        assert person.init("--force")["written"][0] == "README.md"

    def test_a_hook_that_was_there_runs_first(self, person: Person, tmp_path: Path):
        person.git("init", "--quiet")
        hook = person.folder / ".git" / "hooks" / "pre-push"
        hook.write_text(f"#!/bin/sh\ncat > {tmp_path}/seen\n[ -e {tmp_path}/allow ]\n")
        hook.chmod(0o755)
        assert "hook pre-push, after the one that was there" in " ".join(person.init()["hooks"])
        person.git("remote", "add", "origin", str(tmp_path / "team" / "model.git"))
        person.commit("Start")
        person.git("push", "origin", "main", status=1)
        (tmp_path / "allow").touch()
        person.git("push", "--quiet", "origin", "main")
        assert (tmp_path / "seen").read_text().startswith("refs/heads/main ")

    def test_the_hooks_path_is_respected(self, person: Person, tmp_path: Path):
        person.git("init", "--quiet")
        person.git("config", "core.hooksPath", ".hooks")
        person.init()
        assert (person.folder / ".hooks" / "pre-push").exists()
        assert not (person.folder / ".git" / "hooks" / "pre-push").exists()

    def test_hooks_shared_with_others_are_left_alone(self, person: Person, tmp_path: Path):
        (tmp_path / "hooks").mkdir()
        person.git("config", "--global", "core.hooksPath", str(tmp_path / "hooks"))
        person.git("init", "--quiet")
        report = person.init()
        assert "core.hooksPath" in report["notes"][0]
        assert not list((tmp_path / "hooks").iterdir())


class TestHooks:
    def test_a_weight_that_is_no_pointer_is_refused(self, repository: Person):
        repository.commit("Start")
        repository.write("raw.pt", b"raw" * 100)
        off = ["-c", "filter.lfs.process=", "-c", "filter.lfs.clean=cat", "-c", "filter.lfs.required=false"]
        repository.git(*off, "add", "raw.pt")
        told = repository.git("commit", "--message", "Raw", status=1)
        assert "raw.pt: 300 bytes are in Git itself" in told
        repository.git("commit", "--quiet", "--no-verify", "--message", "Raw")
        told = repository.git("push", "origin", "main", status=1)
        assert "raw.pt: 300 bytes are in Git itself" in told
        assert "--no-verify" in told

    def test_a_large_binary_of_an_untracked_kind_is_refused(self, repository: Person):
        repository.write("dump.xyz", bytes(2_000_000))
        assert "a binary of 2,000,000 bytes does not belong into Git" in repository.commit(status=1)

    def test_large_text_and_small_binaries_pass(self, repository: Person):
        repository.write("corpus.txt", "word " * 400_000)
        repository.write("icon.ico", bytes(1000))
        repository.commit()
        repository.git("push", "--quiet", "origin", "main")

    def test_an_invalid_pipeline_file_is_refused(self, repository: Person):
        repository.commit("Start")
        text = (repository.folder / "deepseek.yaml").read_text()
        repository.write("deepseek.yaml", text.replace("gpus_per_node: 2 ", "gpus_per_nod: 2 "))
        assert "gpus_per_nod" in repository.commit(status=1)

    def test_a_dataset_version_that_was_not_stored_is_refused(self, repository: Person):
        version = "ab" * 32
        text = f"name: corpus\nversion: {version}\nfiles: 1\nbytes: 1\nstore: {repository.store}\n"
        repository.write("data/corpus.dataset.yaml", text)
        repository.commit()
        told = repository.git("push", "origin", "main", status=1)
        assert f"has no version {version[:12]} of corpus" in told
        open_store(str(repository.store)).create(f"commits/{version}", b"{}")
        repository.git("push", "--quiet", "origin", "main")

    def test_a_store_that_is_away_only_warns(self, repository: Person):
        text = f"name: corpus\nversion: {'ab' * 32}\nfiles: 1\nbytes: 1\nstore: s3://away/x\n"
        repository.write("data/corpus.dataset.yaml", text)
        repository.commit()
        away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        assert "was not looked for" in repository.git("push", "origin", "main", **away)

    def test_a_damaged_dataset_pointer_is_refused_before_the_commit(self, repository: Person):
        repository.write("data/corpus.dataset.yaml", "<<<<<<< ours\nname: corpus\n")
        assert "data/corpus.dataset.yaml" in repository.commit(status=1)


class TestGitShowsWeights:
    def test_a_diff_of_two_pointers_shows_tensors_and_metadata(self, repository: Person, tmp_path: Path):
        repository.write("w.safetensors", weights(1))
        repository.commit("One")
        repository.write("w.safetensors", weights(2, 64_000))
        repository.commit("Two")
        told = repository.git("diff", "HEAD~1", "HEAD", "--", "w.safetensors")
        assert "-tensor w U8 [300000]" in told
        assert "+tensor w U8 [64000]" in told
        assert "+metadata step = 2" in told
        repository.git("push", "--quiet", "origin", "main")
        repository.run("rm", "-rf", ".git/lfs/objects")  # only the store has them now
        told = repository.git("log", "-p", "-1", "--", "w.safetensors", GIT_LFS_SKIP_SMUDGE="1")
        assert "+tensor w U8 [64000]" in told
        told = repository.ops("weights", "diff", "HEAD~1:w.safetensors", "HEAD:w.safetensors", status=1)
        assert "+metadata step 2" in told
        here = {path.name for path in (repository.folder / ".git/lfs/objects").rglob("*") if path.is_file()}
        assert hashlib.sha256(weights(1)).hexdigest() not in here, "only its header was read"
        repository.run("rm", "-rf", str(repository.store))
        told = repository.git("log", "-p", "-1", "--", "w.safetensors", GIT_LFS_SKIP_SMUDGE="1")
        assert "the header could not be read" in told

    def test_a_conflict_of_two_weights_leaves_no_markers(self, repository: Person):
        repository.write("w.safetensors", weights(1))
        repository.commit("Base")
        repository.git("checkout", "--quiet", "-b", "exp/lr")
        repository.write("w.safetensors", weights(2))
        repository.commit("Theirs")
        repository.git("checkout", "--quiet", "main")
        repository.write("w.safetensors", weights(3))
        repository.commit("Ours")
        assert "CONFLICT" in repository.git("merge", "exp/lr", status=1)
        assert (repository.folder / "w.safetensors").read_bytes() == weights(3)

    def test_weights_are_shown_and_compared_by_the_command_line(self, repository: Person):
        repository.write("a.safetensors", weights(1))
        repository.write("b.safetensors", weights(2))
        repository.commit()
        repository.git("push", "--quiet", "origin", "main")
        oid = hashlib.sha256(weights(1)).hexdigest()
        shown = json.loads(repository.ops("weights", "show", oid, "--store", str(repository.store)))
        assert (shown["num_parameters"], shown["metadata"]) == (300_000, {"step": "1"})
        assert repository.ops("weights", "diff", "a.safetensors", oid) == ""
        assert "+metadata step 2" in repository.ops("weights", "diff", "a.safetensors", "b.safetensors", status=1)
        assert "is no file" in repository.ops("weights", "show", "nothing", status=1)


class TestFetching:
    @pytest.fixture
    def checkout(self, repository: Person, tmp_path: Path) -> Person:
        for number in range(3):
            repository.write(f"models/{number}/w.safetensors", weights(number))
        repository.write("head.bin", b"head" * 100)
        repository.commit()
        repository.git("push", "--quiet", "origin", "main")
        other = Person(repository.variables, tmp_path / "other", repository.store)
        bare = str(tmp_path / "team" / "model.git")
        repository.git("clone", "--quiet", bare, str(other.folder), GIT_LFS_SKIP_SMUDGE="1")
        return other

    def test_only_what_is_asked_for_is_downloaded(self, checkout: Person, tmp_path: Path):
        cache = str(tmp_path / "cache")
        done = json.loads(checkout.ops("lfs", "fetch", "--include", "models/1/*", "--cache", cache))
        assert done["fetched"] == ["models/1/w.safetensors"]
        assert done["downloaded_bytes"] == len(weights(1))
        assert (checkout.folder / "models/1/w.safetensors").read_bytes() == weights(1)
        assert (checkout.folder / "models/0/w.safetensors").read_bytes().startswith(b"version ")
        done = json.loads(checkout.ops("lfs", "fetch", "--include", "*.safetensors", "--cache", cache))
        assert done["fetched"] == ["models/0/w.safetensors", "models/2/w.safetensors"]
        assert json.loads(checkout.ops("lfs", "fetch", "--include", "models/**", "--cache", cache))["fetched"] == []
        assert checkout.git("status", "--porcelain") == ""

    def test_a_damaged_cache_is_not_believed(self, checkout: Person, tmp_path: Path):
        cache = tmp_path / "cache"
        checkout.ops("lfs", "fetch", "--include", "head.bin", "--cache", str(cache))
        oid = hashlib.sha256(b"head" * 100).hexdigest()
        cached = cache / "objects" / oid[:2] / oid[2:4] / oid
        cached.write_bytes(bytes(400))
        checkout.git("checkout", "--quiet", "HEAD", "--", "head.bin", GIT_LFS_SKIP_SMUDGE="1")
        checkout.run("rm", "head.bin")
        checkout.git("checkout", "--quiet", "HEAD", "--", "head.bin", GIT_LFS_SKIP_SMUDGE="1")
        checkout.ops("lfs", "fetch", "--cache", str(cache))
        assert (checkout.folder / "head.bin").read_bytes() == b"head" * 100

    def test_a_pattern_that_matches_nothing_is_an_error(self, checkout: Person):
        assert "matches no Git LFS pointer" in checkout.ops("lfs", "fetch", "--include", "*.gguf", status=1)

    def test_a_weight_that_was_never_pushed_is_named(self, checkout: Person):
        oid = hashlib.sha256(weights(1)).hexdigest()
        (checkout.store / blob_key(oid)).unlink()
        told = checkout.ops("lfs", "fetch", status=1)
        assert f"models/1/w.safetensors is a Git LFS pointer to {oid}" in told
        assert "git lfs push" in told
        report = checkout.ops("lfs", "status", status=1)
        assert report.count('"stored": false') == 1


def test_existing_rules_win_and_a_catch_all_goes_first():
    merged = merge_attributes("*.pt filter=lfs diff=lfs merge=lfs\n*.csv -text\n")
    assert merged.kept == ("*.pt",)
    assert merged.text.splitlines()[0] == "* text=auto eol=lf"
    assert merge_attributes(merged.text).text == merged.text
    forced = merge_attributes(merged.text, replace=True)
    assert "diff=deepseek-weights" in forced.text
    assert forced.kept == ()
