"""Sets of content prefixes, a million of them in some 10 MB.

A content is announced by the first 8 bytes of its SHA-1, here an integer. Python's set
would need 60 bytes for each; sorted blocks of plain machine words need 8 to 16, whatever
order prefixes come and go in, and a change costs 2 us, whatever an attacker chooses.
Being sorted, all prefixes that begin alike are found together.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.wire.messages import PREFIX_BYTES

_LITTLE_ENDIAN = array("H", [1]).tobytes()[0] == 1
# A block is split when it is longer, and joined with its neighbour below a quarter of it.
_BLOCK_MAX = 512
_BLOCK_MIN = _BLOCK_MAX // 4


def prefix_of(content: ContentHash) -> int:
    """What stands for `content` in announcements."""
    return int(content[: 2 * PREFIX_BYTES], 16)


def pack(prefixes: Iterable[int]) -> bytes:
    """Prefixes as they travel: 8 bytes each, one after the other."""
    return _swapped(array("Q", prefixes)).tobytes()


def unpack(packed: bytes) -> array[int]:
    """The prefixes in `packed`, whose length is a multiple of PREFIX_BYTES."""
    return _swapped(array("Q", packed))


def _swapped(words: array[int]) -> array[int]:
    if _LITTLE_ENDIAN:
        words.byteswap()
    return words


class PrefixSet:
    """A set of prefixes; iterates in ascending order."""

    __slots__ = ("_blocks", "_count", "_lasts")

    def __init__(self, prefixes: Iterable[int] = ()) -> None:
        self._blocks: list[array[int]] = []
        # The greatest prefix of each block.
        self._lasts: list[int] = []
        self._count = 0
        for prefix in prefixes:
            self.add(prefix)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, prefix: int) -> bool:
        at = bisect_left(self._lasts, prefix)
        if at == len(self._lasts):
            return False
        block = self._blocks[at]
        return block[bisect_left(block, prefix)] == prefix

    def __iter__(self) -> Iterator[int]:
        for block in self._blocks:
            yield from block

    def add(self, prefix: int) -> bool:
        """Put it in; False if it was there."""
        at = min(bisect_left(self._lasts, prefix), len(self._lasts) - 1)
        if at < 0:
            self._blocks.append(array("Q"))
            self._lasts.append(prefix)
            at = 0
        block = self._blocks[at]
        place = bisect_left(block, prefix)
        if place < len(block) and block[place] == prefix:
            return False
        block.insert(place, prefix)
        self._count += 1
        if len(block) > _BLOCK_MAX:
            self._split(at)
        else:
            self._lasts[at] = block[-1]
        return True

    def discard(self, prefix: int) -> bool:
        """Take it out; False if it was not there."""
        at = bisect_left(self._lasts, prefix)
        if at == len(self._lasts):
            return False
        block = self._blocks[at]
        place = bisect_left(block, prefix)
        if block[place] != prefix:
            return False
        block.pop(place)
        self._count -= 1
        self._shrink(at)
        return True

    def between(self, start: int, end: int, count_max: int) -> list[int]:
        """The first prefixes from `start` on that are below `end`, at most `count_max`."""
        found: list[int] = []
        for at in range(bisect_left(self._lasts, start), len(self._blocks)):
            block = self._blocks[at]
            first = bisect_left(block, start)
            last = bisect_left(block, end)
            found.extend(block[first : min(last, first + count_max - len(found))])
            if last < len(block) or len(found) == count_max:
                break
        return found

    def give_up_block(self) -> int:
        """Take out some hundred prefixes, the greatest, to make room; how many it were."""
        if not self._blocks:
            return 0
        self._lasts.pop()
        gone = len(self._blocks.pop())
        self._count -= gone
        return gone

    @property
    def bytes_used(self) -> int:
        """Memory taken, as far as it grows with the set."""
        return sum(kept.__sizeof__() for kept in (*self._blocks, self._blocks, self._lasts))

    def _split(self, at: int) -> None:
        block = self._blocks[at]
        half = len(block) // 2
        self._blocks[at : at + 1] = [block[:half], block[half:]]
        self._lasts[at : at + 1] = [block[half - 1], block[-1]]

    def _shrink(self, at: int) -> None:
        block = self._blocks[at]
        if len(block) >= _BLOCK_MIN or (block and len(self._blocks) == 1):
            self._lasts[at] = block[-1]
            if len(block) % _BLOCK_MIN == 0:
                # An array keeps its memory while single items leave it; a copy does not.
                self._blocks[at] = block[:]
            return
        if len(self._blocks) == 1:
            self._blocks.clear()
            self._lasts.clear()
            return
        left = max(at - 1, 0)
        joined = self._blocks[left] + self._blocks[left + 1]
        self._blocks[left : left + 2] = [joined]
        self._lasts[left : left + 2] = [joined[-1]]
        if len(joined) > _BLOCK_MAX:
            self._split(left)
