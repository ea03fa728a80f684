"""Writers of large objects killed at random times, again and again, on S3 and on a folder."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import fixtures_faulty_s3 as faulty
import fixtures_s3
import pytest
from fixtures_faulty_s3 import Fault, FaultyS3
from fixtures_patterns import pattern

from deepseek_ops.adapters.stores import open_store, remote, s3, store_environment
from deepseek_ops.adapters.stores.remote import PARALLEL_PARTS
from deepseek_ops.adapters.stores.s3 import S3Store
from deepseek_ops.core.records import digest_of
from deepseek_ops.data import blob_key

faulty_s3, faulty_credentials = faulty.faulty_s3, faulty.faulty_credentials

PART_BYTES = 5 << 20
"""S3 takes no smaller ones."""
PARTS = 6
DATA = pattern(PARTS * PART_BYTES - 7)
KEY = blob_key(digest_of(DATA))
PROGRAM = """
import os, sys
from pathlib import Path
from deepseek_ops.adapters.stores import remote, s3
remote.PART_BYTES, s3.PART_BYTES, remote.SINGLE_PUT_BYTES = 5 << 20, 5 << 20, 10 << 20
from deepseek_ops.adapters.stores import store_from_environment
store = store_from_environment(os.environ)
print("ready", flush=True)
store.put_blob(sys.argv[1], Path(sys.argv[2]))
store.create(sys.argv[3], sys.argv[1].encode())
"""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(s3, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(remote, "SINGLE_PUT_BYTES", 2 * PART_BYTES)


def kill_after(environment: dict[str, str], source: Path, ref: str, seconds: float) -> bool:
    """Run one writer and kill it so long after it began; return whether it was still at work."""
    command = [sys.executable, "-c", PROGRAM, KEY, str(source), ref]
    with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        at_work = writer.poll() is None
        writer.kill()
    return at_work


@pytest.mark.slow
@pytest.mark.parametrize("where", ["s3", "folder"])
def test_nothing_is_half_visible_and_the_last_try_finishes(
    where: str, faulty_s3: FaultyS3, faulty_credentials: dict[str, str], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    if where == "s3":
        uri = f"s3://{fixtures_s3.BUCKET}/killed-{os.getpid()}"
        environment = store_environment(uri, faulty_credentials)
        store = open_store(uri, fixtures_s3.shared_server().credentials)
        faulty_s3.will(Fault(faulty.LATENCY, "part", seconds=0.05))
    else:
        environment = store_environment(str(tmp_path / "store"))
        store = open_store(str(tmp_path / "store"))
    longest = 1.2 if where == "s3" else 0.15
    delays, killed = random.Random(5), 0  # noqa: S311
    for number in range(8):
        killed += kill_after(environment, source, f"refs/{number}", delays.uniform(0, longest))
        info = store.head(KEY)
        assert info is None or info.size == len(DATA)
        if store.head(f"refs/{number}"):
            assert digest_of(store.get(KEY)) == digest_of(DATA), "a ref names whole bytes"
    assert killed, "none was killed at work: the delays are too long"
    store.put_blob(KEY, source)
    assert digest_of(store.get(KEY)) == digest_of(DATA)
    if isinstance(store, S3Store):
        assert faulty_s3.counts["part"] <= PARTS + killed * PARALLEL_PARTS + PARTS * (8 - killed), (
            "re-sends are bounded"
        )
        store.drop_unfinished(-60)
