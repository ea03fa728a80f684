"""Each format is exported by the real job, stored, fetched again and loaded in its own runtime."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from fixtures_tiny_model import TEXTS, tiny_model, write_tiny_model

from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.errors import InvalidRecordError
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.core.records import ExportedModel, ExportStatus
from deepseek_ops.data import StoreBlobs
from deepseek_ops.export import BrokenCheckpointError, ParityError, TensorRtMissingError, UnsupportedNodesError
from deepseek_ops.jobs import export
from deepseek_ops.jobs.context import JobContext

__all__ = ["tiny_model"]

pytestmark = pytest.mark.slow  # importing torch and transformers; tracing for ONNX


class Desk:
    """A store and a folder for jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = LocalStore(folder / "store")
        self.blobs = StoreBlobs(self.store)

    def context(self, model: Path, export_format: str, **payload: object) -> JobContext:
        body = {"model": self.blobs.put_folder(model).dump(), "format": export_format, "sample": {"texts": list(TEXTS)}}
        spec = JobSpec(name=f"export-{export_format}", kind="export", payload={**body, **payload})
        return JobContext(spec, self.folder / "jobs" / export_format, store=self.store)

    def export(self, model: Path, export_format: str, **payload: object) -> ExportedModel:
        return ExportedModel.load(export.run(self.context(model, export_format, **payload)))

    def fetch(self, exported: ExportedModel) -> Path:
        target = self.folder / "fetched" / exported.format
        self.blobs.fetch_folder(exported.files, target)
        return target

    def objects(self) -> set[str]:
        return {info.key for info in self.store.list("")}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def checkpoint_logits(tiny_model):
    """Logits of the checkpoint, by the model's own class, for one row without padding."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()

    def logits(row):
        with torch.no_grad():
            return model(input_ids=torch.tensor([row])).logits[0].numpy()

    return logits


def names(exported: ExportedModel) -> set[str]:
    return {entry.path for entry in exported.files.files}


def test_safetensors_keeps_the_weights_and_completes_the_config(desk, tiny_model):
    exported = desk.export(tiny_model, "safetensors")
    assert exported.status is ExportStatus.VERIFIED
    assert exported.parity.max_abs_error == 0
    assert exported.parity.num_tokens > 100
    source = {entry.path: entry.digest for entry in desk.blobs.put_folder(tiny_model).files}
    made = {entry.path: entry.digest for entry in exported.files.files}
    assert made["model.safetensors"] == source["model.safetensors"]
    assert made["config.json"] != source["config.json"]
    config = json.loads((desk.fetch(exported) / "config.json").read_text())
    assert (config["topk_method"], config["scoring_func"]) == ("noaux_tc", "sigmoid")
    assert config["hidden_size"] == 64


def test_torchscript_answers_for_shapes_it_was_not_traced_with(desk, tiny_model, checkpoint_logits):
    import torch

    exported = desk.export(tiny_model, "torchscript")
    assert exported.status is ExportStatus.VERIFIED
    assert exported.parity.runtime.startswith("torch.jit 2.")
    assert {"model.pt", "config.json", "tokenizer.json"} <= names(exported)
    script = torch.jit.load(desk.fetch(exported) / "model.pt")
    row = list(range(3, 60))
    logits = script(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.int64))[0].detach().numpy()
    assert abs(logits - checkpoint_logits(row)).max() < 1e-4


def test_onnx_obeys_the_attention_mask_and_carries_no_paths(desk, tiny_model, checkpoint_logits):
    import numpy as np
    import onnxruntime

    exported = desk.export(tiny_model, "onnx")
    assert exported.status is ExportStatus.VERIFIED
    assert exported.parity.runtime == f"onnxruntime {onnxruntime.__version__}"
    assert exported.parity.top1_agreement == 1.0
    folder = desk.fetch(exported)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    row, padding = list(range(3, 40)), 5
    ids = np.array([[0] * padding + row, list(range(100, 142))], dtype=np.int64)
    mask = np.array([[0] * padding + [1] * len(row), [1] * 42], dtype=np.int64)
    (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})
    assert abs(logits[0, padding:] - checkpoint_logits(row)).max() < 1e-4
    graph = (folder / "model.onnx").read_bytes()
    assert b"site-packages" not in graph
    assert b"/home/" not in graph


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_an_rtx_engine_is_built_and_says_why_it_is_not_verified(desk, tiny_model):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine can verify the engine")
    exported = desk.export(tiny_model, "tensorrt", options={"flavor": "rtx"})
    assert exported.status is ExportStatus.BUILT_UNVERIFIED
    assert exported.parity is None
    assert "cannot load the engine on this machine" in exported.reason
    assert "CUDA" in exported.reason
    details = exported.details
    assert (details["flavor"], details["precision"], details["sm_targets"]) == ("rtx", "fp16", ["sm89"])
    assert details["onnx_parity"]["num_tokens"] > 100
    assert details["onnx_parity"]["max_abs_error"] > 0
    assert (desk.fetch(exported) / "model.engine").stat().st_size > 100_000


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_an_operation_that_tensorrt_lacks_is_named(tmp_path):
    import onnx
    import tensorrt_rtx
    from onnx import TensorProto, helper

    from deepseek_ops.jobs.export_tensorrt import parse_graph

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    node = helper.make_node("NoSuchOperation", ["x"], ["y"], name="the_culprit", domain="acme")
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)]
    model = helper.make_model(helper.make_graph([node], "g", [value], [result]), opset_imports=opsets)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UnsupportedNodesError, match=r"(?s)TensorRT \(rtx\) .*the_culprit"):
        parse_graph(tensorrt_rtx, tmp_path / "model.onnx", "rtx")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_the_enterprise_flavour_fails_by_name_where_it_is_not_installed(desk, tiny_model):
    with pytest.raises(TensorRtMissingError, match="TensorRT not installed: needs NVIDIA's index and a GPU"):
        desk.export(tiny_model, "tensorrt", options={"flavor": "enterprise"})


def test_an_export_that_disagrees_is_not_published(desk, tiny_model, tmp_path, monkeypatch):
    from deepseek_ops.jobs import export_torchscript

    other = write_tiny_model(tmp_path / "other", seed=1)
    load = export_torchscript.SourceModel.load
    # The exporter reads other weights than the checkpoint: what a broken exporter looks like from outside.
    monkeypatch.setattr(
        export_torchscript.SourceModel,
        "load",
        lambda source, experts: load(source if experts == "eager" else type(source).open(other), experts),
    )
    context = desk.context(tiny_model, "torchscript")
    before = desk.objects()
    with pytest.raises(ParityError, match=r"torchscript export disagrees .* over \d+ tokens"):
        export.run(context)
    assert desk.objects() == before


def test_a_checkpoint_without_a_weight_is_refused_and_the_weight_is_named(desk, tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    weights = load_file(broken / "model.safetensors")
    missing = next(name for name in sorted(weights) if "e_score_correction_bias" not in name and "lm_head" not in name)
    del weights[missing]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BrokenCheckpointError, match=missing):
        desk.export(broken, "safetensors")


def test_code_and_pickles_of_the_checkpoint_are_left_behind(desk, tiny_model, tmp_path):
    dirty = tmp_path / "dirty"
    shutil.copytree(tiny_model, dirty)
    (dirty / "modeling_evil.py").write_text("raise SystemExit")
    (dirty / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert not {"modeling_evil.py", "pytorch_model.bin"} & names(desk.export(dirty, "safetensors"))


def test_a_job_that_runs_again_after_being_killed_gives_the_same_files(desk, tiny_model):
    context = desk.context(tiny_model, "safetensors")
    first = export.run(context)
    leftover = context.work / "export" / "files"
    leftover.mkdir(parents=True)
    (leftover / "half-written").write_text("x")
    assert export.run(context) == first


def test_the_payload_is_checked_before_anything_is_fetched(desk, tiny_model):
    with pytest.raises(InvalidRecordError, match="format"):
        export.run(desk.context(tiny_model, "gguf"))
    assert not (desk.folder / "jobs" / "gguf" / "work" / "model").exists()
