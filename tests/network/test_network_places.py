"""Bootstrap addresses without an id: who answers is learnt once, and kept to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.errors import ConfigError, PeerUnreachableError
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeId, NodeKey
from kachery_p2p.limits import PLACES_MAX
from kachery_p2p.network.libp2p_host import open_libp2p_link, who_answers
from kachery_p2p.network.multiaddrs import parse_address
from kachery_p2p.network.places import (
    Place,
    Places,
    addresses_in,
    load_places,
    parse_place,
    places_in,
)

ALICE, BOB = (NodeKey.generate(bytes([n]) * NODE_KEY_BYTES) for n in (1, 2))
HOST = "192.0.2.1"


class Town:
    """Nodes at places; "" is nobody."""

    def __init__(self, path: Path) -> None:
        self.path = str(path / "places.json")
        self.there: dict[str, NodeId] = {}
        self.asked: list[str] = []
        self.found: list[str] = []

    async def meet(self, kind: str, host: str, port: int) -> NodeId:
        await trio.lowlevel.checkpoint()
        self.asked.append(f"{kind} {host} {port}")
        if host not in self.there:
            raise PeerUnreachableError("no node answers there")
        return self.there[host]

    def places(self, *texts: str) -> Places:
        return Places(places_in(texts), self.path, meet=self.meet, found=self.found.append)


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)


@pytest.mark.parametrize(
    ("text", "kind", "written"),
    [
        ("192.0.2.1:20432", "ip4", "192.0.2.1:20432"),
        ("[2001:db8::1]:1", "ip6", "[2001:db8::1]:1"),
        ("node.example.org:65535", "dns", "node.example.org:65535"),
    ],
)
def test_a_place_is_a_host_and_a_port(text: str, kind: str, written: str) -> None:
    place = parse_place(text)
    assert (place.kind, str(place)) == (kind, written)
    assert parse_address(place.address(ALICE.node_id)).node == ALICE.node_id


@pytest.mark.parametrize(
    "text", ["x", "::1:80", "x:0", "x:65536", ":80", "a b:1", "[x]:1", "a/b:1"]
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not where a node can be reached"):
        parse_place(text)
    with pytest.raises(ConfigError):
        places_in([f"h{n}:1" for n in range(PLACES_MAX + 1)])


async def test_who_answers_first_is_kept_to(town: Town) -> None:
    town.there[HOST] = ALICE.node_id
    places = town.places("/ip4/192.0.2.9/tcp/1/p2p/x", f"{HOST}:20432")
    assert not places.settled
    await places.run()
    assert town.found == [f"/ip4/{HOST}/tcp/20432/p2p/{ALICE.node_id.peer_id}"]
    assert (places.settled, places.problems()) == (True, [])
    assert load_places(town.path) == {f"{HOST}:20432": ALICE.node_id}
    # The next start dials that node, and no other, before anybody is asked.
    assert addresses_in([f"{HOST}:20432", "/x"], town.path) == ["/x", *town.found]


async def test_another_node_at_the_place_is_not_used_and_is_told(
    town: Town, autojump_clock: MockClock
) -> None:
    town.there[HOST] = ALICE.node_id
    await town.places(f"{HOST}:1").run()
    town.found.clear()
    town.there[HOST] = BOB.node_id
    places = town.places(f"{HOST}:1")
    with trio.move_on_after(600):
        await places.run()
    (problem,) = places.problems()
    assert "another node than before" in problem and BOB.node_id.peer_id in problem
    assert f"--bootstrap /ip4/{HOST}/tcp/1/p2p/{BOB.node_id.peer_id}" in problem
    assert (places.settled, town.found) == (True, [])
    assert load_places(town.path) == {f"{HOST}:1": ALICE.node_id}


async def test_a_place_where_nobody_answers_is_asked_ever_less_often(
    town: Town, autojump_clock: MockClock
) -> None:
    places = town.places("there.example.org:7")
    with trio.move_on_after(200):
        await places.run()
    assert 5 <= len(town.asked) <= 12
    assert town.asked[0] == "dns there.example.org 7"
    assert "not reached" in places.problems()[0]
    town.there["there.example.org"] = ALICE.node_id
    with trio.fail_after(61):
        await places.run()
    assert places.problems() == []


@pytest.mark.parametrize("text", ["{", "[]", '{"x": 1}', '{"192.0.2.1:1": "x"}', "\xff"])
def test_a_damaged_file_is_as_good_as_none(town: Town, text: str) -> None:
    Path(town.path).write_text(text)
    assert load_places(town.path) == {}
    Path(town.path).write_text(json.dumps({f"{HOST}:1": ALICE.node_id}))
    assert load_places(town.path) == {str(Place(HOST, 1)): ALICE.node_id}


async def test_a_node_is_met_though_what_was_learnt_cannot_be_written(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Town(tmp_path / "gone")
    gone.there[HOST] = ALICE.node_id
    await gone.places(f"{HOST}:1").run()
    assert len(gone.found) == 1

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    town = Town(tmp_path)
    town.there[HOST] = ALICE.node_id
    for module, name in ((os, "replace"), (json, "dump")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            places = town.places(f"{HOST}:1")
            await places.run()
        assert (places.settled, places.problems()) == (True, [])
        assert os.listdir(tmp_path) == []


async def test_a_real_node_proves_who_it_is_and_hears_of_no_stream() -> None:
    async with open_libp2p_link(ALICE, [("127.0.0.1", 0)]) as alice:
        port = parse_address(alice.addresses[0]).port
        assert await who_answers(BOB, "ip4", "127.0.0.1", port) == ALICE.node_id
        assert alice.connected() == frozenset()


async def test_what_is_no_node_is_told_in_time() -> None:
    async with trio.open_nursery() as nursery:
        listener: trio.SocketListener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        port = listener.socket.getsockname()[1]

        async def hang_up(stream: trio.SocketStream) -> None:
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await stream.aclose()

        nursery.start_soon(trio.serve_listeners, hang_up, [listener])
        with pytest.raises(PeerUnreachableError, match="no node answers"):
            await who_answers(BOB, "ip4", "127.0.0.1", port)
        nursery.cancel_scope.cancel()
