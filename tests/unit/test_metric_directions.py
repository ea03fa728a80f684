"""Which way of a metric is better is declared, never read from its name."""

from __future__ import annotations

from deepseek_ops.core.config import load_pipeline
from deepseek_ops.pipeline.metric_directions import OURS, agreed, directions_of

TEXT = "name: tiny\ndata: {raw: r/, prepare: 'a.b:c'}\ntraining: {model: m.json}\n"


def declared(validation: str):
    return directions_of(load_pipeline(f"{TEXT}{validation}\n".encode(), file="deepseek.yaml"))


def test_what_the_gates_judge_by_goes_before_the_sweep_and_our_own():
    found = declared("validation: {metric: reward, direction: maximize}\nsweep: {metric: recall, direction: maximize}")
    assert found == {**OURS, "reward": "maximize", "recall": "maximize"}
    assert declared("validation: {metric: val_loss, direction: maximize}")["val_loss"] == "maximize"
    assert directions_of(None) == OURS


def test_what_two_files_declare_against_each_other_is_not_known():
    one, other = declared("validation: {metric: reward, direction: maximize}"), declared("validation: {metric: reward}")
    assert "reward" not in agreed(one, other)
    assert agreed(one, directions_of(None))["reward"] == agreed(directions_of(None), one)["reward"] == "maximize"
