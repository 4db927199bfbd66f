"""Wishes for a bucket while connections, buckets and roles change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.bucket import layout
from kachery_p2p.bucket.credentials import Credentials
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.queue import DONE
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.channels.permissions import PROVIDE
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import PeerBusyError, PeerRefusedError
from kachery_p2p.limits import HAVE_S_MAX
from kachery_p2p.network.session import Session
from kachery_p2p.wire.bucket_messages import LEFT_OUT
from tests.transfer.bucket_nodes import SMALL, BucketMember, body, new_url, put_body, to
from tests.transfer.conftest import LAB, Lab
from tests.transfer.test_transfer_bucket_wishes import member, provider, tried


@pytest.fixture
def url() -> str:
    return new_url()


@pytest.fixture
def bucket(url: str) -> Objects:
    """The bucket itself, to look into."""
    return in_it(url)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    # The queue goes by the time of day, which passes slowly here.
    monkeypatch.setattr("kachery_p2p.bucket.queue.UPLOAD_RETRY_S_MIN", 0.0)


def in_it(url: str) -> Objects:
    return Objects(parse_bucket_url(url), Credentials({}))


def at_first(node: BucketMember, change: Callable[[], object]) -> None:
    """Let this happen in the middle of the first look of `node` into its bucket."""
    uploads = node.mirroring.own_uploads(LAB.id)
    assert uploads is not None
    found, looks = uploads.bucket, []
    look = found.look

    def changing(content: ContentHash) -> Any:
        looks.append(content)
        if len(looks) == 1:
            trio.from_thread.run_sync(change)
        return look(content)

    found.look = changing  # type: ignore[method-assign]


# --- connections that are lost -------------------------------------------------------------------


def gone(honest: BucketMember) -> None:
    for session in honest.sessions.all():
        session.end()


async def test_a_wish_whose_member_was_away_for_a_moment_is_not_left_out(
    lab: Lab, url: str, bucket: Objects, virtual_clock: MockClock
) -> None:
    honest, node = await provider(lab, url), await member(lab, url)
    await lab.together(honest, node)
    at_first(honest, lambda: gone(honest))
    stored = node.store(SMALL)
    row = await node.settled(stored.content)
    assert (row.state, row.said) == (DONE, None)
    assert bucket.look(stored.content) is not None


@pytest.mark.parametrize("how", ["lost", "late", "busy"])
async def test_a_wish_whose_member_did_not_answer_once_is_not_left_out(
    lab: Lab,
    url: str,
    bucket: Objects,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    virtual_clock: MockClock,
) -> None:
    monkeypatch.setattr("kachery_p2p.node.wishes.BUCKET_WISH_S_MIN", 1.0)
    honest, node = await provider(lab, url), await member(lab, url)
    await lab.together(honest, node)
    have, asked = node.sessions._handlers["have"], []

    async def once_silent(session: Session, question: dict[str, Any]) -> dict[str, Any]:
        asked.append(trio.current_time())
        past_s = asked[-1] - asked[0]
        if how == "busy" and past_s < 2:
            raise PeerBusyError("is hashing it for the first time")
        if how == "late" and past_s < 2 * HAVE_S_MAX:
            await trio.sleep(100)
        if how == "lost" and len(asked) == 1:
            session.end()
            await trio.sleep(100)
        return await have(session, question)

    node.sessions.handle("have", once_silent)
    stored = node.store(SMALL)
    row = await node.settled(stored.content)
    assert (row.state, row.said) == (DONE, None) and len(asked) > 1
    assert bucket.look(stored.content) is not None


# --- another bucket ------------------------------------------------------------------------------


async def both_use(honest: BucketMember, node: BucketMember, url: str) -> None:
    """Both go over to another bucket."""
    await honest.use(url, mirror="requested")
    await trio.sleep(2)
    await node.use(url, mirror="shared", credentials="members")
    await trio.sleep(2)


async def test_what_was_put_into_one_bucket_is_not_told_to_be_in_the_next(
    lab: Lab, url: str, virtual_clock: MockClock
) -> None:
    honest, node = await provider(lab, url), await member(lab, url)
    await lab.together(honest, node)
    stored = node.store(SMALL)
    assert (await node.settled(stored.content)).state == DONE
    # Who may only put things there sees nothing of the bucket, and believes what it is told.
    node.sessions.may = lambda channel, action: action == PROVIDE  # type: ignore[method-assign]
    other = new_url()
    await both_use(honest, node, other)
    assert (await node.settled(stored.content)).state == DONE
    assert in_it(other).look(stored.content) is not None


async def test_a_wish_that_waits_for_one_bucket_ends_with_it(
    lab: Lab, url: str, bucket: Objects, virtual_clock: MockClock
) -> None:
    honest, node = await provider(lab, url), await member(lab, url)
    await lab.together(honest, node)
    stored = node.store(SMALL)
    # Something else has that name, so it never gets there.
    bucket.put_new(layout.key_of(stored.content), b"junk", {})
    await tried(node, stored.content)
    assert honest.wishes._counts.total() == 1
    other = new_url()
    await both_use(honest, node, other)
    assert (await node.settled(stored.content)).state == DONE
    assert in_it(other).look(stored.content) is not None
    assert not honest.wishes._counts, "it would hold a place for ever"


async def test_a_wish_that_waits_ends_when_nothing_is_put_there_any_more(
    lab: Lab, url: str, bucket: Objects, virtual_clock: MockClock
) -> None:
    honest, node = await provider(lab, url), await member(lab, url)
    await lab.together(honest, node)
    stored = node.store(SMALL)
    bucket.put_new(layout.key_of(stored.content), b"junk", {})
    await tried(node, stored.content)
    await honest.use(url, mirror="none")
    with trio.fail_after(60):
        while honest.wishes._counts:  # noqa: ASYNC110
            await trio.sleep(1)


async def test_nothing_is_put_into_the_bucket_of_older_settings(
    lab: Lab, url: str, bucket: Objects, virtual_clock: MockClock
) -> None:
    honest, node = await provider(lab, url), await member(lab, url)
    await lab.together(honest, node)
    await node.use(url, mirror="requested", credentials="members")
    await trio.sleep(2)
    stored, other = node.store(SMALL), new_url()
    await honest.use(other, mirror="requested")
    # What puts things there has not looked at the settings since.
    uploads = honest.mirroring.own_uploads(LAB.id)
    assert uploads is not None and uploads.bucket.node == bucket.node
    with pytest.raises(PeerRefusedError):
        await to(node, honest).request("bucket put", put_body(other, stored.content), 10)
    assert not (await to(node, honest).request("bucket", body(other), 10))["puts"]
    assert bucket.look(stored.content) is None


async def test_a_bucket_whose_settings_change_is_never_without_a_way_into_it(
    lab: Lab, url: str, monkeypatch: pytest.MonkeyPatch, virtual_clock: MockClock
) -> None:
    honest = await provider(lab, url)
    make, ways = honest.mirroring._line, []

    def line(channel: str, told: Any) -> Any:
        ways.append(honest.mirroring.own_uploads(channel))
        return make(channel, told)

    monkeypatch.setattr(honest.mirroring, "_line", line)
    await honest.use(url, mirror="requested", size_max=10)
    await trio.sleep(2)
    assert ways and None not in ways


# --- limits and roles ----------------------------------------------------------------------------


async def test_the_size_limits_hold_for_what_the_provider_shares_itself(
    lab: Lab, url: str, bucket: Objects, virtual_clock: MockClock
) -> None:
    honest, node = await provider(lab, url), await member(lab, url)
    await lab.together(honest, node)
    await honest.use(url, mirror="shared", size_max=len(SMALL) - 1)
    await trio.sleep(2)
    stored = honest.store(SMALL)
    told = await to(node, honest).request("bucket put", put_body(url, stored.content), 10)
    assert told["state"] == LEFT_OUT and "outside the limits" in told["said"]
    assert bucket.look(stored.content) is None


async def test_who_loses_the_role_during_a_look_has_nothing_put_there(
    lab: Lab, url: str, bucket: Objects, virtual_clock: MockClock
) -> None:
    honest, node = await provider(lab, url), await member(lab, url)
    await lab.together(honest, node)
    await node.use(url, mirror="requested", credentials="members")
    await trio.sleep(2)
    stored, session = node.store(SMALL), to(honest, node)

    def demote() -> None:
        session.may = lambda channel_id, action: action != PROVIDE  # type: ignore[method-assign]

    at_first(honest, demote)
    with pytest.raises(PeerRefusedError):
        await to(node, honest).request("bucket put", put_body(url, stored.content), 10)
    await trio.sleep(2)
    uploads = honest.mirroring.own_uploads(LAB.id)
    assert uploads is not None
    assert honest.mirroring.queue.of(uploads.place, stored.content) is None
    assert bucket.look(stored.content) is None
