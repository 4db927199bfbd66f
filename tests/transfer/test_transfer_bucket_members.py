"""Members without a bucket's credentials, and those who use it for them: who may, and how much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.bucket import layout
from kachery_p2p.bucket.credentials import Credentials
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.pushing import push
from kachery_p2p.bucket.queue import DONE, LEFT_OUT, WAITING
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import (
    BucketError,
    BucketProviderError,
    NotFoundError,
    PeerBusyError,
    PeerError,
    PeerRefusedError,
)
from kachery_p2p.node import mirroring
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.transfer.holders import Answers
from kachery_p2p.wire.bucket_messages import LEFT_OUT as TOLD_LEFT_OUT
from kachery_p2p.wire.bucket_messages import QUEUED
from tests.transfer.bucket_nodes import LARGE, SMALL, BucketMember, body, new_url, put_body, to
from tests.transfer.conftest import LAB, Disk, Lab
from tests.transfer.test_transfer_download import Liar


@pytest.fixture
def url() -> str:
    return new_url()


@pytest.fixture
def bucket(url: str) -> Objects:
    """The bucket itself, to look into."""
    return Objects(parse_bucket_url(url), Credentials({}))


@pytest.fixture
def author(new_disk: Callable[..., Disk]) -> Disk:
    return new_disk("author")


@pytest.fixture
async def provider(lab: Lab, url: str) -> BucketMember:
    node = await lab.node("provider", kind=BucketMember)
    assert isinstance(node, BucketMember)
    await node.use(url, mirror="requested")
    return node


@pytest.fixture
async def member(lab: Lab, url: str, provider: BucketMember) -> BucketMember:
    node = await lab.node("member", kind=BucketMember)
    assert isinstance(node, BucketMember)
    await node.use(url, mirror="shared", credentials="members")
    await lab.together(provider, node)
    return node


# --- putting things there ----------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["0", "10k", "3M"])
async def test_what_a_member_without_credentials_shares_is_put_there_by_one_who_has_them(
    provider: BucketMember,
    member: BucketMember,
    bucket: Objects,
    data: bytes,
    virtual_clock: MockClock,
) -> None:
    stored = member.store(data)
    assert (await member.settled(stored.content)).state == DONE
    assert b"".join(bucket.read(stored.content, 0, len(data))) == data
    assert (await provider.settled(stored.content)).state == DONE
    found = bucket.look(stored.content)
    assert found is not None and found.root == stored.root


async def test_what_was_asked_for_has_its_name_and_is_asked_for_once(
    provider: BucketMember, member: BucketMember, bucket: Objects, virtual_clock: MockClock
) -> None:
    await member.use(str(bucket.url), mirror="requested", credentials="members")
    await trio.sleep(1)
    stored = member.store(SMALL)
    member.wish(stored.content)
    assert (await member.settled(stored.content)).state == DONE
    found = bucket.look(stored.content)
    assert found is not None and found.label == "a.bin"
    # Asked again it is there, whoever asks, and nothing is fetched for it.
    provider.disk.blobs.remove(stored.content)
    told = await to(member, provider).request(
        "bucket put", put_body(str(bucket.url), stored.content), 10
    )
    assert told["state"] == 1


async def test_what_is_not_shared_in_the_channel_is_left_out_and_nobody_is_asked(
    provider: BucketMember, member: BucketMember, bucket: Objects, virtual_clock: MockClock
) -> None:
    stored = member.disk.blobs.put_bytes(SMALL)
    await trio.sleep(1)
    member.wish(stored.content)
    row = await member.settled(stored.content)
    assert row.state == LEFT_OUT and "kachery-p2p share" in (row.said or "")
    assert provider.disk.objects() == []


async def test_a_private_file_of_the_provider_is_not_put_there_for_who_knows_its_hash(
    provider: BucketMember, member: BucketMember, bucket: Objects, virtual_clock: MockClock
) -> None:
    await trio.sleep(1)
    private = provider.disk.blobs.put_bytes(SMALL)
    told = await to(member, provider).request(
        "bucket put", put_body(str(bucket.url), private.content), 10
    )
    with trio.fail_after(120):
        while told["state"] == 0:
            told = await to(member, provider).request(
                "bucket put", put_body(str(bucket.url), private.content), 10
            )
    assert told["state"] == TOLD_LEFT_OUT
    assert bucket.look(private.content) is None
    assert not provider.disk.grants.is_granted(private.content, LAB.id)


@pytest.mark.parametrize("delivers", [True, False])
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["10k", "3M"])
async def test_a_private_file_of_the_provider_is_not_put_there_for_who_claims_to_hold_it(
    provider: BucketMember,
    member: BucketMember,
    bucket: Objects,
    data: bytes,
    delivers: bool,
    virtual_clock: MockClock,
) -> None:
    await trio.sleep(1)
    private = provider.disk.blobs.put_bytes(data)
    liar = Liar(member, private.content, data[:-1] + b"!", deliver=delivers)
    liar.manifest = hash_bytes(data)  # all of it is known but the bytes
    session = to(member, provider)
    with trio.fail_after(3_600), pytest.raises(PeerError, match="failed"):
        while True:
            told = await session.request(
                "bucket put", put_body(str(bucket.url), private.content), 10
            )
            assert told["state"] == QUEUED
    assert liar.served or liar.asked_for_root  # it was asked for the bytes
    (line,) = provider.mirroring._lines.values()
    assert provider.mirroring.queue.of(line.uploads.place, private.content) is None
    assert bucket.look(private.content) is None
    assert not provider.disk.grants.is_granted(private.content, LAB.id)


async def test_without_a_provider_it_waits_and_is_put_there_when_one_comes(
    lab: Lab,
    url: str,
    bucket: Objects,
    virtual_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The queue goes by the time of day, which passes slowly here.
    monkeypatch.setattr("kachery_p2p.bucket.queue.UPLOAD_RETRY_S_MIN", 0.0)
    member = await lab.node("member", kind=BucketMember)
    assert isinstance(member, BucketMember)
    await member.use(url, mirror="shared", credentials="members")
    stored = member.store(SMALL)
    with trio.fail_after(60):
        while not (row := await member.settled(stored.content, WAITING)).tries:  # noqa: ASYNC110
            await trio.sleep(0.1)
    assert row.said is not None and row.said.startswith("no member that has the credentials")
    assert "no member that has" in "".join(member.mirroring.problems())
    provider = await lab.node("provider", kind=BucketMember)
    assert isinstance(provider, BucketMember)
    await provider.use(url, mirror="requested")
    assert (await member.settled(stored.content)).state == DONE
    assert bucket.look(stored.content) is not None


async def test_the_size_limits_of_the_provider_hold_for_what_members_want(
    provider: BucketMember, member: BucketMember, bucket: Objects, virtual_clock: MockClock
) -> None:
    await provider.use(str(bucket.url), mirror="requested", size_max=len(SMALL) - 1)
    stored = member.store(SMALL)
    row = await member.settled(stored.content)
    assert row.state == LEFT_OUT and "outside the limits" in (row.said or "")
    assert provider.disk.objects() == []


# --- reading -----------------------------------------------------------------------------------


@pytest.fixture
async def reader(lab: Lab, url: str, provider: BucketMember) -> BucketMember:
    node = await lab.node("reader", kind=BucketMember)
    assert isinstance(node, BucketMember)
    await node.use(url, mirror="none", credentials="members")
    await lab.together(provider, node)
    return node


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["0", "10k", "3M"])
async def test_a_store_that_cannot_sign_is_read_through_the_provider(
    reader: BucketMember, provider: BucketMember, author: Disk, bucket: Objects, data: bytes
) -> None:
    stored = author.blobs.put_bytes(data)
    push(bucket, author.blobs, stored.content)
    assert await reader.load(stored) == data
    assert provider.disk.objects() == [], "nothing lands on the disk of the provider"
    assert reader.disk.grants.is_granted(stored.content, LAB.id)


async def test_an_encrypted_bucket_is_filled_and_read_through_members(
    lab: Lab, provider: BucketMember, url: str, bucket: Objects
) -> None:
    url = f"{url}-encrypted"
    await provider.use(url, mirror="requested", encrypt=True)
    writer = await lab.node("writer", kind=BucketMember)
    reader = await lab.node("reader", kind=BucketMember)
    assert isinstance(writer, BucketMember) and isinstance(reader, BucketMember)
    for node, mirror in ((writer, "shared"), (reader, "none")):
        await node.use(url, mirror=mirror, credentials="members", encrypt=True)
    await lab.together(provider, writer, reader)
    stored = writer.store(LARGE)
    assert (await writer.settled(stored.content)).state == DONE
    lab.world.crash(writer.id)
    provider.disk.blobs.remove(stored.content)
    assert await reader.load(stored) == LARGE
    lies = {one.key for one in Objects(parse_bucket_url(url), Credentials({})).list()}
    assert not any(stored.content in key for key in lies)
    assert all(key == layout.MARKER or key.startswith("e/") for key in lies)


async def test_what_is_nowhere_is_not_found(reader: BucketMember) -> None:
    with pytest.raises(NotFoundError):
        await reader.downloads.load(sha1_of(b"absent"), None, reader.told.append)


# --- limits ------------------------------------------------------------------------------------


async def test_one_member_cannot_have_more_wishes_open_than_it_may(
    provider: BucketMember,
    member: BucketMember,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    virtual_clock: MockClock,
) -> None:
    monkeypatch.setattr("kachery_p2p.node.wishes.BUCKET_WISHES_PER_PEER_MAX", 3)
    await trio.sleep(1)
    blocked = trio.Event()

    async def look(*_: Any) -> Answers:
        await blocked.wait()
        return Answers([], False, (), False)

    monkeypatch.setattr(provider.holders, "look", look)
    contents = [sha1_of(bytes([number])) for number in range(4)]
    session = to(member, provider)
    for content in contents[:3]:
        told = await session.request("bucket put", {**put_body(url, content), "wait_ms": 0}, 10)
        assert told["state"] == 0
    with pytest.raises(PeerBusyError):
        await session.request("bucket put", put_body(url, contents[3]), 10)
    # The same wish is one wish.
    await session.request("bucket put", {**put_body(url, contents[0]), "wait_ms": 0}, 10)
    blocked.set()


async def test_what_one_member_makes_a_provider_fetch_is_bounded(
    provider: BucketMember,
    member: BucketMember,
    bucket: Objects,
    monkeypatch: pytest.MonkeyPatch,
    virtual_clock: MockClock,
) -> None:
    monkeypatch.setattr("kachery_p2p.node.wishes.BUCKET_WISH_BYTES_BURST", len(SMALL))
    first, second = member.store(SMALL), member.store(SMALL[::-1])
    with trio.fail_after(60):
        while not provider.disk.objects():  # noqa: ASYNC110
            await trio.sleep(0.1)
    rows = [await member.settled(one.content, DONE, WAITING) for one in (first, second)]
    with trio.fail_after(60):
        while not any("enough" in (row.said or "") for row in rows):  # noqa: ASYNC110
            await trio.sleep(0.1)
            rows = [await member.settled(one.content, DONE, WAITING) for one in (first, second)]
    assert len(provider.disk.objects()) == 1


async def test_questions_are_rated(
    provider: BucketMember,
    member: BucketMember,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    virtual_clock: MockClock,
) -> None:
    monkeypatch.setattr("kachery_p2p.node.providing.BUCKET_LOOKS_BURST", 3)
    monkeypatch.setattr("kachery_p2p.node.providing.BUCKET_LOOKS_PER_S", 0.1)
    session, key = to(member, provider), layout.key_of(sha1_of(b"absent"))
    for _ in range(3):
        with pytest.raises(PeerRefusedError):
            await session.request("bucket look", body(url, key=key), 10)
    with pytest.raises(PeerBusyError):
        await session.request("bucket look", body(url, key=key), 10)


# --- who may -----------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["not provided", "another bucket", "no credentials", "no bucket"])
async def test_who_does_not_provide_a_bucket_refuses_all_questions_about_it(
    provider: BucketMember,
    member: BucketMember,
    bucket: Objects,
    url: str,
    why: str,
    virtual_clock: MockClock,
) -> None:
    data = member.store(SMALL)
    await member.settled(data.content)
    if why == "not provided":
        await provider.use(url, provide=False)
    elif why == "another bucket":
        url = f"{url}-other"
    elif why == "no credentials":
        await provider.use(url, credentials="members")
    else:
        (provider.config_dir / "channels" / "lab.bucket.toml").unlink(missing_ok=True)
        from kachery_p2p.channels.bucket_settings import remove_bucket

        remove_bucket(str(provider.config_dir), "lab")
        await provider.bucketing.look()
    key = layout.key_of(data.content)
    for op, asked in {
        "bucket": body(url),
        "bucket put": put_body(url, data.content),
        "bucket look": body(url, key=key),
        "bucket read": body(url, key=key, start=0, length=1),
    }.items():
        with pytest.raises(PeerRefusedError):
            await to(member, provider).request(op, asked, 10)


async def test_nobody_to_ask_is_said_with_what_to_do(lab: Lab, url: str) -> None:
    from kachery_p2p.transfer.bucket_members import BucketMembers

    alone = await lab.node("alone", kind=BucketMember)
    members = BucketMembers(alone.sessions, LAB.id, parse_bucket_url(url))
    with pytest.raises(BucketProviderError) as error:
        await members.look("sha1/x")
    assert error.value.hint and "--credentials" in error.value.hint


async def test_a_bucket_that_uploads_could_not_open_is_tried_again(
    lab: Lab, url: str, bucket: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirroring, "BUCKET_OPEN_AGAIN_S", 0.0)
    node = await lab.node("alone", kind=BucketMember)
    assert isinstance(node, BucketMember)
    stored = node.store(SMALL)
    problems: list[list[str]] = []
    really = mirroring.Mirroring._line

    def line(one: mirroring.Mirroring, channel: str, told: object) -> object:
        problems.append(one.problems())
        if len(problems) < 3:
            raise BucketError("its keys are from before a member was removed")
        return really(one, channel, told)  # type: ignore[arg-type]

    monkeypatch.setattr(mirroring.Mirroring, "_line", line)
    await node.use(url, mirror="shared")
    assert (await node.settled(stored.content)).state == DONE
    assert bucket.look(stored.content) is not None
    assert len(problems) == 3
    assert node.mirroring.problems() == []


async def test_one_that_is_not_used_any_more_is_no_problem_after_a_failure_either(
    lab: Lab, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirroring, "BUCKET_OPEN_AGAIN_S", 0.0)
    node = await lab.node("alone", kind=BucketMember)
    assert isinstance(node, BucketMember)

    def line(*args: object) -> object:
        raise BucketError("it cannot be opened")

    monkeypatch.setattr(mirroring.Mirroring, "_line", line)
    await node.use(url, mirror="shared")
    node.mirroring._refresh()
    assert len(node.mirroring.problems()) == 1
    node.mirroring._settings = {}
    node.bucketing.settings = {}
    node.mirroring._refresh()
    assert node.mirroring.problems() == []
