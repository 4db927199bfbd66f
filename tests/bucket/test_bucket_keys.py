"""The keys of an owned channel's encrypted bucket: who has them, since when, and from whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from kachery_p2p.bucket.key_objects import KEYS, KeyObject
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.rings import EPOCHS_MAX, Ring, ring_of_keeper
from kachery_p2p.channels.bucket_settings import NOTHING
from kachery_p2p.channels.changes import Member, MemberRemoved, MemberSet
from kachery_p2p.channels.keeper import self_member
from kachery_p2p.channels.permissions import PROVIDE
from kachery_p2p.errors import (
    BucketKeysError,
    SealError,
)
from kachery_p2p.identity.channel_keys import ChannelKey
from kachery_p2p.identity.frames import key_id
from kachery_p2p.identity.keys import EXCHANGE_TAG, NodeKey
from kachery_p2p.limits import MEMBERS_MAX
from tests.bucket.owned_lab import NEW, OLD, READER, Lab, Node, put, reads


@pytest.fixture
def lab(tmp_path: Path, memory_bucket: Objects, monkeypatch: pytest.MonkeyPatch) -> Lab:
    # The keeper's 65,537 steps back take 0.1 s each time.
    monkeypatch.setattr("kachery_p2p.bucket.rings.EPOCHS_MAX", 64)
    return Lab(tmp_path, memory_bucket)


# --- who has them --------------------------------------------------------------------------------


def test_members_read_what_others_put_and_the_keeper_gives_the_keys(lab: Lab) -> None:
    one, two = lab.admit("one"), lab.admit("two")
    with pytest.raises(BucketKeysError) as refused:
        put(one.open(), OLD)
    assert "keeper" in str(refused.value.hint)
    lab.keep()
    put(one.open(), OLD)
    assert reads(two.open(), OLD)
    assert reads(lab.keeper.open(), OLD)
    assert two.open().keys.ring().epoch == 1


def test_the_keepers_own_first_file_makes_the_keys(lab: Lab) -> None:
    put(lab.keeper.open(), OLD)
    assert reads(lab.keeper.open(), OLD)
    assert not lab.admit("one").open().keys.maintain(), "who is not the keeper has nothing to do"
    lab.keep()
    made = lab.plain.head(KEYS)
    lab.keep()
    assert lab.plain.head(KEYS) == made
    elsewhere = Objects(lab.plain.url._replace(place="elsewhere"), lab.plain.credentials)
    reading = Node(Path(lab.keeper.config), elsewhere).open(mirror=NOTHING)
    with pytest.raises(BucketKeysError):
        reading.keys.to_write()
    assert not reading.keys.maintain(), "it was told to put nothing there"
    assert not reads(reading, NEW), "which is no reason not to look"
    assert not list(elsewhere.list())


def test_who_was_put_out_reads_what_was_there_and_nothing_newer(lab: Lab) -> None:
    staying, leaving = lab.admit("staying"), lab.admit("leaving")
    lab.keep()
    put(staying.open(), OLD)
    left = leaving.open()
    assert reads(left, OLD)
    lab.change(MemberRemoved(leaving.key.node_id), tell=(staying,))
    lab.keep()
    writing = staying.open()
    put(writing, NEW)
    assert writing.keys.ring().epoch == 2
    assert reads(staying.open(), OLD) and reads(staying.open(), NEW)
    assert reads(left, OLD), "what it has, nobody can take away"
    with pytest.raises(BucketKeysError):
        reads(left, NEW)
    with pytest.raises(BucketKeysError):
        reads(leaving.open(), NEW)
    old = left.keys.ring()
    assert key_id(writing.keys.ring().content_key) not in {
        key_id(Ring(old.name_key, epoch, old.secret).content_key) for epoch in range(1, 5)
    }


def test_nothing_is_put_with_keys_that_somebody_has_who_was_put_out(lab: Lab) -> None:
    staying, leaving = lab.admit("staying"), lab.admit("leaving")
    lab.keep()
    bucket = staying.open()
    put(bucket, OLD)
    lab.change(MemberRemoved(leaving.key.node_id), tell=(staying,))
    for opened in (bucket, staying.open()):
        with pytest.raises(BucketKeysError, match="before a member was removed"):
            put(opened, NEW)
    assert reads(bucket, OLD)
    lab.keep()
    put(bucket, NEW)
    assert bucket.keys.ring().epoch == 2


@pytest.mark.parametrize("how", ["no role to read", "another key"])
def test_less_than_a_removal_makes_new_keys_too(lab: Lab, how: str) -> None:
    node = lab.admit("one")
    lab.keep()
    first = node.open().keys.to_write().epoch
    member = self_member(node.key, "one", frozenset({PROVIDE}))
    if how == "another key":
        other = NodeKey(node.key.seed, bytes(range(32)))
        member = self_member(other, "one", READER)
    lab.change(MemberSet(member), tell=(node,))
    lab.keep()
    assert lab.keeper.open().keys.to_write().epoch == first + 1
    with pytest.raises(BucketKeysError):
        node.open().keys.ring()


def test_who_is_let_in_later_reads_all_that_is_there(lab: Lab) -> None:
    first, leaving = lab.admit("first"), lab.admit("leaving")
    lab.keep()
    put(first.open(), OLD)
    lab.change(MemberRemoved(leaving.key.node_id), tell=(first,))
    lab.keep()
    put(first.open(), NEW)
    late = lab.admit("late")
    with pytest.raises(BucketKeysError, match="no keys for this node"):
        reads(late.open(), OLD)
    lab.keep()
    assert reads(late.open(), OLD) and reads(late.open(), NEW)
    lab.change(MemberSet(self_member(leaving.key, "leaving", READER)))
    lab.keep()
    assert reads(leaving.open(), NEW), "who is let in again has all of it again"


def test_a_member_notices_new_keys_while_it_runs(lab: Lab) -> None:
    reader, writer = lab.admit("reader"), lab.admit("writer")
    lab.keep()
    running = reader.open()
    assert running.keys.ring().epoch == 1
    lab.change(MemberRemoved(lab.admit("gone").key.node_id), tell=(writer,))
    lab.keep()
    put(writer.open(), NEW)
    assert reads(running, NEW)
    assert running.keys.ring().epoch == 2


def test_a_key_to_which_nothing_can_be_sent_harms_nobody_else(lab: Lab) -> None:
    good, bad = lab.admit("good"), NodeKey.generate(bytes(range(64)))
    nothing = bytes(32)
    member = Member(bad.node_id, READER, nothing, bad.sign(EXCHANGE_TAG, nothing), "bad")
    lab.change(MemberSet(member), tell=(good,))
    lab.keep()
    put(good.open(), OLD)
    made = lab.plain.read_whole(KEYS, 1 << 20)
    lab.keep()
    assert lab.plain.read_whole(KEYS, 1 << 20) == made


# --- the rings -----------------------------------------------------------------------------------


def test_newer_keys_give_older_ones_and_never_the_other_way() -> None:
    key = ChannelKey(bytes(range(32)))
    rings = {epoch: ring_of_keeper(key, epoch) for epoch in (1, 2, 5, EPOCHS_MAX)}
    names = {epoch: key_id(ring.content_key) for epoch, ring in rings.items()}
    for epoch, ring in rings.items():
        for other, name in names.items():
            if epoch == EPOCHS_MAX and other != epoch:
                continue  # seconds of work, and no other answer
            found = ring.key_named(name)
            assert found == (rings[other].content_key if other <= epoch else None)
    assert len({ring.name_key for ring in rings.values()}) == 1
    assert "secret" not in repr(rings[1]) and rings[1].secret.hex() not in repr(rings[1])


def test_the_keys_of_the_largest_channel_fit_their_bound() -> None:
    key = ChannelKey(bytes(range(32)))
    ring = Ring(bytes(32), 1, bytes(32))
    few = KeyObject.signed(ring, {}, key, 1, 1)
    wraps = {number.to_bytes(16, "big"): bytes(112) for number in range(MEMBERS_MAX)}
    full = few._replace(wraps=wraps).encode()
    assert len(full) == 144 + 128 * MEMBERS_MAX
    assert KeyObject.decode(full).wraps == wraps
    with pytest.raises(SealError):
        KeyObject.decode(few._replace(wraps={**wraps, bytes([9]) * 16: bytes(112)}).encode())
    swapped = dict(reversed(wraps.items()))
    assert KeyObject.decode(few._replace(wraps=swapped).encode()).wraps == wraps, "one spelling"
