"""A bucket that tells the right root and another size costs nothing but itself."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import trio

from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.reading import Meta
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.content.manifests import CONTENT_BYTES_MAX
from kachery_p2p.errors import AllProvidersFailedError, NotFoundError, VerificationError
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.network.simulated_wire import Path as NetworkPath
from kachery_p2p.store.blobs import Stored
from kachery_p2p.transfer.bucket_source import BucketSource
from kachery_p2p.transfer.buckets import Kept
from kachery_p2p.transfer.only import Only
from kachery_p2p.wire.bulk_messages import BulkRange
from tests.transfer.bucket_nodes import BucketNode, memory_bucket, pushed
from tests.transfer.conftest import LAB, Disk, Lab

# More than a source is asked for at once.
DATA = hashlib.shake_128(b"sized").digest(20 * CHUNK_BYTES + 7)
SIZES = {
    "none": 0,
    "small": 3 * CHUNK_BYTES,
    "a-byte-less": len(DATA) - 1,
    "large": 29 * CHUNK_BYTES,
    "another-page": 1_100 * CHUNK_BYTES,
}
told_sizes = pytest.mark.parametrize("told", SIZES.values(), ids=SIZES)


class Lying:
    """A bucket that tells another size of all that it has, and serves what it really has."""

    def __init__(self, bucket: Objects, size: int) -> None:
        self._bucket = bucket
        self._size = size
        self.tables_bytes_max = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bucket, name)

    def look(self, content: ContentHash) -> Meta | None:
        meta = self._bucket.look(content)
        return None if meta is None else meta._replace(size=self._size)

    def read_tables(self, root: Any, start: int, end: int) -> bytes:
        self.tables_bytes_max = max(self.tables_bytes_max, end - start)
        return self._bucket.read_tables(root, start, end)


@pytest.fixture
async def reader(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> BucketNode:
    monkeypatch.setattr("kachery_p2p.transfer.fetch.FETCH_LINGER_S", 0.01)
    node = await lab.node("reader", LAB, kind=BucketNode)
    assert isinstance(node, BucketNode)
    return node


@pytest.fixture
def bucket() -> Objects:
    return memory_bucket()


@pytest.fixture
def stored(bucket: Objects, new_disk: Callable[..., Disk]) -> Stored:
    return pushed(new_disk("author"), bucket, DATA)


async def begun(reader: BucketNode, bucket: Objects, stored: Stored) -> None:
    """An earlier try has left the page, and one chunk."""
    reader.use(bucket)
    descriptor, _ = await reader.downloads.load_range(
        stored.content, stored.root, 0, 10, reader.told.append
    )
    os.close(descriptor)
    while reader.downloads.active():  # noqa: ASYNC110
        await trio.sleep(0.1)


def lies(reader: BucketNode) -> list[str]:
    return [lie.what for lie in reader.downloads.dropped()]


@told_sizes
async def test_a_load_that_goes_on_is_not_ended_by_a_bucket_that_tells_another_size(
    reader: BucketNode, lab: Lab, bucket: Objects, stored: Stored, told: int
) -> None:
    await begun(reader, bucket, stored)
    honest = await lab.node("honest")
    honest.store(DATA)
    await lab.together(reader, honest)
    # Else the member is enough.
    lab.world.set_all_paths(NetworkPath(bytes_per_s=10 * CHUNK_BYTES))
    reader.use(Lying(bucket, told))
    await reader.buckets.look(stored.content, Only(), [])
    assert await reader.load(stored, root=True) == DATA


@told_sizes
async def test_a_bucket_that_tells_another_size_is_dropped_when_it_joins_a_member(
    reader: BucketNode, lab: Lab, bucket: Objects, stored: Stored, told: int
) -> None:
    honest = await lab.node("honest")
    honest.store(DATA)
    await lab.together(reader, honest)
    lab.world.set_all_paths(NetworkPath(bytes_per_s=10 * CHUNK_BYTES))
    reader.use(Lying(bucket, told))
    await reader.buckets.look(stored.content, Only(), [])
    assert await reader.load(stored, root=True) == DATA
    assert lies(reader) == [f"told a size of {told} bytes, which is not the content's"]


@told_sizes
async def test_a_bucket_that_tells_another_size_is_alone_to_blame(
    reader: BucketNode, bucket: Objects, stored: Stored, told: int
) -> None:
    await begun(reader, bucket, stored)
    lying = Lying(bucket, told)
    reader.use(lying)
    with pytest.raises(AllProvidersFailedError, match=lying.name) as failed:
        await reader.load(stored, root=True)
    assert failed.value.hint
    assert reader.disk.objects() == []


async def test_what_lies_beyond_the_size_that_was_told_is_not_asked_for(
    reader: BucketNode, bucket: Objects, stored: Stored
) -> None:
    kept = Kept(bucket, LAB.id, Meta(2 * CHUNK_BYTES, stored.root, None))
    source = BucketSource(kept, stored.content, reader.buckets)
    reads = await source.bulk()
    beyond = BulkRange(LAB.id, stored.content.raw, stored.root.raw, 1, 2)
    with pytest.raises(VerificationError, match="told a size"):
        await reads.fetch(beyond, lambda piece: None)
    with pytest.raises(VerificationError, match="told a size"):
        await source.page(stored.content, stored.root, 1)


async def test_the_size_that_is_told_does_not_say_how_much_memory_is_filled(
    reader: BucketNode, bucket: Objects, stored: Stored
) -> None:
    lying = Lying(bucket, CONTENT_BYTES_MAX + 1)
    reader.use(lying)
    with pytest.raises(NotFoundError, match=r"says that it has \d+ bytes"):
        await reader.load(stored, root=True)
    assert lying.tables_bytes_max == 0
