"""Presigned S3 requests: the client talks to the store itself, and the store refuses what was not announced.

An upload is signed together with the SHA-256 and the length of the object, so a client cannot leave them out or change
them, and the store compares what it gets before anything is visible. A store that ignores the checksum would publish
wrong bytes under a right name: ``checks_uploads`` finds out by trying, and such a store gets no presigned uploads.
"""

from __future__ import annotations

import base64
import logging
import secrets
from collections.abc import Mapping
from importlib import import_module
from typing import Protocol

from deepseek_ops.adapters.stores.s3_client import CONNECT_SECONDS, READ_SECONDS
from deepseek_ops.adapters.stores.uris import StoreUri
from deepseek_ops.core.errors import MissingDependencyError, StoreAccessError, StoreUnavailableError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest, digest_of

CHECKSUM_HEADER = "x-amz-checksum-sha256"
PROBE_SECONDS = 60
_log = logging.getLogger(__name__)


class _Client(Protocol):
    """What is used of botocore, which has no types."""

    def generate_presigned_url(
        self,
        operation: str,
        *,
        Params: Mapping[str, str | int],  # noqa: N803  (its names)
        ExpiresIn: int,  # noqa: N803  (its names)
    ) -> str: ...


class Presigner:
    """Signs uploads and downloads of one store. Safe for use by many threads.

    ``endpoint`` replaces the store's own in what is signed, where clients reach it under another name.
    """

    def __init__(self, uri: StoreUri, credentials: Mapping[str, str], *, endpoint: str = "") -> None:
        self._uri = uri
        self._client = _client(uri, credentials, endpoint or credentials.get("AWS_ENDPOINT_URL", ""))

    def upload(self, key: str, digest: Digest, size: int, seconds: int) -> tuple[str, dict[str, str]]:
        """Return URL and headers of a PUT that takes exactly these bytes and none other."""
        checksum = base64.b64encode(bytes.fromhex(digest)).decode()
        wanted: dict[str, str | int] = {"ChecksumSHA256": checksum, "ContentLength": size}
        return self._sign("put_object", key, wanted, seconds), {CHECKSUM_HEADER: checksum}

    def download(self, key: str, seconds: int) -> str:
        """Return the URL of a GET that takes a Range."""
        return self._sign("get_object", key, {}, seconds)

    def _sign(self, operation: str, key: str, more: Mapping[str, str | int], seconds: int) -> str:
        full = f"{self._uri.prefix}/{key}" if self._uri.prefix else key
        try:
            return self._client.generate_presigned_url(
                operation, Params={"Bucket": self._uri.bucket, "Key": full, **more}, ExpiresIn=seconds
            )
        except import_module("botocore.exceptions").BotoCoreError as error:
            raise StoreAccessError(str(self._uri), f"nothing can be signed: {type(error).__name__}") from error


def checks_uploads(store: ObjectStore, presigner: Presigner) -> bool:
    """Return whether the store refuses wrong bytes, a wrong length and a missing checksum. Tries each, leaves nothing.

    Raises StoreUnavailableError when the store does not answer.
    """
    data, other = b"deepseek-ops probe", b"deepseek-ops wrong"
    digest = digest_of(data)
    names = [f"lfs/probes/{secrets.token_hex(8)}" for _ in range(4)]
    try:
        tried = [
            _put(presigner, names[0], digest, data),
            _put(presigner, names[1], digest, other),
            _put(presigner, names[2], digest, data + b"longer"),
            _put(presigner, names[3], digest, other, send_checksum=False),
        ]
        visible = [store.head(name) is not None for name in names]
    finally:
        store.delete(names)
    works = tried[0] and visible == [True, False, False, False]
    if not works:
        _log.warning(
            "%s does not check presigned uploads (%s, %s): they go through this server", store.uri, tried, visible
        )
    return works


def _put(presigner: Presigner, key: str, digest: Digest, data: bytes, *, send_checksum: bool = True) -> bool:
    import httpx

    url, headers = presigner.upload(key, digest, len(b"deepseek-ops probe"), PROBE_SECONDS)
    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    try:
        answer = httpx.put(
            url,
            content=data,
            headers=headers if send_checksum else {},
            timeout=timeout,
            trust_env=not url.startswith("http://"),
        )
    except httpx.HTTPError as error:
        raise StoreUnavailableError(url.partition("?")[0], f"probing it failed ({type(error).__name__})") from None
    if answer.status_code >= 500:
        raise StoreUnavailableError(url.partition("?")[0], f"HTTP {answer.status_code}")
    return answer.is_success


def _client(uri: StoreUri, credentials: Mapping[str, str], endpoint: str) -> _Client:
    """Return botocore's client with the rules of ``stores.s3_client``: given keys only, path style at an endpoint."""
    try:
        session, settings = import_module("botocore.session"), import_module("botocore.config")
    except ImportError:
        raise MissingDependencyError("boto3", "lfs", "presigned Git LFS transfers") from None
    style = "path" if endpoint or "." in uri.bucket else "virtual"
    region = credentials.get("AWS_REGION", "us-east-1")
    client: _Client = session.Session().create_client(
        "s3",
        region_name=region,
        # Spelt out: a variable of this process must not redirect explicit credentials.
        endpoint_url=endpoint or f"https://s3.{region}.amazonaws.com",
        aws_access_key_id=credentials.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=credentials.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=credentials.get("AWS_SESSION_TOKEN"),
        config=settings.Config(
            signature_version="s3v4",
            s3={"addressing_style": style},
            request_checksum_calculation="when_required",
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
        ),
    )
    return client
