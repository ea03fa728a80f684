"""The standalone transfer agent: git-lfs asks on standard input, objects move between its folder and the store.

git-lfs starts several of these for one push or pull, hands each one object at a time, and checks digests of its own.
Objects land under the key every other part of the product uses, so a pushed weight is a registry object at once.
A message never holds a credential: those stay in the environment, and the errors of the stores do not carry them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from deepseek_ops.adapters.git_lfs.agent_upload import upload
from deepseek_ops.adapters.git_lfs.config import CloneSettings, StoreNotSetError
from deepseek_ops.adapters.git_lfs.resuming import download_resuming
from deepseek_ops.core.errors import (
    DeepSeekOpsError,
    IntegrityError,
    LocalDiskError,
    ObjectNotFoundError,
    PermanentError,
    StoreAccessError,
    TransientError,
)
from deepseek_ops.core.ports import ObjectStore

PROGRESS_SECONDS = 0.2

Message = dict[str, object]
Send = Callable[[Message], None]
Guard = Callable[[ObjectStore], AbstractContextManager[ObjectStore]]

_OID = re.compile(r"[0-9a-f]{64}")
_CODES: tuple[tuple[type[DeepSeekOpsError], int], ...] = (
    (ObjectNotFoundError, 404),
    (IntegrityError, 422),
    (StoreAccessError, 403),
    (LocalDiskError, 507),
    (StoreNotSetError, 400),
    (TransientError, 503),
)
"""git-lfs shows code and message; the codes say what the same failure would be over HTTP."""


class ProtocolError(PermanentError):
    """git-lfs said something that is not in the protocol."""


class TransferAgent:
    """One agent process's side of the conversation.

    Args:
        settings: Returns the clone's settings; called with ``init``, so that its failure is an answer to git-lfs.
        open_store: Opens a store by its URI.
        send: Writes one message, a line of JSON.
        guard: Returns a store whose use, inside the block, keeps a running collection off what is relied on.
    """

    def __init__(
        self,
        settings: Callable[[], CloneSettings],
        open_store: Callable[[str], ObjectStore],
        send: Send,
        guard: Guard = nullcontext,
    ) -> None:
        self._settings = settings
        self._open = open_store
        self._send = send
        self._guard = guard
        self._store: ObjectStore | None = None
        self._storage = Path()
        self._repository = ""

    def serve(self, lines: Iterable[str]) -> None:
        """Answer until git-lfs says ``terminate`` or is gone. Raises ProtocolError; a failed transfer is an answer."""
        for line in lines:
            message = _parsed(line)
            event = message.get("event")
            if event == "terminate":
                return
            if event == "init":
                self._init(message)
            elif event in ("upload", "download"):
                self._transfer(str(event), message)
            else:
                raise ProtocolError(f"unknown event {str(event)[:40]!r}; this agent knows git-lfs 2.3 to 3.x")

    def _init(self, message: Mapping[str, object]) -> None:
        try:
            settings = self._settings()
            self._store = self._open(settings.store)
            self._storage = settings.lfs_storage
            self._repository = settings.repository(str(message.get("remote") or "origin"))
        except DeepSeekOpsError as error:
            self._send({"error": _explained(error)})
        except Exception as error:
            self._send({"error": _defect(error)})  # git-lfs shows this, and keeps our standard error to itself
            raise
        else:
            self._send({})

    def _transfer(self, event: str, message: Mapping[str, object]) -> None:
        oid, size = message.get("oid"), message.get("size")
        if not isinstance(oid, str) or not _OID.fullmatch(oid) or not isinstance(size, int) or size < 0:
            raise ProtocolError(f"{event} of oid {str(oid)[:80]!r}, size {str(size)[:40]!r}")
        if self._store is None:
            raise ProtocolError(f"{event} before init")
        answer: Message = {"event": "complete", "oid": oid}
        progress = _Progress(self._send, oid)
        try:
            if event == "upload":
                # "It is there already" must still be true when git-lfs has been told so.
                with self._guard(self._store) as store:
                    upload(store, self._repository, oid, size, Path(str(message.get("path"))), progress)
            else:
                partial = self._storage / "incomplete" / f"{oid}.deepseek-ops"
                answer["path"] = str(download_resuming(self._store, oid, size, partial, progress))
            progress.finish(size)
        except DeepSeekOpsError as error:
            answer["error"] = _explained(error)
        except Exception as error:
            self._send({**answer, "error": _defect(error)})
            raise
        self._send(answer)


class _Progress:
    """Tells git-lfs how far a transfer is, a few times a second."""

    def __init__(self, send: Send, oid: str) -> None:
        self._send = send
        self._oid = oid
        self._told = 0
        self._next = time.monotonic() + PROGRESS_SECONDS

    def __call__(self, done: int) -> None:
        if time.monotonic() >= self._next:
            self._tell(done)

    def finish(self, size: int) -> None:
        """Tell the last message, which must name the whole size."""
        self._tell(size)

    def _tell(self, done: int) -> None:
        since, self._told = done - self._told, done
        self._next = time.monotonic() + PROGRESS_SECONDS
        self._send({"event": "progress", "oid": self._oid, "bytesSoFar": done, "bytesSinceLast": since})


def _parsed(line: str) -> dict[str, object]:
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise ProtocolError(f"a line that is no JSON object: {line[:80]!r}")
    return message


def _defect(error: Exception) -> Message:
    return {"code": 500, "message": f"defect in the transfer agent: {type(error).__name__}: {str(error)[:300]}"}


def _explained(error: DeepSeekOpsError) -> Message:
    code = next((code for kind, code in _CODES if isinstance(error, kind)), 500)
    return {"code": code, "message": str(error)}
