"""Whole nodes with all that has to do with buckets, in the simulated world of these tests."""

from __future__ import annotations

import hashlib
import itertools
from types import SimpleNamespace
from typing import Any

import trio

from kachery_p2p.bucket.credentials import Credentials
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.pushing import push
from kachery_p2p.bucket.queue import DONE, LEFT_OUT, REQUESTED, Upload
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.channels.bucket_settings import BucketSettings, write_bucket
from kachery_p2p.channels.channel import generate_secret
from kachery_p2p.channels.files import join_shared
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.network.session import Session
from kachery_p2p.node.bucketing import Bucketing
from kachery_p2p.node.mirroring import Mirroring
from kachery_p2p.node.providing import Providing
from kachery_p2p.node.wishes import Wishes
from kachery_p2p.store.blobs import Stored
from kachery_p2p.transfer.bucket_holders import HoldersAndBuckets
from kachery_p2p.transfer.buckets import Buckets
from kachery_p2p.transfer.download import Downloads
from tests.transfer.conftest import LAB, Disk, Node

LARGE = hashlib.shake_128(b"large").digest(3 * CHUNK_BYTES + 7)
SMALL = hashlib.shake_128(b"small").digest(10_000)
_numbers = itertools.count()


class BucketNode(Node):
    """A node with buckets."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.buckets = Buckets()
        self.holders = HoldersAndBuckets(self.sessions, self.link, buckets=self.buckets)
        self.downloads = Downloads(
            holders=self.holders,
            blobs=self.disk.blobs,
            grants=self.disk.grants,
            node_id=self.id,
            offers=self.offers,
            buckets=self.buckets,
        )

    def use(self, *places: Any) -> None:
        self.buckets.put({LAB.id: places})


class BucketMember(Node):
    """A node with all that has to do with buckets."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.config_dir = self.disk.directory / "config"
        self.config_dir.mkdir(mode=0o700, parents=True)
        (self.config_dir / "state").mkdir()
        for channel, byte in zip(self.memberships.channels, (b"L", b"F"), strict=False):
            join_shared(str(self.config_dir), channel.name, generate_secret(byte * 20))
        parts: Any = SimpleNamespace(
            config=SimpleNamespace(config_dir=str(self.config_dir)),
            channels=self.memberships.channels,
            channel_name=lambda channel: "lab",
            blobs=self.disk.blobs,
            grants=self.disk.grants,
        )
        self.bucketing = Bucketing(parts, self.sessions)
        buckets = self.bucketing.buckets
        self.holders = HoldersAndBuckets(self.sessions, self.link, buckets=buckets)
        self.downloads = Downloads(
            holders=self.holders,
            blobs=self.disk.blobs,
            grants=self.disk.grants,
            node_id=self.id,
            offers=self.offers,
            buckets=buckets,
        )
        self.mirroring = Mirroring(parts, self.bucketing)
        self.wishes = Wishes(parts, self.holders, self.downloads, self.mirroring)
        self.providing = Providing(self.sessions, self.bucketing, self.mirroring, self.wishes)

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.mirroring.run)
            nursery.start_soon(self.wishes.run)
            await super().run(task_status)

    async def use(self, url: str, **told: Any) -> None:
        """Use this bucket from now on."""
        write_bucket(str(self.config_dir), "lab", BucketSettings((url,), **told))
        await self.bucketing.look()

    async def settled(self, content: ContentHash, *states: str) -> Upload:
        """The row of the queue, once it is in one of these states."""
        with trio.fail_after(300):
            while True:
                for line in self.mirroring._lines.values():
                    row = self.mirroring.queue.of(line.uploads.place, content)
                    if row is not None and row.state in (states or (DONE, LEFT_OUT)):
                        return row
                await trio.sleep(0.1)

    def wish(self, content: ContentHash) -> None:
        """What `bucket push` writes down."""
        (line,) = self.mirroring._lines.values()
        self.mirroring.queue.add(line.uploads.place, [content], REQUESTED, "a.bin")
        self.mirroring.look_now()


def to(node: Node, other: Node) -> Session:
    session = node.sessions.get(other.id)
    assert session is not None
    return session


def body(url: str, **more: Any) -> dict[str, Any]:
    return {"channel": LAB.id, "bucket": bytes.fromhex(parse_bucket_url(url).node), **more}


def put_body(url: str, content: ContentHash) -> dict[str, Any]:
    return body(url, content=content.raw, label="", wait_ms=5_000)


def new_url() -> str:
    """A bucket in memory that no other test uses."""
    return f"memory:members-{next(_numbers)}"


def memory_bucket() -> Objects:
    """An empty bucket in memory."""
    return Objects(parse_bucket_url(new_url()), Credentials({}))


def pushed(author: Disk, bucket: Objects, data: bytes) -> Stored:
    """Put there from somebody's store, with all that belongs to it."""
    stored = author.blobs.put_bytes(data)
    assert push(bucket, author.blobs, stored.content, "a.bin").sent
    return stored
