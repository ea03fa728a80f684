"""``serve``: one model behind an OpenAI-compatible API on the loopback interface, until somebody stops the job.

The engine is ``transformers serve``, inside this process and not as a child: forked from the warm host, the job has
torch and transformers already, so a start costs 2 CPU-seconds where a child that imports them again costs 15. Of its
routes only those that answer requests are let through: the others load any model and drop this one for whoever asks.

Payload: a ``ServeRequest``. Event ``ready`` (url, model, start_seconds) once a completion was answered. Result after a
stop: url and the number of requests. A server that dies ends the job as lost, and the next attempt takes its port
again, so that a gateway that knows the address finds it there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import httpx
from pydantic import Field, JsonValue, field_validator

from deepseek_ops.core.errors import DeepSeekOpsError, MissingDependencyError, PermanentError, TransientError
from deepseek_ops.core.records import FileSet, Name, Record
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.serve_routes import PinnedRoutes

if TYPE_CHECKING:
    from transformers.cli.serve import Serve

START_SECONDS = 120.0
"""For one token of a loaded model."""
STOP_SECONDS = 10.0
POLL_SECONDS = 0.2
KEEP_ALIVE_SECONDS = 75
"""Longer than any client keeps an idle connection: whoever closes it first must not be the server."""


class ServeRequest(Record):
    """The payload of a serve job."""

    model: FileSet = Field(description="A model in the hub layout, with its tokenizer.")
    name: Name = Field(description="What clients write into the field model of a request.")
    host: str = Field(default="127.0.0.1", description="A loopback address: the gateway is what others talk to.")
    port: int = Field(default=0, ge=0, le=65535, description="0 takes a free one.")
    device: str = Field(default="", description="Such as cuda:0; empty takes a GPU where there is one, else the CPU.")

    @field_validator("model", mode="before")
    @classmethod
    def _dumped(cls, value: object) -> object:
        return FileSet.load(value) if isinstance(value, Mapping) else value

    @field_validator("host")
    @classmethod
    def _is_loopback(cls, value: str) -> str:
        if not ipaddress.ip_address(value).is_loopback:
            raise ValueError("a model server listens on a loopback address only, such as 127.0.0.1")
        return value


@dataclass(eq=False)
class UnservableModelError(PermanentError):
    """The serving engine refuses the model."""

    name: str
    problem: str

    def __str__(self) -> str:
        return f"{self.name} cannot be served: {self.problem}; check that it holds weights, config and tokenizer."


@dataclass(eq=False)
class PortTakenError(PermanentError):
    """Another program has the port that the job is to listen on."""

    host: str
    port: int
    problem: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port} cannot be listened on ({self.problem}): end what has it, or give port 0."


@dataclass(eq=False)
class ServerLostError(TransientError):
    """The server ended or does not answer."""

    name: str
    problem: str

    def __str__(self) -> str:
        return f"the server of {self.name} was lost: {self.problem}."


def run(context: JobContext) -> dict[str, JsonValue]:
    """Serve until a stop is requested and return how many requests were answered."""
    request = ServeRequest.load(context.payload)
    began = time.monotonic()
    context.event("progress", message="fetching the model", fraction=0.0)
    context.blobs.fetch_folder(request.model, context.work / "models" / request.name)
    with _listen(request, context.work / "port") as listener:
        url = f"http://{request.host if ':' not in request.host else f'[{request.host}]'}:{listener.getsockname()[1]}"
        context.event("progress", message="loading the model", fraction=0.3)
        server = _start(request, context.work / "models", listener)
        try:
            _wait_until_it_answers(server, url, request.name)
            context.event(
                "ready", url=url, model=request.name, start_seconds=round(time.monotonic() - began, 2), pid=os.getpid()
            )
            while not context.stop_requested:
                server.require_alive()
                time.sleep(POLL_SECONDS)
        finally:
            server.stop()
    return {"url": url, "requests": server.routes.num_requests, "reason": context.stop_reason}


class ModelServer:
    """The engine on a thread of its own."""

    def __init__(self, name: str, uvicorn_server: _Uvicorn, routes: PinnedRoutes, listener: socket.socket) -> None:
        self.routes = routes
        self._name = name
        self._server = uvicorn_server
        self._problem = ""
        self._thread = threading.Thread(target=self._serve, args=(listener,), name="model-server", daemon=True)
        self._thread.start()

    def require_alive(self) -> None:
        """Raise ServerLostError when the server has ended."""
        if not self._thread.is_alive():
            raise ServerLostError(self._name, self._problem or "it ended by itself")

    def stop(self) -> None:
        """Let requests that are being answered end, then end the server."""
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS)

    def _serve(self, listener: socket.socket) -> None:
        try:
            self._server.run(sockets=[listener])
        except BaseException as error:  # noqa: BLE001  (a thread's exception is nobody's: the job's loop asks for it)
            self._problem = f"{type(error).__name__}: {error}"


class _Uvicorn(Protocol):
    should_exit: bool

    def run(self, sockets: list[socket.socket] | None = None) -> None: ...


def _listen(request: ServeRequest, memory: Path) -> socket.socket:
    """Return a listening socket: on the port asked for, else on the one of the attempt before, else on a free one."""
    remembered = int(memory.read_text()) if memory.exists() and not request.port else 0
    family = socket.AF_INET6 if ":" in request.host else socket.AF_INET
    try:
        listener = _bound(family, request.host, request.port or remembered)
    except OSError as error:
        if request.port:
            raise PortTakenError(request.host, request.port, error.strerror or str(error)) from error
        listener = _bound(family, request.host, 0)
    partial = memory.with_suffix(".part")
    partial.write_text(str(listener.getsockname()[1]))
    partial.replace(memory)
    return listener


def _bound(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def _start(request: ServeRequest, models: Path, listener: socket.socket) -> ModelServer:
    """Load the model and start answering. Raises MissingDependencyError, UnservableModelError."""
    _stay_offline()
    started: list[ModelServer] = []

    class Pinned(_engine()):  # type: ignore[misc]  # a class chosen at run time
        def start_server(self) -> None:
            """Called at the end of the engine's ``__init__``: serve on our socket, behind our routes."""
            routes = PinnedRoutes(self.server.config.app, request.name)
            self.server.config.app = routes
            logging.getLogger("uvicorn.access").setLevel(logging.WARNING)  # a line per request fills disks
            self.server.config.timeout_keep_alive = KEEP_ALIVE_SECONDS
            self.server.config.timeout_graceful_shutdown = int(STOP_SECONDS)
            started.append(ModelServer(request.name, self.server, routes, listener))

    try:
        with contextlib.chdir(models):  # the engine takes a folder's name for the model's
            Pinned(force_model=request.name, device=request.device or _device(), log_level="error", non_blocking=True)
    except (DeepSeekOpsError, MemoryError):
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        if "out of memory" in str(error) or "DefaultCPUAllocator" in str(error):
            raise
        lines = str(error).strip().splitlines() or [""]
        raise UnservableModelError(request.name, f"{type(error).__name__}: {lines[0][:500]}") from error
    return started[0]


def _engine() -> type[Serve]:
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
        from transformers.cli.serve import Serve
    except ImportError as error:
        raise MissingDependencyError("transformers[serving]", "serve", "a job of kind serve") from error
    engine: type[Serve] = Serve
    return engine


def _stay_offline() -> None:
    """Forbid the hub client to open connections, also where it was imported before and has read its environment."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True


def _device() -> str:
    import torch

    return "auto" if torch.cuda.is_available() else "cpu"


def _wait_until_it_answers(server: ModelServer, url: str, name: str) -> None:
    """Return once a real token came back. Raises UnservableModelError with the server's answer, ServerLostError."""
    deadline = time.monotonic() + START_SECONDS
    body = json.dumps({"model": name, "prompt": "a", "max_tokens": 1}).encode()
    with httpx.Client(base_url=url, timeout=START_SECONDS, trust_env=False) as client:
        while True:
            server.require_alive()
            try:
                answer = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    raise ServerLostError(name, f"no answer in {START_SECONDS:g} s: {error}") from error
                time.sleep(0.05)
                continue
            if answer.status_code != httpx.codes.OK:
                raise UnservableModelError(name, f"its first completion failed: {answer.text[:500]}")
            return
