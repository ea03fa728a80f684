"""From a URI and credentials to a store, and through environment variables into a job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from deepseek_ops.adapters.stores.uris import StoreUri, StoreUriError
from deepseek_ops.core.ports import ObjectStore

STORE_VARIABLE = "DEEPSEEK_OPS_STORE"
CREDENTIAL_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
)


def open_store(uri: str, credentials: Mapping[str, str] | None = None) -> ObjectStore:
    """Return the store at ``s3://bucket/prefix``, ``s3+http://...``, ``file:///folder`` or an absolute path.

    Opening sends nothing: a server that is away or refuses shows with the first call. ``credentials`` has the keys of
    ``CREDENTIAL_VARIABLES``; with None they come from this process's environment, and without keys there from the
    machine's own role. Raises StoreUriError for a URI or an endpoint that cannot be right.
    """
    parsed = StoreUri.parse(uri)
    if parsed.kind == "file":
        from deepseek_ops.adapters.stores.local import LocalStore

        return LocalStore(parsed.folder)
    from deepseek_ops.adapters.stores.s3 import S3Store

    return S3Store(parsed, _credentials(credentials))


def ensure_bucket(uri: str, credentials: Mapping[str, str] | None = None) -> bool:
    """Create the bucket (or folder) of the store if it is missing; return whether this call created it."""
    parsed = StoreUri.parse(uri)
    if parsed.kind == "file":
        existed = parsed.folder.is_dir()
        Path(parsed.folder).mkdir(parents=True, exist_ok=True)
        return not existed
    from deepseek_ops.adapters.stores.s3_bucket import create_bucket

    return create_bucket(parsed, _credentials(credentials))


def store_environment(uri: str, credentials: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that let ``store_from_environment`` open the same store in another process.

    They hold secrets when ``credentials`` does: give them to a process, never to a file or a command line.
    """
    parsed = StoreUri.parse(uri)
    wanted = _credentials(credentials) if parsed.kind == "s3" else {}
    return {STORE_VARIABLE: str(parsed), **wanted}


def store_from_environment(env: Mapping[str, str]) -> ObjectStore:
    """Return the store that ``store_environment`` described. Raises StoreUriError when the variable is missing."""
    uri = env.get(STORE_VARIABLE, "")
    if not uri:
        raise StoreUriError("", f"is empty because {STORE_VARIABLE} is not set")
    return open_store(uri, {name: env[name] for name in CREDENTIAL_VARIABLES if env.get(name)})


def _credentials(given: Mapping[str, str] | None) -> dict[str, str]:
    source = os.environ if given is None else given
    return {name: source[name] for name in CREDENTIAL_VARIABLES if source.get(name)}
