"""What a promotion ends, and what it leaves alone."""

from __future__ import annotations

from types import SimpleNamespace

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.local_launcher import LocalLauncher
from deepseek_ops.pipeline.deployments import SERVING, Delivery, Serving


def test_a_replaced_job_that_housekeeping_has_forgotten_is_no_error(tmp_path):
    facts = open_facts(f"sqlite:///{tmp_path / 'facts.db'}")
    gone = Serving(endpoint="tiny", version="0.1.0", job="serve-tiny-0.1.0", address="127.0.0.1:1")
    facts.insert(SERVING, "tiny/0.1.0", gone.dump())
    delivery = Delivery(
        version=SimpleNamespace(version="0.2.0"),
        stores=None,
        facts=facts,
        launcher=LocalLauncher(tmp_path / "jobs", warm=False),
        gateway=None,
        run="manual__1",
    )
    delivery.end_replaced("tiny")
    assert delivery.launcher.list() == []
