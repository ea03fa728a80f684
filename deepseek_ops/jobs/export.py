"""``export``: one model in one format, published only after the file has been loaded and compared.

Payload: an ``ExportRequest``. Result: an ``ExportedModel``. Nothing is sent to the store before parity is known, and a
folder goes there as content-addressed files, so a job that is killed leaves nothing half-written and one that runs
twice stores the same objects.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.core.records import ExportedModel, ExportStatus, Parity
from deepseek_ops.export import ExportRequest, Measured, TokenBatch, parity_of, tolerance_for
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.export_checkpoint import Reference, SourceModel


def run(context: JobContext) -> dict[str, JsonValue]:
    """Return the ExportedModel of the payload's model. Raises what ``deepseek_ops.export.errors`` names."""
    request = ExportRequest.load(context.payload)
    shutil.rmtree(context.work / "export", ignore_errors=True)
    target = context.work / "export" / "files"
    target.mkdir(parents=True)
    job = _Export(context, request)
    source, traced, reference = job.checkpoint()
    source.write_companions(target)
    status, reason, parity, details = job.write(source, traced, reference, target)
    job.say("storing the files", 0.9)
    exported = ExportedModel(
        format=request.format,
        model=request.model.fingerprint,
        status=status,
        reason=reason,
        files=context.blobs.put_folder(target),
        parity=parity,
        details={**details, "torch": importlib.metadata.version("torch")},
    )
    shutil.rmtree(context.work / "export")
    job.say(f"{request.format}: {status}", 1.0)
    return exported.dump()


class _Export:
    """One export: the request, and the way to say how far it is."""

    def __init__(self, context: JobContext, request: ExportRequest) -> None:
        self._context = context
        self._request = request

    def say(self, message: str, fraction: float) -> None:
        self._context.event("progress", message=message, fraction=fraction, format=self._request.format)

    def checkpoint(self) -> tuple[SourceModel, TokenBatch, Reference]:
        """Return the fetched model, the batch to trace with, and the checkpoint's logits on the held-out batches."""
        self.say("fetching the model", 0.0)
        folder = self._context.work / "model"
        self._context.blobs.fetch_folder(self._request.model, folder)
        source = SourceModel.open(folder)
        traced, held_out = source.batches(self._request.sample)
        self.say("running the checkpoint", 0.1)
        return source, traced, Reference(source.load("eager"), held_out)

    def write(
        self, source: SourceModel, traced: TokenBatch, reference: Reference, target: Path
    ) -> tuple[ExportStatus, str, Parity | None, dict[str, JsonValue]]:
        """Write the format's files below ``target`` and return what they have shown."""
        self.say(f"exporting to {self._request.format}", 0.2)
        if self._request.format == "tensorrt":
            return self._tensorrt(source, traced, reference, target)
        if self._request.format == "onnx":
            from deepseek_ops.jobs.export_onnx import export_onnx, runtime_name

            (runner, details), runtime = export_onnx(source, traced, target), runtime_name()
        elif self._request.format == "torchscript":
            from deepseek_ops.jobs.export_torchscript import export_torchscript

            runner, details = export_torchscript(source, traced, target)
            runtime = f"torch.jit {importlib.metadata.version('torch')}"
        else:
            from deepseek_ops.jobs.export_safetensors import export_safetensors, runtime_name

            (runner, details), runtime = export_safetensors(source, target), runtime_name()
        self.say("comparing with the checkpoint", 0.8)
        return ExportStatus.VERIFIED, "", self._parity(reference.compare(runner), runtime), details

    def _tensorrt(
        self, source: SourceModel, traced: TokenBatch, reference: Reference, target: Path
    ) -> tuple[ExportStatus, str, Parity | None, dict[str, JsonValue]]:
        from deepseek_ops.jobs.export_tensorrt import export_tensorrt

        built = export_tensorrt(
            source,
            traced,
            target,
            reference=reference,
            options=self._request.options,
            scratch=target.parent / "graphs",
            say=lambda message: self.say(message, 0.5),
        )
        if built.runner is None:
            return ExportStatus.BUILT_UNVERIFIED, built.reason, None, built.details
        self.say("comparing with the checkpoint on the GPU", 0.8)
        precision = "fp16" if built.details["precision"] == "fp16" else "fp32"
        runtime = f"TensorRT ({built.details['flavor']}) {built.details['version']}"
        limits = self._request.options
        measured = reference.within(limits.max_batch, limits.max_length).compare(built.runner)
        parity = self._parity(measured, runtime, precision=precision)
        return ExportStatus.VERIFIED, "", parity, built.details

    def _parity(self, measured: Measured, runtime: str, *, precision: str = "fp32") -> Parity:
        tolerance = tolerance_for(self._request.format, "fp16" if precision == "fp16" else "fp32")
        return parity_of(measured, tolerance, export_format=self._request.format, runtime=runtime)
