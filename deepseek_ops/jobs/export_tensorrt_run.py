"""Running a TensorRT engine on the GPU of this machine, where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_ops.export import TokenBatch
from deepseek_ops.jobs.export_checkpoint import Runner, step, tensors

if TYPE_CHECKING:
    import tensorrt_rtx as trt_types
    from numpy import ndarray


def engine_runner(trt: trt_types, plan: bytes, flavor: str) -> tuple[Runner | None, str]:
    """Return the logits function of the engine and no reason, or None and why nothing here can run it."""
    import torch

    said: list[str] = []
    logger = _recording_logger(trt, said)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        why = said[0] if said else "no message"
        return None, f"TensorRT ({flavor}) cannot load the engine on this machine: {why}"
    if not torch.cuda.is_available():
        return None, f"torch {torch.__version__} sees no GPU, so nothing here can feed the engine"
    execution = engine.create_execution_context()

    def run(batch: TokenBatch) -> ndarray:
        with step("tensorrt", f"running a batch of shape {batch.shape} on the GPU"):
            logits: ndarray = _execute(trt, engine, execution, batch)
        return logits

    run.__dict__["owners"] = (logger, runtime)  # the bindings keep nothing alive
    return run, ""


def _recording_logger(trt: trt_types, said: list[str]) -> trt_types.ILogger:
    """Return a logger that keeps what the runtime complains of: the error behind a None."""

    class Recording(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt_types.ILogger.Severity, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                said.append(message.strip()[:500])

    return Recording()


def _execute(
    trt: trt_types, engine: trt_types.ICudaEngine, execution: trt_types.IExecutionContext, batch: TokenBatch
) -> ndarray:
    import torch

    ids, mask = (tensor.cuda().contiguous() for tensor in tensors(batch))
    for name, tensor in (("input_ids", ids), ("attention_mask", mask)):
        execution.set_input_shape(name, tuple(tensor.shape))
        execution.set_tensor_address(name, tensor.data_ptr())
    half = engine.get_tensor_dtype("logits") == trt.float16
    shape = tuple(execution.get_tensor_shape("logits"))
    logits = torch.empty(shape, dtype=torch.float16 if half else torch.float32, device="cuda")
    execution.set_tensor_address("logits", logits.data_ptr())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # the inputs are copied there
    if not execution.execute_async_v3(stream.cuda_stream):
        raise RuntimeError("execute_async_v3 refused the batch")
    stream.synchronize()
    result: ndarray = logits.float().cpu().numpy()
    return result
