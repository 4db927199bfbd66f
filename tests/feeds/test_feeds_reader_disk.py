"""A reader's disk that fails for a moment: what follows comes all the same, nobody is blamed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.content.hashes import FeedId
from kachery_p2p.errors import FeedUnavailableError, StorageFullError
from kachery_p2p.feeds import opened
from kachery_p2p.feeds.disk import sync_data
from kachery_p2p.store.durable import write_all
from tests.feeds.feed_nodes import MAIN, FeedLab, Node

# Longer than who was told "busy" rests.
REST_S = 6.0


class Disk:
    """The reader's, which fails while `code` is set."""

    def __init__(self, reader: Node) -> None:
        self.code = 0
        self._about = f"/{reader.label}/"

    def fail(self, descriptor: int) -> None:
        if self.code and self._about in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(self.code, os.strerror(self.code))

    def sync(self, descriptor: int) -> None:
        self.fail(descriptor)
        sync_data(descriptor)

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        self.fail(descriptor)
        write_all(descriptor, data, offset)


class Scene:
    """An author, and a reader who has the first message."""

    def __init__(self, author: Node, reader: Node, feed: FeedId) -> None:
        self.author = author
        self.reader = reader
        self.feed = feed
        self.disk = Disk(reader)


@pytest.fixture
async def scene(virtual_clock: MockClock, lab: FeedLab) -> Scene:
    author, reader = await lab.node("author"), await lab.node("reader")
    feed = await author.new_feed('"one"')
    assert await reader.read_all(feed, 1) == ['"one"']
    return Scene(author, reader, feed)


async def test_a_disk_that_was_full_is_told_again_what_it_did_not_take(
    virtual_clock: MockClock,
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(opened, "write_all", scene.disk.write)
    scene.disk.code = errno.ENOSPC
    await scene.author.append(scene.feed, '"two"')
    await trio.sleep(4 * REST_S)
    # Said once, however often it is told.
    assert caplog.text.count("cannot keep what comes") == 1
    scene.disk.code = 0
    await scene.author.append(scene.feed, '"three"')
    assert await scene.reader.read_all(scene.feed, 3) == ['"one"', '"two"', '"three"']


def closed(reader: Node, feed: FeedId) -> Callable[[], None]:
    subfeed = reader.feeds._subfeeds._open
    (log,) = [one.replica.log for name, one in subfeed.items() if name.feed == feed]
    return log.close  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("more", [False, True])
async def test_what_a_failed_sync_left_is_found_when_the_files_are_opened_anew(
    virtual_clock: MockClock,
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    more: bool,
    reopened: bool,
) -> None:
    monkeypatch.setattr(opened, "sync_data", scene.disk.sync)
    scene.disk.code = errno.EIO
    await scene.author.append(scene.feed, '"two"')
    await trio.sleep(1)
    scene.disk.code = 0
    # As it is closed when many others are in use.
    subfeed = await scene.reader.subfeed(scene.feed)
    await trio.to_thread.run_sync(closed(scene.reader, scene.feed))
    if reopened:
        await trio.to_thread.run_sync(lambda: subfeed.replica.log.read_hash(0))
    texts = ['"one"', '"two"']
    if more:
        await scene.author.append(scene.feed, '"three"')
        texts.append('"three"')
    await trio.sleep(REST_S)
    assert await scene.reader.read_all(scene.feed, len(texts)) == texts
    assert "not signed" not in caplog.text
    assert scene.author.id in {source.session.peer for source in subfeed.sources.values()}


async def test_an_owner_whose_disk_was_full_is_no_liar(
    virtual_clock: MockClock, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.author.feeds.grant(scene.feed, MAIN, scene.reader.id)

    async def full(*arguments: object) -> int:
        raise StorageFullError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(scene.author.feeds._receiving, "_append", full)
        with pytest.raises(FeedUnavailableError, match="did not take"):
            await scene.reader.feeds.submit(scene.feed, MAIN, ['"two"'])
    assert (await scene.reader.subfeed(scene.feed)).has_author
    await scene.author.append(scene.feed, '"three"')
    with trio.fail_after(1):
        assert await scene.reader.read(scene.feed, 1) == ['"three"']
    assert await scene.reader.feeds.submit(scene.feed, MAIN, ['"two"']) == [2]
