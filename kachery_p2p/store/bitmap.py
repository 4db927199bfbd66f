"""A set of chunk numbers, one bit each: 2 MiB for the largest content."""

from __future__ import annotations

from collections.abc import Iterator


class Bitmap:
    """Which of `length` numbers are in."""

    def __init__(self, length: int, data: bytes = b"") -> None:
        self.length = length
        size = -(-length // 8)
        self._bytes = bytearray(data[:size].ljust(size, b"\0"))
        if length % 8:  # bits past the end are nobody's
            self._bytes[-1] &= (1 << length % 8) - 1
        self._count = int.from_bytes(self._bytes, "little").bit_count()

    def __contains__(self, number: int) -> bool:
        return 0 <= number < self.length and bool(self._bytes[number >> 3] & 1 << (number & 7))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        """The numbers that are in, in order; what is added behind the reader is not seen."""
        for at, byte in enumerate(self._bytes):
            for bit in range(8):
                if byte & 1 << bit:
                    yield at * 8 + bit

    def add(self, number: int) -> None:
        """Put `number` in."""
        assert 0 <= number < self.length
        if number not in self:
            self._bytes[number >> 3] |= 1 << (number & 7)
            self._count += 1

    def remove(self, number: int) -> None:
        """Take `number` out, if it is in."""
        if number in self:
            self._bytes[number >> 3] &= ~(1 << (number & 7))
            self._count -= 1

    def part(self, start: int, stop: int) -> bytes:
        """The numbers from `start`, a multiple of 8, to `stop` - 1: bit i % 8 of byte i // 8."""
        assert start % 8 == 0
        found = bytearray(self._bytes[start >> 3 : (stop + 7) >> 3])
        if found and stop % 8:
            found[-1] &= (1 << stop % 8) - 1
        return bytes(found)

    def byte_of(self, number: int) -> tuple[int, bytes]:
        """Where in the file the bit of `number` lies, and the byte that belongs there."""
        return number >> 3, bytes(self._bytes[number >> 3 : (number >> 3) + 1])
