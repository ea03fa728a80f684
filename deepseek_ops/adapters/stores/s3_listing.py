"""Listings in key order, also from servers that list folder by folder.

S3 lists by the bytes of the key, so ``a-b`` comes before ``a/b`` ("-" sorts before "/"). A server that keeps folders
(SeaweedFS) lists the folder ``a`` first, and starts after a given key in that order too, which would lose keys at a
watermark. What is done here gives key order on both kinds, for a few more requests and the memory of one folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import merge
from itertools import chain

from deepseek_ops.core.ports import ObjectInfo

Pages = Callable[[str, str], Iterator[ObjectInfo]]
"""Lists what is below a folder (without its last slash) and after a key, in the server's order."""
Head = Callable[[str], ObjectInfo | None]


def listed(
    pages: Pages, head: Callable[[str], ObjectInfo | None], prefix: str, start_after: str
) -> Iterator[ObjectInfo]:
    """Yield what starts with ``prefix`` and comes after ``start_after``, in key order."""
    folder, _, name = prefix.rpartition("/")
    if start_after > prefix and not start_after.startswith(prefix):
        return iter(())  # everything with the prefix sorts before
    first: list[ObjectInfo] = []
    offset = start_after if start_after >= prefix else ""
    if name and not offset:
        # The server lists whole folders: begin at the prefix, where only the key that equals it would be missed.
        exact = head(prefix)
        first = [] if exact is None else [exact]
        offset = prefix
    streams = [_of_prefix(pages(folder, offset), prefix, offset)]
    streams += [_of_prefix(pages(below, ""), prefix, offset) for below in _shadowed(offset, len(folder))]
    root = len(folder) + 1 if folder else 0
    return chain(first, _distinct(merge(*(in_key_order(found, root) for found in streams), key=_key)))


def _key(info: ObjectInfo) -> str:
    return info.key


def _shadowed(offset: str, root: int) -> list[str]:
    """Return the folders a folder-wise server lists before ``offset`` though they sort after: ``a`` for ``a-b``."""
    ends = [i for i in range(root + 1, len(offset)) if offset[i] < "/" and offset[i - 1] != "/"]
    return [offset[:end] for end in ends] + ([offset] if offset else [])


def _of_prefix(found: Iterator[ObjectInfo], prefix: str, offset: str) -> Iterator[ObjectInfo]:
    for info in found:
        if info.key.startswith(prefix):
            if info.key > offset:
                yield info
        elif info.key > prefix:
            return  # names that begin alike are neighbours in both orders


def in_key_order(found: Iterator[ObjectInfo], root: int) -> Iterator[ObjectInfo]:
    """Yield by key what comes by key or folder by folder. ``root`` is the length of the listed folder with its slash.

    The keys of a sub-folder wait until a key comes that is beyond it: only then can none come that sorts before them.
    """
    waiting: list[ObjectInfo] = []
    bound = ""
    for info in found:
        if waiting and info.key > bound and not info.key.startswith(bound):
            yield from sorted(waiting, key=_key)
            waiting, bound = [], ""
        end = info.key.find("/", root)
        if end >= 0:
            bound = max(bound, info.key[: end + 1])
        if waiting or end >= 0:
            waiting.append(info)
        else:
            yield info
    yield from sorted(waiting, key=_key)


def _distinct(found: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
    last = ""
    for info in found:
        if info.key != last:
            yield info
        last = info.key
