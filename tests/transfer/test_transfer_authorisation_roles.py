"""What a keeper's node answers about its channel, beyond content: by the role of who asks.

The rest of the matrix is in `test_transfer_authorisation.py` (messages about
content and histories) and `tests/node/test_node_doors_matrix.py` (operations of clients).
"""

from __future__ import annotations

import itertools
import time
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.channels.changes import (
    Change,
    KeeperMoved,
    MemberRemoved,
    MemberSet,
    SettingsSet,
    SignedRequest,
    SuccessorNamed,
)
from kachery_p2p.channels.history import History
from kachery_p2p.channels.keeper import self_member
from kachery_p2p.channels.permissions import ACTIONS, ADMIN, READ
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import (
    NotAMemberError,
    PeerBusyError,
    PeerError,
    PeerGoneError,
    PeerRefusedError,
)
from kachery_p2p.identity import channel_keys
from kachery_p2p.identity.channel_keys import ChannelKey
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeKey
from kachery_p2p.network.announcer import Announcer
from kachery_p2p.network.meeting import Me
from kachery_p2p.network.prefixes import prefix_of
from kachery_p2p.network.successions import Successions
from kachery_p2p.node.keeping import Keeping
from kachery_p2p.wire.bucket_messages import BUCKET_OPERATIONS
from kachery_p2p.wire.feed_messages import FEED_OPERATIONS
from kachery_p2p.wire.messages import OPERATIONS
from tests.transfer.conftest import Node
from tests.transfer.test_transfer_authorisation import (
    CONTENT_BYTES,
    EXPECTED,
    FIELD,
    KEYS,
    LAB,
    OTHER_KEY,
    owned_node,
    session_of,
)

CHANNEL_KEY = ChannelKey(bytes([99]) * 32)
HELD = sha1_of(b"held by somebody")
_requests = itertools.count()


def full_node(base: type[Any]) -> type[Any]:
    """A keeper's node of the transfer tests, which also announces, signs and follows."""

    class Full(owned_node(base)):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.announcer = Announcer(
                sessions=self.sessions,
                grants=self.disk.grants,
                holds=lambda content: True,
                node_id=self.id,
            )
            config = str(self.disk.directory)
            channel_keys.save(config, CHANNEL_KEY)
            self.keeping = Keeping(
                config, self.key, "keeper", self.memberships, self.histories, self.sessions
            )
            self.followed: list[str] = []
            me = Me(self.key, self.memberships, Random(1).randbytes)
            self.successions = Successions(me, self.sessions, self._follow)

        async def _follow(self, old_id: str, history: History) -> None:
            self.followed.append(old_id)

        @property
        def history(self) -> History:
            found: History = self.memberships.history(LAB.id)
            return found

    return Full


@pytest.fixture
async def keeper(virtual_clock: MockClock, lab: Any) -> Any:
    assert CHANNEL_KEY.node_id == LAB.id
    return await lab.node("keeper", LAB, FIELD, kind=full_node(Node))


async def asked(who: str, keeper: Any, lab: Any, op: str, body: dict[str, Any]) -> str:
    """ "yes", or why not: "no" as absent content is refused, "failed" with a reason, "gone"."""
    try:
        async with session_of(who, keeper, lab) as session:
            # Announcements are heard on the session that the keeper keeps.
            with trio.fail_after(10):
                while keeper.sessions.get(KEYS[who].node_id) is None:
                    await keeper.sessions.changed()
            try:
                await session.request(op, body, 10)
                return "yes"
            except PeerRefusedError:
                return "no"
            except (PeerGoneError, PeerBusyError):
                raise
            except PeerError:
                return "failed"
    except (NotAMemberError, PeerGoneError):
        return "gone"
    except BaseExceptionGroup as group:
        assert not group.split((NotAMemberError, PeerGoneError))[1]
        return "gone"


ALL = ("outsider", "removed", "reader", "provider", "admin")
# (An owned channel's words are heard by who proved its secret; the outsider proves nothing.)
EXPECTED_HERE = {
    "announce": dict(zip(ALL, ("gone", "no", "no", "yes", "yes"), strict=True)),
    "holders": dict(zip(ALL, ("gone", "no", "yes", "no", "yes"), strict=True)),
    # The admin's user is told why; whoever is no member not even that there is a channel.
    "change": dict(zip(ALL, ("gone", "no", "failed", "failed", "yes"), strict=True)),
    # Members are listened to: what they say of a successor is then not believed.
    "succession": dict(zip(ALL, ("gone", "no", "failed", "failed", "failed"), strict=True)),
}


def signed(who: str, change: Change, channel: str = LAB.id) -> dict[str, Any]:
    request = next(_requests).to_bytes(16, "big")
    now_ms = time.time_ns() // 1_000_000
    return {"request": SignedRequest.signed(channel, change, KEYS[who], request, now_ms).encode()}


