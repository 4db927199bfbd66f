"""For the tests of logs on the disk: crashes, flipped bits, and what a reader reads."""

from __future__ import annotations

from pathlib import Path

from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.log.tree import leaf_hash
from tests.feeds.feed_parts import messages


def reopened(log_file: LogFile) -> LogFile:
    """The same after a restart."""
    log_file.close()
    log_file.open()
    return log_file


def crashed(log_file: LogFile) -> None:
    """Close it as a kill does: nothing is noted of how far it came."""
    entries = path_of(log_file, "entries").read_bytes()
    log_file.close()
    path_of(log_file, "entries").write_bytes(entries)
    path_of(log_file, "checkpoint").unlink(missing_ok=True)


def all_of(log_file: LogFile, bytes_max: int = 1 << 20) -> list[bytes]:
    """Every entry, read as a reader does."""
    found: list[bytes] = []
    while batch := log_file.entries(len(found), 1_000, bytes_max):
        found += batch
    return found


def copied(of: LogFile, into: LogFile, batch: int = 7) -> None:
    """Bring a copy up to date: the head first, then the entries, as it comes from a peer."""
    into.keep([], into.frontier(), [], of.signed)
    while into.size < of.size:
        entries = of.entries(into.size, batch, 1 << 20)
        frontier, stored = into.frontier().extended(map(leaf_hash, entries))
        into.keep(entries, frontier, stored, None)


def path_of(log_file: LogFile, name: str) -> Path:
    return Path(log_file.path, name)


def flip(path: Path, at: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(data)


def grown(own: LogFile, single: int = 20, batch: int = 30) -> list[bytes]:
    """A log of some records with one entry, and one with more."""
    for number in range(single):
        own.append(messages(1, number), 1)
    own.append(messages(batch, single), 1)
    return messages(single + batch)
