"""What is corrupt is granted by no way: `share`, `share --pending`, shares.log."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.node.vouching import grant_pending, keep_shares
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.grants import Grants
from kachery_p2p.store.index import Index
from kachery_p2p.store.shares import Share

LAB = "ab" * 32


class Disk:
    def __init__(self, directory: Path) -> None:
        (directory / "store").mkdir()
        self.blobs = BlobStore(str(directory / "store"), Index(str(directory / "index.db")), 0)
        self.grants = Grants(str(directory / "grants.db"))
        self.good = [self.blobs.put_bytes(b"good %d" % n).content for n in range(3)]
        self.bad = self.blobs.put_bytes(b"about to rot").content
        path = self.blobs.find(self.bad)
        assert path is not None
        os.chmod(path, 0o600)
        Path(path).write_bytes(b"about to r0t")

    def granted(self) -> set[ContentHash]:
        contents = [*self.good, self.bad]
        return {content for content in contents if self.grants.is_granted(content, LAB)}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.grants.close()


def test_what_is_corrupt_in_shares_log_is_not_granted(disk: Disk) -> None:
    shares = [Share(content, (LAB,), "stored", 1.0) for content in [*disk.good, disk.bad]]
    keep_shares(disk.blobs, disk.grants, shares)
    assert disk.granted() == set(disk.good)
    assert disk.blobs.find(disk.bad) is None, "it is in quarantine"


def test_what_is_corrupt_and_pending_is_not_granted_and_waits_no_more(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pages of two, so that the corrupt one lies between pages.
    monkeypatch.setattr("kachery_p2p.store.grants.PENDING_LISTED_MAX", 2)
    monkeypatch.setattr("kachery_p2p.node.vouching.PENDING_LISTED_MAX", 2)
    for time, content in enumerate([disk.good[0], disk.bad, *disk.good[1:]]):
        disk.grants.grant([content], None, "stored", float(time))
    assert grant_pending(disk.blobs, disk.grants, [LAB], "shared", 9.0) == 3
    assert disk.granted() == set(disk.good)
    assert disk.grants.pending() == ()
