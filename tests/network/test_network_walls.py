"""Attacks on a real node: by raw sockets, by hand-made yamux peers and by other libp2p hosts.

After each of them the node still serves an honest member.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import psutil
import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from multiaddr import Multiaddr

from kachery_p2p.errors import (
    AddressInUseError,
    ConfigError,
    PeerGoneError,
    PeerTimeoutError,
    PeerUnreachableError,
)
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeId, NodeKey
from kachery_p2p.limits import (
    HELLO_S_MAX,
    STREAMS_PER_PEER_MAX,
    UNPROVEN_CONNECTIONS_MAX,
    UNPROVEN_CONNECTIONS_PER_IP_MAX,
    UNPROVEN_STREAMS_MAX,
)
from kachery_p2p.network import connections, yamux
from kachery_p2p.network.connections import TcpLink
from kachery_p2p.network.libp2p_host import NoiseHandshakes, open_libp2p_link
from kachery_p2p.network.link import Link, Stream
from kachery_p2p.network.multiplexer import SecureChannel

ECHO = "/test/echo/1"
MIB = 1 << 20
HERE = [("127.0.0.1", 0)]


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some(MIB):
        await stream.send_all(data)
    await stream.close()


def new_key() -> NodeKey:
    return NodeKey.generate(os.urandom(NODE_KEY_BYTES))


def port_of(link: Link) -> int:
    return int(link.addresses[-1].split("/")[4])


def door_of(link: Link) -> int:
    assert isinstance(link, TcpLink)
    return len(link._door)


def memory() -> int:
    return int(psutil.Process().memory_info().rss)


async def until(true: Callable[[], bool], seconds: float = 10) -> None:
    with trio.fail_after(seconds):
        while not true():  # noqa: ASYNC110
            await trio.sleep(0.005)


async def befriend(one: Link, other: Link) -> NodeId:
    node = await one.connect(other.addresses[-1])
    one.admit(node)
    await until(lambda: one.node_id in other.connected())
    other.admit(one.node_id)
    return node


async def still_serves(member: Link, node: NodeId) -> None:
    with trio.fail_after(5):
        stream = await member.open_stream(node, ECHO)
        await stream.send_all(b"hello")
        assert await stream.receive_some(5) == b"hello"
        await stream.close()
        assert await stream.receive_some(1) == b""


@pytest.fixture
async def victim() -> AsyncIterator[Link]:
    async with open_libp2p_link(new_key(), HERE) as link:
        link.accept(ECHO, echo)
        yield link


@pytest.fixture
async def member(victim: Link) -> AsyncIterator[Link]:
    """An honest node, connected and admitted before the attack."""
    async with open_libp2p_link(new_key(), HERE) as link:
        await befriend(link, victim)
        yield link


@asynccontextmanager
async def attacker(victim: Link, key: NodeKey | None = None) -> AsyncIterator[SecureChannel]:
    """A peer that is past noise and sends whatever yamux frames the test likes."""
    tcp = await trio.open_tcp_stream("127.0.0.1", port_of(victim))
    async with tcp:
        yield await NoiseHandshakes(key or new_key()).greet(tcp, victim.node_id)


def opened(number: int) -> bytes:
    return yamux.frame(yamux.WINDOW_UPDATE, yamux.SYN, number, 0)


def opened_for(number: int, protocol: str) -> bytes:
    line = protocol.encode() + b"\n"
    asked = b"\x13/multistream/1.0.0\n" + bytes([len(line)]) + line
    return opened(number) + yamux.data_frame(number, asked)


async def never_read(stream: Stream) -> None:
    await trio.sleep_forever()


async def is_cut_off(channel: SecureChannel) -> bool:
    with trio.fail_after(5):
        try:
            while await channel.read():
                pass
        except Exception:
            return True
    return True


# --- 1. noise and yamux, and nothing else ---------------------------------------------------


@pytest.mark.parametrize("protocol", ["/plaintext/2.0.0", "/secio/1.0.0", "/tls/1.0.0", ""])
async def test_no_security_but_noise_is_agreed_to(
    victim: Link, member: Link, protocol: str
) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port_of(victim)) as tcp:
        line = protocol.encode() + b"\n"
        await tcp.send_all(b"\x13/multistream/1.0.0\n" + bytes([len(line)]) + line)
        answer = b""
        with trio.fail_after(5):
            while len(answer) < 24 and (data := await tcp.receive_some()):
                answer += data
    assert answer in (b"\x13/multistream/1.0.0\n\x03na\n", b"\x13/multistream/1.0.0\n")
    await still_serves(member, victim.node_id)


async def test_a_libp2p_host_that_offers_only_plaintext_gets_no_connection_either_way(
    victim: Link, member: Link
) -> None:
    pair = create_new_key_pair(new_key().seed)
    host = new_host(key_pair=pair, sec_opt={PLAINTEXT_PROTOCOL_ID: InsecureTransport(pair)})
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        with trio.fail_after(10), pytest.raises(Exception, match=r".*"):
            await host.connect(info_from_p2p_addr(Multiaddr(victim.addresses[0])))
        with pytest.raises(PeerUnreachableError):
            await victim.connect(str(host.get_addrs()[0]))
        await host.close()
    assert victim.connected() == {member.node_id}


async def test_a_node_with_another_kind_of_key_is_refused(victim: Link, member: Link) -> None:
    from libp2p.crypto.secp256k1 import create_new_key_pair as secp256k1

    stranger = NoiseHandshakes(new_key())
    noise = stranger._upgrader.security_multistream.transports.popitem()[1]
    pair = secp256k1()
    noise.libp2p_privkey, noise.local_peer = pair.private_key, ID.from_pubkey(pair.public_key)  # type: ignore[attr-defined]
    stranger._upgrader.security_multistream.add_transport(TProtocol("/noise"), noise)
    async with await trio.open_tcp_stream("127.0.0.1", port_of(victim)) as tcp:
        with trio.fail_after(5), pytest.raises((PeerGoneError, trio.BrokenResourceError)):
            await stranger.greet(tcp, victim.node_id)
    assert victim.connected() == {member.node_id}


@asynccontextmanager
async def libp2p_host() -> AsyncIterator[BasicHost]:
    host = new_host(key_pair=create_new_key_pair(new_key().seed))

    async def answer(stream: object) -> None:
        data = await stream.read(5)  # type: ignore[attr-defined]
        await stream.write(data)  # type: ignore[attr-defined]
        await stream.close()  # type: ignore[attr-defined]

    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        host.set_stream_handler(TProtocol(ECHO), answer)
        try:
            yield host  # type: ignore[misc]
        finally:
            await host.close()


async def test_another_libp2p_host_opens_our_protocols_and_we_open_its(victim: Link) -> None:
    async with libp2p_host() as host:
        await host.connect(info_from_p2p_addr(Multiaddr(victim.addresses[0])))
        peer = ID.from_base58(victim.node_id.peer_id)
        stream = await host.new_stream(peer, [TProtocol(ECHO)])
        sent = os.urandom(MIB)
        received = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, sent)
            with trio.fail_after(20):
                while len(received) < len(sent):
                    received += await stream.read(MIB)
        assert received == sent
        await stream.reset()
        node = NodeId.parse(host.get_id().to_base58())
        ours = await victim.open_stream(node, ECHO)
        await ours.send_all(b"hello")
        assert await ours.receive_some(10) == b"hello"


async def test_we_dial_another_libp2p_host_and_open_its_protocols(victim: Link) -> None:
    async with libp2p_host() as host:
        node = await victim.connect(str(host.get_addrs()[0]))
        ours = await victim.open_stream(node, ECHO)
        await ours.send_all(b"hello")
        assert await ours.receive_some(10) == b"hello"
        with pytest.raises(PeerGoneError):
            await victim.open_stream(node, "/test/unknown/1")


# --- 2. junk --------------------------------------------------------------------------------

JUNK = [
    b"",
    b"\x00",
    b"\xff" * 100,
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x13/multistream/1.0.0\n",
    b"\x13/multistream/1.0.0\n\x07/noise\n\xff\xff" + bytes(70_000),
    b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x00",
    b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x20" + b"\x11" * 32,
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + b"a" * 5000,
    b"\x80" * 5000,
    b"\x13/multistream/1.0.0\n\x05\xff\xfe\xfd\xfc\n",
    b"\x13/multistream/1.0.0\n" + b"\x03ls\n" * 1000,
]


@pytest.mark.parametrize("junk", JUNK)
async def test_junk_before_noise_ends_only_that_connection(
    victim: Link, member: Link, junk: bytes
) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port_of(victim)) as tcp:
        with trio.move_on_after(1):
            with suppress(trio.BrokenResourceError):
                await tcp.send_all(junk)
    await until(lambda: door_of(victim) == 0)
    await still_serves(member, victim.node_id)


@pytest.mark.parametrize("junk", [junk for junk in JUNK if junk])
async def test_junk_after_noise_ends_only_that_connection(
    victim: Link, member: Link, junk: bytes
) -> None:
    async with attacker(victim) as channel:
        await channel.write(junk)
    await until(lambda: door_of(victim) == 0)
    await still_serves(member, victim.node_id)


@pytest.mark.parametrize("junk", JUNK)
async def test_junk_on_a_stream_ends_only_that_stream(
    victim: Link, member: Link, junk: bytes
) -> None:
    async with attacker(victim) as channel:
        await channel.write(opened(1) + yamux.data_frame(1, junk))
        await channel.write(yamux.frame(yamux.WINDOW_UPDATE, yamux.FIN, 1, 0))
        # The same connection still gets an answer to a ping.
        await channel.write(yamux.frame(yamux.PING, yamux.SYN, 0, 77))
        with trio.fail_after(5):
            received = b""
            while yamux.frame(yamux.PING, yamux.ACK, 0, 77) not in received:
                received += await channel.read()
    await still_serves(member, victim.node_id)


@pytest.mark.parametrize(
    "frames",
    [
        yamux.HEADER.pack(1, 0, 0, 1, 0),
        yamux.HEADER.pack(0, 9, 0, 1, 0),
        opened(2),
        opened(0),
        opened(1) * 2,
        opened(1) + yamux.HEADER.pack(0, yamux.DATA, 0, 1, 0xFFFF_FFFF),
        opened(1) + yamux.HEADER.pack(0, yamux.DATA, yamux.FIN, 1, 0) + yamux.data_frame(1, b"x"),
    ],
)
async def test_frames_that_break_yamux_end_only_that_connection(
    victim: Link, member: Link, frames: bytes
) -> None:
    async with attacker(victim) as channel:
        await channel.write(frames)
        assert await is_cut_off(channel)
    await still_serves(member, victim.node_id)


# --- 3. memory ------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["/test/never/1", "/test/unknown/1", "/test/over/1"])
@pytest.mark.parametrize("admitted", [False, True])
async def test_300_mib_past_the_window_of_a_stream_nobody_reads_are_not_buffered(
    victim: Link, member: Link, admitted: bool, protocol: str
) -> None:
    async def be_over(stream: Stream) -> None:
        """Its stream is gone at once, and what comes for it is for nobody."""

    victim.accept("/test/never/1", never_read)
    victim.accept("/test/over/1", be_over)
    key = new_key()
    before = memory()
    async with attacker(victim, key) as channel:
        await until(lambda: key.node_id in victim.connected())
        if admitted:
            victim.admit(key.node_id)
        await channel.write(opened_for(1, protocol))
        received = b""
        while protocol == "/test/over/1" and not resets(received):
            received += await channel.read()
        sent = 0
        with trio.fail_after(20):
            try:
                while sent < 300 * MIB:
                    await channel.write(yamux.data_frame(1, bytes(60_000)))
                    sent += 60_000
            except Exception:
                pass
        assert sent < 32 * MIB, "the connection should have been dropped"
    assert memory() - before < 64 * MIB
    await still_serves(member, victim.node_id)


async def test_a_member_that_fills_every_window_stays_within_the_bound_of_its_connection(
    victim: Link, member: Link
) -> None:
    victim.accept("/test/never/1", never_read)
    key = new_key()
    before = memory()
    async with attacker(victim, key) as channel:
        await until(lambda: key.node_id in victim.connected())
        victim.admit(key.node_id)
        with trio.move_on_after(20):
            for number in range(1, 4 * STREAMS_PER_PEER_MAX, 2):
                await channel.write(opened_for(number, "/test/never/1"))
                for _ in range(4):
                    await channel.write(yamux.data_frame(number, bytes(60_000)))
        await still_serves(member, victim.node_id)
        assert memory() - before < 64 * MIB


async def test_a_stranger_that_fills_its_windows_is_cut_off_early(
    victim: Link, member: Link
) -> None:
    victim.accept("/test/never/1", never_read)
    async with attacker(victim) as channel:
        with trio.fail_after(2), pytest.raises(Exception, match=r".*"):
            for number in range(1, 9, 2):
                await channel.write(opened_for(number, "/test/never/1"))
                await channel.write(yamux.data_frame(number, bytes(1_000)) * 250)
            while True:
                await channel.read()
    await still_serves(member, victim.node_id)


async def test_a_peer_that_asks_for_answers_and_reads_none_is_cut_off(
    victim: Link, member: Link
) -> None:
    before = memory()
    key = new_key()
    async with attacker(victim, key) as channel:
        await until(lambda: key.node_id in victim.connected())
        victim.admit(key.node_id)
        pings = yamux.frame(yamux.PING, yamux.SYN, 0, 1) * 5_000
        with trio.fail_after(20), pytest.raises(Exception, match=r".*"):
            while True:
                await channel.write(pings)
    assert memory() - before < 32 * MIB
    await still_serves(member, victim.node_id)


# --- 4. crowds at the door --------------------------------------------------------------------


@contextmanager
def crowd(port: int, size: int, ips: list[str]) -> Iterator[list[socket.socket]]:
    """`size` TCP connections that say nothing, from each of `ips` in turn."""
    sockets: list[socket.socket] = []
    try:
        for number in range(size):
            one = socket.socket()
            one.setblocking(False)
            one.bind((ips[number % len(ips)], 0))
            one.connect_ex(("127.0.0.1", port))
            sockets.append(one)
        yield sockets
    finally:
        for one in sockets:
            one.close()


async def test_a_thousand_silent_connections_keep_nobody_out(victim: Link, member: Link) -> None:
    with crowd(port_of(victim), 1_000, ["127.0.0.2"]):
        await until(lambda: door_of(victim) == UNPROVEN_CONNECTIONS_PER_IP_MAX)
        async with open_libp2p_link(new_key(), []) as honest:
            with trio.fail_after(HELLO_S_MAX):
                await befriend(honest, victim)
            await still_serves(honest, victim.node_id)
        assert door_of(victim) <= UNPROVEN_CONNECTIONS_PER_IP_MAX
        await still_serves(member, victim.node_id)
        # They hold their places for HELLO_S_MAX at most.
        await until(lambda: door_of(victim) == 0, seconds=7)


async def test_a_crowd_from_many_addresses_is_bounded_and_a_known_member_comes_back(
    victim: Link, member: Link
) -> None:
    ips = [f"127.0.1.{number}" for number in range(1, 21)]
    with crowd(port_of(victim), 600, ips):
        await until(lambda: door_of(victim) == UNPROVEN_CONNECTIONS_MAX)
        await member.disconnect(victim.node_id)
        await until(lambda: not victim.connected())
        with trio.fail_after(HELLO_S_MAX):
            await befriend(member, victim)
        assert door_of(victim) <= UNPROVEN_CONNECTIONS_MAX
        await still_serves(member, victim.node_id)


async def test_a_member_at_the_address_of_a_silent_crowd_gets_in(victim: Link) -> None:
    with crowd(port_of(victim), 200, ["127.0.0.1"]):
        await until(lambda: door_of(victim) == UNPROVEN_CONNECTIONS_PER_IP_MAX)
        async with open_libp2p_link(new_key(), []) as honest:
            with trio.fail_after(HELLO_S_MAX):
                await befriend(honest, victim)
            await still_serves(honest, victim.node_id)


async def test_one_node_does_not_hold_more_connections_than_it_may(
    victim: Link, member: Link
) -> None:
    key = new_key()
    async with attacker(victim, key) as first:
        await until(lambda: key.node_id in victim.connected())
        victim.admit(key.node_id)
        async with attacker(victim, key), attacker(victim, key):
            assert await is_cut_off(first)
            assert victim.connected() == {member.node_id, key.node_id}


# --- 5. streams -------------------------------------------------------------------------------


def resets(frames: bytes) -> int:
    return sum(
        piece.kind == yamux.WINDOW_UPDATE and bool(piece.flags & yamux.RST)
        for piece in yamux.FrameReader().feed(frames)
    )


@pytest.mark.parametrize("admitted", [False, True])
async def test_streams_beyond_the_bound_are_reset_at_once(
    victim: Link, member: Link, admitted: bool
) -> None:
    key = new_key()
    async with attacker(victim, key) as channel:
        await until(lambda: key.node_id in victim.connected())
        if admitted:
            victim.admit(key.node_id)
        await channel.write(b"".join(opened(number) for number in range(1, 401, 2)))
        await channel.write(yamux.frame(yamux.PING, yamux.SYN, 0, 1))
        received = b""
        with trio.fail_after(5):
            while yamux.frame(yamux.PING, yamux.ACK, 0, 1) not in received:
                received += await channel.read()
        kept = STREAMS_PER_PEER_MAX if admitted else UNPROVEN_STREAMS_MAX
        assert resets(received) == 200 - kept
        await still_serves(member, victim.node_id)


async def test_streams_that_are_reset_at_once_do_not_pile_up_handlers(
    victim: Link, member: Link
) -> None:
    running = most = 0

    async def busy(stream: Stream) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            with trio.move_on_after(0.2):
                await trio.sleep_forever()
        finally:
            running -= 1

    victim.accept("/b", busy)
    key = new_key()
    asked = b"\x13/multistream/1.0.0\n\x03/b\n"
    async with attacker(victim, key) as channel:
        await until(lambda: key.node_id in victim.connected())
        victim.admit(key.node_id)
        for number in range(1, 1_001, 2):
            reset = yamux.frame(yamux.WINDOW_UPDATE, yamux.RST, number, 0)
            await channel.write(opened(number) + yamux.data_frame(number, asked) + reset)
        await still_serves(member, victim.node_id)
    assert most <= STREAMS_PER_PEER_MAX


async def test_coming_back_does_not_allow_a_second_set_of_handlers(
    victim: Link, member: Link
) -> None:
    handling = 0

    async def hold(stream: Stream) -> None:
        nonlocal handling
        handling += 1
        await trio.sleep_forever()

    victim.accept("/test/hold/1", hold)
    key = new_key()
    for _ in range(3):
        async with attacker(victim, key) as channel:
            await until(lambda: key.node_id in victim.connected())
            victim.admit(key.node_id)
            asked = [opened_for(number, "/test/hold/1") for number in range(1, 129, 2)]
            await channel.write(b"".join(asked) + yamux.frame(yamux.PING, yamux.SYN, 0, 1))
            received = b""
            with trio.fail_after(5):
                while yamux.frame(yamux.PING, yamux.ACK, 0, 1) not in received:
                    received += await channel.read()
        await until(lambda: key.node_id not in victim.connected())
    assert handling <= STREAMS_PER_PEER_MAX
    await still_serves(member, victim.node_id)


async def test_a_protocol_name_that_is_announced_too_long_is_not_waited_for(
    victim: Link, member: Link
) -> None:
    key = new_key()
    async with attacker(victim, key) as channel:
        await until(lambda: key.node_id in victim.connected())
        victim.admit(key.node_id)
        # A name of 100,000 bytes, of which none is sent.
        await channel.write(opened(1) + yamux.data_frame(1, b"\xa0\x8d\x06"))
        received = b""
        with trio.fail_after(2):
            while not resets(received):
                received += await channel.read()
    await still_serves(member, victim.node_id)


# --- 6. addresses -----------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
async def test_a_port_that_another_program_has_is_refused_even_if_it_shares_it(
    shared: bool,
) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(AddressInUseError, match=str(port)) as caught:
            async with open_libp2p_link(new_key(), [*HERE, ("127.0.0.1", port)]):
                pass
        assert str(port) in (caught.value.hint or "")


async def test_an_address_of_another_computer_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError):
        async with open_libp2p_link(new_key(), [("203.0.113.7", 0)]):
            pass


async def test_a_wildcard_is_told_as_concrete_addresses_after_the_advertised_ones() -> None:
    key = new_key()
    told = ["lab.example:20432", "[2001:db8::1]:9", "/ip4/203.0.113.5/tcp/7"]
    async with open_libp2p_link(key, [("0.0.0.0", 0)], told) as link:
        peer = key.node_id.peer_id
        assert link.addresses[:3] == (
            f"/dns/lab.example/tcp/20432/p2p/{peer}",
            f"/ip6/2001:db8::1/tcp/9/p2p/{peer}",
            f"/ip4/203.0.113.5/tcp/7/p2p/{peer}",
        )
        assert all("/0.0.0.0/" not in address for address in link.addresses)
        assert "/tcp/0/" not in link.addresses[3]
        async with open_libp2p_link(new_key(), []) as other:
            assert await other.connect(link.addresses[3]) == key.node_id


@pytest.mark.parametrize("text", ["lab.example", "a b:1", ":1", "/ip4/1.2.3.4", "x:0", "x:70000"])
async def test_nonsense_is_not_advertised(text: str) -> None:
    with pytest.raises(ConfigError):
        async with open_libp2p_link(new_key(), HERE, [text]):
            pass


# --- 8, 9, 10. peers that stop, die, are not there yet; and leaving ------------------------------

NODE = """
import os, sys, trio
from kachery_p2p.identity.keys import NodeKey
from kachery_p2p.network.libp2p_host import open_libp2p_link

