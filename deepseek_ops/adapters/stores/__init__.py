"""Object stores: S3 and everything that speaks it, and a local folder, behind one port and one contract suite.

``open_store`` is the door. Both adapters need only create-only puts (``If-None-Match: *``, or a hard link), never a
compare-and-swap: that is what every store we know can do, so a dataset or registry moves between them unchanged.
"""

from deepseek_ops.adapters.stores.keys import InvalidKeyError
from deepseek_ops.adapters.stores.opening import (
    STORE_VARIABLE,
    ensure_bucket,
    open_store,
    store_environment,
    store_from_environment,
)
from deepseek_ops.adapters.stores.uris import StoreUri, StoreUriError

__all__ = [
    "STORE_VARIABLE",
    "InvalidKeyError",
    "StoreUri",
    "StoreUriError",
    "ensure_bucket",
    "open_store",
    "store_environment",
    "store_from_environment",
]
