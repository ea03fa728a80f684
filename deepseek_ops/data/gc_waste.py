"""How much of each pack is still needed, measured in blocks: a pack stays as long as one file in it does.

A pack is not rewritten. A page's id does not depend on where its files lie, so a page could be stored again with other
places; but stores may keep the old bytes of an object that is put again, and a reader that holds the old page would
lose its pack. So what retention frees inside a pack is told, and comes free when the pack's last file goes.
"""

from __future__ import annotations

from collections.abc import Iterable

from deepseek_ops.data.pages import LOOSE, Entry, Location

BLOCK_BYTES = 8 << 10
"""A block counts as needed when a needed file touches it: 200 bytes of memory for each pack."""


class PackUse:
    """Which blocks of which packs are needed."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, int] = {}

    def add(self, rows: Iterable[tuple[Entry, Location]]) -> None:
        """Count the packed ones of these files."""
        needed: dict[bytes, int] = {}
        for entry, place in rows:
            if place != LOOSE and entry.size:
                first, last = place.offset // BLOCK_BYTES, (place.offset + entry.size - 1) // BLOCK_BYTES
                needed[place.pack] = needed.get(place.pack, 0) | (1 << (last + 1)) - (1 << first)
        for pack, blocks in needed.items():
            self._blocks[pack] = self._blocks.get(pack, 0) | blocks

    def wasted(self, pack: bytes, size: int) -> int:
        """Return how many bytes of a pack no needed file touches, at least."""
        needed = self._blocks.get(pack, 0).bit_count() * BLOCK_BYTES
        return max(size - needed, 0)
