"""Frames of a batch: what is at their bound, and what changes between two of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.limits import BATCH_ANSWER_BYTES_MAX, BATCH_PIECES_BYTES_MAX, CHUNK_BYTES
from kachery_p2p.transfer import batch_serving
from kachery_p2p.transfer.batch_serving import ServedBlobs
from kachery_p2p.wire.batches import (
    BYTES,
    LARGE,
    PIECE_BYTES,
    REFUSED,
    BulkBatch,
    DueBatch,
)

if TYPE_CHECKING:
    from tests.transfer.conftest import Disk

CHANNEL = "ab" * 32


def put(disk: Disk, *sizes: int) -> list[ContentHash]:
    datas = [bytes([number]) * size for number, size in enumerate(sizes)]
    contents = [disk.blobs.put_bytes(data).content for data in datas]
    disk.grants.grant(contents, [CHANNEL], "test", 0.0)
    return contents


class Answer:
    """One answer, read as the node reads it that asked."""

    def __init__(self, disk: Disk, contents: list[ContentHash], bytes_max: int) -> None:
        wanted = BulkBatch(CHANNEL, tuple(content.raw for content in contents), bytes_max)
        self.served = ServedBlobs(wanted, disk.blobs, disk.grants, lambda: True)
        self._due = DueBatch(wanted)

    def frame(self) -> list[tuple[int, int]]:
        """The outcomes of the next frame and their bytes. ProtocolError for an empty frame."""
        room = memoryview(bytearray(BATCH_PIECES_BYTES_MAX))
        self._due.receive(room[: self.served.fill(room)])
        return [(told.outcome, len(told.data)) for told in self._due.pieces]

    def rest(self) -> list[list[tuple[int, int]]]:
        frames = []
        while not self.served.finished:
            frames.append(self.frame())
        self.served.close()
        return frames


@pytest.mark.parametrize("room", [0, 1, PIECE_BYTES - 1])
def test_what_is_refused_or_large_goes_into_the_next_frame_when_this_one_is_full(
    disk: Disk, room: int
) -> None:
    sizes = [700_000, BATCH_PIECES_BYTES_MAX - 700_000 - 2 * PIECE_BYTES - room]
    first, second, large = put(disk, *sizes, CHUNK_BYTES + 1)
    absent = ContentHash("00" * 20)
    for last, outcome in ((absent, REFUSED), (large, LARGE)):
        answer = Answer(disk, [first, second, last], BATCH_ANSWER_BYTES_MAX)
        assert answer.rest() == [[(BYTES, size) for size in sizes], [(outcome, 0)]]


def test_what_is_revoked_while_it_waits_for_the_next_frame_is_not_sent(disk: Disk) -> None:
    contents = put(disk, 700_000, 700_001, CHUNK_BYTES + 1)
    answer = Answer(disk, contents, BATCH_ANSWER_BYTES_MAX)
    assert answer.frame() == [(BYTES, 700_000)]
    disk.grants.revoke(contents, CHANNEL)
    assert answer.rest() == [[(REFUSED, 0), (REFUSED, 0)]]


def test_no_frame_is_empty_when_a_slow_disk_ends_frames_and_the_bytes_are_used_up(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_serving, "BATCH_FILL_S", -1.0)
    answer = Answer(disk, put(disk, 1_000, 700_000, 700_000), CHUNK_BYTES)
    assert answer.rest() == [[(BYTES, 1_000)], [(BYTES, 700_000)]]
