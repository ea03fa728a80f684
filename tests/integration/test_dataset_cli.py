"""``deepseek-ops data`` as people and scripts call it: processes, JSON, exit status."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_datasets import contents, fill
from typer.testing import CliRunner, Result

from deepseek_ops.cli.data import data_app
from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.data import DatasetPointer, read_pointer


class Shell:
    """Runs ``deepseek-ops data`` in this process on one store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = str(root / "store")

    def run(self, *arguments: object, ok: int = 0) -> Result:
        environment = {"DEEPSEEK_OPS_STORE": self.store, "DEEPSEEK_OPS_CACHE": "", "COLUMNS": "200"}
        result = CliRunner().invoke(data_app, [str(one) for one in arguments], env=environment)
        assert result.exit_code == ok, f"{result.output}\n{result.exception!r}"
        return result

    def json(self, *arguments: object, ok: int = 0) -> dict:  # type: ignore[type-arg]
        return json.loads(self.run(*arguments, ok=ok).stdout)

    def fails(self, *arguments: object) -> str:
        result = self.run(*arguments, ok=1)
        assert isinstance(result.exception, DeepSeekOpsError), result.exception
        return str(result.exception)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    from deepseek_ops.adapters.stores import STORE_VARIABLE

    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "store"))
    shell = Shell(tmp_path)
    fill(tmp_path / "work", files=12, large=False) if (tmp_path / "work").mkdir() is None else None
    return shell


class TestWork:
    def test_from_a_folder_to_versions_branches_and_a_merge(self, shell: Shell, tmp_path: Path) -> None:
        work, pointer = tmp_path / "work", tmp_path / "data" / "corpus.dataset.yaml"
        added = shell.json("add", work, "--name", "corpus", "--pointer", pointer)
        assert (added["clean"], len(added["added"]), added["version"]) == (False, 14, None)
        first = shell.json("commit", work, "-m", "first")
        assert read_pointer(pointer.read_text(), file="").version == first["version"]
        assert shell.json("status", work)["clean"] is True
        shell.run("status", work, "--exit-code")
        shell.run("tag", "dataset-v1.0", "corpus")
        shell.run("branch", "corpus", "more")
        (work / "new").write_text("Add 500 new samples")
        assert shell.run("status", work, "--table", "--exit-code", ok=1).stdout == "A new\n"
        second = shell.json("commit", work, "-m", "Add 500 new samples")
        assert second["committed"]["added"] == ["new"]
        other = tmp_path / "other"
        assert shell.json("checkout", other, "--version", "corpus@more")["branch"] == "more"
        (other / "theirs").write_text("theirs")
        shell.json("commit", other, "-m", "theirs")
        merged = shell.json("merge", "corpus", "corpus@more", "-m", "both")
        assert (merged["how"], merged["changed"]) == ("merge", 1)
        log = shell.json("log", "corpus")
        assert log[0]["message"] == "both"
        assert len(log[0]["parents"]) == 2
        assert "both" in shell.run("log", "corpus", "--table").stdout
        assert shell.json("diff", "dataset-v1.0", "corpus")["added"] == ["new", "theirs"]
        shell.run("diff", "dataset-v1.0", "corpus", "--exit-code", ok=1)
        shell.run("diff", "corpus", "corpus", "--exit-code")
        assert shell.json("checkout", work, "--version", "corpus")["written"] == 1
        assert (work / "theirs").read_text() == "theirs"
        back = shell.json("checkout", work, "--version", "dataset-v1.0")
        assert (back["removed"], back["branch"]) == (2, "")
        assert shell.json("tag") == [{"tag": "dataset-v1.0", "version": first["version"]}]
        assert [row["branch"] for row in shell.json("branch", "corpus")] == ["main", "more"]
        shell.run("branch", "corpus", "more", "--delete")
        assert [row["branch"] for row in shell.json("branch", "corpus")] == ["main"]

    def test_conflicts_are_on_stdout_and_the_status_is_one(self, shell: Shell, tmp_path: Path) -> None:
        work = tmp_path / "work"
        shell.json("commit", work, "--name", "corpus", "-m", "first")
        shell.run("branch", "corpus", "more")
        for branch in ("main", "more"):
            (work / "empty").write_text(branch)
            shell.run("commit", work, "--name", "corpus", "-m", branch, "--branch", branch)
        result = shell.run("merge", "corpus", "corpus@more", ok=1)
        assert json.loads(result.stdout)["conflicts"][0]["path"] == "empty"
        assert "--theirs" in str(result.exception)
        merged = shell.json("merge", "corpus", "corpus@more", "--theirs", "emp*")
        assert merged["resolved"][0]["kind"] == "both modified"

    def test_a_late_commit_says_how_to_go_on(self, shell: Shell, tmp_path: Path) -> None:
        shell.json("commit", tmp_path / "work", "--name", "corpus", "-m", "first")
        for name in ("one", "two"):
            shell.run("checkout", tmp_path / name, "--version", "corpus")
            (tmp_path / name / name).write_text(name)
        shell.run("commit", tmp_path / "one", "-m", "one")
        assert "--rebase" in shell.fails("commit", tmp_path / "two", "-m", "two")
        assert shell.json("commit", tmp_path / "two", "-m", "two", "--rebase")["rebased"]["written"] == 1
        assert (tmp_path / "two" / "one").exists()

    def test_a_checkout_over_changes_needs_force(self, shell: Shell, tmp_path: Path) -> None:
        shell.json("commit", tmp_path / "work", "--name", "corpus", "-m", "first")
        shell.run("checkout", tmp_path / "out", "--version", "corpus")
        (tmp_path / "work" / "empty").write_text("second")
        shell.json("commit", tmp_path / "work", "--name", "corpus", "-m", "second")
        (tmp_path / "out" / "empty").write_text("mine")
        assert "empty" in shell.fails("checkout", tmp_path / "out", "--version", "corpus")
        shell.run("checkout", tmp_path / "out", "--version", "corpus", "--force")
        assert contents(tmp_path / "out") == contents(tmp_path / "work")

    def test_verify_finds_damage_in_a_folder(self, shell: Shell, tmp_path: Path) -> None:
        shell.json("commit", tmp_path / "work", "--name", "corpus", "-m", "first")
        assert shell.json("verify", "corpus")["problems"] == []
        shell.run("checkout", tmp_path / "out", "--version", "corpus")
        assert shell.json("verify", tmp_path / "out")["num_files"] == 14
        path = tmp_path / "out" / "größe.txt"
        times = path.stat()
        path.write_text("ä")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        (tmp_path / "out" / "extra").touch()
        (tmp_path / "out" / "empty").unlink()
        problems = shell.json("verify", tmp_path / "out", ok=1)["problems"]
        assert [problem.split()[0] for problem in problems] == ["empty", "extra", "größe.txt"]

    def test_materialise_takes_from_the_cache(self, shell: Shell, tmp_path: Path) -> None:
        shell.json("commit", tmp_path / "work", "--name", "corpus", "-m", "first")
        options = ("--version", "corpus", "--cache", tmp_path / "cache")
        assert shell.json("materialise", tmp_path / "one", *options)["fetched"] > 0
        assert shell.json("materialise", tmp_path / "two", *options)["fetched"] == 0
        assert shell.json("materialise", tmp_path / "two", *options)["present"] is True


