"""Every message between nodes, from everyone who may send one: exactly what PROTOCOL.md says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.channels.changes import Change, Created, MemberRemoved, MemberSet, SignedRequest
from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.history import History
from kachery_p2p.channels.keeper import Keeper, self_member
from kachery_p2p.channels.permissions import ACTIONS, ADMIN, PROVIDE, READ
from kachery_p2p.errors import NotAMemberError, PeerError, PeerGoneError, PeerRefusedError
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeId, NodeKey
from kachery_p2p.network.link import CONTROL, DATA
from kachery_p2p.network.meeting import Me, meet
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.network.session import Session
from kachery_p2p.wire.batches import BYTES, REFUSED, BatchRequest, BulkBatch, read_pieces
from kachery_p2p.wire.bucket_messages import BUCKET_OPERATIONS
from kachery_p2p.wire.codec import FrameDecoder
from kachery_p2p.wire.feed_messages import FEED_OPERATIONS
from kachery_p2p.wire.messages import OPERATIONS
from kachery_p2p.wire.ranges import RangeRequest

CHANNEL_KEY = NodeKey.generate(bytes([99]) * NODE_KEY_BYTES)
OTHER_KEY = NodeKey.generate(bytes([98]) * NODE_KEY_BYTES)
LAB = Channel.owned(CHANNEL_KEY.node_id, b"E" * 20, "lab")
# The same nodes are all in this one too: what is granted in `lab` must not be had through it.
FIELD = Channel.shared(b"F" * 20, "field")
CONTENT_BYTES = bytes(range(256)) * 9_000

# Who asks, with the roles that the channel's history gives it; None: it is not in it.
WHO: dict[str, frozenset[str] | None] = {
    "outsider": None,
    "removed": None,
    "reader": frozenset({READ}),
    "provider": frozenset({PROVIDE}),
    "admin": ACTIONS,
}
KEYS = {
    who: NodeKey.generate(bytes([number]) * NODE_KEY_BYTES) for number, who in enumerate(WHO, 10)
}
_random = Random(3)


def asked(change: Change, by: NodeKey) -> tuple[Change, NodeId, bytes]:
    return change, by.node_id, _random.randbytes(16)


def founded(keeper: NodeKey) -> History:
    changes: list[Change] = [Created("lab", bytes(32), 32_503_680_000)]
    changes.append(MemberSet(self_member(keeper, "keeper")))
    for who, roles in WHO.items():
        if who != "outsider":
            changes.append(MemberSet(self_member(KEYS[who], who, roles or ACTIONS)))
    changes.append(MemberRemoved(KEYS["removed"].node_id))
    signer = Keeper(History.empty(LAB.id), CHANNEL_KEY)
    return signer.founded([asked(change, keeper) for change in changes], 1_000_000)


def owned_node(base: type[Any]) -> type[Any]:
    """A node of the transfer tests that keeps the channel `lab`, and is in `field`."""

    class Owned(base):  # type: ignore[misc]
        def made_memberships(self, channels: list[Channel]) -> Memberships:
            return Memberships(channels, [founded(self.key)])

    return Owned


async def no_news(session: Session, body: dict[str, Any]) -> dict[str, Any]:
    return {"head": b"", "fork": b"", "notice": b""}


@asynccontextmanager
async def session_of(who: str, keeper: Any, lab: Any) -> AsyncIterator[Session]:
    """A control stream of that node to the keeper, with nothing of ours in between."""
    key = KEYS[who]
    # All know the secret, but for the outsider, who made one up.
    mine = Channel.owned(LAB.id, b"X" * 20, "lab") if who == "outsider" else LAB
    histories = [keeper.memberships.history(LAB.id)]
    memberships = Memberships([mine, FIELD] if who != "outsider" else [mine], histories)
    me = Me(key, memberships, Random(who).randbytes)
    link = lab.world.link(key.node_id)
    await link.connect(keeper.link.addresses[0])
    stream = await link.open_stream(keeper.id, CONTROL)
    link.admit(keeper.id)
    session = Session(stream, await meet(stream, me), memberships)
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            try:
                await session.run({"history": no_news})
            except PeerError:
                session.end()

        nursery.start_soon(run)
        yield session
        nursery.cancel_scope.cancel()


@pytest.fixture
async def keeper(virtual_clock: MockClock, lab: Any) -> Any:
    from tests.transfer.conftest import Node

    return await lab.node("keeper", LAB, FIELD, kind=owned_node(Node))


def bodies(keeper: Any) -> dict[str, dict[str, Any]]:
    """A good request for each operation on the control stream, about the channel `lab`."""
    stored = keeper.store(CONTENT_BYTES, LAB)
    where = {"channel": LAB.id, "content": stored.content.raw}
    what = {**where, "root": stored.root.raw}
    known = keeper.memberships.history(LAB.id)
    return {
        "introduce": {"label": "x", "addresses": [], "agent": "x"},
        "members": {"channel": LAB.id},
        "have": where,
        "root": what,
        "page": {**what, "number": 0},
        "chunks": {**what, "number": 0},
        "ping": {},
        "history": {"channel": LAB.id, "head": known.head.encode(), "fork": b"", "notice": b""},
        "entries": {"channel": LAB.id, "first": 0},
    }


# What everyone gets: "yes" an answer, "no" the one refusal that absent content gets too.
ALL = ("outsider", "removed", "reader", "provider", "admin")
READERS = {
    "outsider": "gone",
    "removed": "no",
    "reader": "yes",
    "provider": "no",
    "admin": "yes",
}
EXPECTED: dict[str, dict[str, str]] = {
    # Whoever is in `field` may say who it is, as anywhere.
    "introduce": {"outsider": "gone", **dict.fromkeys(ALL[1:], "yes")},
    "ping": {"outsider": "gone", **dict.fromkeys(ALL[1:], "yes")},
    "members": {"outsider": "gone", "removed": "no", **dict.fromkeys(ALL[2:], "yes")},
    "have": {
        "outsider": "gone",
        "removed": "no",
        "reader": "yes",
        "provider": "no",
        "admin": "yes",
    },
    "root": {
        "outsider": "gone",
        "removed": "no",
        "reader": "yes",
        "provider": "no",
        "admin": "yes",
    },
    "page": {
        "outsider": "gone",
        "removed": "no",
        "reader": "yes",
        "provider": "no",
        "admin": "yes",
    },
    "chunks": READERS,
    # The removed one is told that it was: what it gets is checked below.
    "history": {"outsider": "gone", **dict.fromkeys(ALL[1:], "yes")},
    "entries": {"outsider": "gone", "removed": "no", **dict.fromkeys(ALL[2:], "yes")},
}


@pytest.mark.parametrize("who", ALL)
@pytest.mark.parametrize("op", EXPECTED)
async def test_each_operation_answers_each_kind_of_node_as_documented(
    op: str, who: str, keeper: Any, lab: Any
) -> None:
    body = bodies(keeper)[op]
    assert await outcome(op, body, who, keeper, lab) == EXPECTED[op][who]


async def outcome(op: str, body: dict[str, Any], who: str, keeper: Any, lab: Any) -> str:
    try:
        async with session_of(who, keeper, lab) as session:
            await session.request(op, body, 10)
        return "yes"
    except PeerRefusedError:
        return "no"
    except (NotAMemberError, PeerGoneError):
        return "gone"
    except BaseExceptionGroup as group:
        if group.subgroup(PeerRefusedError):
            return "no"
        assert group.subgroup((NotAMemberError, PeerGoneError))
        return "gone"


def test_no_operation_is_missing_from_this_table() -> None:
    tested_elsewhere = {
        "range": "below",
        "batch": "below",
        "leave": "below",
        **dict.fromkeys(FEED_OPERATIONS, "tests/feeds/test_feeds_authorisation.py"),
        **dict.fromkeys(BUCKET_OPERATIONS, "test_transfer_authorisation_buckets.py"),
        "change": "below",
        "succession": "tests/processes/test_processes_channels.py",
        "announce": "tests/network/test_network_announcer.py",
        "holders": "tests/network/test_network_announcer.py",
        "bulk": "tests/processes/test_processes_bulk.py",
        "bulk back": "tests/processes/test_processes_bulk.py",
    }
    assert OPERATIONS.keys() - tested_elsewhere.keys() == EXPECTED.keys()


@pytest.mark.parametrize("op", ["have", "root", "page", "chunks"])
async def test_what_is_granted_in_one_channel_is_not_served_in_another(
    op: str, keeper: Any, lab: Any
) -> None:
    body = {**bodies(keeper)[op], "channel": FIELD.id}
    assert await outcome(op, body, "admin", keeper, lab) == "no"


@pytest.mark.parametrize("op", ["have", "root", "page", "chunks"])
async def test_absent_and_forbidden_are_answered_alike(op: str, keeper: Any, lab: Any) -> None:
    body = bodies(keeper)[op]
    absent = {**body, "content": bytes(20)}
    texts = []
    for who, one in (("admin", absent), ("removed", body), ("removed", absent)):
        with pytest.raises(BaseExceptionGroup) as caught:
            async with session_of(who, keeper, lab) as session:
                await session.request(op, one, 10)
        refusals = caught.value.subgroup(PeerRefusedError)
        assert refusals is not None
        texts.append(str(refusals.exceptions[0]))
    assert len(set(texts)) == 1


@pytest.mark.parametrize("who", ["removed", "reader", "provider", "admin"])
async def test_chunks_go_to_who_may_read_alone(who: str, keeper: Any, lab: Any) -> None:
    stored = keeper.store(CONTENT_BYTES, LAB)
    request = RangeRequest(1, LAB.id, stored.content.raw, stored.root.raw, 0, 1)
    async with session_of(who, keeper, lab) as session:
        await session.request("ping", {}, 5)
        # The keeper answers data streams of sessions that it keeps.
        with trio.fail_after(10):
            while keeper.sessions.get(KEYS[who].node_id) is None:
                await keeper.sessions.changed()
        link = lab.world.link(KEYS[who].node_id)
        stream = await link.open_stream(keeper.id, DATA)
        await stream.send_all(request.frame())
        decoder = FrameDecoder()
        found: list[dict[str, Any]] = []
        while not found:
            data = await stream.receive_some(1 << 18)
            assert data
            found = decoder.feed(data)
        await stream.reset()
    served = "data" in found[0]
    assert served == (who in ("reader", "admin"))
    if not served:
        assert found[0]["error"] == "refused"


@pytest.mark.parametrize("who", ["removed", "reader", "provider", "admin"])
async def test_small_blobs_in_batches_go_to_who_may_read_alone(
    who: str, keeper: Any, lab: Any
) -> None:
    granted = keeper.store(b"small", LAB).content.raw
    elsewhere = keeper.store(b"for others", FIELD).content.raw
    names = (granted, elsewhere, bytes(20))
    async with session_of(who, keeper, lab):
        with trio.fail_after(10):
            while keeper.sessions.get(KEYS[who].node_id) is None:
                await keeper.sessions.changed()
        stream = await lab.world.link(KEYS[who].node_id).open_stream(keeper.id, DATA)
        await stream.send_all(BatchRequest(1, BulkBatch(LAB.id, names)).frame())
        (answer,) = FrameDecoder().feed(await stream.receive_some(1 << 18))
        await stream.reset()
    if who in ("reader", "admin"):
        told = read_pieces(memoryview(answer["pieces"]))
        assert [(one.outcome, bytes(one.data)) for one in told] == [
            (BYTES, b"small"),
            (REFUSED, b""),
            (REFUSED, b""),
        ]
    else:
        assert answer == {"id": 1, "error": "refused", "text": "absent, or not allowed"}


@pytest.mark.parametrize("who", ["removed", "reader", "provider", "admin"])
async def test_a_request_of_the_keeper_needs_the_role_that_it_is_about(
    who: str, keeper: Any, lab: Any
) -> None:
    from kachery_p2p.channels.permissions import may
    from kachery_p2p.channels.roster import Roster
    from kachery_p2p.errors import NotAllowedError

    roster: Roster = keeper.memberships.history(LAB.id).roster
    stranger = MemberSet(self_member(OTHER_KEY, "new", frozenset({READ})))
    request = SignedRequest.signed(LAB.id, stranger, KEYS[who], bytes(16), 1_000_000)
    assert SignedRequest.decode(request.encode()) == request
    if may(roster.roles_of(KEYS[who].node_id), ADMIN):
        roster.allowed(request.by, request.change, is_keeper=False)
    else:
        with pytest.raises(NotAllowedError):
            roster.allowed(request.by, request.change, is_keeper=False)


async def test_a_member_that_left_gets_nothing_more(keeper: Any, lab: Any) -> None:
    body = bodies(keeper)["have"]
    async with session_of("admin", keeper, lab) as session:
        await session.request("have", body, 5)
        await session.request("leave", {"channel": LAB.id}, 5)
        with pytest.raises(PeerRefusedError):
            await session.request("have", body, 5)
