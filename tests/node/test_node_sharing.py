"""The handlers of `share`, `unshare`, `shared` and `channels`, for the owner and for guests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from kachery_p2p.channels.channel import Channel, generate_secret, parse_secret
from kachery_p2p.channels.files import join_shared
from kachery_p2p.errors import (
    AmbiguousNodeError,
    DaemonAuthError,
    NotFoundError,
    UnknownChannelError,
)
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeKey
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.node import asked
from kachery_p2p.node.api import Api
from kachery_p2p.node.config import NodeConfig
from kachery_p2p.node.doors import Call
from kachery_p2p.node.parts import Parts
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.grants import Grants
from kachery_p2p.store.index import Index
from kachery_p2p.wire.operations import OPERATIONS, check_result

SECRET = generate_secret(b"s" * 20)
LAB = Channel.shared(parse_secret(SECRET), "lab")
KEY = NodeKey.generate(b"n" * NODE_KEY_BYTES)
OWNER = os.geteuid()
ANN, BEN = OWNER + 1, OWNER + 2


class Node:
    def __init__(self, directory: Path) -> None:
        config, store = directory / "config", directory / "store"
        store.mkdir()
        config.mkdir(mode=0o700)
        join_shared(str(config), "lab", SECRET)
        self.blobs = BlobStore(str(store), Index(str(config / "index.db")), 0)
        self.grants = Grants(str(config / "grants.db"))
        parts = NodeConfig(str(config), str(store))
        self.parts = Parts(parts, KEY, Memberships([LAB]), (), self.blobs, self.grants)

    async def call(self, uid: int, op: str, **body: Any) -> dict[str, Any]:
        call = Call(OPERATIONS[op], body, uid=uid)
        return check_result(OPERATIONS[op], await Api(self.parts).handlers()[op](call))

    async def listed(self, uid: int) -> list[str]:
        return [grant["content"] for grant in (await self.call(uid, "shared"))["grants"]]


@pytest.fixture
async def node(tmp_path: Path) -> Any:
    one = Node(tmp_path)
    yield one
    one.blobs.close()
    one.grants.close()


async def test_each_user_sees_and_ends_its_own(node: Node) -> None:
    one, two = (node.blobs.put_bytes(data).content for data in (b"one", b"two"))
    await node.call(OWNER, "share", contents=[one])
    told = await node.call(ANN, "share", contents=[one, two])
    assert (told["shared"], told["channels"]) == (2, ["lab"])
    assert await node.listed(OWNER) == [one]
    assert await node.listed(ANN) == sorted([one, two])
    assert await node.listed(BEN) == []
    assert (await node.call(BEN, "unshare", contents=[one, two]))["unshared"] == 0
    assert (await node.call(ANN, "unshare", contents=[one, two], channel="lab"))["unshared"] == 2
    assert node.grants.is_granted(one, LAB.id) and not node.grants.is_granted(two, LAB.id)


async def test_what_a_guest_stores_is_granted_as_its_own(node: Node, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"of ann")
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    call = Call(OPERATIONS["store"], {"channels": ["lab"]}, uid=ANN, descriptor=descriptor)
    stored = await Api(node.parts).handlers()["store"](call)
    os.close(descriptor)
    assert await node.listed(ANN) == [stored["content"]]
    assert await node.listed(OWNER) == []


async def test_a_guest_has_nothing_to_do_with_what_waits(node: Node) -> None:
    content = node.blobs.put_bytes(b"x").content
    node.grants.grant([content], None, "stored", 1.0)
    with pytest.raises(DaemonAuthError):
        await node.call(ANN, "share", pending=True, channels=["lab"])
    assert node.grants.pending_count() == 1
    assert (await node.call(OWNER, "share", pending=True, channels=["lab"]))["shared"] == 1


async def test_a_guests_status_is_short(node: Node) -> None:
    node.parts.problems["disk"] = "secret trouble"
    node.parts.http = "http://127.0.0.1:1"
    assert "secret trouble" in (await node.call(OWNER, "status"))["problems"]
    told = await node.call(ANN, "status")
    assert (told["problems"], told["http"], told["peers"]) == ([], None, [])
    assert [channel["name"] for channel in told["channels"]] == ["lab"]


async def test_the_channels_say_what_they_are(node: Node) -> None:
    (lab,) = (await node.call(ANN, "channels"))["channels"]
    assert (lab["name"], lab["id"], lab["kind"], lab["shared_list"]) == (
        "lab",
        LAB.id,
        "shared-secret",
        True,
    )


async def test_an_unknown_channel_is_an_error_wherever_it_is_named(node: Node) -> None:
    for op, body in (
        ("unshare", {"contents": [], "channel": "nowhere"}),
        ("shared", {"channel": "nowhere"}),
        ("find", {"content": "0" * 40, "from_channel": "nowhere"}),
        ("load", {"content": "0" * 40, "from_channel": "nowhere"}),
    ):
        with pytest.raises(UnknownChannelError):
            await node.call(OWNER, op, **body)


# --- which node is meant -----------------------------------------------------------------


class Peer:
    def __init__(self, peer: str, label: str) -> None:
        self.peer, self.label = peer, label


class Sessions:
    """Sessions of which more appear with each change."""

    def __init__(self, *rounds: list[Peer]) -> None:
        self._rounds = list(rounds)

    def all(self) -> tuple[Peer, ...]:
        return tuple(self._rounds[0])

    @property
    def settled(self) -> bool:
        return len(self._rounds) == 1

    async def changed(self) -> None:
        await trio.lowlevel.checkpoint()
        self._rounds.pop(0)


async def test_a_node_is_meant_by_its_label_or_the_beginning_of_it() -> None:
    peers = [Peer("1" * 64, "lab-pc"), Peer("2" * 64, "lab-pc-two"), Peer("3" * 64, "desk")]
    sessions: Any = Sessions([], peers)
    assert await asked._node_labelled(sessions, "de") == "3" * 64
    # A whole label is never taken for the beginning of another.
    assert await asked._node_labelled(sessions, "lab-pc") == "1" * 64
    with pytest.raises(AmbiguousNodeError, match="2 connected nodes"):
        await asked._node_labelled(sessions, "lab")
    for nobody in ("nowhere", ""):
        with pytest.raises(NotFoundError):
            await asked._node_labelled(sessions, nobody)


async def test_an_id_in_either_form_needs_no_connection(node: Node) -> None:
    for name in (KEY.node_id, KEY.node_id.peer_id):
        only = await asked.sources(node.parts, {"from_channel": "lab", "from_node": name})
        assert (only.channel, only.node) == (LAB.id, KEY.node_id)
