"""Objects in Google Cloud Storage and Azure Blob Storage, and in this process's memory, all through obstore.

Create-only puts are the services' own: ``x-goog-if-generation-match: 0`` and ``If-None-Match: *``. What S3 has beyond
them is stated, not imitated: an upload that was cut short begins anew, and bytes on their way are protected by TLS
alone, because neither client sends a checksum. Reads are verified by digest as everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from threading import Lock
from typing import TYPE_CHECKING

from deepseek_ops.adapters.stores.clients import checked_endpoint, client_options, retry_config
from deepseek_ops.adapters.stores.remote import RemoteStore
from deepseek_ops.adapters.stores.uris import StoreUri
from deepseek_ops.core.errors import StoreAccessError

if TYPE_CHECKING:
    from obstore.store import AzureAccessKey, AzureConfig, AzureSASToken, GCSConfig, MemoryStore

_memories: dict[str, MemoryStore] = {}
_memories_lock = Lock()


def open_google(uri: StoreUri, credentials: Mapping[str, str]) -> RemoteStore:
    """Return the store of a ``gs://`` URI.

    With neither a service account's key (``GOOGLE_SERVICE_ACCOUNT_KEY``, its JSON) nor the path of one
    (``GOOGLE_APPLICATION_CREDENTIALS``) the machine's own identity holds. ``GOOGLE_BASE_URL`` is another server that
    speaks the XML API; it gets no credentials of the machine.
    """
    from obstore.exceptions import BaseError
    from obstore.store import GCSStore

    config: GCSConfig = {}
    base = credentials.get("GOOGLE_BASE_URL", "")
    if base:
        base = config["base_url"] = checked_endpoint(uri, "GOOGLE_BASE_URL", base)
    if key := credentials.get("GOOGLE_SERVICE_ACCOUNT_KEY"):
        config["service_account_key"] = key
    elif path := credentials.get("GOOGLE_APPLICATION_CREDENTIALS"):
        config["application_credentials"] = path
    elif base:
        config["service_account_key"] = _nobody(base)
    try:
        client = GCSStore(
            uri.bucket,
            prefix=uri.prefix or None,
            config=config,
            client_options=client_options(base),
            retry_config=retry_config(),
        )
    except (BaseError, OSError, ValueError):  # whose text may quote the key
        raise StoreAccessError(str(uri), "the Google credentials are not valid service account JSON") from None
    return RemoteStore(str(uri), client)


def _nobody(base: str) -> str:
    """Return a service account that has no token to send.

    Leaving signatures out is not enough: the client would still ask the machine's metadata service for a token.
    """
    return json.dumps(
        {"gcs_base_url": base, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    )


def open_azure(uri: StoreUri, credentials: Mapping[str, str]) -> RemoteStore:
    """Return the store of an ``az://container/prefix`` URI in the account ``AZURE_STORAGE_ACCOUNT_NAME``.

    With neither ``AZURE_STORAGE_ACCOUNT_KEY`` nor ``AZURE_STORAGE_SAS_TOKEN`` the machine's managed identity holds.
    ``AZURE_ENDPOINT_URL`` is another server of the account, path included.
    """
    from obstore.store import AzureStore

    account = credentials.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not account:
        raise StoreAccessError(str(uri), "AZURE_STORAGE_ACCOUNT_NAME is not set")
    config: AzureConfig = {"account_name": account}
    endpoint = credentials.get("AZURE_ENDPOINT_URL", "")
    if endpoint:
        endpoint = config["endpoint"] = checked_endpoint(uri, "AZURE_ENDPOINT_URL", endpoint)
    client = AzureStore(
        uri.bucket,
        prefix=uri.prefix or None,
        config=config,
        client_options=client_options(endpoint),
        retry_config=retry_config(),
        credential_provider=_azure_provider(credentials),
    )
    return RemoteStore(str(uri), client)


def _azure_provider(credentials: Mapping[str, str]) -> Callable[[], AzureAccessKey | AzureSASToken] | None:
    """A provider keeps the secret out of the client's ``repr``, and variables of this process out of the client."""
    if key := credentials.get("AZURE_STORAGE_ACCOUNT_KEY"):
        access: AzureAccessKey = {"access_key": key, "expires_at": None}
        return lambda: access
    if token := credentials.get("AZURE_STORAGE_SAS_TOKEN"):
        shared: AzureSASToken = {"sas_token": token.lstrip("?"), "expires_at": None}
        return lambda: shared
    return None


def open_memory(uri: StoreUri) -> RemoteStore:
    """Return the store of a ``memory://name`` URI: the same for the same name, gone with this process."""
    from obstore.store import MemoryStore

    name = str(uri)
    with _memories_lock:
        return RemoteStore(name, _memories.setdefault(name, MemoryStore()))
