"""The webhooks inside Airflow's API server: secrets from the Git connections, bells in the facts database.

``POST /deepseek-ops/hooks/<host>[/<connection id>]``. The connection's extra ``webhook_secret`` is one secret or a list
(the new and the old one while they are exchanged).
"""

# No postponed annotations here: FastAPI reads them.
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

from deepseek_ops.airflow.hooks import ConnectionFieldError, ConnectionMissingError, FactsHook, GitRemoteHook
from deepseek_ops.pipeline.wakes import Wakes
from deepseek_ops.web.hooks import hooks_app

MIN_SECRET_CHARACTERS = 16
KEPT_SECONDS = 15.0
"""How long secrets are kept: deliveries that nobody signed must not become a load for Airflow's database."""
MAX_KEPT = 100


class ConnectionSecrets:
    """Webhook secrets by connection id, read from Airflow and kept for a moment."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, list[str]]] = {}

    def __call__(self, conn_id: str) -> Sequence[str]:
        """Return the secrets; none for a connection that does not exist. Raises ConnectionFieldError."""
        until, found = self._kept.get(conn_id, (0.0, []))
        if time.monotonic() >= until:
            found = _read(conn_id)
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[conn_id] = (time.monotonic() + KEPT_SECONDS, found)
        return found


def _read(conn_id: str) -> list[str]:
    hook = GitRemoteHook(conn_id)
    try:
        given = hook.extra.get("webhook_secret") or []
        if hook.connection.conn_type != GitRemoteHook.conn_type:
            return []
    except ConnectionMissingError:
        return []
    secrets = [str(secret) for secret in (given if isinstance(given, list) else [given])]
    if any(len(secret) < MIN_SECRET_CHARACTERS for secret in secrets):
        raise ConnectionFieldError(
            conn_id, "extra webhook_secret", f"is shorter than {MIN_SECRET_CHARACTERS} characters"
        )
    return secrets


@cache
def wakes() -> Wakes:
    """Return this process's bells, opened with the first delivery that was signed."""
    return Wakes(FactsHook().facts)


def build_hooks_app() -> Any:
    """Return the webhook application."""
    return hooks_app(
        ConnectionSecrets(),
        lambda repository, delivery: wakes().ring(repository, delivery),
        default=GitRemoteHook.default_conn_name,
    )
