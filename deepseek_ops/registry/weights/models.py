"""The weights of a model as it is stored: several files, perhaps an index, read as one."""

from __future__ import annotations

import logging
from collections.abc import Callable

from deepseek_ops.core.ports import Blobs
from deepseek_ops.core.records import FileEntry, FileSet
from deepseek_ops.registry.weights.errors import WeightFormatError
from deepseek_ops.registry.weights.ranges import BlobRanges, Ranges
from deepseek_ops.registry.weights.reading import is_weight_file, read_weights
from deepseek_ops.registry.weights.record import WeightInfo, WeightSummary
from deepseek_ops.registry.weights.sharded import INDEX_SUFFIX, MAX_INDEX_BYTES, combine_shards, read_shard_index

log = logging.getLogger(__name__)


def model_weights(files: FileSet, open_file: Callable[[FileEntry], Ranges]) -> WeightInfo | None:
    """Return what a model's weight files hold together, or None when it has none.

    Raises WeightFormatError when one is damaged, or they do not fit each other or their index.
    """
    weights = [entry for entry in files.files if is_weight_file(entry.path)]
    if not weights:
        return None
    shards = {entry.path: read_weights(open_file(entry)) for entry in weights}
    index = next((entry for entry in files.files if entry.path.endswith(INDEX_SUFFIX)), None)
    if index is None or "/" in index.path:
        return combine_shards(shards, file=weights[0].path)
    if index.size > MAX_INDEX_BYTES:
        raise WeightFormatError(index.path, f"its index has {index.size:,} bytes")
    described = read_shard_index(open_file(index).read(0, index.size), file=index.path)
    return combine_shards(shards, file=index.path, index=described)


def summarise_model(blobs: Blobs, files: FileSet) -> WeightSummary | None:
    """Return the facts of a stored model's weights, or None where it has none that can be read.

    A header that cannot be read does not keep a model from being registered: the gates have loaded it.
    """
    try:
        info = model_weights(files, lambda entry: BlobRanges(blobs, entry))
    except WeightFormatError as error:
        log.warning("the weights of model %s are registered without a summary: %s", files.fingerprint[:12], error)
        return None
    return info.summary() if info else None
