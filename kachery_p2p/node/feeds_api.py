"""What the daemon does about feeds for its users: the operations of `wire.feed_operations`.

A guest (another user of this computer) reads what is here and what members of a channel could read
as well: own feeds that are shared somewhere, and subfeeds that this node follows. It makes the
node follow nothing, because what a node can follow is bounded, and is its owner's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import trio

from kachery_p2p.channels.share_lists import current_share_list
from kachery_p2p.content.hashes import ContentHash, FeedId
from kachery_p2p.errors import MessageFormatError, UnknownFeedError
from kachery_p2p.feeds.messages import Message
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    FEED_CALL_MESSAGES_MAX,
    FEED_HTTP_BYTES_MAX,
    FEED_PAGE_BYTES_MAX,
    FEED_PAGE_MAX,
    FEED_WAIT_S_MAX,
    MESSAGE_BYTES_MAX,
    TEXT_CHARS_MAX,
)
from kachery_p2p.node.asked import channel_ids
from kachery_p2p.node.doors import Call, Handlers
from kachery_p2p.node.parts import Parts
from kachery_p2p.wire.feed_records import ReadMessage, pack_messages, unpack_texts

if TYPE_CHECKING:
    # Not at run time: a node without feeds imports none of it (`feeding`).
    from kachery_p2p.feeds.service import FeedService

Row = TypeVar("Row")

# Unpacking less than this takes no longer than handing it to a thread.
_INLINE_BYTES_MAX = 1 << 14


class FeedsApi:
    """The operations, on the parts of one node."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def handlers(self) -> Handlers:
        return {
            "feed_create": self._create,
            "feed_named": self._named,
            "feed_list": self._list,
            "feed_followed": self._followed,
            "feed_info": self._info,
            "feed_delete": self._delete,
            "feed_share": self._share,
            "feed_unshare": self._unshare,
            "feed_status": self._status,
            "feed_append": self._append,
            "feed_read": self._read,
            "feed_watch": self._watch,
            "feed_submit": self._submit,
            "feed_access": self._access,
            "feed_grant": self._grant,
            "feed_revoke": self._revoke,
            "feed_set_access": self._set_access,
            "feed_proof": self._proof,
            "feed_end": self._end,
            "feed_resume": self._resume,
            "feed_adopt": self._adopt,
            "feed_append_legacy": self._append_legacy,
        }

    async def _feeds(self) -> FeedService:
        return await (await self._parts.network()).feeds.service()

    def _channels(self, call: Call) -> list[str]:
        names = call.body["channels"]
        if names is None:
            return list(current_share_list(self._parts.config.config_dir))
        return channel_ids(self._parts, names)

    # --- own feeds ------------------------------------------------------------------------------

    async def _create(self, call: Call) -> dict[str, Any]:
        feeds, channels = await self._feeds(), self._channels(call)
        return {"feed": await feeds.create(call.body["name"], channels)}

    async def _adopt(self, call: Call) -> dict[str, Any]:
        feeds, channels = await self._feeds(), self._channels(call)
        seed = bytes.fromhex(call.body["seed"])
        return {"feed": await feeds.adopt(seed, call.body["name"], channels)}

    async def _named(self, call: Call) -> dict[str, Any]:
        return {"feed": await (await self._feeds()).named(call.body["name"])}

    async def _list(self, call: Call) -> dict[str, Any]:
        feeds = await self._feeds()
        own = await trio.to_thread.run_sync(feeds.register.own_feeds)
        after = call.body["after"]
        rest = own[own.index(after) + 1 :] if after in own else own
        infos = [await feeds.info(feed) for feed in rest[:FEED_PAGE_MAX]]
        rows = _fitting(infos, lambda info: sum(map(len, info.names)))
        told = [
            {"feed": info.feed, "names": list(info.names), "channels": self._names(info.channels)}
            for info in rows
        ]
        return {"feeds": told, "next": rows[-1].feed if len(rows) < len(rest) else None}

    async def _followed(self, call: Call) -> dict[str, Any]:
        register = (await self._feeds()).register
        found = await trio.to_thread.run_sync(register.followed)
        return {"subfeeds": [f"{one.feed}/{one.name_hash}" for one in found]}

    async def _info(self, call: Call) -> dict[str, Any]:
        feeds = await self._feeds()
        info = await feeds.info(FeedId(call.body["feed"]))
        after = call.body["after"]
        known = await trio.to_thread.run_sync(
            feeds.register.subfeeds, info.feed, None if after is None else ContentHash(after)
        )
        rows = _fitting(known, lambda one: len(one.name or ""))
        return {
            "own": info.own,
            "names": list(info.names),
            "channels": self._names(info.channels),
            "subfeeds": [{"name_hash": one.name_hash, "name": one.name} for one in rows],
            "next": rows[-1].name_hash if len(rows) < len(known) else None,
        }

    async def _delete(self, call: Call) -> dict[str, Any]:
        await (await self._feeds()).delete(FeedId(call.body["feed"]))
        return {}

    async def _share(self, call: Call) -> dict[str, Any]:
        feeds, channels = await self._feeds(), self._channels(call)
        await feeds.share(FeedId(call.body["feed"]), channels)
        return {}

    async def _unshare(self, call: Call) -> dict[str, Any]:
        feeds, channel = await self._feeds(), call.body["channel"]
        # The id of a channel that this node has left, as it is listed, will do as well.
        left = [
            one
            for one in (await feeds.info(FeedId(call.body["feed"]))).channels
            if self._parts.channel_name(one) == channel
        ]
        ids = left or channel_ids(self._parts, [channel])
        await feeds.unshare(FeedId(call.body["feed"]), ids[0])
        return {}

    def _names(self, channels: Iterable[str]) -> list[str]:
        return [self._parts.channel_name(channel) for channel in channels]

    # --- reading --------------------------------------------------------------------------------

    async def _status(self, call: Call) -> dict[str, Any]:
        feeds = await self._feeds()
        feed, name_hash = _subfeed(call.body)
        await self._check_guest(call, feeds, [(feed, name_hash)])
        # What a guest says of names is not noted.
        name = call.body["name"] if call.guest is None else None
        info = await feeds.subfeed(feed, name_hash, name)
        told = info._asdict()
        told["successors"], told["sources"] = list(info.successors), list(info.sources)
        return told if call.guest is None else {**told, "sources": [], "followers": 0}

    async def _read(self, call: Call) -> dict[str, Any]:
        feeds = await self._feeds()
        feed, name_hash = _subfeed(call.body)
        await self._check_guest(call, feeds, [(feed, name_hash)])
        count = min(call.body["count"] or FEED_CALL_MESSAGES_MAX, FEED_CALL_MESSAGES_MAX)
        wait_s = min(call.body["wait_s"] or 0.0, FEED_WAIT_S_MAX)
        bytes_max = MESSAGE_BYTES_MAX if call.remote is None else FEED_HTTP_BYTES_MAX
        messages, size = await feeds.read(
            feed, name_hash, call.body["first"], count, bytes_max, wait_s
        )
        records = [_told(message) for message in messages]
        if call.remote is None:
            return {"messages": pack_messages(records), "size": size}
        return {"messages": [record._asdict() for record in records], "size": size}

    async def _watch(self, call: Call) -> dict[str, Any]:
        feeds = await self._feeds()
        watches = [(*_subfeed(watch), watch["position"]) for watch in call.body["watches"]]
        await self._check_guest(call, feeds, [(feed, name) for feed, name, _ in watches])
        wait_s = min(call.body["wait_s"], FEED_WAIT_S_MAX)
        return {"found": await feeds.watch(watches, wait_s)}

    async def _check_guest(
        self, call: Call, feeds: FeedService, names: Sequence[tuple[FeedId, ContentHash]]
    ) -> None:
        """UnknownFeedError if the caller is a guest, and one of these is not for guests."""
        if call.guest is None:
            return
        for feed, name_hash in names:
            if not await feeds.is_public(feed, name_hash):
                raise UnknownFeedError(
                    "this feed is not shared here, or not followed",
                    hint="start a node of your own, or ask who runs this one to read the feed once",
                )

    # --- writing --------------------------------------------------------------------------------

    async def _append(self, call: Call) -> dict[str, Any]:
        feeds, texts = await self._feeds(), await _texts(call)
        feed, name_hash = _subfeed(call.body)
        return {"first": await feeds.append(feed, name_hash, texts, call.body["name"])}

    async def _append_legacy(self, call: Call) -> dict[str, Any]:
        feeds, texts = await self._feeds(), await _texts(call)
        times = call.body["times_ms"]
        if len(times) != len(texts):
            raise MessageFormatError("each message needs a time of its own")
        messages = list(zip(texts, times, strict=True))
        return {"first": await feeds.append_legacy(*_subfeed(call.body), messages)}

    async def _submit(self, call: Call) -> dict[str, Any]:
        feeds, texts = await self._feeds(), await _texts(call)
        ids = [bytes.fromhex(id) for id in call.body["ids"]]
        if len(set(ids)) != len(texts) or len(ids) != len(texts):
            raise MessageFormatError("each message needs an id of its own")
        return {"positions": await feeds.submit(*_subfeed(call.body), texts, ids)}

    async def _access(self, call: Call) -> dict[str, Any]:
        return {"nodes": list(await (await self._feeds()).access(*_subfeed(call.body)))}

    async def _grant(self, call: Call) -> dict[str, Any]:
        await (await self._feeds()).grant(*_subfeed(call.body), NodeId(call.body["node"]))
        return {}

    async def _revoke(self, call: Call) -> dict[str, Any]:
        await (await self._feeds()).revoke(*_subfeed(call.body), NodeId(call.body["node"]))
        return {}

    async def _set_access(self, call: Call) -> dict[str, Any]:
        nodes = [NodeId(node) for node in call.body["nodes"]]
        await (await self._feeds()).set_access(*_subfeed(call.body), nodes)
        return {}

    # --- what is wrong --------------------------------------------------------------------------

    async def _proof(self, call: Call) -> dict[str, Any]:
        proof = (await (await self._feeds()).export_proof(*_subfeed(call.body))).hex()
        starts = range(0, len(proof), TEXT_CHARS_MAX)
        return {"proof": [proof[start : start + TEXT_CHARS_MAX] for start in starts]}

    async def _end(self, call: Call) -> dict[str, Any]:
        successor = call.body["successor"]
        feed = None if successor is None else FeedId(successor)
        await (await self._feeds()).end(*_subfeed(call.body), feed)
        return {}

    async def _resume(self, call: Call) -> dict[str, Any]:
        await (await self._feeds()).resume_only_copy(*_subfeed(call.body))
        return {}


