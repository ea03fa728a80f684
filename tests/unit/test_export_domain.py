"""What an export must show before it is one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.core.errors import InvalidRecordError, PermanentError
from deepseek_ops.core.records import FileEntry, FileSet
from deepseek_ops.export import (
    ExportRequest,
    Measured,
    ParityError,
    SampleError,
    TensorRtMissingError,
    UnsupportedNodesError,
    completed_config,
    parity_of,
    plan_batches,
    tolerance_for,
)

MODEL = FileSet(files=(FileEntry(path="config.json", size=1, digest="0" * 64),))
ROWS = st.lists(st.lists(st.integers(0, 511), max_size=40), max_size=6).filter(lambda rows: sum(map(len, rows)) >= 4)


def measured(error: float = 1e-6, *, logit: float = 1.0, top1: float = 1.0, tokens: int = 500) -> Measured:
    return Measured(
        max_abs_error=error, p99_abs_error=error, max_abs_logit=logit, top1_agreement=top1, num_tokens=tokens
    )


@given(rows=ROWS, max_length=st.integers(8, 4096))
def test_the_traced_batch_is_padded_and_no_held_out_batch_has_its_shape(rows, max_length):
    traced, held_out = plan_batches(rows, pad=0, vocab_size=512, max_length=max_length)
    assert 0 < traced.num_tokens < traced.shape[0] * traced.shape[1]
    shapes = [batch.shape for batch in held_out]
    assert traced.shape not in shapes
    assert len(set(shapes)) == len(shapes) >= 3
    assert (1, 1) in shapes
    assert any(batch.num_tokens < batch.shape[0] * batch.shape[1] for batch in held_out)


@given(rows=ROWS, max_length=st.integers(8, 200))
def test_batches_are_rectangular_left_padded_and_hold_only_tokens_of_the_sample(rows, max_length):
    known = {token for row in rows for token in row}
    traced, held_out = plan_batches(rows, pad=511, vocab_size=512, max_length=max_length)
    for batch in (traced, *held_out):
        assert batch.shape[1] <= max_length
        for ids, mask in zip(batch.ids, batch.mask, strict=True):
            assert len(ids) == len(mask) == batch.shape[1]
            assert list(mask) == sorted(mask), "padding stands on the left"
            assert mask[-1] == 1
            assert {token for token, counts in zip(ids, mask, strict=True) if counts} <= known


@pytest.mark.parametrize("rows", [[], [[]], [[1, 2, 3]]])
def test_a_sample_without_tokens_is_refused(rows):
    with pytest.raises(SampleError, match="at least 4 tokens"):
        plan_batches(rows, pad=0, vocab_size=512, max_length=64)


def test_a_token_the_model_does_not_know_is_named():
    with pytest.raises(SampleError, match=r"token id 512 .* 512"):
        plan_batches([[1, 2, 3, 512]], pad=0, vocab_size=512, max_length=64)


def test_the_bound_grows_with_the_logits_and_never_below_one():
    tolerance = tolerance_for("onnx")
    assert parity_of(measured(9e-5), tolerance, export_format="onnx", runtime="x").max_abs_error == 9e-5
    assert parity_of(measured(9e-4, logit=10.0), tolerance, export_format="onnx", runtime="x")
    with pytest.raises(ParityError):
        parity_of(measured(9e-4, logit=0.1), tolerance, export_format="onnx", runtime="x")


@pytest.mark.parametrize(
    "bad",
    [
        measured(math.nan),
        measured(math.inf),
        measured(0.01),
        measured(top1=0.99),
        measured(tokens=0),
    ],
)
def test_nan_error_wrong_tokens_and_no_evidence_are_disagreement(bad):
    with pytest.raises(ParityError) as caught:
        parity_of(bad, tolerance_for("onnx"), export_format="onnx", runtime="onnxruntime 9")
    text = str(caught.value)
    assert isinstance(caught.value, PermanentError)
    assert "onnx export" in text
    assert "onnxruntime 9" in text
    assert f"{bad.num_tokens} tokens" in text


def test_in_half_precision_one_token_in_a_hundred_may_have_met_another_expert():
    flipped = Measured(max_abs_error=0.4, p99_abs_error=0.005, max_abs_logit=3.0, top1_agreement=0.99, num_tokens=576)
    half = tolerance_for("tensorrt", "fp16")
    parity = parity_of(flipped, half, export_format="tensorrt", runtime="x")
    assert parity.max_abs_error == 0.4, "the figure that is published is the true one"
    with pytest.raises(ParityError, match=r"all is 0\.4"):
        parity_of(flipped, tolerance_for("tensorrt"), export_format="tensorrt", runtime="x")
    with pytest.raises(ParityError, match=r"99 % is 0\.4"):
        parity_of(replace(flipped, p99_abs_error=0.4), half, export_format="tensorrt", runtime="x")


def test_half_precision_is_allowed_more_and_copied_weights_almost_nothing():
    half, single, copy = tolerance_for("tensorrt", "fp16"), tolerance_for("tensorrt"), tolerance_for("safetensors")
    assert half.relative_error > single.relative_error > copy.relative_error
    assert half.top1 < single.top1 < copy.top1 == 1.0


def test_the_router_keys_are_added_to_a_v3_config_and_nothing_is_replaced():
    made = completed_config({"model_type": "deepseek_v3", "scoring_func": None})
    assert made == {"model_type": "deepseek_v3", "topk_method": "noaux_tc", "scoring_func": "sigmoid"}
    kept = {"model_type": "deepseek_v3", "topk_method": "greedy", "scoring_func": "softmax"}
    assert completed_config(kept) == kept
    assert completed_config({"model_type": "deepseek_v2"}) == {"model_type": "deepseek_v2"}


def test_a_request_takes_the_model_as_it_was_dumped():
    request = ExportRequest.load({"model": MODEL.dump(), "format": "onnx", "options": {}, "sample": {"texts": ["a"]}})
    assert request.model == MODEL
    assert request.options.flavor == "auto"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": "gguf"}, "format"),
        ({"options": {"flavour": "rtx"}}, "options.flavour"),
        ({"options": {"sm_targets": ["sm90"]}}, "options.sm_targets.0"),
        ({"sample": {}}, "sample"),
        ({"sample": {"token_ids": [[1, -1]]}}, "sample"),
        ({"model": {"files": [{"path": "../x", "size": 1, "digest": "0" * 64}]}}, "path"),
    ],
)
def test_a_wrong_request_is_refused_by_field(change, field):
    body = {"model": MODEL.dump(), "format": "onnx", "sample": {"texts": ["a"]}, **change}
    with pytest.raises(InvalidRecordError, match=field):
        ExportRequest.load(body)


def test_the_enterprise_flavour_says_what_it_needs():
    assert str(TensorRtMissingError()).startswith("TensorRT not installed: needs NVIDIA's index and a GPU")


def test_unsupported_operations_are_counted_and_some_are_named():
    error = UnsupportedNodesError("rtx", tuple(f"node{number} (ScatterElements): no" for number in range(9)))
    assert "9 operations" in str(error)
    assert "node4" in str(error)
    assert "node5" not in str(error)
    assert "4 more" in str(error)
