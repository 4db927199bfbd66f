"""What of a file to fetch before it is asked for. Pure."""

from __future__ import annotations


class ReadAhead:
    """Told which blocks are read, answers which to fetch next.

    Who reads one block after the other gets as many ahead as it has read in a row, up to a
    bound: so never more comes for nothing than was of use. Who jumps gets none.
    """

    def __init__(self, block_count: int, ahead_max: int) -> None:
        self._block_count = block_count
        self._ahead_max = ahead_max
        # The block behind the last that was read; None: nothing was read yet.
        self._next: int | None = None
        self._window = 0

    def read(self, blocks: range, end: int = 0) -> range:
        """The blocks ahead of `blocks`, which are read now; up to `end` are wanted for sure."""
        assert blocks
        if self._next is None or not self._next - 1 <= blocks.start <= self._next:
            self._window = len(blocks) - 1
        else:
            self._window += max(blocks.stop - self._next, 0)
        self._window = min(self._window, self._ahead_max)
        self._next = blocks.stop
        wanted = min(end, blocks.stop + self._ahead_max)
        stop = min(max(blocks.stop + self._window, wanted), self._block_count)
        return range(blocks.stop, stop)