def _subfeed(body: dict[str, Any]) -> tuple[FeedId, ContentHash]:
    return FeedId(body["feed"]), ContentHash(body["name_hash"])


async def _texts(call: Call) -> list[str]:
    """The messages to append. DaemonProtocolError or MessageFormatError if they are none."""
    messages = call.body["messages"]
    if isinstance(messages, list):
        # Whoever speaks HTTP need not be our client, which sends nothing but JSON.
        await trio.to_thread.run_sync(_check_json, messages)
        return messages
    if len(messages) <= _INLINE_BYTES_MAX:
        return unpack_texts(messages, FEED_CALL_MESSAGES_MAX)
    return await trio.to_thread.run_sync(unpack_texts, messages, FEED_CALL_MESSAGES_MAX)


def _check_json(texts: Sequence[str]) -> None:
    for text in texts:
        try:
            json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise MessageFormatError("a message is not JSON") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _told(message: Message) -> ReadMessage:
    submission = message.submission
    submitter = None if submission is None else submission.submitter
    return ReadMessage(message.text, message.type, message.time_ms, submitter)


def _fitting(rows: Sequence[Row], chars: Callable[[Row], int]) -> Sequence[Row]:
    """As many of the rows as fit one answer, but one at least."""
    room = FEED_PAGE_BYTES_MAX // 4  # bytes of a character
    for number, row in enumerate(rows[:FEED_PAGE_MAX]):
        room -= chars(row)
        if room < 0:
            return rows[: max(number, 1)]
    return rows[:FEED_PAGE_MAX]
