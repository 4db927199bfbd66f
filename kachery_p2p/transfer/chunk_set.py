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

    def add_bits(self, bits: bytes, first: int) -> bool:
        """Chunk `first` + i is bit i % 8 of byte i // 8. True if any of them is new."""
        before = self._count
        added = int.from_bytes(bits, "little")
        start, stop = first >> 3, (min(first + 8 * len(bits), self.length) + 7) >> 3
        if start >= stop:
            return False
        added = added << (first & 7) & ((1 << (self.length - 8 * start)) - 1)
        there = int.from_bytes(self._bytes[start:stop], "little")
        both = there | added & ((1 << 8 * (stop - start)) - 1)
        self._bytes[start:stop] = both.to_bytes(stop - start, "little")
        self._count += both.bit_count() - there.bit_count()
        return self._count > before

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


def last_run(bits: int, start: int, length_max: int) -> range:
    """The highest run of set bits in the window that begins at `start`. There must be one."""
    assert bits
    stop = bits.bit_length()
    # The gap below the run is the highest bit that is not set.
    gap = (~bits & ((1 << stop) - 1)).bit_length()
    return range(start + max(gap, stop - length_max), start + stop)


def first_run(bits: int, start: int, length_max: int) -> range:
    """The lowest run of set bits in the window that begins at `start`. There must be one."""
    assert bits
    skipped = (bits & -bits).bit_length() - 1
    length = min(ones_at_the_bottom(bits >> skipped), length_max)
    return range(start + skipped, start + skipped + length)
