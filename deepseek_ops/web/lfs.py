"""The Git LFS server: what it is made of, and the application around it.

``open_service`` puts the parts together over one store; ``lfs_app`` puts HTTP around them. A client authorises itself
with a token; transfers that come through the server are authorised by a ticket of an answer to such a client.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from deepseek_ops.adapters.git_lfs.batch import LfsObjects, ObjectLimits
from deepseek_ops.adapters.git_lfs.links import Links, Tickets
from deepseek_ops.adapters.git_lfs.locks import Locks
from deepseek_ops.adapters.git_lfs.presign import Presigner, checks_uploads
from deepseek_ops.adapters.git_lfs.receiving import Receiver, receiver_for
from deepseek_ops.adapters.git_lfs.tokens import Grant, TokenBook
from deepseek_ops.adapters.stores import StoreUri, open_store
from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Record
from deepseek_ops.data.gc_guard import writing
from deepseek_ops.data.gc_leases import GuardTimes

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

SINGLE_PUT_BYTES = 5 << 30
"""S3's limit of one PUT: beyond it the server takes the upload and sends it on in parts."""
GUARD_TIMES = GuardTimes(wait_seconds=20.0)
"""A client waits half a minute for an answer; when a collection takes longer it is told to come back."""
Authorise = Callable[["Request"], Grant]
"""Says whose request this is and what it may do. Raises TokenRefusedError."""


@dataclass(eq=False)
class LfsSettingError(PermanentError):
    """Settings of the LFS server that do not go together."""

    setting: str
    problem: str

    def __str__(self) -> str:
        return f"{self.setting} {self.problem}."


class LfsSettings(Record):
    """How the server works. Sizes in bytes, times in seconds."""

    limits: ObjectLimits = ObjectLimits()
    transfers: Literal["auto", "presigned", "proxied"] = Field(
        default="auto", description="auto: presigned where the store is S3 and checks what it is sent, else proxied."
    )
    single_put_bytes: int = Field(default=SINGLE_PUT_BYTES, ge=1, le=SINGLE_PUT_BYTES)
    link_seconds: int = Field(default=3600, ge=1, le=7 * 86_400)
    max_body_bytes: int = Field(default=1 << 20, ge=1024, description="Of a JSON request.")
    max_uploads: int = Field(default=8, ge=1, description="Uploads through this server at once, 80 MiB of memory each.")
    public_url: str = Field(default="", description="Where clients reach this server, when a request cannot tell.")
    store_endpoint: str = Field(default="", description="Where clients reach the S3 endpoint, when not where we do.")
    shared_reads: bool = Field(default=False, description="Any token reads any object whose digest it knows.")
    documentation_url: str = "https://github.com/git-lfs/git-lfs/tree/main/docs/api"


@dataclass(frozen=True, slots=True)
class LfsService:
    """The parts behind the routes."""

    store: ObjectStore
    objects: LfsObjects
    locks: Locks
    tokens: TokenBook
    tickets: Tickets
    receiver: Receiver
    settings: LfsSettings


def open_service(
    uri: str, credentials: Mapping[str, str], server_secrets: Sequence[bytes], settings: LfsSettings | None = None
) -> LfsService:
    """Return the service over the store. Sends nothing yet. Raises StoreUriError, LfsSettingError."""
    settings = settings or LfsSettings()
    store = open_store(uri, credentials)
    tickets = Tickets(server_secrets, settings.link_seconds)
    links = _links(store, StoreUri.parse(uri), credentials, tickets, settings)
    return LfsService(
        store=store,
        objects=LfsObjects(
            store,
            links,
            settings.limits,
            guard=lambda: writing(store, holder="Git LFS server", times=GUARD_TIMES),
            shared_reads=settings.shared_reads,
        ),
        locks=Locks(store),
        tokens=TokenBook(store, server_secrets),
        tickets=tickets,
        receiver=receiver_for(store, uri, credentials),
        settings=settings,
    )


def lfs_app(service: Callable[[], LfsService], authorise: Callable[[LfsService], Authorise]) -> FastAPI:
    """Return the application. The service is asked for with the first request, so that an import opens nothing."""
    from deepseek_ops.web.lfs_routes import build

    return build(once(service), authorise)


def token_authoriser(service: LfsService) -> Authorise:
    """Return the dependency for clients that carry our token: as Basic password under any name, or as Bearer."""
    from deepseek_ops.web.lfs_answers import credential

    return lambda request: service.tokens.check(credential(request))


def once(make: Callable[[], LfsService]) -> Callable[[], LfsService]:
    """Return a function that calls ``make`` until it has worked once."""
    lock, made = threading.Lock(), list[LfsService]()

    def get() -> LfsService:
        if not made:
            with lock:
                if not made:
                    made.append(make())
        return made[0]

    return get


def _links(
    store: ObjectStore, uri: StoreUri, credentials: Mapping[str, str], tickets: Tickets, settings: LfsSettings
) -> Links:
    if uri.kind != "s3" or settings.transfers == "proxied":
        if settings.transfers == "presigned":
            raise LfsSettingError("transfers=presigned", "needs an S3 store: nobody else could take the bytes")
        return Links(tickets, None, lambda: False, settings.single_put_bytes)
    own = Presigner(uri, credentials)
    outside = Presigner(uri, credentials, endpoint=settings.store_endpoint) if settings.store_endpoint else own
    if settings.transfers == "presigned":
        return Links(tickets, outside, lambda: True, settings.single_put_bytes)
    return Links(tickets, outside, _asked_once(lambda: checks_uploads(store, own)), settings.single_put_bytes)


def _asked_once(ask: Callable[[], bool]) -> Callable[[], bool]:
    lock, known = threading.Lock(), list[bool]()

    def answer() -> bool:
        with lock:
            if not known:
                known.append(ask())
        return known[0]

    return answer
