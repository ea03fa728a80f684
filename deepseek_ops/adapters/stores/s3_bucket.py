"""Creating a bucket: the one call obstore does not have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta

import httpx
import obstore

from deepseek_ops.adapters.stores.s3_client import CONNECT_SECONDS, READ_SECONDS, connect, translated
from deepseek_ops.adapters.stores.uris import StoreUri
from deepseek_ops.core.errors import StoreAccessError, StoreUnavailableError

_CODE = re.compile(r"<Code>(\w{1,80})</Code>")


def create_bucket(uri: StoreUri, credentials: Mapping[str, str]) -> bool:
    """Create the bucket unless it is there; return whether this call did.

    obstore signs the request (a presigned PUT of the bucket's root), so there is no second implementation of SigV4.
    """
    client = connect(uri, credentials, with_prefix=False)
    region = credentials.get("AWS_REGION", "us-east-1")
    body = ""
    if region != "us-east-1":
        body = (
            f"<CreateBucketConfiguration><LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
        )
    with translated(str(uri), ""):
        url = obstore.sign(client, "PUT", "", timedelta(minutes=5))
    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    # A proxy of the environment is for the outside; the endpoints that need no proxy are on this machine.
    local = url.startswith("http://")
    try:
        answer = httpx.put(url, content=body.encode(), timeout=timeout, trust_env=not local)
    except httpx.HTTPError as error:
        raise StoreUnavailableError(str(uri), f"creating the bucket failed ({type(error).__name__})") from None
    if answer.is_success:
        return True
    match = _CODE.search(answer.text)
    code = match.group(1) if match else ""
    if code in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists") and _reachable(client):
        return False
    problem = f"creating the bucket: HTTP {answer.status_code} {code}".rstrip()
    if answer.status_code >= 500:
        raise StoreUnavailableError(str(uri), problem)
    raise StoreAccessError(str(uri), problem)


def _reachable(client: obstore.store.S3Store) -> bool:
    """Whether the bucket that exists is one these keys may list: its name can be somebody else's."""
    try:
        next(client.list(chunk_size=1), None)
    except obstore.exceptions.BaseError:
        return False
    return True
