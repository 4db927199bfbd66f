"""What the daemon does about sharing: the handlers of `share`, `unshare` and `shared`.

A guest (another user of this computer, `Call.guest`) sees and ends only its own grants.
"""

from __future__ import annotations

import time
from typing import Any

import trio

from kachery_p2p.channels.share_lists import current_share_list
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import DaemonAuthError, NotFoundError
from kachery_p2p.limits import SHARED_PAGE_MAX
from kachery_p2p.node.asked import channel_ids
from kachery_p2p.node.doors import Call, Handlers
from kachery_p2p.node.parts import Parts
from kachery_p2p.node.vouching import grant_pending


class SharingApi:
    """The operations about grants, on the parts of one node."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def handlers(self) -> Handlers:
        return {"share": self._share, "unshare": self._unshare, "shared": self._shared}

    def channels(self, names: list[str] | None) -> list[str]:
        """The ids of channels given by name; None means the share list."""
        if names is None:
            return list(current_share_list(self._parts.config.config_dir))
        return channel_ids(self._parts, names)

    async def grant(self, call: Call, contents: list[ContentHash], channels: list[str]) -> None:
        """Grant in these channels; with no channel joined yet, keep it pending.

        Nothing waits for a channel in the name of a guest: which one is joined next is
        for others to say.
        """
        await trio.to_thread.run_sync(self._grant, call, contents, channels)

    def _grant(self, call: Call, contents: list[ContentHash], channels: list[str]) -> None:
        grants = self._parts.grants
        if call.guest is None:
            grants.grant(contents, channels or None, "stored", time.time())
        else:
            grants.grant_as_guest(contents, channels, call.guest, time.time())

    async def _share(self, call: Call) -> dict[str, Any]:
        channels = self.channels(call.body["channels"])
        shared = 0
        if call.body["pending"] and call.guest is not None:
            raise DaemonAuthError("what waits to be shared is for whoever runs the node")
        if call.body["pending"] and channels:
            blobs, grants = self._parts.blobs, self._parts.grants
            shared += await trio.to_thread.run_sync(
                grant_pending, blobs, grants, channels, "shared", time.time()
            )
        contents = [ContentHash(text) for text in call.body["contents"] or ()]
        here = await trio.to_thread.run_sync(self._granted, call, contents, channels)
        known = set(here)
        return {
            "shared": shared + (len(here) if channels else 0),
            "channels": [self._parts.channel_name(channel) for channel in channels],
            "missing": [content for content in contents if content not in known],
        }

    def _granted(
        self, call: Call, contents: list[ContentHash], channels: list[str]
    ) -> list[ContentHash]:
        """Grant those that are here, and say which; for threads, and one is enough for both.

        Raises CorruptObjectError if one is not what its name says.
        """
        vouched = self._parts.blobs.vouch(contents)
        for why in vouched.values():
            if why is not None and not isinstance(why, NotFoundError):
                raise why
        here = [content for content, why in vouched.items() if why is None]
        # No channels given ([]) is the wish to share with nobody, not one for later.
        if here and call.body["channels"] != []:
            self._grant(call, here, channels)
        return here

    async def _unshare(self, call: Call) -> dict[str, Any]:
        contents = [ContentHash(text) for text in call.body["contents"]]
        ended = await trio.to_thread.run_sync(
            self._parts.grants.end, contents, self._channel(call), call.guest
        )
        return {"unshared": ended}

    async def _shared(self, call: Call) -> dict[str, Any]:
        found = await trio.to_thread.run_sync(
            self._parts.grants.page,
            call.body["after"],
            self._channel(call),
            call.guest,
            SHARED_PAGE_MAX,
        )
        grants = [
            {
                "content": grant.content,
                "channel": self._parts.channel_name(grant.channel),
                "why": grant.why,
                "time": max(grant.time, 0.0),
            }
            for grant in found
        ]
        return {"grants": grants, "next": found[-1].key if len(found) == SHARED_PAGE_MAX else None}

    def _channel(self, call: Call) -> str | None:
        name = call.body["channel"]
        return None if name is None else channel_ids(self._parts, [name])[0]
