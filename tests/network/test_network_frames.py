"""The pure parts: yamux frames however they are cut, and who is turned out at the door."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as some

from kachery_p2p.errors import ConfigError, ProtocolError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import UNPROVEN_CONNECTIONS_MAX, UNPROVEN_CONNECTIONS_PER_IP_MAX
from kachery_p2p.network import yamux
from kachery_p2p.network.doorkeeper import Doorkeeper
from kachery_p2p.network.multiaddrs import advertised, parse_address

NODE = NodeId.of_raw(bytes(range(32)))


def pieces(sent: bytes, cuts: list[int]) -> list[yamux.Piece]:
    reader = yamux.FrameReader()
    edges = [0, *sorted(cut % (len(sent) + 1) for cut in cuts), len(sent)]
    return [
        piece
        for start, end in zip(edges, edges[1:], strict=False)
        for piece in reader.feed(sent[start:end])
    ]


@given(
    some.lists(some.tuples(some.integers(1, 9), some.binary(max_size=40)), max_size=6),
    some.lists(some.integers(0, 1000), max_size=8),
)
def test_frames_come_out_the_same_however_the_bytes_are_cut(
    frames: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    sent = b"".join(
        yamux.data_frame(stream, data) + yamux.frame(yamux.PING, yamux.SYN, 0, stream)
        for stream, data in frames
    )
    found = pieces(sent, cuts)
    payload = b"".join(piece.payload for piece in found)
    assert payload == b"".join(data for _, data in frames)
    data_pieces = [piece for piece in found if piece.kind == yamux.DATA]
    assert sum(piece.first for piece in data_pieces) == len(frames)
    assert sum(piece.last for piece in data_pieces) == len(frames)
    assert [piece.length for piece in found if piece.kind == yamux.PING] == [s for s, _ in frames]


@given(some.binary(max_size=200))
def test_any_bytes_are_frames_or_a_protocol_error(junk: bytes) -> None:
    with suppress(ProtocolError):
        assert sum(len(piece.payload) for piece in pieces(junk, [])) <= len(junk)


def test_a_claimed_length_is_told_before_its_bytes_come() -> None:
    claimed = yamux.HEADER.pack(0, yamux.DATA, 0, 1, 0xFFFF_FFFF)
    (piece,) = pieces(claimed, [])
    assert (piece.length, piece.payload, piece.first, piece.last) == (0xFFFF_FFFF, b"", True, False)


def test_the_oldest_of_a_crowded_address_is_turned_out() -> None:
    door: Doorkeeper[int] = Doorkeeper()
    for guest in range(UNPROVEN_CONNECTIONS_PER_IP_MAX):
        assert door.arrive(guest, "192.0.2.1") is None
    assert door.arrive(100, "192.0.2.1") == 0
    assert door.arrive(101, "192.0.2.2") is None
    assert len(door) == UNPROVEN_CONNECTIONS_PER_IP_MAX + 1


def test_when_the_door_is_full_the_most_crowded_address_makes_room() -> None:
    door: Doorkeeper[str] = Doorkeeper()
    door.arrive("honest", "198.51.100.1")
    crowd = [f"{ip}/{n}" for n in range(UNPROVEN_CONNECTIONS_PER_IP_MAX - 1) for ip in range(4)]
    for guest in [*crowd, "0/x", "1/x", "2/x"]:
        assert door.arrive(guest, guest[0]) is None
    assert len(door) == UNPROVEN_CONNECTIONS_MAX
    assert door.arrive("newcomer", "198.51.100.2") == "0/0"
    assert len(door) == UNPROVEN_CONNECTIONS_MAX


def test_a_guest_may_be_said_to_leave_twice() -> None:
    door: Doorkeeper[str] = Doorkeeper()
    door.arrive("a", "192.0.2.1")
    door.leave("a")
    door.leave("a")
    assert len(door) == 0


@pytest.mark.parametrize(
    "text", ["/ip4/192.0.2.1/tcp/1", "/ip6/2001:db8::1/tcp/65535", "/dns4/lab.example/tcp/20432"]
)
def test_an_address_is_written_as_it_was_read(text: str) -> None:
    whole = f"{text}/p2p/{NODE.peer_id}"
    assert str(parse_address(whole)) == whole
    assert str(advertised(text, NODE)) == whole


def test_another_node_is_not_advertised() -> None:
    other = NodeId.of_raw(bytes([7]) * 32)
    with pytest.raises(ConfigError):
        advertised(f"/ip4/192.0.2.1/tcp/1/p2p/{other.peer_id}", NODE)
