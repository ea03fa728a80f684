"""The store goes away while a job runs on another machine: a real S3 server behind a proxy that refuses everything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import fixtures_faulty_s3 as faulty
import fixtures_s3
import pytest
from fixtures_faulty_s3 import Fault, FaultyS3
from fixtures_launcher import job, settled, until
from fixtures_process_engine import ProcessEngine
from fixtures_remote import Cluster, living

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.jobs import JobPhase
from deepseek_ops.core.ports import ObjectStore

faulty_s3, faulty_credentials, faulty_store = faulty.faulty_s3, faulty.faulty_credentials, faulty.faulty_store


@pytest.fixture
def cluster(tmp_path: Path, faulty_store: ObjectStore, faulty_credentials: dict[str, str]) -> Iterator[Cluster]:
    """A cluster whose machines reach the store through the proxy, and whose launcher does not."""
    engine = ProcessEngine(tmp_path)
    direct = open_store(faulty_store.uri, fixtures_s3.shared_server().credentials)
    yield Cluster(tmp_path, direct, engine, faulty_credentials)
    engine.close()


@pytest.mark.slow
@pytest.mark.heavy
def test_a_job_outlives_its_store_and_brings_everything_when_it_is_back(cluster: Cluster, faulty_s3: FaultyS3) -> None:
    spec = job("count", {"steps": 150}, kind="train")
    launcher = cluster.launcher()
    launcher.submit(spec)
    until(lambda: cluster.events(spec.name, "run"))
    faulty_s3.will(Fault(faulty.ERROR))
    time.sleep(6)  # it counts to its end meanwhile
    assert launcher.status(spec.name).phase is JobPhase.RUNNING
    faulty_s3.will()
    status = settled(launcher, spec.name, within=90)
    assert (status.phase, status.restarts) == (JobPhase.SUCCEEDED, 0)
    assert launcher.result(spec.name)["started_at"] == 0
    kinds = [event["kind"] for event in launcher.events(spec.name)]
    assert (kinds[0], kinds[-1], len(kinds)) == ("started", "ended", len(set(kinds))), "all of them, once and in order"


@pytest.mark.slow
@pytest.mark.heavy
def test_a_job_whose_store_stays_away_saves_and_ends_with_its_lease(cluster: Cluster, faulty_s3: FaultyS3) -> None:
    spec = job("wait", lease_seconds=4, grace_seconds=2)
    launcher = cluster.launcher()
    launcher.submit(spec)
    pids = cluster.pids(spec.name)
    launcher.renew(spec.name)
    faulty_s3.will(Fault(faulty.ERROR))
    began = time.monotonic()
    until(lambda: not living(pids), within=40)
    assert time.monotonic() - began < 4 + 60
    faulty_s3.will()
    status = settled(launcher, spec.name, within=90)
    assert status.phase is JobPhase.LOST, "nobody stopped it: another attempt may resume"
    assert "the store was away" in status.reason
    assert len(cluster.events(spec.name, "saved")) == 1
