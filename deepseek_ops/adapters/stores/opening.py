"""From a URI and credentials to a store, and through environment variables into a job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from deepseek_ops.adapters.stores.uris import StoreUri, StoreUriError
from deepseek_ops.core.errors import ObjectNotFoundError, StoreAccessError
from deepseek_ops.core.ports import ObjectStore

STORE_VARIABLE = "DEEPSEEK_OPS_STORE"
VARIABLES_OF: Mapping[str, tuple[str, ...]] = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL"),
    "gs": ("GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_BASE_URL"),
    "az": (
        "AZURE_STORAGE_ACCOUNT_NAME",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_ENDPOINT_URL",
    ),
}
"""What opens each kind of store; folders and memory need nothing."""
CREDENTIAL_VARIABLES = tuple(name for names in VARIABLES_OF.values() for name in names)


def open_store(uri: str, credentials: Mapping[str, str] | None = None) -> ObjectStore:
    """Return the store at ``s3://``, ``s3+http://``, ``gs://``, ``az://``, ``file://``, ``memory://`` or a path.

    Opening sends nothing: a server that is away or refuses shows with the first call. ``credentials`` has the keys of
    ``VARIABLES_OF`` the kind; with None they come from this process's environment, and without keys there from the
    machine's own role. Raises StoreUriError for a URI or an endpoint that cannot be right.
    """
    parsed = StoreUri.parse(uri)
    wanted = _credentials(parsed, credentials)
    if parsed.kind == "file":
        from deepseek_ops.adapters.stores.local import LocalStore

        return LocalStore(parsed.folder)
    if parsed.kind == "s3":
        from deepseek_ops.adapters.stores.s3 import S3Store

        return S3Store(parsed, wanted)
    from deepseek_ops.adapters.stores import clouds

    if parsed.kind == "memory":
        return clouds.open_memory(parsed)
    return clouds.open_google(parsed, wanted) if parsed.kind == "gs" else clouds.open_azure(parsed, wanted)


def ensure_bucket(uri: str, credentials: Mapping[str, str] | None = None) -> bool:
    """Create the bucket (or folder) of the store if it is missing; return whether this call created it.

    Buckets of Google and containers of Azure are only looked for: where they live and who pays is decided elsewhere.
    """
    parsed = StoreUri.parse(uri)
    if parsed.kind == "file":
        existed = parsed.folder.is_dir()
        Path(parsed.folder).mkdir(parents=True, exist_ok=True)
        return not existed
    if parsed.kind == "s3":
        from deepseek_ops.adapters.stores.s3_bucket import create_bucket

        return create_bucket(parsed, _credentials(parsed, credentials))
    try:
        next(open_store(uri, credentials).list("", limit=1), None)
    except ObjectNotFoundError:
        raise StoreAccessError(uri, "the bucket does not exist") from None
    return False


def store_environment(uri: str, credentials: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that let ``store_from_environment`` open the same store in another process.

    They hold secrets when ``credentials`` does: give them to a process, never to a file or a command line. Raises
    StoreUriError for ``memory://``, which no other process can open.
    """
    parsed = StoreUri.parse(uri)
    if parsed.kind == "memory":
        raise StoreUriError(uri, "is this process's own memory and cannot be given to another")
    return {STORE_VARIABLE: str(parsed), **_credentials(parsed, credentials)}


def store_from_environment(env: Mapping[str, str]) -> ObjectStore:
    """Return the store that ``store_environment`` described. Raises StoreUriError when the variable is missing."""
    uri = env.get(STORE_VARIABLE, "")
    if not uri:
        raise StoreUriError("", f"is empty because {STORE_VARIABLE} is not set")
    return open_store(uri, env)


def _credentials(uri: StoreUri, given: Mapping[str, str] | None) -> dict[str, str]:
    source = os.environ if given is None else given
    return {name: source[name] for name in VARIABLES_OF.get(uri.kind, ()) if source.get(name)}
