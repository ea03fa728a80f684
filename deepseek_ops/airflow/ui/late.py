"""Applications that are built by their first request: every Airflow process imports the plugin, one serves them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any


class LateApp:
    """An ASGI application that ``module:function`` returns. Airflow mounts it like any other."""

    def __init__(self, builder: str) -> None:
        self._builder = builder
        self._app: Callable[..., Awaitable[None]] | None = None
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"LateApp({self._builder!r})"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        app = await self._ready()
        await app(scope, receive, send)

    async def _ready(self) -> Callable[..., Awaitable[None]]:
        async with self._lock:
            app = self._app
            if app is None:
                app = await asyncio.to_thread(self._built)
            self._app = app
        return app

    def _built(self) -> Callable[..., Awaitable[None]]:
        module, _, function = self._builder.partition(":")
        built: Callable[..., Awaitable[None]] = getattr(import_module(module), function)()
        return built
