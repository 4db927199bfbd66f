"""Feeds in a node: not there until they are needed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from kachery_p2p.channels.channel import Channel
from kachery_p2p.content.hashes import FeedId, sha1_of
from kachery_p2p.errors import PeerRefusedError
from kachery_p2p.feeds.register import Subfeed
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeKey
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.node.feeding import Feeding
from kachery_p2p.node.succession import Succession
from kachery_p2p.store.grants import Grants

KEY = NodeKey.generate(bytes([3]) * NODE_KEY_BYTES)


class NoSessions:
    """Sessions of a node that nobody is connected to."""

    settled = True
    channels = ()

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def handle(self, op: str, handler: Any) -> None:
        self.handlers[op] = handler

    def all(self) -> tuple[Any, ...]:
        return ()

    async def changed(self) -> None:
        await trio.sleep_forever()


def feeding(directory: Path, nursery: trio.Nursery) -> tuple[Feeding, NoSessions]:
    (directory / "state").mkdir(exist_ok=True)

    def keep_running(name: str, work: Callable[[], Awaitable[None]]) -> None:
        nursery.start_soon(work)

    sessions = NoSessions()
    return Feeding(str(directory), KEY.node_id, sessions, keep_running), sessions  # type: ignore[arg-type]


async def test_a_node_without_feeds_answers_as_if_it_had_none_and_begins_nothing(
    tmp_path: Path,
) -> None:
    async with trio.open_nursery() as nursery:
        feeds, sessions = feeding(tmp_path, nursery)
        await feeds.begin()
        assert len(sessions.handlers) == 5
        for handler in sessions.handlers.values():
            with pytest.raises(PeerRefusedError):
                await handler(None, {})
        assert not nursery.child_tasks
    assert os.listdir(tmp_path) == ["state"]
    assert os.listdir(f"{tmp_path}/state") == []


async def test_feeds_begin_with_the_first_call_and_after_a_restart_by_themselves(
    tmp_path: Path,
) -> None:
    async with trio.open_nursery() as nursery:
        feeds, _ = feeding(tmp_path, nursery)
        service = await feeds.service()
        assert service is await feeds.service()
        feed = await service.create("mine", None)
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        feeds, _ = feeding(tmp_path, nursery)
        await feeds.begin()
        assert await (await feeds.service()).named("mine") == feed
        nursery.cancel_scope.cancel()


async def test_feeds_follow_a_channel_that_goes_on_under_another_key(tmp_path: Path) -> None:
    old, new = Channel.shared(b"O" * 20, "lab"), Channel.shared(b"N" * 20, "lab")
    grants = Grants(f"{tmp_path}/grants.db")
    async with trio.open_nursery() as nursery:
        feeds, _ = feeding(tmp_path, nursery)
        service = await feeds.service()
        feed = await service.create("mine", [old.id])
        copy = Subfeed(FeedId("ab" * 32), sha1_of(b"main"))
        service.register.note_copy(copy, old.id, 1.0)
        succession = Succession(str(tmp_path), KEY, "x", Memberships([old]), grants, feeds)
        await succession._replace(old.id, new.id)
        assert (await service.info(feed)).channels == (new.id,)
        assert service._permits._own[feed] == {new.id}
        assert service.register.copied_in(copy) == (new.id,)
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        # The feeds are not running yet.
        feeds, _ = feeding(tmp_path, nursery)
        await feeds.move_channel(new.id, old.id)
        assert (await (await feeds.service()).info(feed)).channels == (old.id,)
        nursery.cancel_scope.cancel()
    grants.close()


async def test_a_node_without_feeds_has_none_to_move(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        feeds, _ = feeding(tmp_path, nursery)
        await feeds.move_channel("a", "b")
        assert not nursery.child_tasks
    assert os.listdir(f"{tmp_path}/state") == []


def test_a_node_that_starts_imports_little_of_feeds() -> None:
    program = (
        "import sys, kachery_p2p.node.node\n"
        "heavy = {'service', 'following', 'log_file', 'register', 'replica'}\n"
        "assert not heavy & {name.rpartition('.')[2] for name in sys.modules"
        " if name.startswith('kachery_p2p.feeds.')}"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
