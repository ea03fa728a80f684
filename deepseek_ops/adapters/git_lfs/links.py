"""Where a client sends or fetches an object: the store itself by a presigned URL, or this server by a signed ticket.

A ticket travels in the ``Authorization`` header that the batch answer tells the client to send, never in a URL: URLs
end in logs. It names one object of one repository, one operation and an end, and the token it came from, so that it
dies with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, JsonValue

from deepseek_ops.adapters.git_lfs.presign import Presigner
from deepseek_ops.adapters.git_lfs.problems import LfsRequestError, TokenRefusedError
from deepseek_ops.adapters.git_lfs.signing import Signer
from deepseek_ops.adapters.git_lfs.tokens import Grant
from deepseek_ops.core.errors import InvalidRecordError
from deepseek_ops.core.objects import blob_key
from deepseek_ops.core.records import Digest, Record

Operation = Literal["upload", "download", "verify"]


class Ticket(Record):
    """One operation on one object, allowed until ``expires``."""

    operation: Operation
    repository: str
    oid: Digest
    size: int = Field(ge=0)
    token: str = Field(description="Id of the token that asked.")
    subject: str
    expires: int = Field(description="Unix seconds.")


class Tickets:
    """Makes and reads tickets."""

    def __init__(self, server_secrets: Sequence[bytes], seconds: int, *, now: Callable[[], float] = time.time) -> None:
        self._signer = Signer(server_secrets, "dsolink")
        self._now = now
        self.seconds = seconds

    def header(self, operation: Operation, grant: Grant, oid: Digest, size: int) -> dict[str, str]:
        """Return the header that opens the door for this operation on this object."""
        ticket = Ticket(
            operation=operation,
            repository=grant.repository,
            oid=oid,
            size=size,
            token=grant.id,
            subject=grant.subject,
            expires=math.ceil(self._now()) + self.seconds,
        )
        return {"Authorization": f"Bearer {self._signer.sign(ticket.dump())}"}

    def read(self, text: str, operation: Operation, repository: str, oid: str) -> Ticket:
        """Return the ticket. Raises TokenRefusedError for a forged one, LfsRequestError (403) for the wrong one."""
        try:
            ticket = Ticket.load(self._signer.read(text))
        except InvalidRecordError:
            raise TokenRefusedError("link", "is of another version of this server") from None
        if (ticket.operation, ticket.repository, ticket.oid) != (operation, repository, oid):
            raise LfsRequestError(403, f"the link is not for this {operation}")
        if ticket.expires <= self._now():
            raise LfsRequestError(403, "the link has expired")
        return ticket


@dataclass(frozen=True, slots=True)
class Links:
    """Makes the actions of a batch answer. Without ``presigner`` every transfer goes through this server.

    ``presigned_uploads`` is asked late and may say no: for a store that does not check what it is sent.
    """

    tickets: Tickets
    presigner: Presigner | None
    presigned_uploads: Callable[[], bool]
    single_put_bytes: int

    def upload(self, grant: Grant, base: str, oid: Digest, size: int) -> dict[str, JsonValue]:
        """Return the upload action, and the verify action where the server does not see the bytes itself."""
        if self.presigner is None or size > self.single_put_bytes or not self.presigned_uploads():
            header = self.tickets.header("upload", grant, oid, size)
            return {"upload": self._action(f"{base}/objects/{oid}", header)}
        url, headers = self.presigner.upload(blob_key(oid), oid, size, self.tickets.seconds)
        verify = self.tickets.header("verify", grant, oid, size)
        return {
            "upload": self._action(url, headers),
            "verify": self._action(f"{base}/objects/{oid}/verify", verify),
        }

    def download(self, grant: Grant, base: str, oid: Digest, size: int) -> dict[str, JsonValue]:
        """Return the download action."""
        if self.presigner is None:
            header = self.tickets.header("download", grant, oid, size)
            return {"download": self._action(f"{base}/objects/{oid}", header)}
        url = self.presigner.download(blob_key(oid), self.tickets.seconds)
        return {"download": self._action(url, {})}

    def _action(self, href: str, header: dict[str, str]) -> dict[str, JsonValue]:
        return {"href": href, "header": dict(header), "expires_in": self.tickets.seconds}
