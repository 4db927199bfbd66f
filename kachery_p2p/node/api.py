"""What the daemon does for its clients: the handler of each operation of `wire.operations`."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
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
)
from kachery_p2p.limits import FIND_S_MAX
from kachery_p2p.node.asked import content_and_root, sources
from kachery_p2p.node.doors import Call, Handlers, pieces_in_thread
from kachery_p2p.node.many_api import ManyApi
from kachery_p2p.node.parts import Parts
from kachery_p2p.node.progress import STORING, Counting, Telling
from kachery_p2p.node.sharing_api import SharingApi
from kachery_p2p.node.status import status_of
from kachery_p2p.store.blobs import Stored
from kachery_p2p.store.objects import Opened
from kachery_p2p.transfer.progress import ASKING, HASHING
from kachery_p2p.transfer.sources import Claim, Source
from kachery_p2p.wire.operations import DOOR_VERSION, check_version

log = logging.getLogger(__name__)

# What of `status` is only for whoever runs the node.
_NOT_FOR_GUESTS: dict[str, Any] = {
    "addresses": [],
    "http": None,
    "peers": [],
    "loads": [],
    "pending_shares": 0,
    "bytes_served": 0,
    "pace": None,
    "serving": [],
    "problems": [],
}


class Api:
    """The operations, on the parts of one node."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._sharing = SharingApi(parts)
        self._many = ManyApi(parts, self._local)

    def handlers(self) -> Handlers:
        return {
            "hello": self._hello,
            "status": self._status,
            "channels": self._channels,
            "load": self._load,
            "load_range": self._load_range,
            "load_many": self._many.load_many,
            "find": self._find,
            "store": self._store,
            "put": self._put,
            "stop": self._stop,
            **self._sharing.handlers(),
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
        told = status_of(self._parts)
        return told if call.guest is None else {**told, **_NOT_FOR_GUESTS}

    async def _channels(self, call: Call) -> dict[str, Any]:
        kinds = {channel.id: channel.kind for channel in self._parts.channels}
        shared = share_list(self._parts.config.config_dir)
        told = status_of(self._parts)["channels"]
        return {
            "channels": [
                {**one, "kind": kinds[one["id"]], "shared_list": one["id"] in shared}
                for one in told
            ]
        }

    async def _stop(self, call: Call) -> dict[str, Any]:
        self._parts.stop.set()
        return {}

    # --- loading --------------------------------------------------------------------------------

    async def _load(self, call: Call) -> dict[str, Any]:
        content, root = content_and_root(call.body)
        opened = await self._local(content, root, call)
        if opened is None:
            with _within(call):
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
        content, root = content_and_root(call.body)
        start, end = call.body["start"], call.body["end"]
        opened = await self._local(content, root, call)
        if opened is None and root is None:
            # No hash vouches for a part of it: the whole is fetched and verified first.
            with _within(call):
                await self._download(content, None, call)
            opened = await self._local(content, None)
        if opened is not None:
            with opened:
                size, descriptor = opened.root_object.size, os.dup(opened.descriptor)
        elif root is not None:
            with _within(call):
                descriptor, size = await self._download_range(content, root, call)
        else:
            raise NotFoundError(f"sha1://{content} was removed from the store while it was loaded")
        call.attach(descriptor)
        if not start <= end <= size:
            raise InvalidRangeError(f"bytes {start} to {end} are not in a file of {size} bytes")
        return {"offset": start, "length": end - start, "size": size}

    async def _local(
        self, content: ContentHash, root: Root | None, call: Call | None = None
    ) -> Opened | None:
        """The blob from the store, verified, or None; a corrupt one is as good as none."""
        if self._parts.blobs.find(content) is None:
            return None
        if call is not None:
            # Of a file that was always here, the first reader waits for this.
            call.progress({"phase": HASHING})
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
        telling = self._telling(call)
        only = await sources(self._parts, call.body)
        network = await self._parts.network()
        was_coming = await network.batches.coming.wait_while_in_batches(content, only)
        # A load of many has just brought it, or could not.
        if was_coming and self._parts.blobs.find(content) is not None:
            return
        await network.downloads.load(content, root, telling, only)

    async def _download_range(
        self, content: ContentHash, root: Root, call: Call
    ) -> tuple[int, int]:
        telling = self._telling(call)
        only = await sources(self._parts, call.body)
        network = await self._parts.network()
        start, end = call.body["start"], call.body["end"]
        return await network.downloads.load_range(content, root, start, end, telling, only)

    def _telling(self, call: Call) -> Telling:
        return Telling(call, self._parts.channel_name, ASKING)

    async def _find(self, call: Call) -> dict[str, Any]:
        content, root = content_and_root(call.body)
        opened = await self._local(content, root)
        size = known_root = None
        if opened is not None:
            with opened:
                size, known_root = opened.root_object.size, opened.root_object.root
        claims: list[Claim] = []
        with trio.move_on_after(_seconds(call)):
            if call.body["timeout_s"] != 0:
                claims = await self._claims(content, root, call)
        if size is None and claims:
            # For people to read. What must be right is asked of `load_range`, by the root.
            size = claims[0].size
        return {
            "local": opened is not None,
            "size": size,
            "root": known_root or _claimed_root(claims),
            "providers": [self._provider(claim.source) for claim in claims],
        }

    async def _claims(self, content: ContentHash, root: Root | None, call: Call) -> list[Claim]:
        only = await sources(self._parts, call.body)
        network = await self._parts.network()
        return await network.holders.find(
            content,
            lambda claim: root in (None, claim.root),
            min(FIND_S_MAX, _seconds(call)),
            only,
        )

    def _provider(self, source: Source) -> dict[str, Any]:
        channel = self._parts.channel_name(source.channel)
        return {"node_id": source.node, "label": source.name, "channel": channel}

    # --- storing -------------------------------------------------------------------

    async def _store(self, call: Call) -> dict[str, Any]:
        assert call.descriptor is not None
        channels = self._sharing.channels(call.body["channels"])
        # A copy of the descriptor: the door closes its own when the client leaves, and the
        # thread, left to itself then, must not read whatever file gets that number next.
        counting = Counting(call, STORING, os.fstat(call.descriptor).st_size)
        stored = await trio.to_thread.run_sync(
            self._put_file, os.dup(call.descriptor), counting, abandon_on_cancel=True
        )
        if call.body["channels"] != []:
            await self._sharing.grant(call, [stored.content], channels)
        return _stored(stored)

    def _put_file(self, descriptor: int, counting: Counting) -> Stored:
        try:
            return self._parts.blobs.put_file(descriptor, counting)
        finally:
            os.close(descriptor)

    async def _put(self, call: Call) -> dict[str, Any]:
        assert call.stream is not None
        pieces = pieces_in_thread(call.stream)
        content = ContentHash(call.body["content"])
        return _stored(await trio.to_thread.run_sync(self._parts.blobs.put_stream, pieces, content))


def _claimed_root(claims: list[Claim]) -> Root | None:
    """The root that most of those claim who say that they hashed the bytes themselves."""
    votes = Counter(claim.root for claim in claims if claim.pinned)
    return votes.most_common(1)[0][0] if votes else None


def _seconds(call: Call) -> float:
    """What the client gave the call; without bound if it said nothing."""
    timeout_s = call.body["timeout_s"]
    return float("inf") if timeout_s is None else float(timeout_s)


@contextlib.contextmanager
def _within(call: Call) -> Iterator[None]:
    """LoadTimeoutError when what is done inside takes longer than the client allows."""
    with trio.move_on_after(_seconds(call)) as limit:
        yield
    if limit.cancelled_caught:
        raise LoadTimeoutError(
            f"sha1://{call.body['content']} did not arrive within {round(_seconds(call), 2):g} s",
            hint="what arrived is kept: run it again to resume",
        )


def _stored(stored: Stored) -> dict[str, Any]:
    return {"content": stored.content, "root": stored.root, "size": stored.size}
