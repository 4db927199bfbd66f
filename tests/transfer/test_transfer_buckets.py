"""Loads from buckets and mirrors, alone and beside members, honest ones and others."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.bucket import layout
from kachery_p2p.bucket.credentials import Credentials
from kachery_p2p.bucket.mirror import Mirror
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.content.hashes import ContentHash, Root, sha1_of
from kachery_p2p.errors import (
    AllProvidersFailedError,
    BucketUnreachableError,
    KacheryError,
    NotFoundError,
    UriInconsistentError,
)
from kachery_p2p.limits import CHUNK_BYTES, HAVE_S_MAX
from kachery_p2p.network.simulated_wire import Path as NetworkPath
from kachery_p2p.store.blobs import Stored
from kachery_p2p.transfer.buckets import Kept
from kachery_p2p.transfer.only import Only
from tests.bucket import faulty as faults
from tests.bucket.faulty import Faulty, running_faulty
from tests.transfer.bucket_nodes import BucketNode, memory_bucket, pushed
from tests.transfer.conftest import FIELD, LAB, Disk, Lab

LARGE = hashlib.shake_128(b"large").digest(5 * CHUNK_BYTES + 7)
SMALL = hashlib.shake_128(b"small").digest(10_000)


@pytest.fixture
def author(new_disk: Callable[..., Disk]) -> Disk:
    """The store of somebody who has put things into a bucket, and sleeps now."""
    return new_disk("author")


@pytest.fixture
async def reader(lab: Lab) -> BucketNode:
    node = await lab.node("reader", LAB, FIELD, kind=BucketNode)
    assert isinstance(node, BucketNode)
    return node


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    with running_faulty() as server:
        yield server


# --- from a bucket alone ----------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", SMALL, LARGE], ids=["0", "1", "10k", "11M"])
@pytest.mark.parametrize("with_root", [False, True])
async def test_a_file_is_loaded_though_no_member_is_there(
    reader: BucketNode, author: Disk, data: bytes, with_root: bool
) -> None:
    bucket = memory_bucket()
    stored = pushed(author, bucket, data)
    reader.use(bucket)
    assert await reader.load(stored, root=with_root) == data
    assert reader.disk.grants.is_granted(stored.content, LAB.id)
    assert not reader.disk.grants.is_granted(stored.content, FIELD.id)
    assert reader.disk.partials() == []


async def test_a_range_is_read_without_the_rest(reader: BucketNode, author: Disk) -> None:
    import os

    bucket = memory_bucket()
    stored = pushed(author, bucket, LARGE)
    reader.use(Counting(bucket))
    start = 3 * CHUNK_BYTES + 3
    descriptor, size = await reader.downloads.load_range(
        stored.content, stored.root, start, start + 45, reader.told.append
    )
    try:
        assert os.pread(descriptor, 45, start) == LARGE[start : start + 45]
    finally:
        os.close(descriptor)
    assert size == len(LARGE)
    (place,) = reader.buckets._places[LAB.id]
    assert place.bytes_read <= 2 * CHUNK_BYTES  # type: ignore[attr-defined]


class Counting:
    """A bucket that counts what is read from it, and may fail on the way."""

    def __init__(self, bucket: Objects, fail_after: int | None = None) -> None:
        self._bucket = bucket
        self.fail_after = fail_after
        self.name, self.node = bucket.name, bucket.node
        self.bytes_read = self.looks = 0

    def look(self, content: ContentHash) -> Any:
        self.looks += 1
        return self._bucket.look(content)

    def read(self, content: ContentHash, start: int, end: int) -> Iterator[bytes]:
        whole = b"".join(self._bucket.read(content, start, end))
        for at in range(0, len(whole), 1 << 16):
            piece = whole[at : at + (1 << 16)]
            self.bytes_read += len(piece)
            if self.fail_after is not None and self.bytes_read > self.fail_after:
                self.fail_after = None
                raise BucketUnreachableError("the line broke", hint="wait")
            yield piece

    def read_tables(self, root: Root, start: int, end: int) -> bytes:
        return self._bucket.read_tables(root, start, end)


async def test_what_is_nowhere_is_not_found_and_asked_for_once(
    reader: BucketNode, author: Disk
) -> None:
    place = Counting(memory_bucket())
    reader.use(place)
    with pytest.raises(NotFoundError):
        await reader.downloads.load(sha1_of(b"absent"), None, reader.told.append)
    assert place.looks <= 2


async def test_a_bucket_is_that_of_its_channel_and_of_no_named_node(
    reader: BucketNode, author: Disk
) -> None:
    bucket = memory_bucket()
    stored = pushed(author, bucket, SMALL)
    reader.use(bucket)
    for only in (Only(channel=FIELD.id), Only(node="ab" * 32)):
        with pytest.raises(NotFoundError):
            await reader.downloads.load(stored.content, None, reader.told.append, only)
    await reader.downloads.load(stored.content, None, reader.told.append, Only(channel=LAB.id))


async def test_a_root_that_is_not_that_of_the_bytes_is_refused(
    reader: BucketNode, author: Disk
) -> None:
    bucket = memory_bucket()
    stored = pushed(author, bucket, SMALL)
    reader.use(bucket)
    with pytest.raises((UriInconsistentError, NotFoundError)):
        await reader.downloads.load(stored.content, Root("ab" * 32), reader.told.append)


# --- buckets that other tools have filled --------------------------------------------------------


async def test_a_bucket_without_roots_serves_whole_files(
    reader: BucketNode, author: Disk, tmp_path: Path
) -> None:
    (tmp_path / "served").mkdir()
    url = parse_bucket_url(f"file://{tmp_path}/served")
    bucket = Objects(url, Credentials({}))
    stored = pushed(author, bucket, LARGE)
    reader.use(bucket)
    assert await reader.load(stored) == LARGE
    assert reader.disk.grants.is_granted(stored.content, LAB.id)


async def test_a_part_of_a_file_without_root_is_cut_from_the_whole(
    reader: BucketNode, author: Disk, tmp_path: Path
) -> None:
    import os

    (tmp_path / "served").mkdir()
    bucket = Objects(parse_bucket_url(f"file://{tmp_path}/served"), Credentials({}))
    stored = pushed(author, bucket, LARGE)
    reader.use(bucket)
    descriptor, _ = await reader.downloads.load_range(
        stored.content, stored.root, 7, 17, reader.told.append
    )
    try:
        assert os.pread(descriptor, 10, 7) == LARGE[7:17]
    finally:
        os.close(descriptor)


async def test_many_who_want_the_same_whole_file_share_one_load(
    reader: BucketNode, author: Disk
) -> None:
    bucket = memory_bucket()
    content = sha1_of(LARGE)
    bucket.put_new(layout.key_of(content), LARGE, {})
    place = Counting(bucket)
    reader.use(place)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(reader.downloads.load, content, None, reader.told.append)
    assert place.bytes_read == len(LARGE)
    assert reader.bytes_of(content) == LARGE


async def test_a_whole_file_goes_on_where_the_line_broke(reader: BucketNode) -> None:
    bucket = memory_bucket()
    content = sha1_of(LARGE)
    bucket.put_new(layout.key_of(content), LARGE, {})
    place = Counting(bucket, fail_after=2 * CHUNK_BYTES)
    reader.use(place)
    await reader.downloads.load(content, None, reader.told.append)
    assert reader.bytes_of(content) == LARGE
    assert place.bytes_read < 1.2 * len(LARGE)


# --- beside members ------------------------------------------------------------------------


async def test_members_and_a_bucket_serve_one_transfer_together(
    reader: BucketNode, lab: Lab, author: Disk
) -> None:
    bucket = memory_bucket()
    pushed(author, bucket, LARGE)
    member = await lab.node("member")
    stored = member.store(LARGE)
    await lab.together(reader, member)
    # Else the member is enough.
    lab.world.set_all_paths(NetworkPath(bytes_per_s=10 * CHUNK_BYTES))
    place = Counting(bucket)
    reader.use(place)
    # Known already, as to whoever loads a second range of it.
    await reader.buckets.look(stored.content, Only(), [])
    assert await reader.load(stored) == LARGE
    assert place.bytes_read > 0


async def test_a_bucket_goes_on_when_the_only_member_falls_asleep(
    reader: BucketNode, lab: Lab, author: Disk
) -> None:
    bucket = memory_bucket()
    pushed(author, bucket, LARGE)
    member = await lab.node("member")
    stored = member.store(LARGE)
    await lab.together(reader, member)
    lab.world.crash(member.id)
    reader.use(bucket)
    assert await reader.load(stored) == LARGE


async def test_members_go_on_when_the_bucket_fails(
    reader: BucketNode, lab: Lab, author: Disk
) -> None:
    bucket = memory_bucket()
    pushed(author, bucket, LARGE)
    member = await lab.node("member")
    stored = member.store(LARGE)
    await lab.together(reader, member)
    reader.use(Counting(bucket, fail_after=0))
    await reader.buckets.look(stored.content, Only(), [])
    assert await reader.load(stored) == LARGE


# --- servers that misbehave ----------------------------------------------------------------


@pytest.fixture(params=["told", "untold"])
def mirrored(
    request: pytest.FixtureRequest, faulty: Faulty, author: Disk
) -> Iterator[tuple[Mirror, Stored]]:
    """A mirror that has LARGE, with all there is to verify its parts, or nothing of that."""
    stored = author.blobs.put_bytes(LARGE)
    path = layout.key_of(stored.content)
    if request.param == "told":
        pages = [author.blobs.page(stored.content, 0) or b""]
        known = author.blobs.known(stored.content)
        assert known is not None
        faulty.put(f"/k/{path}", LARGE, root=stored.root)
        faulty.put(f"/k/{layout.tables_key(stored.root)}", known.encode() + b"".join(pages))
    else:
        faulty.put(f"/k/{path}", LARGE)
    with contextlib.closing(Mirror(parse_bucket_url(f"{faulty.url}/k"))) as mirror:
        yield mirror, stored


async def test_a_mirror_serves(reader: BucketNode, mirrored: tuple[Mirror, Stored]) -> None:
    mirror, stored = mirrored
    reader.use(mirror)
    assert await reader.load(stored) == LARGE


FAULTS = {
    "bits": faults.only_get(faults.flipping),
    "cut": faults.only_get(faults.cutting_off),
    "swapped": faults.only_get(faults.swapping),
    "page": faults.page,
    "page-for-get": faults.only_get(faults.page),
    "endless": faults.only_get(faults.endless),
    "403": faults.status(403),
    "404": faults.status(404),
    "404-for-get": faults.only_get(faults.status(404)),
    "429": faults.status(429, {"Retry-After": "60"}),
    "500": faults.status(500),
    "503-for-get": faults.only_get(faults.status(503)),
    "frozen": faults.frozen,
    "frozen-for-get": faults.only_get(faults.frozen),
}


@pytest.fixture
def short_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("bucket.web", "transfer.bucket_source", "transfer.whole"):
        monkeypatch.setattr(f"kachery_p2p.{module}.STALL_S_MAX", 0.15)
    monkeypatch.setattr("kachery_p2p.transfer.buckets.HAVE_S_MAX", HAVE_S_MAX)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_whatever_a_server_does_there_is_an_error_and_nothing_wrong_is_stored(
    reader: BucketNode,
    mirrored: tuple[Mirror, Stored],
    faulty: Faulty,
    short_stalls: None,
    virtual_clock: MockClock,
    fault: faults.Fault,
) -> None:
    mirror, stored = mirrored
    faulty.fault = fault
    reader.use(mirror)
    with pytest.raises((NotFoundError, AllProvidersFailedError)) as failed:
        await reader.downloads.load(stored.content, None, reader.told.append)
    assert isinstance(failed.value, KacheryError) and failed.value.hint
    assert reader.disk.objects() == []


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_whatever_a_server_does_another_bucket_brings_the_right_bytes(
    reader: BucketNode,
    mirrored: tuple[Mirror, Stored],
    author: Disk,
    faulty: Faulty,
    short_stalls: None,
    virtual_clock: MockClock,
    fault: faults.Fault,
) -> None:
    mirror, stored = mirrored
    bucket = memory_bucket()
    pushed(author, bucket, LARGE)
    faulty.fault = fault
    reader.use(mirror, bucket)
    assert await reader.load(stored) == LARGE


async def test_a_server_that_asks_for_peace_is_left_alone(
    reader: BucketNode,
    mirrored: tuple[Mirror, Stored],
    faulty: Faulty,
    virtual_clock: MockClock,
) -> None:
    mirror, stored = mirrored
    faulty.fault = faults.status(429, {"Retry-After": "60"})
    reader.use(mirror)
    for _ in range(3):
        with pytest.raises(NotFoundError):
            await reader.downloads.load(stored.content, None, reader.told.append)
    assert len(faulty.requests) == 1
    assert "busy" in reader.buckets.problems()[mirror.name]
    await trio.sleep(61)
    faulty.fault = None
    assert await reader.load(stored) == LARGE
    assert reader.buckets.problems() == {}


async def test_a_false_root_costs_an_attempt_and_not_the_file(
    reader: BucketNode, faulty: Faulty, virtual_clock: MockClock
) -> None:
    content = sha1_of(SMALL)
    faulty.put(f"/k/{layout.key_of(content)}", SMALL, root="ab" * 32)
    with contextlib.closing(Mirror(parse_bucket_url(f"{faulty.url}/k"))) as mirror:
        reader.use(mirror)
        await reader.downloads.load(content, None, reader.told.append)
    assert reader.bytes_of(content) == SMALL


async def test_what_is_said_of_a_bucket_in_one_channel_is_not_believed_in_another(
    reader: BucketNode, author: Disk
) -> None:
    bucket = memory_bucket()
    stored = pushed(author, bucket, SMALL)
    here, there = Counting(bucket), Counting(bucket)
    there.look = lambda content: None  # type: ignore[method-assign]
    places = {LAB.id: (here,), FIELD.id: (there,)}
    reader.buckets.put(places)  # type: ignore[arg-type]
    told: list[Kept] = []
    for channel in (FIELD.id, LAB.id):
        await reader.buckets.look(stored.content, Only(channel, None), told)
    assert [one.channel for one in told] == [LAB.id]
    error = BucketUnreachableError("down", hint="wait")
    reader.buckets.failed(there, error)  # type: ignore[arg-type]
    assert reader.buckets.rests(there) and not reader.buckets.rests(here)  # type: ignore[arg-type]
    # Opened anew, each is what it was in its channel.
    anew = Counting(bucket), Counting(bucket)
    reader.buckets.put({LAB.id: anew[:1], FIELD.id: anew[1:]})  # type: ignore[dict-item]
    assert [reader.buckets.rests(one) for one in anew] == [False, True]  # type: ignore[arg-type]
