"""Keys of an encrypted bucket that its operator changes, loses, forges, or shows again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kachery_p2p.bucket.key_objects import KEYS, KEYS_TAG, KeyObject
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.rings import Ring, ring_of_keeper
from kachery_p2p.channels.changes import MemberRemoved
from kachery_p2p.channels.owned import (
    load_history,
    save_history,
)
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import (
    BucketAnswerError,
    BucketKeysError,
    BucketUnreachableError,
    SealError,
)
from kachery_p2p.identity.channel_keys import ChannelKey
from kachery_p2p.identity.keys import NodeKey
from tests.bucket.owned_lab import NEW, OLD, Lab, Node, put, reads


@pytest.fixture
def lab(tmp_path: Path, memory_bucket: Objects, monkeypatch: pytest.MonkeyPatch) -> Lab:
    # The keeper's 65,537 steps back take 0.1 s each time.
    monkeypatch.setattr("kachery_p2p.bucket.rings.EPOCHS_MAX", 64)
    return Lab(tmp_path, memory_bucket)


# --- an operator who changes them ---------------------------------------------------------------


def replay(lab: Lab, data: bytes) -> None:
    lab.plain.put(KEYS, data)


def test_old_keys_shown_again_are_not_used_to_put_anything_there(lab: Lab) -> None:
    staying, leaving = lab.admit("staying"), lab.admit("leaving")
    lab.keep()
    old = lab.plain.read_whole(KEYS, 1 << 20)
    lab.change(MemberRemoved(leaving.key.node_id), tell=(staying,))
    lab.keep()
    running = staying.open()
    put(running, NEW)
    replay(lab, old)
    with pytest.raises(BucketKeysError, match="before a member was removed"):
        staying.open().keys.to_write()
    assert running.keys.newer(running.keys.ring()) is None
    assert running.keys.to_write().epoch == 2, "what was seen is not forgotten"
    with pytest.raises(BucketKeysError):
        reads(staying.open(), NEW)
    lab.keep()
    assert reads(staying.open(), NEW), "the keeper has put the right ones there again"


def test_a_keeper_that_came_back_from_a_backup_does_not_take_newer_keys_away(lab: Lab) -> None:
    staying, leaving = lab.admit("staying"), lab.admit("leaving")
    backup = load_history(lab.keeper.config, "lab")
    lab.change(MemberRemoved(leaving.key.node_id), tell=(staying,))
    lab.keep()
    put(staying.open(), NEW)
    made = lab.plain.read_whole(KEYS, 1 << 20)
    save_history(lab.keeper.config, "lab", backup)
    lab.keep()
    assert lab.plain.read_whole(KEYS, 1 << 20) == made
    nobody = KeyObject.decode(made)._replace(wraps={})._statement()
    replay(lab, nobody + lab.channel_key.sign(KEYS_TAG, nobody))
    with pytest.raises(BucketKeysError, match="later history"):
        lab.keeper.open().keys.to_write()


def test_a_bucket_that_fails_is_not_asked_by_each_who_waits(lab: Lab) -> None:
    member, asked = lab.admit("one"), []

    class Failing(Objects):
        def read_whole(self, key: str, bytes_max: int) -> bytes:
            asked.append(key)
            raise BucketUnreachableError("it does not answer")

    member.plain = Failing(lab.plain.url, lab.plain.credentials)
    bucket = member.open()
    for _ in range(10):
        with pytest.raises(BucketUnreachableError):
            bucket.keys.ring()
    assert asked == [KEYS]


def test_keys_that_are_lost_are_made_again_by_the_keeper(lab: Lab) -> None:
    member = lab.admit("one")
    lab.keep()
    put(member.open(), OLD)
    lab.plain.delete(KEYS)
    with pytest.raises(BucketKeysError):
        reads(member.open(), OLD)
    lab.keep()
    assert reads(member.open(), OLD)


Forge = Callable[[Lab, Node, bytes], bytes]


def another_channels(lab: Lab, node: Node, good: bytes) -> bytes:
    key = ChannelKey(bytes(32))
    readers = {node.key.node_id: node.key.exchange_public}
    return KeyObject.signed(ring_of_keeper(key, 9), readers, key, 100, 0).encode()


def signed_by_a_member(lab: Lab, node: Node, good: bytes) -> bytes:
    readers = {node.key.node_id: node.key.exchange_public}
    made = KeyObject.signed(Ring(bytes(32), 9, bytes(32)), readers, node.key, 100, 0)
    return made._replace(channel_id=lab.channel_id).encode()


def epoch_raised(lab: Lab, node: Node, good: bytes) -> bytes:
    return KeyObject.decode(good)._replace(epoch=2).encode()


def a_wrap_left_out(lab: Lab, node: Node, good: bytes) -> bytes:
    known = KeyObject.decode(good)
    return known._replace(wraps=dict(list(known.wraps.items())[1:])).encode()


def flipped(lab: Lab, node: Node, good: bytes) -> bytes:
    return good[:100] + bytes([good[100] ^ 1]) + good[101:]


def cut(lab: Lab, node: Node, good: bytes) -> bytes:
    return good[:-1]


def empty(lab: Lab, node: Node, good: bytes) -> bytes:
    return b""


def a_page(lab: Lab, node: Node, good: bytes) -> bytes:
    return b"<!doctype html>" * 50


def far_too_long(lab: Lab, node: Node, good: bytes) -> bytes:
    return good + bytes(1 << 20)


@pytest.mark.parametrize(
    "forge",
    [
        another_channels,
        signed_by_a_member,
        epoch_raised,
        a_wrap_left_out,
        flipped,
        cut,
        empty,
        a_page,
        far_too_long,
    ],
)
def test_forged_keys_are_refused(lab: Lab, forge: Forge) -> None:
    member = lab.admit("one")
    lab.keep()
    replay(lab, forge(lab, member, lab.plain.read_whole(KEYS, 1 << 20)))
    for use in (lambda: member.open().keys.ring(), lambda: put(member.open(), OLD)):
        with pytest.raises(BucketAnswerError):
            use()


def test_who_has_the_buckets_credentials_alone_learns_nothing_of_the_members(lab: Lab) -> None:
    member = lab.admit("one")
    lab.keep()
    put(member.open(), OLD)
    plain = lab.plain
    seen = b"".join(
        one.key.encode() + b"".join(plain.read_key(one.key, 0, one.size)) for one in plain.list()
    )
    for key in (member.key, lab.keeper.key):
        for public in (key.node_id.raw, key.exchange_public, key.exchange_signature):
            assert public not in seen
            assert public.hex().encode() not in seen
    for word in (b"before", b"sha1", sha1_of(OLD).encode(), sha1_of(OLD).raw):
        assert word not in seen
    outsider = NodeKey.generate(os.urandom(64))
    assert KeyObject.decode(plain.read_whole(KEYS, 1 << 20)).opened(outsider) is None


def test_a_wrap_is_for_one_node_one_epoch_and_one_channel(lab: Lab) -> None:
    node, other = NodeKey.generate(os.urandom(64)), NodeKey.generate(os.urandom(64))
    ring = ring_of_keeper(lab.channel_key, 3)
    readers = {node.node_id: node.exchange_public}
    made = KeyObject.signed(ring, readers, lab.channel_key, 7, 0)
    opened = made.opened(node)
    assert opened is not None
    assert (opened.epoch, opened.secret, opened.name_key) == (3, ring.secret, ring.name_key)
    # With the same X25519 key, under another name.
    thief = NodeKey(other.seed, node.exchange_secret)
    with pytest.raises(SealError):
        made.opened(thief)
    (wrapped,) = made.wraps.values()
    later = KeyObject.signed(ring_of_keeper(lab.channel_key, 4), readers, lab.channel_key, 7, 0)
    moved = later._replace(wraps=dict.fromkeys(later.wraps, wrapped))
    with pytest.raises(SealError):
        moved.opened(node)
