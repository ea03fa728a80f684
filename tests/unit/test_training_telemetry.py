"""What a node's thread says of its machine, what it says of GPUs, and that mirrors cost a training nothing."""

from __future__ import annotations

import threading
import time
from unittest import mock

import pynvml
import pytest

from deepseek_ops.jobs import mirrors as mirroring
from deepseek_ops.jobs.mirrors import Mirrors
from deepseek_ops.jobs.telemetry import MissingGpuError, NvidiaGpus, Telemetry


class Heard:
    """Rows and events, in order."""

    def __init__(self):
        self.rows, self.events = [], []

    def say(self, kind, fields):
        self.events.append({"kind": kind, **fields})


def until(condition, within=30.0):
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def driver():
    """NVML of a machine with two GPUs, one of which does not tell its power."""
    with mock.patch.multiple(
        pynvml,
        nvmlInit=mock.create_autospec(pynvml.nvmlInit),
        nvmlShutdown=mock.create_autospec(pynvml.nvmlShutdown),
        nvmlDeviceGetCount=mock.create_autospec(pynvml.nvmlDeviceGetCount, return_value=2),
        nvmlDeviceGetHandleByIndex=mock.create_autospec(
            pynvml.nvmlDeviceGetHandleByIndex, side_effect=lambda index: f"gpu{index}"
        ),
        nvmlDeviceGetUtilizationRates=mock.create_autospec(
            pynvml.nvmlDeviceGetUtilizationRates, return_value=mock.Mock(gpu=87, memory=41)
        ),
        nvmlDeviceGetMemoryInfo=mock.create_autospec(
            pynvml.nvmlDeviceGetMemoryInfo, return_value=mock.Mock(used=60 << 30, total=80 << 30)
        ),
        nvmlDeviceGetPowerUsage=mock.create_autospec(pynvml.nvmlDeviceGetPowerUsage, side_effect=_power),
        nvmlDeviceGetTemperature=mock.create_autospec(pynvml.nvmlDeviceGetTemperature, return_value=71),
    ):
        yield pynvml


def _power(handle):
    if handle == "gpu1":
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return 643_210


def test_a_machine_is_told_in_rows_with_rates():
    heard, before = Heard(), set(threading.enumerate())
    with Telemetry(heard.rows.append, heard.say, node=3, seconds=0.05):
        until(lambda: len(heard.rows) >= 3)
        assert len(set(threading.enumerate()) - before) == 1
    row = heard.rows[-1]
    assert row["node"] == 3
    assert 0 <= row["cpu_percent"] <= 100
    assert 0 < row["memory_used_bytes"] < row["memory_total_bytes"]
    assert row["ranks_rss_bytes"] > 10 << 20
    assert {"network_sent_bytes_per_second", "disk_written_bytes_per_second"} <= set(row)
    assert set(threading.enumerate()) <= before


def test_gpus_are_told_as_far_as_they_tell(driver):
    heard = Heard()
    with Telemetry(heard.rows.append, heard.say, seconds=0.01):
        until(lambda: heard.rows)
    first, second = heard.rows[0]["gpus"]
    assert first == {
        "index": 0,
        "utilisation_percent": 87,
        "memory_used_bytes": 60 << 30,
        "memory_total_bytes": 80 << 30,
        "power_watts": 643.21,
        "temperature_celsius": 71,
    }
    assert "power_watts" not in second
    assert heard.events == []
    driver.nvmlShutdown.assert_called_once_with()


def test_without_a_driver_there_are_no_gpu_rows_and_one_event_says_why():
    with mock.patch.object(pynvml, "nvmlInit", autospec=True) as init:
        init.side_effect = pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        with pytest.raises(MissingGpuError, match="Not Found"):
            NvidiaGpus()
        heard = Heard()
        with Telemetry(heard.rows.append, heard.say, seconds=0.01):
            until(lambda: len(heard.rows) >= 3)
    assert "gpus" not in heard.rows[-1]
    assert [event["kind"] for event in heard.events] == ["no_gpu_telemetry"]
    assert "Not Found" in heard.events[0]["reason"]


def test_a_counter_that_fails_ends_the_watching_and_is_said(driver):
    driver.nvmlDeviceGetTemperature.side_effect = OSError("the driver is gone")
    heard = Heard()
    with Telemetry(heard.rows.append, heard.say, seconds=0.01):
        until(lambda: heard.events)
    assert "the driver is gone" in heard.events[0]["reason"]


def environment(tmp_path):
    return {"DEEPSEEK_OPS_TENSORBOARD": "curves", "DEEPSEEK_OPS_PROMETHEUS": str(tmp_path / "node" / "training.prom")}


def test_tensorboard_has_every_step_and_forgets_what_a_restart_repeats(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in (range(1, 6), range(4, 9)):
        with Mirrors.from_environment(environment(tmp_path), tmp_path / "job" / "work", Heard().say) as mirrors:
            for step in steps:
                mirrors.put(step, {"training_loss": 10.0 - step})
        time.sleep(1.1)  # event files are named by the second
    curves = EventAccumulator(str(tmp_path / "job" / "work" / "curves"))
    curves.Reload()
    points = [(point.step, point.value) for point in curves.Scalars("training_loss")]
    assert points == [(step, 10.0 - step) for step in range(1, 9)]


def test_prometheus_sees_the_newest_values_while_it_runs(tmp_path):
    from prometheus_client.parser import text_string_to_metric_families

    path = tmp_path / "node" / "training.prom"
    with Mirrors.from_environment(environment(tmp_path), tmp_path / "llama" / "work", Heard().say) as mirrors:
        mirrors.put(7, {"training_loss": float("nan"), "gpu/0": 1.5})
        until(path.exists)
        samples = {
            (sample.name, sample.labels["job_name"]): sample.value
            for family in text_string_to_metric_families(path.read_text())
            for sample in family.samples
        }
    assert samples["deepseek_training_step", "llama"] == 7
    assert samples["deepseek_training_gpu_0", "llama"] == 1.5
    assert samples["deepseek_training_training_loss", "llama"] != samples["deepseek_training_training_loss", "llama"]
    assert not path.exists(), "what has ended has no current values"


def test_a_mirror_that_fails_says_so_once_and_the_others_go_on(tmp_path, monkeypatch):
    (tmp_path / "node").write_text("a file where the folder should be")
    heard = Heard()
    with Mirrors.from_environment(environment(tmp_path), tmp_path / "job" / "work", heard.say) as mirrors:
        mirrors.put(1, {"training_loss": 1.0})
    assert [(event["kind"], event["mirror"]) for event in heard.events] == [("mirror_ended", "prometheus")]
    assert list((tmp_path / "job" / "work" / "curves").iterdir())


def test_a_mirror_that_is_stuck_costs_the_oldest_steps_and_no_time(monkeypatch):
    monkeypatch.setattr(mirroring, "MAX_QUEUED", 5)
    free, written = threading.Event(), []

    class Stuck:
        name = "stuck"

        def write(self, points):
            free.wait(30)
            written.extend(point.step for point in points)

        def close(self):
            pass

    mirrors = Mirrors({"stuck": Stuck}, Heard().say, seconds=0.01)
    with mirrors:
        mirrors.put(0, {})
        time.sleep(0.2)
        for step in range(1, 20):
            mirrors.put(step, {})
        free.set()
    assert written == [0, 15, 16, 17, 18, 19]


def test_nothing_is_mirrored_unless_asked_for(tmp_path):
    assert Mirrors.from_environment({}, tmp_path, Heard().say) is None
