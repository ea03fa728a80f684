"""The launcher's contract for jobs on other machines, which are processes here, with one node and with two."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_process_engine import ProcessEngine
from test_launcher import LauncherContract

from deepseek_ops.adapters.remote_launcher import NodeShape, RemoteLauncher
from deepseek_ops.adapters.stores import store_environment
from deepseek_ops.adapters.stores.local import LocalStore


def remote_launcher(root: Path, engine: ProcessEngine) -> RemoteLauncher:
    """Return a launcher on the store and the engine below ``root``."""
    store = LocalStore(root / "store")
    return RemoteLauncher(
        store, engine, shape=NodeShape(python=sys.executable), access=store_environment(store.uri, {})
    )


@pytest.mark.slow  # a new interpreter for every job
class TestRemoteLauncher(LauncherContract):
    """Every job on a machine of its own."""

    @pytest.fixture(scope="class")
    def root(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("remote")

    @pytest.fixture(scope="class")
    def engine(self, root: Path) -> Iterator[ProcessEngine]:
        engine = ProcessEngine(root)
        yield engine
        engine.close()

    @pytest.fixture(scope="class")
    def launcher(self, root: Path, engine: ProcessEngine) -> RemoteLauncher:
        return remote_launcher(root, engine)

    @pytest.fixture(scope="class")
    def another(self, root: Path, engine: ProcessEngine) -> RemoteLauncher:
        return remote_launcher(root, engine)
