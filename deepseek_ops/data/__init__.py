"""Dataset versions: manifests, packs, snapshots, splits and checks over an ObjectStore."""

from deepseek_ops.data.blobs import StoreBlobs, blob_key
from deepseek_ops.data.folders import UnsafeTargetError, UnstorableFileError

__all__ = ["StoreBlobs", "UnsafeTargetError", "UnstorableFileError", "blob_key"]
