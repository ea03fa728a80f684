"""Creating a bucket: the one call obstore does not have."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import httpx
import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from deepseek_ops.adapters.stores.clients import CONNECT_SECONDS, READ_SECONDS
from deepseek_ops.adapters.stores.failures import code_of, explained, translated
from deepseek_ops.adapters.stores.s3_client import connect
from deepseek_ops.adapters.stores.uris import StoreUri
from deepseek_ops.core.errors import StoreAccessError, StoreUnavailableError


def create_bucket(uri: StoreUri, credentials: Mapping[str, str]) -> bool:
    """Create the bucket unless it is there; return whether this call did.

    Looks first: who may use a bucket is seldom allowed to create one. obstore signs the request (a presigned PUT of the
    bucket's root), so there is no second implementation of SigV4. Raises StoreAccessError, StoreUnavailableError.
    """
    client = connect(uri, credentials, with_prefix=False)
    if _exists(client, uri):
        return False
    with translated(str(uri), ""):
        url = obstore.sign(client, "PUT", "", timedelta(minutes=5))
    region = credentials.get("AWS_REGION", "us-east-1")
    place = "" if region == "us-east-1" else f"<LocationConstraint>{region}</LocationConstraint>"
    body = f"<CreateBucketConfiguration>{place}</CreateBucketConfiguration>" if place else ""
    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    try:
        # A proxy of the environment is for the outside; what is reached in clear text is on this machine or beside it.
        answer = httpx.put(url, content=body.encode(), timeout=timeout, trust_env=not url.startswith("http://"))
    except httpx.HTTPError as error:
        raise StoreUnavailableError(str(uri), f"creating the bucket failed ({type(error).__name__})") from None
    if answer.is_success:
        return True
    code = code_of(answer.text)
    if code == "BucketAlreadyOwnedByYou":  # somebody else was first
        return False
    problem = f"creating the bucket: HTTP {answer.status_code} {code}".rstrip()
    if answer.status_code >= 500:
        raise StoreUnavailableError(str(uri), problem)
    raise StoreAccessError(str(uri), problem)


def _exists(client: S3Store, uri: StoreUri) -> bool:
    try:
        next(iter(client.list(chunk_size=1)), None)
    except (BaseError, OSError) as error:
        if code_of(str(error)) == "NoSuchBucket":
            return False
        raise explained(error, str(uri), "") from error
    return True
