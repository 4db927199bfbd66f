"""Files that an older store points to: what was read once is not believed of other bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kachery_p2p.compat import old_stores
from kachery_p2p.content.hashes import sha1_of

GOOD, EVIL = b"good bytes", b"evil bytes"


def rewritten(path: Path, times: tuple[int, int]) -> None:
    """Other bytes of the same length, and the times that the file had."""
    with path.open("r+b") as file:
        file.write(EVIL)
    os.utime(path, ns=times)


def test_a_file_that_was_rewritten_is_read_again_whatever_its_time_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(old_stores, "unsettled_s", lambda status: 0.0)
    path = tmp_path / "file"
    path.write_bytes(GOOD)
    before = path.stat()
    assert old_stores.is_file_of(str(path), sha1_of(GOOD))
    # The system's clock for files may stand still for some milliseconds.
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        rewritten(path, (before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert not old_stores.is_file_of(str(path), sha1_of(GOOD))


def test_nothing_is_remembered_of_a_file_that_has_just_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(old_stores, "unsettled_s", lambda status: 0.01)
    path, read = tmp_path / "file", list[str]()
    path.write_bytes(GOOD)
    hash_of = old_stores.hash_of

    def counted(name: str) -> str:
        read.append(name)
        return hash_of(name)

    monkeypatch.setattr(old_stores, "hash_of", counted)
    for _ in range(2):
        assert old_stores.is_file_of(str(path), sha1_of(GOOD))
    assert len(read) == 2
    monkeypatch.setattr(old_stores, "unsettled_s", lambda status: 0.0)
    for _ in range(3):
        assert old_stores.is_file_of(str(path), sha1_of(GOOD))
    assert len(read) == 3
