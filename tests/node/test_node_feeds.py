"""What the daemon does about feeds: for its owner, for HTTP clients, and for guests."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import (
    DaemonProtocolError,
    MessageFormatError,
    UnknownChannelError,
    UnknownFeedError,
)
from kachery_p2p.limits import FEED_CALL_MESSAGES_MAX, FEED_NAME_CHARS_MAX
from kachery_p2p.node.doors import Call
from kachery_p2p.node.feeds_api import FeedsApi
from kachery_p2p.wire.feed_records import pack_texts, unpack_messages
from kachery_p2p.wire.operations import OPERATIONS, check_result
from tests.feeds.feed_nodes import LAB, FeedLab, Node, feed_lab

GUEST_UID = 61_001
MAIN = sha1_of(b"main")


class Daemon:
    """The handlers, on the feeds of one simulated node."""

    def __init__(self, node: Node) -> None:
        async def service() -> Any:
            return node.feeds

        async def network() -> Any:
            return SimpleNamespace(feeds=SimpleNamespace(service=service))

        parts: Any = SimpleNamespace(
            network=network,
            channels=[LAB],
            channel_name=lambda id: {LAB.id: "lab"}.get(id, id[:16]),
            config=SimpleNamespace(config_dir=str(node.directory)),
        )
        self._handlers = FeedsApi(parts).handlers()

    async def call(self, op: str, uid: int | None = None, **body: Any) -> dict[str, Any]:
        """As the owner calls at the Unix door, or a guest."""
        return await self._answer(Call(OPERATIONS[op], body, uid=uid or os.geteuid()))

    async def http(self, op: str, **body: Any) -> dict[str, Any]:
        """As whoever has the token calls at the HTTP door."""
        return await self._answer(Call(OPERATIONS[op], body, uid=os.geteuid(), remote="127.0.0.1"))

    async def _answer(self, call: Call) -> dict[str, Any]:
        result = await self._handlers[call.operation](call)
        return check_result(OPERATIONS[call.operation], result)


@asynccontextmanager
async def daemon_of(tmp_path: Path) -> AsyncIterator[tuple[FeedLab, Daemon]]:
    async with feed_lab(tmp_path) as lab:
        yield lab, Daemon(await lab.node("node"))


async def test_every_operation_has_a_handler(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as (_, daemon):
        named = {name for name in OPERATIONS if name.startswith("feed_")}
        assert named == set(daemon._handlers)


async def test_http_clients_speak_and_hear_json(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as (_, daemon):
        feed = (await daemon.http("feed_create", channels=["lab"]))["feed"]
        which = {"feed": feed, "name_hash": MAIN}
        texts = ['{"a": 1}', "123456789012345678901234567890"]
        assert await daemon.http("feed_append", **which, messages=texts) == {"first": 0}
        told = await daemon.http("feed_read", **which, first=0, wait_s=0)
        assert [one["text"] for one in told["messages"]] == texts
        assert told["size"] == 2
        for junk in (["{"], ["NaN"], ["1", ""], ["[" * 100_000]):
            with pytest.raises(MessageFormatError):
                await daemon.http("feed_append", **which, messages=junk)


async def test_what_is_packed_wrongly_is_refused(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as (_, daemon):
        feed = (await daemon.call("feed_create"))["feed"]
        which = {"feed": feed, "name_hash": MAIN}
        many = pack_texts([b"1"] * (FEED_CALL_MESSAGES_MAX + 1))
        for junk in (b"x", b"\0\0\0\5abc", b"\0\0\0\1\xff", many):
            with pytest.raises(DaemonProtocolError):
                await daemon.call("feed_append", **which, messages=junk)
        for ids in ([], ["0" * 32] * 2):
            with pytest.raises(MessageFormatError):
                packed = pack_texts([b"1"] * 2)
                await daemon.call("feed_submit", **which, messages=packed, ids=ids)
        with pytest.raises(MessageFormatError):
            packed = pack_texts([b"1"])
            await daemon.call("feed_append_legacy", **which, messages=packed, times_ms=[])


async def test_a_guest_reads_what_members_could_read_and_nothing_else(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as (_, daemon):
        shared = (await daemon.call("feed_create", channels=["lab"]))["feed"]
        private = (await daemon.call("feed_create", channels=[]))["feed"]
        for feed in (shared, private):
            which = {"feed": feed, "name_hash": MAIN}
            await daemon.call("feed_append", **which, messages=pack_texts([b"7"]), name="main")
        which = {"feed": shared, "name_hash": MAIN}
        told = await daemon.call("feed_read", GUEST_UID, **which, first=0)
        assert [one.text for one in unpack_messages(told["messages"])] == ["7"]
        told = await daemon.call("feed_status", GUEST_UID, **which)
        assert (told["size"], told["sources"]) == (1, [])
        watch = {**which, "position": 0}
        told = await daemon.call("feed_watch", GUEST_UID, watches=[watch], wait_s=0)
        assert told == {"found": [0]}

        stranger = "ab" * 32
        for feed, name_hash in ((private, MAIN), (stranger, MAIN), (shared, sha1_of(b"other"))):
            which = {"feed": feed, "name_hash": name_hash}
            asked: list[tuple[str, dict[str, Any]]] = [("feed_read", {"first": 0})]
            for op, more in (*asked, ("feed_status", {})):
                with pytest.raises(UnknownFeedError):
                    await daemon.call(op, GUEST_UID, **which, **more)
            watch = {**which, "position": 0}
            with pytest.raises(UnknownFeedError):
                await daemon.call("feed_watch", GUEST_UID, watches=[watch], wait_s=0)
        # And nothing of what it asked for was noted, or is followed now.
        assert (await daemon.call("feed_followed"))["subfeeds"] == []
        assert (await daemon.call("feed_info", feed=stranger))["subfeeds"] == []


async def test_a_guest_reads_what_the_node_follows(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as (lab, daemon):
        author = await lab.node("author")
        feed = await author.new_feed("1")
        which: dict[str, Any] = {"feed": feed, "name_hash": MAIN}
        told = await daemon.call("feed_read", **which, first=0, wait_s=10)
        assert told["size"] == 1
        assert (await daemon.call("feed_followed"))["subfeeds"] == [f"{feed}/{MAIN}"]
        assert (await daemon.call("feed_read", GUEST_UID, **which, first=0))["size"] == 1


async def test_lists_come_in_pages_however_long_the_names_are(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as (_, daemon):
        long = "\U0001f600" * (FEED_NAME_CHARS_MAX - 4)
        made = []
        for number in range(70):
            made.append((await daemon.call("feed_create", name=f"{long}{number}"))["feed"])
        listed: list[str] = []
        after, pages = None, 0
        while pages == 0 or after is not None:
            page = await daemon.call("feed_list", after=after)
            listed += [one["feed"] for one in page["feeds"]]
            after, pages = page["next"], pages + 1
        assert listed == made
        assert pages > 1


async def test_a_feed_is_not_shared_where_the_node_is_not(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as (_, daemon):
        feed = (await daemon.call("feed_create", channels=["lab"]))["feed"]
        for op, more in (
            ("feed_share", {"channels": ["nowhere"]}),
            ("feed_unshare", {"channel": "nowhere"}),
        ):
            with pytest.raises(UnknownChannelError):
                await daemon.call(op, feed=feed, **more)
        assert (await daemon.call("feed_info", feed=feed))["channels"] == ["lab"]
