"""One real S3 server (SeaweedFS) for the whole test session, and fresh stores on it.

Take what you need: ``import fixtures_s3`` and ``s3_store = fixtures_s3.s3_store``. The server is started by the first
test that asks and ends with the process, however that ends.
"""

from __future__ import annotations

import atexit
import secrets
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.embedded.seaweedfs import SeaweedServer

BUCKET = "tests"


@cache
def shared_server() -> SeaweedServer:
    """Return the session's server. Not tied to a fixture: one imported by many modules would start one in each."""
    root = Path(tempfile.mkdtemp(prefix="deepseek-ops-s3-"))
    server = SeaweedServer(root, buckets=[BUCKET])

    def end() -> None:
        server.stop()
        shutil.rmtree(root, ignore_errors=True)

    atexit.register(end)
    server.start()
    return server


@pytest.fixture(scope="session")
def s3_server() -> SeaweedServer:
    return shared_server()


@pytest.fixture
def s3_uri() -> str:
    """Give the URI of a fresh, empty prefix in the test bucket."""
    return f"s3://{BUCKET}/{secrets.token_hex(6)}"


@pytest.fixture
def s3_store(s3_server: SeaweedServer, s3_uri: str) -> ObjectStore:
    return open_store(s3_uri, s3_server.credentials)


@pytest.fixture
def fresh_s3_store(s3_server: SeaweedServer) -> Callable[[], ObjectStore]:
    """Give a function that opens another empty store with each call."""
    return lambda: open_store(f"s3://{BUCKET}/{secrets.token_hex(6)}", s3_server.credentials)
