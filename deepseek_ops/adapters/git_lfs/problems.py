"""What the LFS server answers when it cannot do what was asked: an HTTP status and a sentence for the user."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from deepseek_ops.core.errors import PermanentError


@dataclass(eq=False)
class LfsRequestError(PermanentError):
    """A request that is answered with ``status``; ``extra`` joins the message in the body (a lock that clashes)."""

    status: int
    message: str
    extra: dict[str, JsonValue] = field(default_factory=dict)
    retry_after: int | None = None
    """Seconds after which another try can help."""

    def __str__(self) -> str:
        return f"{self.message} (HTTP {self.status})"


@dataclass(eq=False)
class TokenRefusedError(PermanentError):
    """A token or a link that does not open the door: unknown, expired, revoked or changed on the way."""

    what: str
    problem: str

    def __str__(self) -> str:
        return f"the {self.what} {self.problem}; ask for a new one."
