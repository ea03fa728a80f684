"""The transfer agent under the real git-lfs client: objects go to the store and come back without any server."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fixtures_git_lfs
import fixtures_s3
import pytest

from deepseek_ops.adapters.git_lfs.config import install_agent, repository_name
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.objects import blob_key, lfs_root_key
from deepseek_ops.embedded.seaweedfs import SeaweedServer

git_lfs = fixtures_git_lfs.git_lfs
lfs_environment = fixtures_git_lfs.lfs_environment
s3_server = fixtures_s3.s3_server
s3_uri = fixtures_s3.s3_uri

Run = Callable[..., str]


@pytest.fixture
def variables(lfs_environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return {**lfs_environment, "DEEPSEEK_OPS_STORE": (tmp_path / "store").as_uri()}


def run(variables: dict[str, str], folder: Path, *command: str, status: int = 0) -> str:
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == status, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def clone_with_agent(variables: dict[str, str], origin: Path, place: Path) -> Path:
    run({**variables, "GIT_LFS_SKIP_SMUDGE": "1"}, place.parent, "git", "clone", "--quiet", str(origin), str(place))
    install_agent(place)
    return place


@pytest.fixture
def origin(variables: dict[str, str], tmp_path: Path) -> Path:
    place = tmp_path / "team" / "model.git"
    run(variables, tmp_path, "git", "init", "--quiet", "--bare", str(place))
    return place


@pytest.fixture
def clone(variables: dict[str, str], origin: Path, tmp_path: Path) -> Path:
    place = clone_with_agent(variables, origin, tmp_path / "clone")
    run(variables, place, "git", "lfs", "track", "*.pt", "*.bin")
    return place


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311


def write_weights(folder: Path, names: list[str], size: int, seed: int = 1) -> dict[str, str]:
    digests = {}
    for number, name in enumerate(names):
        data = noise(size, seed + 1000 * number)
        (folder / name).write_bytes(data)
        digests[name] = hashlib.sha256(data).hexdigest()
    return digests


def push_weights(variables: dict[str, str], clone: Path, digests: dict[str, str]) -> str:
    run(variables, clone, "git", "add", "--all")
    run(variables, clone, "git", "commit", "--quiet", "--message", f"Add {len(digests)} weights")
    return run(variables, clone, "git", "push", "--quiet", "origin", "HEAD:main")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class TestPushAndClone:
    def check(self, variables: dict[str, str], origin: Path, clone: Path, tmp_path: Path) -> None:
        digests = write_weights(clone, [f"layer{n}.pt" for n in range(12)] + ["head.bin"], 300_000)
        digests |= write_weights(clone, ["big.bin"], 40_000_000)
        (clone / "empty.pt").write_bytes(b"")
        push_weights(variables, clone, digests)
        store = open_store(variables["DEEPSEEK_OPS_STORE"], variables)
        for oid in digests.values():
            assert store.head(blob_key(oid)) is not None
            note = json.loads(store.get(lfs_root_key("team/model", oid)))
            assert (note["oid"], note["repository"]) == (oid, "team/model")
        other = clone_with_agent(variables, origin, tmp_path / "other")
        assert (other / "big.bin").read_bytes().startswith(b"version https://git-lfs")
        run(variables, other, "git", "lfs", "pull")
        assert {name: digest(other / name) for name in digests} == digests
        assert run(variables, other, "git", "lfs", "fsck").strip().endswith("Git LFS fsck OK")
        assert run(variables, other, "git", "status", "--porcelain") == ""
        assert not list((other / ".git" / "lfs" / "incomplete").iterdir())

    def test_a_local_store_gives_back_what_was_pushed(self, variables, origin, clone, tmp_path):
        self.check(variables, origin, clone, tmp_path)

    @pytest.mark.slow
    def test_an_s3_store_gives_back_what_was_pushed(
        self, lfs_environment, origin, clone, tmp_path, s3_server: SeaweedServer, s3_uri: str
    ):
        self.check({**lfs_environment, **s3_server.credentials, "DEEPSEEK_OPS_STORE": s3_uri}, origin, clone, tmp_path)

    def test_a_checkout_of_an_older_commit_fetches_what_it_needs(self, variables, origin, clone, tmp_path):
        first = write_weights(clone, ["model.pt"], 50_000, seed=1)
        push_weights(variables, clone, first)
        second = write_weights(clone, ["model.pt"], 50_000, seed=2)
        push_weights(variables, clone, second)
        other = clone_with_agent(variables, origin, tmp_path / "other")
        run(variables, other, "git", "lfs", "pull")
        assert digest(other / "model.pt") == second["model.pt"]
        run(variables, other, "git", "checkout", "--quiet", "HEAD~1")
        assert digest(other / "model.pt") == first["model.pt"]

    @pytest.mark.slow
    def test_a_file_of_200_megabytes_comes_back(self, variables, origin, clone, tmp_path):
        digests = write_weights(clone, ["large.bin"], 220_000_000)
        push_weights(variables, clone, digests)
        other = clone_with_agent(variables, origin, tmp_path / "other")
        run(variables, other, "git", "lfs", "pull")
        assert digest(other / "large.bin") == digests["large.bin"]

    def test_the_address_may_be_committed(self, lfs_environment, origin, clone, tmp_path):
        (clone / ".deepseek-ops.conf").write_text(f"[deepseek-ops]\n\tstore = {(tmp_path / 'named').as_uri()}\n")
        digests = write_weights(clone, ["model.pt"], 10_000)
        push_weights(lfs_environment, clone, digests)
        assert (tmp_path / "named" / blob_key(digests["model.pt"])).is_file()
        other = clone_with_agent(lfs_environment, origin, tmp_path / "other")
        (other / ".deepseek-ops.conf").unlink()  # as in the middle of a clone: only the index has it
        run(lfs_environment, other, "git", "lfs", "pull")
        assert digest(other / "model.pt") == digests["model.pt"]

    def test_without_an_address_the_push_fails_and_says_what_to_do(self, lfs_environment, clone):
        write_weights(clone, ["model.pt"], 1000)
        run(lfs_environment, clone, "git", "add", "--all")
        run(lfs_environment, clone, "git", "commit", "--quiet", "--message", "Add weights")
        told = run(lfs_environment, clone, "git", "push", "origin", "HEAD:main", status=1)
        assert "names no object store" in told
        assert "deepseek-ops.store" in told


class TestBadObjects:
    def test_wrong_bytes_in_the_store_are_refused(self, variables, origin, clone, tmp_path):
        digests = write_weights(clone, ["model.pt"], 100_000)
        push_weights(variables, clone, digests)
        stored = tmp_path / "store" / blob_key(digests["model.pt"])
        stored.chmod(0o644)
        stored.write_bytes(bytes(100_000))
        other = clone_with_agent(variables, origin, tmp_path / "other")
        told = run(variables, other, "git", "lfs", "pull", status=2)
        assert f"has digest {hashlib.sha256(bytes(100_000)).hexdigest()}, expected {digests['model.pt']}" in told
        assert (other / "model.pt").read_bytes().startswith(b"version ")

    def test_a_missing_object_is_named(self, variables, origin, clone, tmp_path):
        digests = write_weights(clone, ["model.pt"], 1000)
        push_weights(variables, clone, digests)
        (tmp_path / "store" / blob_key(digests["model.pt"])).unlink()
        other = clone_with_agent(variables, origin, tmp_path / "other")
        assert "does not exist" in run(variables, other, "git", "lfs", "pull", status=2)

    def test_damaged_local_objects_are_not_pushed_under_their_name(self, variables, clone, tmp_path):
        digests = write_weights(clone, ["model.pt"], 100_000)
        oid = digests["model.pt"]
        run(variables, clone, "git", "add", "--all")
        run(variables, clone, "git", "commit", "--quiet", "--message", "Add weights")
        cached = clone / ".git" / "lfs" / "objects" / oid[:2] / oid[2:4] / oid
        cached.chmod(0o644)
        cached.write_bytes(bytes(100_000))
        (clone / "model.pt").write_bytes(bytes(100_000))  # git-lfs would repair its copy from here
        told = run(variables, clone, "git", "push", "origin", "HEAD:main", status=1)
        assert oid in told
        assert not (tmp_path / "store" / blob_key(oid)).exists()

    def test_a_present_object_is_not_sent_again(self, variables, clone, tmp_path):
        digests = write_weights(clone, ["model.pt"], 100_000)
        store = open_store(variables["DEEPSEEK_OPS_STORE"])
        key = blob_key(digests["model.pt"])
        store.put_blob(key, clone / "model.pt")
        before = (tmp_path / "store" / key).stat().st_mtime_ns
        push_weights(variables, clone, digests)
        assert (tmp_path / "store" / key).stat().st_mtime_ns == before
        assert store.head(lfs_root_key("team/model", digests["model.pt"])) is not None


INIT = {"event": "init", "operation": "download", "remote": "origin", "concurrent": True, "concurrenttransfers": 3}


class TestProtocol:
    """The agent's process alone, spoken to as git-lfs does."""

    def talk(self, variables: dict[str, str], folder: Path, *messages: object, status: int = 0) -> list[dict]:
        lines = "".join(f"{json.dumps(message)}\n" for message in messages)
        command = [sys.executable, "-P", "-m", "deepseek_ops.cli.lfs_agent"]
        done = subprocess.run(
            command, cwd=folder, env=variables, input=lines, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == status, done.stderr
        assert status or not done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def test_an_interrupted_download_goes_on_where_it_was(self, variables, clone, tmp_path):
        data = noise(30_000_000, 3)
        oid = hashlib.sha256(data).hexdigest()
        store = open_store(variables["DEEPSEEK_OPS_STORE"])
        store.put_blob(blob_key(oid), data)
        partial = clone / ".git" / "lfs" / "incomplete" / f"{oid}.deepseek-ops"
        partial.parent.mkdir(parents=True)
        partial.write_bytes(data[:29_999_000])
        stored = tmp_path / "store" / blob_key(oid)
        stored.chmod(0o644)
        with stored.open("r+b") as file:  # whoever reads the beginning again gets other bytes
            file.write(bytes(1000))
        request = {"event": "download", "oid": oid, "size": len(data), "action": None}
        answers = self.talk(variables, clone, INIT, request, {"event": "terminate"})
        assert "error" not in answers[-1]
        assert Path(answers[-1]["path"]).read_bytes() == data

    def test_a_damaged_partial_file_is_begun_again(self, variables, clone):
        data = noise(9_000_000, 4)
        oid = hashlib.sha256(data).hexdigest()
        open_store(variables["DEEPSEEK_OPS_STORE"]).put_blob(blob_key(oid), data)
        partial = clone / ".git" / "lfs" / "incomplete" / f"{oid}.deepseek-ops"
        partial.parent.mkdir(parents=True)
        partial.write_bytes(bytes(8_000_000))
        request = {"event": "download", "oid": oid, "size": len(data), "action": None}
        answers = self.talk(variables, clone, INIT, request, {"event": "terminate"})
        assert Path(answers[-1]["path"]).read_bytes() == data

    def test_a_killed_agent_leaves_what_it_had(self, lfs_environment, clone, s3_server, s3_uri):
        variables = {**lfs_environment, **s3_server.credentials, "DEEPSEEK_OPS_STORE": s3_uri}
        data = noise(120_000_000, 5)
        oid = hashlib.sha256(data).hexdigest()
        open_store(s3_uri, variables).put_blob(blob_key(oid), data)
        command = [sys.executable, "-P", "-m", "deepseek_ops.cli.lfs_agent"]
        request = {"event": "download", "oid": oid, "size": len(data), "action": None}
        partial = clone / ".git" / "lfs" / "incomplete" / f"{oid}.deepseek-ops"
        with subprocess.Popen(
            command, cwd=clone, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            process.stdin.write(f"{json.dumps(INIT)}\n{json.dumps(request)}\n")
            process.stdin.flush()
            while not partial.exists() or partial.stat().st_size < 8 << 20:
                assert process.poll() is None
            process.kill()
        kept = partial.stat().st_size
        assert 8 << 20 <= kept < len(data), "killed too late to say anything"
        answers = self.talk(variables, clone, INIT, request, {"event": "terminate"})
        first = next(answer for answer in answers if answer.get("event") == "progress")
        assert first["bytesSoFar"] >= kept
        assert digest(Path(answers[-1]["path"])) == oid

    def test_several_agents_may_want_the_same_object(self, variables, clone):
        data = noise(20_000_000, 6)
        oid = hashlib.sha256(data).hexdigest()
        open_store(variables["DEEPSEEK_OPS_STORE"]).put_blob(blob_key(oid), data)
        command = [sys.executable, "-P", "-m", "deepseek_ops.cli.lfs_agent"]
        request = {"event": "download", "oid": oid, "size": len(data), "action": None}
        lines = "".join(f"{json.dumps(message)}\n" for message in (INIT, request))
        agents = [
            subprocess.Popen(command, cwd=clone, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(4)
        ]
        for agent in agents:
            agent.stdin.write(lines.encode())
            agent.stdin.flush()
        for agent in agents:
            output, _ = agent.communicate(timeout=60)
            last = json.loads(output.splitlines()[-1])
            assert digest(Path(last["path"])) == oid

    def test_a_failed_transfer_is_an_answer_and_the_next_one_works(self, variables, clone):
        data = b"weights"
        oid = hashlib.sha256(data).hexdigest()
        open_store(variables["DEEPSEEK_OPS_STORE"]).put_blob(blob_key(oid), data)
        missing = {"event": "download", "oid": "0" * 64, "size": 5, "action": None}
        wrong_size = {"event": "download", "oid": oid, "size": 900, "action": None}
        good = {"event": "download", "oid": oid, "size": 7, "action": None}
        answers = self.talk(variables, clone, INIT, missing, wrong_size, good, {"event": "terminate"})
        done = [answer for answer in answers if answer.get("event") == "complete"]
        assert [answer.get("error", {}).get("code") for answer in done] == [404, 422, None]
        assert Path(done[-1]["path"]).read_bytes() == data

    def test_progress_ends_with_the_size(self, variables, clone, tmp_path):
        source = tmp_path / "weights"
        source.write_bytes(noise(5_000_000, 7))
        oid = digest(source)
        request = {"event": "upload", "oid": oid, "size": 5_000_000, "path": str(source), "action": None}
        answers = self.talk(variables, clone, INIT, request, {"event": "terminate"})
        told = [answer for answer in answers if answer.get("event") == "progress"]
        assert told[-1]["bytesSoFar"] == 5_000_000
        assert sum(answer["bytesSinceLast"] for answer in told) == 5_000_000

    @pytest.mark.parametrize(
        "message",
        [
            {"event": "download", "oid": "../../etc/passwd", "size": 5},
            {"event": "download", "oid": "0" * 64, "size": -1},
            {"event": "dance"},
        ],
    )
    def test_what_is_not_in_the_protocol_ends_the_agent(self, variables, clone, message):
        self.talk(variables, clone, INIT, message, status=1)

    def test_a_repositorys_own_modules_do_not_run_in_the_agent(self, variables, clone, tmp_path):
        (clone / "json.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\n")
        digests = write_weights(clone, ["model.pt"], 1000)
        push_weights(variables, clone, digests)
        assert not (tmp_path / "owned").exists()

    def test_no_secret_is_in_the_settings_or_the_answers(self, lfs_environment, clone, s3_server):
        variables = {**lfs_environment, **s3_server.credentials, "DEEPSEEK_OPS_STORE": "s3://no-such-bucket/x"}
        request = {"event": "download", "oid": "0" * 64, "size": 5, "action": None}
        shown = json.dumps(self.talk(variables, clone, INIT, request)) + (clone / ".git" / "config").read_text()
        assert "no-such-bucket" in shown
        assert s3_server.credentials["AWS_SECRET_ACCESS_KEY"] not in shown
        assert s3_server.credentials["AWS_ACCESS_KEY_ID"] not in shown


def test_the_agent_starts_without_records_and_clients_it_does_not_need(variables):
    loaded = "import sys, deepseek_ops.cli.lfs_agent; print({'pydantic', 'typer', 'obstore'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-P", "-c", loaded], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://git.example.com/team/model.git", "team/model"),
        ("git@git.example.com:team/model.git", "team/model"),
        ("ssh://git@git.example.com:22/a/team/model", "team/model"),
        ("/srv/git/team/model.git/", "team/model"),
        ("https://example.com/te%20am/mödel?x=1", "te-20am/m-del"),
        ("https://example.com/", "local"),
        ("../..", "local"),
    ],
)
def test_a_repository_is_named_by_the_end_of_its_url(url, name):
    assert repository_name(url) == name