def test_a_bar_is_drawn_for_people_only(shell: Shell, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deepseek_ops.cli.main", "data", "commit", str(tmp_path / "work")]
    command += ["--name", "corpus", "-m", "first"]
    quiet = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert quiet.stderr == b""
    master, slave = pty.openpty()
    (tmp_path / "work" / "more").write_text("more")
    shown = subprocess.run(command, stdout=subprocess.PIPE, stderr=slave, check=True, timeout=60)
    os.close(slave)
    assert json.loads(shown.stdout)["name"] == "corpus"
    assert b"files" in os.read(master, 1 << 16)
    os.close(master)


class TestMergeDriver:
    """Real Git, with the driver that ``.gitattributes`` names."""

    def git(self, repository: Path, *arguments: str, ok: bool = True) -> str:
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        done = subprocess.run(
            ["git", *arguments],
            cwd=repository,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode == 0) is ok, done.stdout + done.stderr
        return done.stdout

    @pytest.fixture
    def repository(self, shell: Shell, tmp_path: Path) -> Path:
        repository = tmp_path / "model"
        repository.mkdir()
        self.git(repository, "init", "-q", "-b", "main")
        for key, value in (("user.name", "me"), ("user.email", "me@example.com")):
            self.git(repository, "config", key, value)
        driver = f"{sys.executable} -m deepseek_ops.cli.main data merge-pointer %O %A %B"
        self.git(repository, "config", "merge.dataset-pointer.driver", driver)
        (repository / ".gitattributes").write_text("data/*.dataset.yaml merge=dataset-pointer\n")
        return repository

    def commit(self, shell: Shell, repository: Path, branch: str, work: Path, **files: str) -> None:
        for name, text in files.items():
            (work / name).write_text(text)
        pointer = repository / "data" / "corpus.dataset.yaml"
        shell.run("commit", work, "--name", "corpus", "-m", "x", "--branch", branch, "--pointer", pointer)
        for name in files:
            (work / name).unlink()
        self.git(repository, "add", ".")
        self.git(repository, "commit", "-q", "-m", f"data of {branch}")

    def test_git_merges_the_versions_two_branches_name(self, shell: Shell, repository: Path, tmp_path: Path) -> None:
        work = tmp_path / "work"
        self.commit(shell, repository, "main", work)
        shell.run("branch", "corpus", "more")
        self.git(repository, "branch", "more")
        self.commit(shell, repository, "main", work, mine="1")
        self.git(repository, "checkout", "-q", "more")
        self.commit(shell, repository, "more", work, theirs="2")
        self.git(repository, "merge", "-q", "main", "-m", "both")
        text = (repository / "data" / "corpus.dataset.yaml").read_text()
        merged: DatasetPointer = read_pointer(text, file="pointer")
        paths = [row["path"] for row in shell.json("files", merged.version)]
        assert {"mine", "theirs"} <= set(paths)
        assert any(row["version"] == merged.version for row in shell.json("branch", "corpus"))

    def test_what_does_not_merge_is_left_to_read(self, shell: Shell, repository: Path, tmp_path: Path) -> None:
        work = tmp_path / "work"
        self.commit(shell, repository, "main", work)
        shell.run("branch", "corpus", "more")
        self.git(repository, "branch", "more")
        self.commit(shell, repository, "main", work, same="1")
        self.git(repository, "checkout", "-q", "more")
        self.commit(shell, repository, "more", work, same="2")
        self.git(repository, "merge", "-q", "main", "-m", "both", ok=False)
        text = (repository / "data" / "corpus.dataset.yaml").read_text()
        assert "#   same: both added" in text
        assert text.count("version: ") == 2
        assert "<<<<<<< ours" in text
