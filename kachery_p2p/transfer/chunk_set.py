"""A set of a blob's chunks of which a window is looked at: one bit each, 128 KiB a terabyte.

A window is a whole number whose lowest bit is its first chunk. So `&`, `|` and `~`
combine what is wanted, asked for and had of 64 chunks at once, and a decision costs the
same in a blob of any size.
"""

from __future__ import annotations

from kachery_p2p.store.bitmap import Bitmap

# Chunks looked at in one go for the first that is not there: mostly it is near, but after
# a restart far away.
_LOOK_CHUNKS_MIN = 64
_LOOK_CHUNKS_MAX = 4_096


class ChunkSet(Bitmap):
    """Some of a blob's chunks. Ranges are cut off at the blob's end."""

    def add_range(self, chunks: range) -> None:
        self._set(chunks, True)

    def add_bitmap(self, bitmap: bytes) -> None:
        """Chunk i is bit i % 8 of byte i // 8; what lies beyond the blob is nobody's."""
        added = Bitmap(self.length, bitmap)._bytes
        both = int.from_bytes(self._bytes, "little") | int.from_bytes(added, "little")
        self._bytes[:] = both.to_bytes(len(self._bytes), "little")
        self._count = both.bit_count()

    def remove_range(self, chunks: range) -> None:
        self._set(chunks, False)

    def window(self, start: int, stop: int) -> int:
        """The chunks from `start` to `stop` - 1 as bits, the lowest for `start`."""
        first, last = start >> 3, (stop + 7) >> 3
        bits = int.from_bytes(self._bytes[first:last], "little") >> (start & 7)
        return bits & ((1 << (stop - start)) - 1)

    def first_missing(self, start: int, stop: int) -> int:
        """The first chunk from `start` on that is not there, or `stop`."""
        look = _LOOK_CHUNKS_MIN
        while start < stop:
            end = min(stop, start + look)
            start += ones_at_the_bottom(self.window(start, end))
            if start < end:
                return start
            look = min(2 * look, _LOOK_CHUNKS_MAX)
        return stop

    def _set(self, chunks: range, there: bool) -> None:
        assert chunks.step == 1
        start, stop = max(chunks.start, 0), min(chunks.stop, self.length)
        if start >= stop:
            return
        first, last = start >> 3, (stop + 7) >> 3
        before = int.from_bytes(self._bytes[first:last], "little")
        mask = ((1 << (stop - start)) - 1) << (start & 7)
        after = before | mask if there else before & ~mask
        self._bytes[first:last] = after.to_bytes(last - first, "little")
        self._count += after.bit_count() - before.bit_count()


def ones_at_the_bottom(bits: int) -> int:
    """How many of the lowest bits are set before the first that is not."""
    return (~bits & (bits + 1)).bit_length() - 1


def first_run(bits: int, start: int, length_max: int) -> range:
    """The lowest run of set bits in the window that begins at `start`. There must be one."""
    assert bits
    skipped = (bits & -bits).bit_length() - 1
    length = min(ones_at_the_bottom(bits >> skipped), length_max)
    return range(start + skipped, start + skipped + length)
