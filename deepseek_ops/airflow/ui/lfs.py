"""The Git LFS server inside Airflow's API server, and its tokens for people who are logged in there.

Git clients have no Airflow session: under ``/deepseek-ops/lfs/<repository>`` they show a token of ours, as with the
stand-alone server. A person gets one from ``/deepseek-ops/lfs-tokens/read`` or ``/write`` with their Airflow login, if
they may see (or edit) the connection of the object store: who can do that can read (or write) every object anyway, so
a token gives nobody more than they had. The store is the one of ``deepseek_ops_store``; the secret and the settings
come from the connection ``deepseek_ops_lfs`` (password; extra ``settings``), else from the environment.
"""

# No postponed annotations here: FastAPI reads them, and they name what only exists inside a function.
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from deepseek_ops.adapters.git_lfs.signing import SECRET_VARIABLE, read_secrets
from deepseek_ops.adapters.git_lfs.tokens import Access
from deepseek_ops.airflow.hooks import ConnectionMissingError, PortHook, StoreHook
from deepseek_ops.web.lfs import LfsService, LfsSettings, lfs_app, once, open_service, token_authoriser

SECRET_FILE_VARIABLE = f"{SECRET_VARIABLE}_FILE"
_METHOD = {"read": "GET", "write": "PUT"}


class LfsHook(PortHook):
    """Secret and settings of the LFS server: password, and extra ``settings`` (an object)."""

    conn_type = "generic"
    example = "--conn-type generic --conn-password SECRET"

    def __init__(self, conn_id: str = "deepseek_ops_lfs") -> None:
        super().__init__(conn_id)

    @property
    def secrets(self) -> list[bytes]:
        """The signing secret first. Raises ServerSecretError."""
        try:
            password = str(self.connection.password or "")
        except ConnectionMissingError:
            password = ""
        if password:
            return read_secrets(None, {SECRET_VARIABLE: password})
        file = os.environ.get(SECRET_FILE_VARIABLE)
        return read_secrets(Path(file) if file else None, os.environ)

    @property
    def settings(self) -> LfsSettings:
        try:
            return LfsSettings.load(self.extra.get("settings") or {})
        except ConnectionMissingError:
            return LfsSettings()


@cache
def service() -> Callable[[], LfsService]:
    """Return what opens the one service of this process, with the first request."""
    return once(_open)


def _open() -> LfsService:
    from deepseek_ops.adapters.stores import STORE_VARIABLE

    hook, variables = LfsHook(), StoreHook().environment()
    uri = variables.pop(STORE_VARIABLE)
    return open_service(uri, variables, hook.secrets, hook.settings)


def build_lfs_app() -> Any:
    """Return the Git LFS application with our own tokens as its authorisation."""
    return lfs_app(service(), token_authoriser)


def build_token_app() -> Any:
    """Return the application that issues tokens to people who are logged in."""
    from deepseek_ops.web.lfs_tokens import token_app

    return token_app(lambda: service()().tokens, airflow_person)


def airflow_person(access: Access) -> Callable[..., Any]:
    """Return the dependency that names the logged-in user, or refuses: 401 without a login, 403 without the right."""
    from fastapi import Depends, HTTPException

    try:
        from airflow.api_fastapi.app import get_auth_manager
        from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails
        from airflow.api_fastapi.core_api.security import get_user
    except ImportError:  # inner parts of Airflow: another version may have them elsewhere

        def nobody() -> str:
            raise HTTPException(501, "this Airflow cannot say who asks; use: deepseek-ops lfs token create")

        return nobody

    def person(user: Annotated[Any, Depends(get_user)]) -> str:
        details = ConnectionDetails(conn_id=StoreHook.default_conn_name)
        if not get_auth_manager().is_authorized_connection(method=_METHOD[access], details=details, user=user):
            raise HTTPException(403, f"a token to {access} needs the right to {_METHOD[access]} {details.conn_id}")
        name = re.sub(r"[^A-Za-z0-9_.@+-]", "-", str(user.get_name() or user.get_id()))
        return name.lstrip("_.@+-")[:100] or "airflow-user"

    return person
