"""Starting DeepSpeed on this machine's ranks without a compiler, and telling it which device it has."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine
    from transformers import PreTrainedModel


def device_of(local_rank: int) -> str:
    """Return the torch device of this rank."""
    import torch

    return f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"


def start_ranks(scratch: Path, *, single_node: bool) -> None:
    """Join this process to its ranks, as torchrun's variables describe them.

    Everything here must be set before DeepSpeed looks: the accelerator, the folder of compiled extensions (one per
    environment, or two environments rebuild each other's), and the table of compiled ops, whose probing would start
    compilers; on a CPU none of them is used.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(1)
        if single_node:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(_extensions_folder(scratch)))
    import deepspeed
    import deepspeed.ops

    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    _import_muon_uncompiled()
    for name in ("DeepSpeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    _join_agents_store("nccl" if torch.cuda.is_available() else "gloo")
    if not torch.distributed.is_initialized():
        deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)


def _join_agents_store(backend: str) -> None:
    """Join ranks that torchrun started, below a prefix of this start in the store of its agent.

    torch 2.13 shares one store between all restarts of a c10d rendezvous and adds no prefix, so that new ranks read
    the addresses of the dead ones ("Connection refused") and the first restarts fail.
    """
    import torch.distributed as dist

    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or dist.is_initialized():
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, world_size=None, is_master=False, wait_for_workers=False)
    start = f"deepseek-ops/start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    dist.init_process_group(backend, store=dist.PrefixStore(start, store), rank=rank, world_size=world)


def end_ranks() -> None:
    """Leave the group of ranks; a rank that is going down anyway does not wait for the others."""
    import torch

    with suppress(RuntimeError, ValueError):
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def start_engine(
    model: PreTrainedModel, config: Mapping[str, JsonValue], groups: list[dict[str, object]]
) -> DeepSpeedEngine:
    """Return the model wrapped in a DeepSpeed engine with its optimiser."""
    import deepspeed

    engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=dict(config))
    return engine


def set_learning_rate(engine: DeepSpeedEngine, value: float) -> None:
    """Set the rate of the next step. The schedule is a function of the step, so it has no state to save."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def next_token_loss(logits: torch.Tensor, targets: torch.Tensor, *, reduction: str = "mean") -> torch.Tensor:
    """Return the cross-entropy of ``targets`` (batch, length) under ``logits`` (batch, length, vocab), in nats.

    Computed in float32: bfloat16 loses small differences over a large vocabulary.
    """
    import torch

    return torch.nn.functional.cross_entropy(
        logits.float().reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction=reduction
    )


def _import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon optimiser without its three ``torch.compile`` decorators.

    DeepSpeed imports it only to see that our optimiser is another one, and the decorators import all of torch's
    compiler: nine CPU-seconds in every rank, for functions that are never called.
    """
    import torch

    compile_function = torch.compile
    torch.compile = _as_it_is
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        torch.compile = compile_function


def _as_it_is(function: Callable[..., object] | None = None, **_options: object) -> object:
    return _as_it_is if function is None else function


def _extensions_folder(scratch: Path) -> Path:
    home = Path(sys.prefix)
    return (home if os.access(home, os.W_OK) else scratch) / "torch-extensions"