async def swallow(stream):
    while await stream.receive_some(1 << 20):
        pass

async def main():
    async with open_libp2p_link(NodeKey.generate(os.urandom(64)), [("127.0.0.1", 0)]) as link:
        link.accept("/test/swallow/1", swallow)
        print(link.addresses[0], flush=True)
        while True:
            for node in link.connected():
                link.admit(node)
            await trio.sleep(0.01)

trio.run(main)
"""


@asynccontextmanager
async def process() -> AsyncIterator[tuple[subprocess.Popen[str], str]]:
    """A node in a process of its own, and its address."""
    child = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", NODE], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        yield child, (await trio.to_thread.run_sync(child.stdout.readline)).strip()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.mark.processes
async def test_a_stopped_process_is_a_timeout_and_is_left_promptly(
    victim: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REQUEST_S_MAX", 0.5)
    async with process() as (child, address):
        node = await victim.connect(address)
        victim.admit(node)
        stream = await victim.open_stream(node, "/test/swallow/1")
        child.send_signal(signal.SIGSTOP)
        with trio.fail_after(2), pytest.raises(PeerTimeoutError):
            await victim.open_stream(node, "/test/swallow/1")
        # Fill every buffer on the way, so that not even a goodbye gets through.
        with trio.move_on_after(0.5) as stuck:
            await stream.send_all(bytes(64 * MIB))
        assert stuck.cancelled_caught
        with trio.fail_after(2):
            await victim.disconnect(node)
        assert node not in victim.connected()
        with pytest.raises(PeerGoneError):
            await stream.send_all(b"x")


@pytest.mark.processes
async def test_a_killed_process_is_noticed_within_a_second(victim: Link) -> None:
    async with process() as (child, address):
        node = await victim.connect(address)
        victim.admit(node)
        stream = await victim.open_stream(node, "/test/swallow/1")
        gone = trio.Event()
        victim.on_disconnected(lambda _: gone.set())
        child.kill()
        with trio.fail_after(1):
            await gone.wait()
        with pytest.raises(PeerGoneError):
            await stream.receive_some(1)


async def test_a_node_that_was_not_there_is_reached_as_soon_as_it_is(victim: Link) -> None:
    key = new_key()
    async with open_libp2p_link(key, HERE) as early:
        address = early.addresses[0]
        port = port_of(early)
    for _ in range(3):
        with trio.fail_after(1), pytest.raises(PeerUnreachableError):
            await victim.connect(address)
    async with open_libp2p_link(key, [("127.0.0.1", port)]):
        with trio.fail_after(1):
            assert await victim.connect(address) == key.node_id


async def test_an_address_where_nobody_answers_is_given_up(
    victim: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "DIAL_S_MAX", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with trio.fail_after(2), pytest.raises(PeerUnreachableError):
            await victim.connect(f"/ip4/127.0.0.1/tcp/{port}/p2p/{new_key().node_id.peer_id}")


@pytest.mark.processes
async def test_leaving_frees_the_port_and_every_descriptor_even_with_a_stopped_peer() -> None:
    before = psutil.Process().num_fds()
    async with process() as (child, address):
        started = trio.current_time()
        async with open_libp2p_link(new_key(), HERE) as link:
            port = port_of(link)
            node = await link.connect(address)
            link.admit(node)
            stream = await link.open_stream(node, "/test/swallow/1")
            child.send_signal(signal.SIGSTOP)
            with trio.move_on_after(0.3):
                await stream.send_all(bytes(64 * MIB))
            started = trio.current_time()
        assert trio.current_time() - started < 2
    with socket.create_server(("127.0.0.1", port)):
        pass
    assert psutil.Process().num_fds() <= before
