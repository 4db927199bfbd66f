"""What ends a subfeed: a fork, or its owner's tombstone. Both are kept for ever.

fork         the fork proof that leaves the fewest common entries
tombstone    the one that counts, and one that contradicts it, if any
"""

from __future__ import annotations

from typing import NamedTuple

from kachery_p2p.errors import (
    FeedEndedError,
    FeedForkedError,
    HeadError,
    LogFormatError,
    ProofError,
    StateCorruptError,
)
from kachery_p2p.feeds.disk import read_small, write_small
from kachery_p2p.feeds.tombstones import TOMBSTONE_BYTES, End, Tombstone
from kachery_p2p.log.forks import ForkProof
from kachery_p2p.log.heads import LogId

_DAMAGED_HINT = "move the file away: other nodes that know of it tell it again"


class Ending(NamedTuple):
    """How far a subfeed may be read, and why."""

    fork: ForkProof | None = None
    end: End | None = None

    def readable(self, size: int) -> int:
        """How many of `size` entries may be read."""
        if self.fork is not None:
            size = min(size, self.fork.common_entries_max)
        return size if self.end is None else min(size, self.end.tombstone.size)

    def with_fork(self, fork: ForkProof) -> Ending:
        """With one more verified fork proof."""
        known = self.fork
        if known is None or fork.common_entries_max < known.common_entries_max:
            return self._replace(fork=fork)
        return self

    def with_tombstone(self, tombstone: Tombstone) -> Ending:
        """With one more verified tombstone."""
        known = () if self.end is None else self.end.tombstones
        return self._replace(end=End.of([*known, tombstone]))

    def error(self) -> FeedForkedError | FeedEndedError:
        """What to say to who wants to go on behind the end."""
        if self.fork is not None:
            return FeedForkedError(
                "the feed's key has signed two histories, and only "
                f"{self.fork.common_entries_max} messages can be common to both",
                hint="the key was used twice or was copied: ask the owner which copy is right",
                evidence=self.fork.encode(),
            )
        assert self.end is not None
        tombstone, rival = self.end
        if rival is not None:
            hint = "two successors are named: ask the owner which is right"
        elif tombstone.successor is None:
            hint = "it was not continued: ask the owner"
        else:
            hint = f"it goes on as feed://{tombstone.successor}"
        return FeedEndedError(
            f"the owner has ended the feed with {tombstone.size} messages", hint=hint
        )

    def save(self, path: str) -> None:
        """Keep it in the directory `path`, durably. OSError."""
        if self.fork is not None:
            write_small(f"{path}/fork", self.fork.encode())
        if self.end is not None:
            kept = b"".join(tombstone.encode() for tombstone in self.end.tombstones)
            write_small(f"{path}/tombstone", kept)

    @classmethod
    def load(cls, path: str, log: LogId) -> Ending:
        """What the directory of `log` says. StateCorruptError if it is damaged."""
        return cls(_load_fork(path, log), _load_end(path, log))


def _load_fork(path: str, log: LogId) -> ForkProof | None:
    data = read_small(f"{path}/fork")
    if data is None:
        return None
    try:
        fork = ForkProof.decode(data, log.tag)
        fork.verify(log)
    except (LogFormatError, HeadError, ProofError):
        raise StateCorruptError(f"{path}/fork is damaged", hint=_DAMAGED_HINT) from None
    return fork


def _load_end(path: str, log: LogId) -> End | None:
    data = read_small(f"{path}/tombstone")
    if data is None:
        return None
    pieces = [data[at : at + TOMBSTONE_BYTES] for at in range(0, len(data), TOMBSTONE_BYTES)]
    try:
        tombstones = [Tombstone.decode(piece) for piece in pieces]
        for tombstone in tombstones:
            tombstone.verify(log)
        if tombstones:
            return End.of(tombstones)
    except (LogFormatError, HeadError):
        pass
    raise StateCorruptError(f"{path}/tombstone is damaged", hint=_DAMAGED_HINT)
