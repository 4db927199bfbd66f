"""For the tests of encrypted buckets: an owned channel on the disk, its members and its bucket."""

from __future__ import annotations

import os
import time
from pathlib import Path

from kachery_p2p.bucket import layout
from kachery_p2p.bucket.home import Home
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.sealed_objects import SealedObjects
from kachery_p2p.bucket.sealed_opening import sealed
from kachery_p2p.channels.bucket_settings import SHARED, BucketSettings
from kachery_p2p.channels.changes import Change, MemberSet
from kachery_p2p.channels.keeper import Keeper, self_member
from kachery_p2p.channels.owned import (
    create_owned,
    join_owned,
    load_channel_key,
    load_entry_secret,
    load_history,
    save_history,
)
from kachery_p2p.channels.permissions import READ
from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.identity.channel_keys import ChannelKey
from kachery_p2p.identity.keyring import load_or_create

READER = frozenset({READ})
OLD, NEW = b"what was there before " * 5_000, b"what came afterwards " * 5_000


class Node:
    """One member's computer, with the channel `lab` and its bucket."""

    def __init__(self, directory: Path, bucket: Objects) -> None:
        self.config = str(directory)
        self.key = load_or_create(self.config)
        self.plain = bucket

    def open(self, mirror: str = SHARED) -> SealedObjects:
        """The bucket as this node sees it after a start."""
        settings = BucketSettings((str(self.plain.url),), mirror, encrypt=True)
        return sealed(self.plain, settings, Home(self.config, "lab"))


class Lab:
    """A channel, its keeper, and its bucket."""

    def __init__(self, directory: Path, bucket: Objects) -> None:
        self._directory = directory
        self.plain = bucket
        self.keeper = self._node("keeper")
        known = create_owned(self.keeper.config, "lab", self.keeper.key, "keeper", time.time())
        self.channel_id = known.id

    def _node(self, name: str) -> Node:
        return Node(self._directory / name, self.plain)

    @property
    def channel_key(self) -> ChannelKey:
        key = load_channel_key(self.keeper.config, self.channel_id)
        assert key is not None
        return key

    def change(self, *changes: Change, tell: tuple[Node, ...] = ()) -> None:
        """The keeper signs this, and these members hear of it."""
        keeper = Keeper(load_history(self.keeper.config, "lab"), self.channel_key)
        asked = [(change, self.keeper.key.node_id, os.urandom(16)) for change in changes]
        save_history(self.keeper.config, "lab", keeper.recorded(asked, time.time_ns() // 10**6))
        for node in tell:
            save_history(node.config, "lab", keeper.history)

    def admit(self, name: str, roles: frozenset[str] = READER) -> Node:
        node = self._node(name)
        self.change(MemberSet(self_member(node.key, name, roles)))
        secret = load_entry_secret(self.keeper.config, "lab")
        history = load_history(self.keeper.config, "lab")
        join_owned(node.config, self.channel_id, secret, "lab", history, now=time.time())
        return node

    def keep(self) -> None:
        """What the keeper's node does all the time."""
        assert self.keeper.open().keys.maintain()


def put(bucket: SealedObjects, data: bytes) -> ContentHash:
    content = sha1_of(data)
    assert bucket.put_new(layout.key_of(content), data, {})
    return content


def reads(bucket: SealedObjects, data: bytes) -> bool:
    content = sha1_of(data)
    found = bucket.look(content)
    if found is None:
        return False
    return b"".join(bucket.read(content, 0, found.size)) == data
