"""How large and how often: the real benchmarks, or `--quick` ones that only show that they run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

MIB = 1 << 20
BLOCK_BYTES = 64 * MIB


class Settings(NamedTuple):
    """Where the benchmarks work, and how much they do."""

    directory: Path
    quick: bool

    @property
    def big_bytes(self) -> int:
        return 4 * MIB if self.quick else 1024 * MIB

    @property
    def texts(self) -> int:
        return 10 if self.quick else 1000

    @property
    def group(self) -> int:
        return 100 if self.quick else 5000

    def times(self, repetitions: int) -> range:
        """So many repetitions."""
        return range(1 if self.quick else repetitions)

    def calls(self, number: int) -> int:
        """So many calls in a batch."""
        return 10 if self.quick else number

    def room(self, name: str) -> Path:
        """A new directory."""
        path = self.directory / name
        path.mkdir()
        return path

    def random_file(self, name: str) -> Path:
        """A new big file, on disk: not one that the system is still busy writing."""
        path = self.directory / name
        block = os.urandom(min(BLOCK_BYTES, self.big_bytes))
        with path.open("wb", 0) as file:
            for number in range(self.big_bytes // len(block)):
                # A number at its beginning makes each block another one.
                file.write(number.to_bytes(8, "big"))
                file.write(memoryview(block)[8:])
            os.fsync(file.fileno())
        return path


def settle() -> None:
    """Let the disk finish what went before, so that it is not counted with what comes."""
    os.sync()
    time.sleep(0.05)
