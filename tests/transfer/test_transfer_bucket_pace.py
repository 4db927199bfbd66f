"""How many ranges of a blob are asked of a bucket at once: one of a server that is near."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from kachery_p2p.bucket.objects import Objects
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.limits import (
    BUCKET_FAR_RANGES,
    BUCKET_NEAR_BYTES_PER_S,
    BUCKET_NEAR_RANGE_CHUNKS,
    BUCKET_NEAR_S,
    BUCKET_RANGE_CHUNKS,
    BUCKET_READS_MAX,
    CHUNK_BYTES,
)
from kachery_p2p.transfer import bucket_pace
from kachery_p2p.transfer.assembly import Piece
from kachery_p2p.transfer.bucket_pace import Nearness, Pace
from kachery_p2p.transfer.bucket_source import BucketSource
from kachery_p2p.transfer.buckets import Buckets, Kept
from kachery_p2p.wire.bulk_messages import BulkRange
from tests.transfer.bucket_nodes import memory_bucket, pushed
from tests.transfer.conftest import LAB, Disk


class Clock:
    """A time that passes when told so."""

    def __init__(self) -> None:
        self.now = 7.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def coming(clock: Clock, pieces: int, each_s: float) -> Iterator[bytes]:
    """Pieces of a chunk, each after so long."""
    for _ in range(pieces):
        clock.now += each_s
        yield bytes(CHUNK_BYTES)


FAIR_S = CHUNK_BYTES / BUCKET_NEAR_BYTES_PER_S


def read(pace: Pace, pieces: Iterator[bytes], clock: Clock, work_s: float = 0.0) -> int:
    count = 0
    for piece in pace.timed(pieces):
        count += len(piece)
        clock.now += work_s
    return count


def test_the_time_of_whoever_takes_the_pieces_is_not_the_servers(clock: Clock) -> None:
    pace = Pace(clock)
    assert read(pace, coming(clock, 8, FAIR_S), clock, work_s=5.0) == 8 * CHUNK_BYTES
    assert pace.is_fast
    assert pace.waits_s == 0.0


@pytest.mark.parametrize(("first_s", "fast"), [(0.9, True), (1.1, False)])
def test_a_server_that_answers_late_is_not_near(clock: Clock, first_s: float, fast: bool) -> None:
    def late() -> Iterator[bytes]:
        clock.now += first_s * BUCKET_NEAR_S
        yield from coming(clock, 3, FAIR_S)

    pace = Pace(clock)
    read(pace, late(), clock)
    assert pace.is_fast is fast


def test_one_that_sends_nothing_is_noticed_while_it_is_waited_for(clock: Clock) -> None:
    pace = Pace(clock)
    seen = []

    def silent() -> Iterator[bytes]:
        seen.append((pace.waits_s, pace.is_fast))
        clock.now += 2 * BUCKET_NEAR_S
        seen.append((pace.waits_s, pace.is_fast))
        if seen:
            raise OSError("gone")
        yield b""

    with pytest.raises(OSError, match="gone"):
        read(pace, silent(), clock)
    assert seen == [(0.0, True), (pytest.approx(2 * BUCKET_NEAR_S), False)]
    assert pace.waits_s == 0.0


def test_a_slow_range_makes_it_far_for_a_while_and_then_it_is_tried_again(clock: Clock) -> None:
    nearness = Nearness()
    slow = Pace(clock)
    nearness.began(slow)
    assert nearness.is_near()
    read(slow, coming(clock, 3, 1.0), clock)
    assert not nearness.is_near()
    others = [Pace(clock) for _ in range(BUCKET_FAR_RANGES - 1)]
    for other in others:
        nearness.began(other)
    for ended in [slow, *others]:
        assert not nearness.is_near()
        # What comes slowly beside others says nothing of the server.
        read(ended, coming(clock, 1, 9.0), clock)
        nearness.ended(ended)
    assert nearness.is_near()
    again = Pace(clock)
    nearness.began(again)
    read(again, coming(clock, 3, FAIR_S), clock)
    nearness.ended(again)
    assert nearness.is_near()


def test_the_last_range_counts_though_it_is_judged_when_it_has_ended(clock: Clock) -> None:
    nearness = Nearness()
    slow = Pace(clock)
    nearness.began(slow)
    read(slow, coming(clock, 3, 1.0), clock)
    nearness.ended(slow)
    assert not nearness.is_near()


# --- what is asked for ----------------------------------------------------------------------------


class Silent:
    """A bucket that sends nothing before it is told to."""

    def __init__(self, bucket: Objects) -> None:
        self._bucket = bucket
        self.asked = threading.Event()
        self.told = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bucket, name)

    def read(self, content: ContentHash, start: int, end: int) -> Iterator[bytes]:
        self.asked.set()
        assert self.told.wait(30.0)
        yield from self._bucket.read(content, start, end)


async def test_while_a_server_is_silent_it_is_asked_for_more_at_once(
    new_disk: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_pace, "BUCKET_NEAR_S", 0.0)
    bucket = memory_bucket()
    data = hashlib.shake_128(b"silent").digest(2 * CHUNK_BYTES + 5)
    stored = pushed(new_disk("author"), bucket, data)
    place, buckets = Silent(bucket), Buckets()
    meta = bucket.look(stored.content)
    assert meta is not None
    ranged = await BucketSource(Kept(place, LAB.id, meta), stored.content, buckets).bulk()
    assert (ranged.pipelined, ranged.range_chunks) == (1, BUCKET_NEAR_RANGE_CHUNKS)
    came: list[bytes] = []

    def sink(piece: Piece) -> None:
        came.append(bytes(piece.data))
        piece.release()

    wanted = BulkRange(LAB.id, stored.content.raw, stored.root.raw, 0, 3)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ranged.fetch, wanted, sink)
            await trio.to_thread.run_sync(place.asked.wait)
            assert (ranged.pipelined, ranged.range_chunks) == (
                BUCKET_READS_MAX,
                BUCKET_RANGE_CHUNKS,
            )
            place.told.set()
    assert b"".join(came) == data