def newcomer(roles: frozenset[str] = frozenset({READ})) -> MemberSet:
    return MemberSet(self_member(OTHER_KEY, "new", roles))


def body_of(op: str, who: str, keeper: Any) -> dict[str, Any]:
    if op == "announce":
        added = {"reset": True, "add": prefix_of(HELD).to_bytes(8, "big"), "drop": b""}
        return {"channel": LAB.id, "seq": 0, **added}
    if op == "holders":
        return {"channel": LAB.id, "content": sha1_of(CONTENT_BYTES).raw}
    if op == "change":
        return signed(who, newcomer())
    return {"channel": LAB.id, "successor": "ab" * 32, "head": keeper.history.head.encode()}


@pytest.mark.parametrize("who", ALL)
@pytest.mark.parametrize("op", EXPECTED_HERE)
async def test_each_role_is_answered_as_documented_and_what_is_refused_has_no_effect(
    op: str, who: str, keeper: Any, lab: Any
) -> None:
    keeper.store(CONTENT_BYTES, LAB)
    size = keeper.history.size
    expected = EXPECTED_HERE[op][who]

    assert await asked(who, keeper, lab, op, body_of(op, who, keeper)) == expected

    # (What was announced is forgotten with the connection only once the announcer runs.)
    assert (keeper.announcer.providers.count_of(KEYS[who].node_id) == 1) == (
        op == "announce" and expected == "yes"
    )
    assert keeper.history.size == size + (op == "change" and expected == "yes")
    assert keeper.followed == []


def test_no_message_between_nodes_is_without_a_row_in_a_matrix() -> None:
    # `range`, `batch` and `leave` are in test_transfer_authorisation; the bulk plane has its own
    # tests.
    elsewhere = {"range", "batch", "leave", "bulk", "bulk back"}
    # Those about feeds are in tests/feeds/test_feeds_authorisation.py.
    elsewhere |= FEED_OPERATIONS.keys()
    # Those about a channel's bucket are in test_transfer_authorisation_buckets.py.
    elsewhere |= BUCKET_OPERATIONS.keys()
    assert OPERATIONS.keys() - elsewhere == EXPECTED.keys() | EXPECTED_HERE.keys()


REFUSED_CHANGES: dict[str, Change] = {
    "an admin made by an admin": newcomer(ACTIONS),
    "a member made an admin": MemberSet(self_member(KEYS["reader"], "x", ACTIONS)),
    "the keeper removed": MemberRemoved(NodeKey.generate(bytes([1]) * NODE_KEY_BYTES).node_id),
    "settings": SettingsSet((), 2_000_000_000, ""),
    "a successor": SuccessorNamed(KEYS["admin"].node_id),
    "another keeper": KeeperMoved(KEYS["admin"].node_id),
}


@pytest.mark.parametrize("what", REFUSED_CHANGES)
async def test_an_admin_may_not_ask_for(what: str, keeper: Any, lab: Any) -> None:
    size = keeper.history.size
    body = signed("admin", REFUSED_CHANGES[what])
    assert await asked("admin", keeper, lab, "change", body) == "failed"
    assert keeper.history.size == size
    assert keeper.history.roster.roles_of(keeper.id) == ACTIONS
    assert ADMIN not in keeper.history.roster.roles_of(KEYS["reader"].node_id)


async def test_a_request_that_was_signed_for_another_channel_or_by_another_is_refused(
    keeper: Any, lab: Any
) -> None:
    size = keeper.history.size
    assert await asked("admin", keeper, lab, "change", signed("admin", newcomer(), FIELD.id)) in (
        "no",
        "failed",
    )
    forged = bytearray(signed("reader", newcomer())["request"])
    # Who asks is named after the tag, channel, request and time.
    forged[16 + 32 + 16 + 8 : 16 + 32 + 16 + 8 + 32] = KEYS["admin"].node_id.raw
    assert await asked("reader", keeper, lab, "change", {"request": bytes(forged)}) == "failed"
    assert keeper.history.size == size


async def test_a_request_works_once_however_often_it_is_sent(keeper: Any, lab: Any) -> None:
    body = signed("admin", newcomer())
    assert await asked("admin", keeper, lab, "change", body) == "yes"
    size = keeper.history.size
    gone = signed("admin", MemberRemoved(OTHER_KEY.node_id))
    assert await asked("admin", keeper, lab, "change", gone) == "yes"
    # Sent again by somebody who would like the removed one back.
    assert await asked("reader", keeper, lab, "change", body) == "yes"
    assert keeper.history.size == size + 1
    assert OTHER_KEY.node_id not in keeper.history.roster.members
