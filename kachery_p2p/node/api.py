"""What the daemon does for its clients: the handler of each operation of `wire.operations`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import trio

from kachery_p2p.channels.files import share_list
from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.errors import (
    CorruptObjectError,
    InvalidRangeError,
    LoadTimeoutError,
    NotFoundError,
    RootMismatchError,
    UnknownChannelError,
)
from kachery_p2p.limits import FIND_S_MAX
from kachery_p2p.node.doors import Call, Handlers, pieces_in_thread
from kachery_p2p.node.parts import Parts
from kachery_p2p.node.status import status_of
from kachery_p2p.store.blobs import Stored
from kachery_p2p.store.objects import Opened
from kachery_p2p.transfer.fetch import State
from kachery_p2p.wire.operations import DOOR_VERSION, check_version

log = logging.getLogger(__name__)


class Api:
    """The operations, on the parts of one node."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def handlers(self) -> Handlers:
        return {
            "hello": self._hello,
            "status": self._status,
            "load": self._load,
            "load_range": self._load_range,
            "find": self._find,
            "share": self._share,
            "store": self._store,
            "put": self._put,
            "stop": self._stop,
        }

    async def _hello(self, call: Call) -> dict[str, Any]:
        check_version(call.body["version"])
        store = os.stat(self._parts.blobs.directory)
        return {
            "version": DOOR_VERSION,
            "node_id": self._parts.node_id,
            "store": self._parts.blobs.directory,
            "store_dev": store.st_dev,
            "store_ino": store.st_ino,
        }

    async def _status(self, call: Call) -> dict[str, Any]:
        return status_of(self._parts)

    async def _stop(self, call: Call) -> dict[str, Any]:
        self._parts.stop.set()
        return {}

    # --- loading --------------------------------------------------------------------------------

    async def _load(self, call: Call) -> dict[str, Any]:
        content, root = _asked(call.body)
        opened = await self._local(content, root)
        if opened is None:
            await self._download(content, root, call)
            opened = await self._local(content, root)
        if opened is None:
            raise NotFoundError(f"sha1://{content} was removed from the store while it was loaded")
        with opened:
            call.attach(os.dup(opened.descriptor))
            return {
                "path": self._parts.blobs.local_path(content),
                "size": opened.root_object.size,
                "root": opened.root_object.root,
            }

    async def _load_range(self, call: Call) -> dict[str, Any]:
        content, root = _asked(call.body)
        start, end = call.body["start"], call.body["end"]
        opened = await self._local(content, root)
        if opened is None and root is None:
            # No hash vouches for a part of it: the whole is fetched and verified first.
            await self._download(content, None, call)
            opened = await self._local(content, None)
        if opened is not None:
            with opened:
                size, descriptor = opened.root_object.size, os.dup(opened.descriptor)
        else:
            assert root is not None
            network = await self._parts.network()
            descriptor, size = await network.downloads.load_range(
                content, root, start, end, _teller(call)
            )
        call.attach(descriptor)
        if not start <= end <= size:
            raise InvalidRangeError(f"bytes {start} to {end} are not in a file of {size} bytes")
        return {"offset": start, "length": end - start, "size": size}

    async def _local(self, content: ContentHash, root: Root | None) -> Opened | None:
        """The blob from the store, verified, or None; a corrupt one is as good as none."""
        if self._parts.blobs.find(content) is None:
            return None
        try:
            opened = await trio.to_thread.run_sync(
                self._parts.blobs.open_verified, content, abandon_on_cancel=True
            )
        except CorruptObjectError as error:
            log.warning("%s; it will be fetched again", error)
            return None
        except NotFoundError:
            return None
        if root is not None and opened.root_object.root != root:
            opened.close()
            raise RootMismatchError(
                f"the URI's root is not the root of sha1://{content} as stored here",
                hint="ask whoever gave you the URI for a correct one",
            )
        return opened

    async def _download(self, content: ContentHash, root: Root | None, call: Call) -> None:
        timeout_s = call.body.get("timeout_s")
        network = await self._parts.network()
        with trio.move_on_after(float("inf") if timeout_s is None else timeout_s) as limit:
            await network.downloads.load(content, root, _teller(call))
        if limit.cancelled_caught:
            raise LoadTimeoutError(
                f"sha1://{content} did not arrive within {timeout_s:.0f} s",
                hint="what arrived is kept: run it again to resume",
            )

    async def _find(self, call: Call) -> dict[str, Any]:
        content, root = _asked(call.body)
        timeout_s = call.body["timeout_s"]
        opened = await self._local(content, root)
        size = None
        if opened is not None:
            with opened:
                size = opened.root_object.size
        if timeout_s == 0:
            return {"local": opened is not None, "size": size, "providers": []}
        network = await self._parts.network()
        claims = await network.holders.find(
            content,
            lambda claim: root in (None, claim.root),
            FIND_S_MAX if timeout_s is None else timeout_s,
        )
        providers = [
            {
                "node_id": claim.source.node,
                "label": claim.source.name,
                "channel": self._parts.channel_name(claim.source.channel),
            }
            for claim in claims
        ]
        if size is None and claims:
            size = claims[0].size
        return {"local": opened is not None, "size": size, "providers": providers}

    # --- storing and sharing -------------------------------------------------------------------

    async def _store(self, call: Call) -> dict[str, Any]:
        assert call.descriptor is not None
        channels = self._channel_ids(call.body["channels"])
        # A copy of the descriptor: the door closes its own when the client leaves, and the
        # thread, left to itself then, must not read whatever file gets that number next.
        stored = await trio.to_thread.run_sync(
            self._put_file, os.dup(call.descriptor), abandon_on_cancel=True
        )
        if call.body["channels"] != []:
            await self._grant([stored.content], channels)
        return _stored(stored)

    def _put_file(self, descriptor: int) -> Stored:
        try:
            return self._parts.blobs.put_file(descriptor)
        finally:
            os.close(descriptor)

    async def _put(self, call: Call) -> dict[str, Any]:
        assert call.stream is not None
        pieces = pieces_in_thread(call.stream)
        content = ContentHash(call.body["content"])
        return _stored(await trio.to_thread.run_sync(self._parts.blobs.put_stream, pieces, content))

    async def _share(self, call: Call) -> dict[str, Any]:
        channels = self._channel_ids(call.body["channels"])
        shared = 0
        if call.body["pending"] and channels:
            shared += await trio.to_thread.run_sync(
                self._parts.grants.grant_pending, channels, "shared", time.time()
            )
        contents = [ContentHash(text) for text in call.body["contents"] or ()]
        here = [content for content in contents if self._parts.blobs.find(content) is not None]
        # No channels given ([]) is the wish to share with nobody, not one for later.
        if here and call.body["channels"] != []:
            await self._grant(here, channels)
        return {
            "shared": shared + (len(here) if channels else 0),
            "channels": [self._parts.channel_name(channel) for channel in channels],
            "missing": [content for content in contents if content not in here],
        }

    async def _grant(self, contents: list[ContentHash], channels: list[str]) -> None:
        """Grant in these channels; with no channel joined yet, keep it pending."""
        await trio.to_thread.run_sync(
            self._parts.grants.grant, contents, channels or None, "stored", time.time()
        )

    def _channel_ids(self, names: list[str] | None) -> list[str]:
        """The ids of channels given by name; None means the share list."""
        if names is None:
            return list(share_list(self._parts.config.config_dir))
        known = {channel.name: channel.id for channel in self._parts.channels}
        for name in names:
            if name not in known:
                raise UnknownChannelError(
                    f"this node is not in a channel named {name!r}",
                    hint="`kachery-p2p channel list` names the channels it is in",
                )
        return [known[name] for name in names]


def _asked(body: Mapping[str, Any]) -> tuple[ContentHash, Root | None]:
    root = body["root"]
    return ContentHash(body["content"]), Root(root) if root is not None else None


def _stored(stored: Stored) -> dict[str, Any]:
    return {"content": stored.content, "root": stored.root, "size": stored.size}


def _teller(call: Call) -> Any:
    def tell(state: State) -> None:
        call.progress(
            {
                "bytes": state.bytes,
                "verified": state.bytes,
                "size": state.size,
                "sources": list(state.sources),
            }
        )

    return tell
