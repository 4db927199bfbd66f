"""Where the bytes of an opened remote file are, and which are fetched ahead."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.client.blocks import FileBlocks, SentBlocks
from kachery_p2p.client.opening import RemoteFile
from kachery_p2p.client.origin import ANYWHERE, Origin
from kachery_p2p.client.read_ahead import ReadAhead
from kachery_p2p.content.uris import Uri, parse_uri
from kachery_p2p.errors import DaemonProtocolError
from kachery_p2p.limits import CHUNK_BYTES, OPENED_AHEAD_SENT_BLOCKS_MAX, OPENED_BLOCKS_MAX

DATA = random.Random(1).randbytes(3 * CHUNK_BYTES + 1234)
URI = parse_uri(f"sha1://{'a' * 40}?root={'1' * 64}")


# --- which are fetched ahead ----------------------------------------------------------------------


def test_who_reads_in_a_row_gets_as_many_ahead_as_it_has_read() -> None:
    ahead = ReadAhead(100, ahead_max=8)
    assert [ahead.read(range(n, n + 1)) for n in range(4)] == [
        range(1, 1),
        range(2, 3),
        range(3, 5),
        range(4, 7),
    ]
    for n in range(4, 40):
        found = ahead.read(range(n, n + 1))
    assert found == range(40, 48)
    # Small reads in one block change nothing; a jump ends it; the end of the file bounds it.
    assert ahead.read(range(39, 40)) == range(40, 48)
    assert ahead.read(range(90, 91)) == range(91, 91)
    assert ahead.read(range(91, 97)) == range(97, 100)


def test_what_a_large_read_goes_on_to_is_fetched_ahead_at_once() -> None:
    ahead = ReadAhead(1000, ahead_max=8)
    assert ahead.read(range(10, 14), end=15) == range(14, 17)
    assert ahead.read(range(200, 201), end=900) == range(201, 209)


# --- where the bytes are --------------------------------------------------------------------------


class Daemon:
    """What `open_range` and `fetch_range` answer, from a file that can be replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.write_bytes(DATA)
        self.asked: list[tuple[int, int]] = []

    def open_range(self, wanted: Uri, start: int, end: int, *_: Any, **__: Any) -> tuple[int, int]:
        self.asked.append((start, end))
        return os.open(self.path, os.O_RDONLY), self.path.stat().st_size

    def fetch_range(self, wanted: Uri, start: int, end: int, origin: Origin) -> bytes:
        self.asked.append((start, end))
        return DATA[start:end]


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    daemon = Daemon(tmp_path / "data")
    monkeypatch.setattr("kachery_p2p.client.blocks.open_range", daemon.open_range)
    monkeypatch.setattr("kachery_p2p.client.blocks.fetch_range", daemon.fetch_range)
    return daemon


def test_blocks_of_a_file_that_was_replaced_are_asked_for_again(
    there: Daemon, tmp_path: Path
) -> None:
    blocks = FileBlocks(URI, ANYWHERE, *there.open_range(URI, 0, 0))
    blocks.ensure(range(2))
    target = memoryview(bytearray(10))
    assert blocks.read_into(CHUNK_BYTES, target) == 10
    # Nobody has verified anything of the new file but block 3.
    (tmp_path / "new").write_bytes(bytes(len(DATA)))
    os.replace(tmp_path / "new", there.path)
    blocks.ensure(range(3, 4))
    assert blocks.read_into(0, target) == 0
    blocks.ensure(range(4))
    assert there.asked[-1] == (0, 3 * CHUNK_BYTES)
    blocks.close()
    blocks.close()
    with pytest.raises(ValueError):
        blocks.read_into(0, target)


def test_a_file_of_another_size_is_not_the_one_that_was_opened(there: Daemon) -> None:
    blocks = FileBlocks(URI, ANYWHERE, *there.open_range(URI, 0, 0))
    there.path.write_bytes(DATA + b"more")
    with pytest.raises(DaemonProtocolError):
        blocks.ensure(range(1))
    blocks.close()


def test_of_what_comes_over_http_the_last_blocks_are_kept(
    there: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = OPENED_BLOCKS_MAX + 2 * OPENED_AHEAD_SENT_BLOCKS_MAX
    blocks = SentBlocks(URI, ANYWHERE, (kept + 3) * CHUNK_BYTES)
    monkeypatch.setattr(
        "kachery_p2p.client.blocks.fetch_range",
        lambda wanted, start, end, origin: bytes(end - start),
    )
    for number in range(blocks.count):
        blocks.ensure(range(number, number + 1))
    assert len(blocks._data) == kept
    target = memoryview(bytearray(100))
    assert blocks.read_into(0, target) == 0
    assert blocks.read_into((kept + 2) * CHUNK_BYTES - 50, target) == 100
    blocks.close()
    assert not blocks._data


def test_a_read_across_blocks_that_came_over_http_is_whole(there: Daemon) -> None:
    blocks = SentBlocks(URI, ANYWHERE, len(DATA))
    with io.BufferedReader(RemoteFile("sha1://x", blocks)) as file:
        assert file.read(2 * CHUNK_BYTES + 5) == DATA[: 2 * CHUNK_BYTES + 5]
        assert file.read() == DATA[2 * CHUNK_BYTES + 5 :]
