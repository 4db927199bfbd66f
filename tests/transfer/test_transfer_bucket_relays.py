"""Members that hand on what is not in the bucket: others are asked, and none blames the bucket."""

from __future__ import annotations

import math
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
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.content.manifests import HASH_BYTES
from kachery_p2p.errors import AllProvidersFailedError, NotFoundError, PeerRefusedError
from kachery_p2p.network.session import Session
from kachery_p2p.store.blobs import Stored
from tests.transfer.bucket_nodes import LARGE, SMALL, BucketMember, new_url
from tests.transfer.conftest import LAB, Disk, Lab

Answer = dict[str, Any]


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


async def member(lab: Lab, url: str, name: str, **told: Any) -> BucketMember:
    node = await lab.node(name, kind=BucketMember)
    assert isinstance(node, BucketMember)
    await node.use(url, mirror="none", **told)
    return node


class Mallory:
    """What a member says that has the credentials of a bucket, and lies about a part of it."""

    def __init__(self, bucket: Objects, lie: str) -> None:
        self._bucket = bucket
        self._lie = lie
        self.asked: list[str] = []

    async def told(self, session: Session, body: Answer) -> Answer:
        return {"puts": False, "reads": True}

    async def look(self, session: Session, body: Answer) -> Answer:
        try:
            size, noted = self._bucket.head(body["key"])
        except AbsentError:
            raise PeerRefusedError("absent, or not allowed") from None
        attributes = {"root": noted["root"]} if "root" in noted else {}
        if body["key"].startswith("sha1/"):
            self.asked.append("look")
            size += self._lie == "size"
            if self._lie == "huge":
                size = 1 << 45
            if self._lie == "root":
                attributes = {"root": "ab" * HASH_BYTES}
        told = [{"name": name, "value": value} for name, value in attributes.items()]
        return {"size": size, "attributes": told, "query": "", "valid_s": 300}

    async def read(self, session: Session, body: Answer) -> Answer:
        key, start, length = body["key"], body["start"], body["length"]
        self.asked.append("read")
        try:
            data = self._bucket.read_whole(key, 1 << 30)[start:][:length]
        except AbsentError:
            data = b""
        lies = key.startswith({"bytes": "sha1/", "tables": "root/"}.get(self._lie, "nothing"))
        return {"data": bytes(length) if lies else data.ljust(length, b"?")}


async def mallory(lab: Lab, bucket: Objects, lie: str) -> tuple[Any, Mallory]:
    node, liar = await lab.node("mallory"), Mallory(bucket, lie)
    node.sessions.handle("bucket", liar.told)
    node.sessions.handle("bucket look", liar.look)
    node.sessions.handle("bucket read", liar.read)
    return node, liar


def put(bucket: Objects, author: Disk, data: bytes, *, rooted: bool) -> Stored:
    stored = author.blobs.put_bytes(data)
    if rooted:
        push(bucket, author.blobs, stored.content)
    else:
        bucket.put_new(layout.key_of(stored.content), data, {})
    return stored


CASES = [
    *((LARGE, True, lie) for lie in ("bytes", "tables", "size", "root", "huge")),
    *((SMALL, True, lie) for lie in ("bytes", "size", "root")),
    *((SMALL, False, lie) for lie in ("bytes", "size", "huge")),
]


@pytest.mark.parametrize(("data", "rooted", "lie"), CASES)
async def test_what_one_member_hands_on_wrong_is_read_through_another(
    lab: Lab, url: str, bucket: Objects, author: Disk, data: bytes, rooted: bool, lie: str
) -> None:
    stored = put(bucket, author, data, rooted=rooted)
    liar, said = await mallory(lab, bucket, lie)
    reader = await member(lab, url, "reader", credentials="members")
    honest = await member(lab, url, "honest")
    await lab.together(liar, reader, honest)
    assert await reader.load(stored) == data
    assert said.asked, "it was asked first"
    assert reader.downloads.dropped() == []


@pytest.mark.parametrize(("data", "rooted"), [(LARGE, True), (SMALL, False)])
async def test_what_nobody_hands_on_right_is_an_error_until_somebody_does(
    lab: Lab,
    url: str,
    bucket: Objects,
    author: Disk,
    data: bytes,
    rooted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # How long a source that went away is waited for.
    monkeypatch.setattr("kachery_p2p.transfer.suppliers.SOURCE_RETURN_S_MAX", 0.2)
    stored = put(bucket, author, data, rooted=rooted)
    liar, said = await mallory(lab, bucket, "bytes")
    reader = await member(lab, url, "reader", credentials="members")
    await lab.together(liar, reader)
    with pytest.raises((NotFoundError, AllProvidersFailedError)) as failed:
        await reader.load(stored)
    assert failed.value.hint
    assert reader.downloads.dropped() == [] and reader.disk.objects() == []
    honest = await member(lab, url, "honest")
    await lab.together(liar, reader, honest)
    assert await reader.load(stored) == data


async def test_a_provider_that_does_not_answer_does_not_hide_the_bucket(
    lab: Lab, url: str, bucket: Objects, author: Disk, virtual_clock: MockClock
) -> None:
    stored = put(bucket, author, SMALL, rooted=True)
    liar, said = await mallory(lab, bucket, "nothing")

    async def hang(session: Session, body: Answer) -> Answer:
        said.asked.append("look")
        await trio.sleep(math.inf)
        return {}

    liar.sessions.handle("bucket look", hang)
    reader = await member(lab, url, "reader", credentials="members")
    honest = await member(lab, url, "honest")
    await lab.together(liar, reader, honest)
    await trio.sleep(1)  # of two connections at once one is left
    assert await reader.load(stored) == SMALL
    assert said.asked


async def test_a_provider_reads_nothing_for_others_of_what_another_channel_keeps(
    lab: Lab, url: str, bucket: Objects, author: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.node.providing.BUCKET_PROVIDER_S", 0.0)
    monkeypatch.setattr("kachery_p2p.transfer.bucket_members.BUCKET_PROVIDER_S", 0.0)
    monkeypatch.setattr("kachery_p2p.transfer.buckets.BUCKET_REST_S_MIN", 0.0)
    monkeypatch.setattr("kachery_p2p.transfer.buckets.BUCKET_NOT_FOUND_S", 0.0)
    stored = put(bucket, author, SMALL, rooted=True)
    bucket.put_new(layout.MARKER, b"%s\n" % (b"cd" * HASH_BYTES), {})
    provider = await member(lab, url, "provider")
    reader = await member(lab, url, "reader", credentials="members")
    await lab.together(provider, reader)
    with pytest.raises(NotFoundError):
        await reader.load(stored)
    for op, body in (("look", {}), ("read", {"start": 0, "length": 5})):
        asked = {"channel": LAB.id, "bucket": bytes.fromhex(bucket.node), **body}
        session = reader.sessions.get(provider.id)
        assert session is not None
        with pytest.raises(PeerRefusedError):
            await session.request(f"bucket {op}", {**asked, "key": layout.MARKER}, 10)
    bucket.put(layout.MARKER, f"{LAB.id}\n".encode())
    assert await reader.load(stored) == SMALL
