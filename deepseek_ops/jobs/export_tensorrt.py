"""Export to a TensorRT engine: flavour ``rtx`` builds anywhere, ``enterprise`` needs NVIDIA's own index and a GPU.

Both flavours have one Python API and one code path: ONNX with ``batched_mm`` experts (the parser has no
``ScatterElements`` with a reduction, which ``grouped_mm`` becomes), in the precision the engine shall have, because
networks are strongly typed since TensorRT 11. The graph itself is held to parity in ONNX Runtime first; the engine is
``verified`` only after a GPU has run it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from deepseek_ops.core.errors import MissingDependencyError
from deepseek_ops.export import (
    ExportFailedError,
    ExportOptions,
    Measured,
    TensorRtMissingError,
    TokenBatch,
    UnsupportedNodesError,
    agrees,
    parity_of,
    tolerance_for,
)
from deepseek_ops.jobs.export_checkpoint import Reference, Runner, SourceModel, model_runner, step
from deepseek_ops.jobs.export_onnx import MODEL_FILE, onnx_runner, runtime_name, write_onnx
from deepseek_ops.jobs.export_tensorrt_run import engine_runner

if TYPE_CHECKING:
    import tensorrt_rtx as trt_types

ENGINE_FILE = "model.engine"
OPTIMAL_BATCH, OPTIMAL_LENGTH = 1, 64
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine on disk: how to run it, or why nothing here can."""

    runner: Runner | None
    reason: str
    details: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class _Graph:
    path: Path
    precision: Literal["fp32", "fp16"]
    measured: Measured


def export_tensorrt(
    source: SourceModel,
    traced: TokenBatch,
    target: Path,
    *,
    reference: Reference,
    options: ExportOptions,
    scratch: Path,
    say: Say,
) -> BuiltEngine:
    """Write ``model.engine`` below ``target``.

    Raises:
        TensorRtMissingError: The enterprise flavour is asked for and not installed.
        ParityError: Not even the float32 graph agrees with the checkpoint in ONNX Runtime.
        UnsupportedNodesError: TensorRT cannot build an operation of the graph.
    """
    flavor = _flavor(options)
    trt = importlib.import_module("tensorrt_rtx" if flavor == "rtx" else "tensorrt")
    graph = _best_graph(source, traced, scratch, reference, options, say)
    twin = parity_of(
        graph.measured,
        tolerance_for("tensorrt", graph.precision),
        export_format="tensorrt",
        runtime=f"{runtime_name()}, the engine's ONNX graph",
    )
    say("building the engine")
    max_length = min(options.max_length, source.max_length)
    with step("tensorrt", "building the engine"):
        network = parse_graph(trt, graph.path, flavor)
        plan = _build(trt, network, flavor, options, max_length)
    (target / ENGINE_FILE).write_bytes(plan)
    runner, reason = engine_runner(trt, plan, flavor)
    details: dict[str, JsonValue] = {
        "flavor": flavor,
        "version": str(trt.__version__),
        "precision": graph.precision,
        "experts": "batched_mm",
        "profile": {"batch": [1, OPTIMAL_BATCH, options.max_batch], "length": [1, _optimal(max_length), max_length]},
        "sm_targets": list(options.sm_targets) if flavor == "rtx" else ["current"],
        "num_layers": network.layers,
        "inputs": ["input_ids", "attention_mask"],
        "onnx_parity": twin.dump(),
    }
    return BuiltEngine(runner, reason, details)


def _flavor(options: ExportOptions) -> Literal["rtx", "enterprise"]:
    enterprise = importlib.util.find_spec("tensorrt") is not None
    if options.flavor == "enterprise" and not enterprise:
        raise TensorRtMissingError
    if options.flavor == "enterprise" or (options.flavor == "auto" and enterprise):
        return "enterprise"
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise MissingDependencyError("tensorrt-rtx", "tensorrt-rtx", "the TensorRT export")
    return "rtx"


def _best_graph(
    source: SourceModel,
    traced: TokenBatch,
    scratch: Path,
    reference: Reference,
    options: ExportOptions,
    say: Say,
) -> _Graph:
    """Return the graph in the first precision that agrees with the checkpoint in ONNX Runtime, else in the last."""
    precisions: tuple[Literal["fp16", "fp32"], ...] = (
        ("fp16", "fp32") if options.precision == "auto" else (options.precision,)
    )
    for precision in precisions:
        model = source.load("batched_mm", half=precision == "fp16")
        if precision != precisions[-1]:
            # Weights that overflow in half precision do so without a graph as well: ask before the trace is paid for.
            measured = reference.compare(model_runner(model))
            if not agrees(measured, tolerance_for("tensorrt", precision)):
                say(f"the model itself is off by {measured.max_abs_error:.3g} in {precision}")
                continue
        say(f"tracing the model in {precision}")
        path = scratch / precision / MODEL_FILE
        path.parent.mkdir(parents=True)
        write_onnx(model, traced, path.parent, max_length=source.max_length, export_format="tensorrt")
        del model
        measured = reference.compare(onnx_runner(path, export_format="tensorrt"))
        if agrees(measured, tolerance_for("tensorrt", precision)):
            break
        say(f"the {precision} graph is off by {measured.max_abs_error:.3g}")
    return _Graph(path, precision, measured)


@dataclass(frozen=True, slots=True)
class _Network:
    builder: trt_types.Builder
    definition: trt_types.INetworkDefinition
    parser: trt_types.OnnxParser
    """Kept alive: the network refers to weights that the parser owns."""
    logger: trt_types.Logger
    layers: int


def parse_graph(trt: trt_types, path: Path, flavor: str) -> _Network:
    """Return the graph as a TensorRT network. Raises UnsupportedNodesError with the report of what cannot be built."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)  # the bindings keep nothing alive: every object needs a name here
    asked = builder.create_network(0)
    report = trt.OnnxParser(asked, logger)
    if not report.supports_model_v2(path.read_bytes(), str(path)):
        raise UnsupportedNodesError(flavor, _errors(report))
    definition = builder.create_network(0)
    parser = trt.OnnxParser(definition, logger)
    if not parser.parse_from_file(str(path)):
        raise UnsupportedNodesError(flavor, _errors(parser))
    return _Network(builder, definition, parser, logger, int(definition.num_layers))


def _errors(parser: trt_types.OnnxParser) -> tuple[str, ...]:
    found = [parser.get_error(number) for number in range(parser.num_errors)]
    return tuple(f"{error.node_name()} ({error.node_operator()}): {error.desc()}" for error in found)


def _build(trt: trt_types, network: _Network, flavor: str, options: ExportOptions, max_length: int) -> bytes:
    """Return the serialized engine."""
    config = network.builder.create_builder_config()
    profile = network.builder.create_optimization_profile()
    for name in ("input_ids", "attention_mask"):
        profile.set_shape(name, (1, 1), (OPTIMAL_BATCH, _optimal(max_length)), (options.max_batch, max_length))
    config.add_optimization_profile(profile)
    if flavor == "rtx":
        config.num_compute_capabilities = len(options.sm_targets)
        for number, target in enumerate(options.sm_targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), number)
    plan = network.builder.build_serialized_network(network.definition, config)
    if plan is None:
        raise ExportFailedError("tensorrt", "building the engine", "the builder returned nothing; see the job's log")
    return bytes(plan)


def _optimal(max_length: int) -> int:
    return min(OPTIMAL_LENGTH, max_length)
