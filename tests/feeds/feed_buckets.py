"""For the tests of feeds in buckets: nodes whose channel has one, and what lies there."""

from __future__ import annotations

import itertools
from pathlib import Path

from kachery_p2p.bucket import log_layout as layout
from kachery_p2p.bucket.credentials import Credentials
from kachery_p2p.bucket.log_book import LogBook
from kachery_p2p.bucket.log_layout import LogHead
from kachery_p2p.bucket.log_mirror import LogMirror, Mirrored
from kachery_p2p.bucket.log_reading import read_head
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.channels.channel import Channel
from kachery_p2p.content.hashes import FeedId
from kachery_p2p.feeds.service import FeedService
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.transfer.buckets import Buckets
from tests.feeds.feed_nodes import LAB, MAIN, FeedLab, Node

_numbers = itertools.count()


def texts(count: int, first: int = 0) -> list[str]:
    return [f'{{"n":{number}}}' for number in range(first, first + count)]


class Counting(Objects):
    """Counts what is read."""

    reads = 0

    def read_versioned(self, key: str, bytes_max: int) -> tuple[bytes, str]:
        self.reads += 1
        return super().read_versioned(key, bytes_max)


class BucketScene:
    """A bucket, and nodes whose channel has it."""

    def __init__(self, lab: FeedLab, directory: Path) -> None:
        self.lab = lab
        url = parse_bucket_url(f"memory:feeds-{next(_numbers)}")
        self.bucket = Counting(url, Credentials({}))
        self.directory = directory
        self.books: list[LogBook] = []

    async def node(self, label: str, **options: object) -> Node:
        """A running node that reads from the bucket, and knows nobody."""
        return await self.lab.node(label, kind=self.kind, **{"knows": [], **options})

    @property
    def kind(self) -> type[Node]:
        bucket = self.bucket

        class BucketNode(Node):
            def __init__(self, lab: FeedLab, number: int, label: str,
                         channels: list[Channel], directory: Path) -> None:  # fmt: skip
                super().__init__(lab, number, label, channels, directory)
                self.buckets = Buckets()
                self.buckets.put({LAB.id: [bucket]})
                self.feeds = FeedService(str(directory), self.id, self.sessions, self.buckets)

        return BucketNode

    async def mirror(self, node: Node, feed: FeedId) -> Mirrored:
        """What the node has of the feed goes into the bucket."""
        book = LogBook(str(self.directory / f"{node.label}.db"))
        self.books.append(book)
        copy = await node.feeds.copies.copy(SubfeedName(feed, MAIN))
        assert copy is not None
        return LogMirror(self.bucket, LAB.id, "place", book).put(copy)

    async def written(self, *messages: str) -> FeedId:
        """A feed in the bucket, whose author is asleep."""
        author = await self.node("author")
        feed = await author.new_feed(*messages)
        await self.mirror(author, feed)
        await self.lab.stopped(author)
        return feed

    def head(self, feed: FeedId) -> LogHead:
        head = read_head(self.bucket, SubfeedName(feed, MAIN).log)
        assert head is not None
        return head

    def put_head(self, feed: FeedId, data: bytes) -> None:
        self.bucket.put(layout.head_key(SubfeedName(feed, MAIN).log), data)

    def segment_keys(self, feed: FeedId) -> list[str]:
        log = SubfeedName(feed, MAIN).log
        return [layout.segment_key(log, one.digest) for one in self.head(feed).segments]
