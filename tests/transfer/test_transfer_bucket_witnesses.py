"""What members say of a bucket while some of them lie, deny, or are away for a moment."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.bucket import layout
from kachery_p2p.bucket.credentials import Credentials
from kachery_p2p.bucket.faults import AbsentError
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.pushing import push
from kachery_p2p.bucket.queue import DONE
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import (
    AllProvidersFailedError,
    BucketBusyError,
    NotFoundError,
    PeerBusyError,
    PeerRefusedError,
)
from kachery_p2p.network.session import Session
from kachery_p2p.wire.bucket_messages import QUEUED, THERE
from tests.transfer.bucket_nodes import LARGE, SMALL, BucketMember, body, new_url, to
from tests.transfer.conftest import LAB, Disk, Lab
from tests.transfer.test_transfer_bucket_relays import member

Answer = dict[str, Any]
Handle = Callable[[Session, Answer], Any]


@pytest.fixture
def url() -> str:
    return new_url()


@pytest.fixture
def bucket(url: str) -> Objects:
    """The bucket itself."""
    return Objects(parse_bucket_url(url), Credentials({}))


@pytest.fixture
def author(new_disk: Callable[..., Disk]) -> Disk:
    return new_disk("author")


async def says(lab: Lab, name: str, *, puts: bool = False, **handlers: Handle) -> Any:
    """A member that answers so about the bucket."""
    node = await lab.node(name)

    async def what(session: Session, body: Answer) -> Answer:
        return {"puts": puts, "reads": True}

    node.sessions.handle("bucket", what)
    for op, handler in handlers.items():
        node.sessions.handle(f"bucket {op}", handler)
    return node


def looked(size: int, root: str | None = None) -> Answer:
    attributes = [] if root is None else [{"name": "root", "value": root}]
    return {"size": size, "attributes": attributes, "query": "", "valid_s": 300}


async def zeros(session: Session, body: Answer) -> Answer:
    return {"data": bytes(body["length"])}


def putting(state: int) -> Handle:
    async def put(session: Session, body: Answer) -> Answer:
        return {"state": state, "said": ""}

    return put


# --- lies that do not end --------------------------------------------------------------------


@pytest.mark.parametrize("size", [10_000, len(LARGE)])
async def test_a_member_that_names_ever_new_roots_is_given_up(
    lab: Lab, url: str, size: int, virtual_clock: MockClock
) -> None:
    looks = 0

    async def look(session: Session, body: Answer) -> Answer:
        nonlocal looks
        if not body["key"].startswith("sha1/"):
            return looked(1 << 20)
        looks += 1
        if looks > 60:  # it would go on for ever
            raise PeerRefusedError("absent, or not allowed")
        return looked(size, os.urandom(32).hex())

    mallory = await says(lab, "mallory", look=look, read=zeros)
    honest = await member(lab, url, "honest")
    reader = await member(lab, url, "reader", credentials="members")
    await lab.together(mallory, honest, reader)
    content = sha1_of(hashlib.shake_128(b"nowhere").digest(size))
    with pytest.raises((AllProvidersFailedError, NotFoundError)):
        await reader.downloads.load(content, None, reader.told.append)
    assert 1 < looks < 40


async def test_one_who_denies_does_not_outweigh_those_who_show_it(
    lab: Lab, url: str, virtual_clock: MockClock
) -> None:
    async def deny(session: Session, body: Answer) -> Answer:
        raise PeerRefusedError("absent, or not allowed")

    denier = await says(lab, "denier", look=deny)
    provider = await lab.node("provider", kind=BucketMember)
    assert isinstance(provider, BucketMember)
    await provider.use(url, mirror="requested")
    node = await lab.node("member", kind=BucketMember)
    assert isinstance(node, BucketMember)
    await node.use(url, mirror="shared", credentials="members")
    witnesses = [await member(lab, url, name) for name in ("one", "two")]
    await lab.together(denier, provider, node, *witnesses)
    await trio.sleep(1)
    assert (await node.settled(node.store(SMALL).content)).state == DONE


async def test_whoever_was_disbelieved_is_not_asked_before_others_in_any_turn(
    lab: Lab, url: str, virtual_clock: MockClock
) -> None:
    liar = await says(lab, "liar", puts=True, put=putting(THERE))
    other = await says(lab, "other", puts=True, put=putting(QUEUED))
    node = await member(lab, url, "member", credentials="members")
    await lab.together(liar, other, node)
    await trio.sleep(1)
    members = node.bucketing.members[LAB.id]
    for turn in range(4):
        content = sha1_of(b"%d" % turn)
        assert members.disbelieve(content, liar.id)
        assert (await members.put(content, None, 0, turn))[1] == other.id


async def test_the_beginning_of_an_encrypted_object_is_asked_of_another_too(
    lab: Lab, url: str, bucket: Objects, virtual_clock: MockClock
) -> None:
    honest = await lab.node("honest", kind=BucketMember)
    assert isinstance(honest, BucketMember)
    await honest.use(url, mirror="requested", encrypt=True)
    await trio.sleep(1)
    stored = honest.store(SMALL)
    honest.wish(stored.content)
    await honest.settled(stored.content)
    asked = 0

    async def look(session: Session, body: Answer) -> Answer:
        try:
            return looked(bucket.head(body["key"])[0])
        except AbsentError:
            raise PeerRefusedError("absent, or not allowed") from None

    async def read(session: Session, body: Answer) -> Answer:
        nonlocal asked
        asked += 1
        return {"data": bytes(body["length"])}

    mallory = await says(lab, "mallory", look=look, read=read)
    reader = await member(lab, url, "reader", credentials="members", encrypt=True)
    await lab.together(mallory, honest, reader)
    await trio.sleep(1)
    honest.disk.blobs.remove(stored.content)
    members = reader.bucketing.members[LAB.id]
    members._failed[honest.id] = 0.0  # of equals the other is asked first
    assert await reader.load(stored) == SMALL
    assert asked == 1


# --- away for a moment -----------------------------------------------------------------------


async def test_the_only_provider_that_is_away_for_a_moment_is_waited_for(
    lab: Lab, url: str, bucket: Objects, author: Disk, virtual_clock: MockClock
) -> None:
    stored = author.blobs.put_bytes(LARGE)
    push(bucket, author.blobs, stored.content)
    provider = await member(lab, url, "provider")
    reader = await member(lab, url, "reader", credentials="members")
    await lab.together(provider, reader)
    reads = 0

    async def read(session: Session, body: Answer) -> Answer:
        nonlocal reads
        reads += 1
        if reads == 3:
            session.end()
        return await provider.providing._read(session, body)

    provider.sessions.handle("bucket read", read)
    assert await reader.load(stored) == LARGE
    assert reads > 3


async def test_the_only_provider_may_take_its_time(
    lab: Lab, url: str, bucket: Objects, author: Disk, virtual_clock: MockClock
) -> None:
    stored = author.blobs.put_bytes(SMALL)
    push(bucket, author.blobs, stored.content)
    provider = await member(lab, url, "provider")
    reader = await member(lab, url, "reader", credentials="members")
    await lab.together(provider, reader)

    async def look(session: Session, body: Answer) -> Answer:
        await trio.sleep(3)
        return await provider.providing._look(session, body)

    provider.sessions.handle("bucket look", look)
    assert await reader.load(stored) == SMALL


async def test_a_bucket_that_was_busy_once_is_read_for_others_a_second_later(
    lab: Lab, url: str, bucket: Objects, author: Disk, virtual_clock: MockClock
) -> None:
    stored = author.blobs.put_bytes(SMALL)
    push(bucket, author.blobs, stored.content)
    provider = await member(lab, url, "provider")
    node = await lab.node("member")
    await lab.together(provider, node)
    own: Any = provider.bucketing.own[LAB.id]
    real = own.read_whole

    def busy(key: str, bytes_max: int) -> bytes:
        assert key == layout.MARKER
        own.read_whole = real
        raise BucketBusyError("slow down", hint="wait")

    own.read_whole = busy
    asked = body(url, key=layout.key_of(stored.content), start=0, length=5)
    with pytest.raises(PeerBusyError):
        await to(node, provider).request("bucket read", asked, 10)
    await trio.sleep(1.5)
    told = await to(node, provider).request("bucket read", asked, 10)
    assert told["data"] == SMALL[:5]


async def test_a_member_that_is_always_busy_does_not_hide_what_is_there(
    lab: Lab, url: str, bucket: Objects, author: Disk, virtual_clock: MockClock
) -> None:
    stored = author.blobs.put_bytes(SMALL)
    push(bucket, author.blobs, stored.content)

    async def look(session: Session, body: Answer) -> Answer:
        raise PeerBusyError("was asked enough for now")

    mallory = await says(lab, "mallory", look=look)
    honest = await member(lab, url, "honest")
    reader = await member(lab, url, "reader", credentials="members")
    await lab.together(mallory, honest, reader)
    await trio.sleep(1)
    for number in range(6):
        with pytest.raises(NotFoundError):
            await reader.downloads.load(sha1_of(b"no %d" % number), None, reader.told.append)
    assert reader.bucketing.buckets.problems() == {}
    assert await reader.load(stored) == SMALL
