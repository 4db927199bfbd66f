"""The local network: members recognise each other, strangers learn nothing, junk is bounded."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.channels.channel import Channel
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeId, NodeKey
from kachery_p2p.limits import (
    ADDRESSES_PER_NODE_MAX,
    NEIGHBOUR_TAGS_GROUP,
    NEIGHBOUR_TAGS_MAX,
    NEIGHBOURS_AT_ONCE_MAX,
    NEIGHBOURS_LEAVE_S_MAX,
    NEIGHBOURS_MAX,
    NEIGHBOURS_NOTED_S,
    NEIGHBOURS_PER_S_MAX,
    NEIGHBOURS_REFRESH_S,
)
from kachery_p2p.network.discovery import AddressBook
from kachery_p2p.network.mdns import LocalNetwork, Publication, Responder, _service_info
from kachery_p2p.network.multiaddrs import address_of
from kachery_p2p.network.neighbours import (
    SERVICE_TYPE,
    TAG_BYTES,
    Advert,
    Allowance,
    Neighbours,
    blinded_tag,
    blinded_tags,
    host_of,
    name_of,
    padding_of,
    reachable_at,
)
from kachery_p2p.wire.rendezvous import days_at

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors/rendezvous.json").read_text()
)
NODE = NodeId(VECTORS["node_id"])
DAY: int = VECTORS["day"]
KEYS = [bytes.fromhex(key) for key in VECTORS["txt"]["discovery_keys"]]
PADDING = bytes.fromhex(VECTORS["txt"]["padding"])
LOOPBACK = ["127.0.0.1"]


def node(number: int) -> NodeId:
    return NodeId.of_raw(number.to_bytes(32, "big"))


def advert(number: int = 1, *keys: bytes, host: str = "192.0.2.1") -> Advert:
    who = node(number)
    tags = blinded_tags(who, keys, [DAY], lambda day: PADDING)
    return Advert(who, tags, (str(address_of(host, 20432, who)),))


# --- what is told ---------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["neighbours"])
def test_blinded_tags_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    key, who = bytes.fromhex(vector["discovery_key"]), NodeId(vector["node_id"])
    assert blinded_tag(key, vector["day"], who).hex() == vector["tag"]


def test_the_txt_record_is_that_of_the_vectors() -> None:
    tags = blinded_tags(NODE, KEYS, [DAY], lambda day: PADDING)
    assert [tag.hex() for tag in tags] == VECTORS["txt"]["tags"]
    address = str(address_of("192.0.2.7", 20432, NODE))
    properties = Advert(NODE, tags, (address,)).properties()
    strings = [(key + b"=" + value).hex() for key, value in properties.items()]
    assert strings == VECTORS["txt"]["strings"]
    assert Advert.heard(properties, ["192.0.2.7"], 20432) == Advert(NODE, tags, (address,))


@pytest.mark.parametrize("channels", [0, 1, 3, 4, 5, 63, 64, 100])
def test_tags_are_padded_bounded_and_survive_the_txt_record(channels: int) -> None:
    keys = [number.to_bytes(32, "big") for number in range(channels)]
    tags = blinded_tags(NODE, keys, [DAY, DAY + 1], partial(padding_of, b"secret"))
    assert tags and len(tags) % NEIGHBOUR_TAGS_GROUP == 0 and len(tags) <= NEIGHBOUR_TAGS_MAX
    assert list(tags) == sorted(set(tags))
    told = Advert(NODE, tags, ())
    assert all(len(k) + 1 + len(v) <= 255 for k, v in told.properties().items())
    heard = Advert.heard(told.properties(), ["192.0.2.7"], 1)
    assert heard is not None and heard.tags == tags
    assert heard.is_of_member(keys[:64], [DAY]) == bool(channels)


async def test_what_two_adverts_of_a_node_have_in_common_does_not_tell_which_tags_are_real() -> (
    None
):
    """A new address, and midnight: what stayed was once what is real."""
    alice = Neighbour(1, [])
    told = [
        set(alice.network._publication(KEYS[:3], days, [f"/ip4/192.0.2.{n}/tcp/1"]).advert.tags)
        for n, days in enumerate([(DAY,), (DAY,), (DAY, DAY + 1), (DAY + 1,)])
    ]
    first, again, both, next_day = told
    assert first == again and len(first) == NEIGHBOUR_TAGS_GROUP
    assert both == first | next_day and len(both) == 2 * NEIGHBOUR_TAGS_GROUP


def test_two_members_have_no_tag_in_common_nor_has_one_on_two_days() -> None:
    key = KEYS[:1]
    seen = [
        set(blinded_tags(node(n), key, [day], partial(padding_of, os.urandom(32))))
        for n in (1, 2)
        for day in (DAY, DAY + 1)
    ]
    assert len(set.union(*seen)) == sum(len(tags) for tags in seen)


def test_only_who_has_the_channels_key_recognises_a_member() -> None:
    lab, other_lab = (Channel.shared(s * 20, "lab") for s in (b"L", b"O"))
    told = advert(1, lab.discovery_key)
    assert told.is_of_member([other_lab.discovery_key, lab.discovery_key], [DAY - 1, DAY])
    assert not told.is_of_member([other_lab.discovery_key], [DAY])
    assert not told.is_of_member([lab.discovery_key], [DAY + 1])
    assert not told._replace(node=node(2)).is_of_member([lab.discovery_key], [DAY])


def test_only_addresses_that_a_neighbour_can_dial_are_told() -> None:
    told = [
        str(address_of(host, port, NODE))
        for host, port in [
            ("node-a.example", 1),
            ("127.0.0.1", 2),
            ("192.0.2.1", 3),
            ("2001:db8::1", 3),
            ("192.0.2.2", 4),
        ]
    ]
    assert reachable_at(["junk", *told]) == (("192.0.2.1", "2001:db8::1"), 3)
    assert reachable_at(told[:2]) == ((), None)


# --- what is heard --------------------------------------------------------------------------------


GOOD = advert(1, KEYS[0]).properties()


@pytest.mark.parametrize(
    "change",
    [
        {b"v": b"2"},
        {b"v": None},
        {b"id": None},
        {b"id": b""},
        {b"id": b"\xff" * 64},
        {b"id": b"0" * 63},
        {b"id": b"1" * 250},
        {b"t0": None},
        {b"t0": b""},
        {b"t0": bytes(63)},
        {b"t1": bytes(65)},
    ],
)
def test_a_txt_record_that_is_none_of_ours_is_not_heard(change: dict[bytes, bytes | None]) -> None:
    assert Advert.heard(GOOD, ["192.0.2.1"], 20432) is not None
    assert Advert.heard({**GOOD, **change}, ["192.0.2.1"], 20432) is None


@pytest.mark.parametrize("port", [None, 0, -1, 65536])
def test_a_port_that_is_none_is_not_heard(port: int | None) -> None:
    assert Advert.heard(GOOD, ["192.0.2.1"], port) is None


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.251", "ff02::fb", "fe80::1", "fe80::1%eth0"]
    + ["::ffff:127.0.0.1", "255.255.255.255", "example.org", "1.2.3.4/../", ""],
)
def test_nobody_can_make_us_knock_at_this_computer_or_at_no_address(host: str) -> None:
    assert Advert.heard(GOOD, [host], 20432) is None


def test_a_neighbour_with_a_thousand_tags_and_addresses_has_as_many_as_there_may_be() -> None:
    groups = {b"t%d" % n: os.urandom(64) for n in range(1000)}
    hosts = [f"192.0.2.{n}" for n in range(256)]
    heard = Advert.heard({**GOOD, **groups}, hosts, 1)
    assert heard is not None
    assert len(heard.tags) == NEIGHBOUR_TAGS_MAX
    assert len(heard.addresses) == ADDRESSES_PER_NODE_MAX


def test_a_million_neighbours_are_bounded_and_the_newest_are_remembered() -> None:
    neighbours = Neighbours(node(0))
    told = advert(1)
    for number in range(1, 100_000):
        assert neighbours.hear(told._replace(node=node(number % 5000 + 1)))
    assert len(neighbours) == NEIGHBOURS_MAX
    assert neighbours.hear(advert(9_999, KEYS[0]))
    assert [a.node for a in neighbours.members([KEYS[0]], [DAY])] == [node(9_999)]


def test_what_is_known_already_is_no_news_nor_is_what_this_node_says_itself() -> None:
    neighbours = Neighbours(node(1))
    assert not neighbours.hear(advert(1))
    assert [neighbours.hear(advert(2)) for _ in range(3)] == [True, False, False]
    assert neighbours.hear(advert(2, host="192.0.2.99"))


def test_a_flood_is_heard_at_the_rate_that_is_allowed_and_a_lab_at_once() -> None:
    allowance = Allowance(0.0)
    assert sum(allowance.spend(0.0) for _ in range(1000)) == NEIGHBOURS_AT_ONCE_MAX
    heard = sum(allowance.spend(n / 1000) for n in range(10_000))
    assert abs(heard - 10 * NEIGHBOURS_PER_S_MAX) <= 1
    assert sum(allowance.spend(1e6) for _ in range(1000)) == NEIGHBOURS_AT_ONCE_MAX


# --- with zeroconf, on this computer's loopback ---------------------------------------------------


@pytest.fixture(scope="module")
def multicast() -> None:
    """Skips where this computer does not carry multicast over loopback."""
    group = socket.inet_aton("224.0.0.251") + socket.inet_aton("127.0.0.1")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth,
    ):
        try:
            ear.bind(("224.0.0.251", 0))
            ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            ear.settimeout(2)
            loopback = socket.inet_aton("127.0.0.1")
            mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
            mouth.sendto(b"kp2p", ("224.0.0.251", ear.getsockname()[1]))
            ear.recv(16)
        except OSError as error:
            pytest.skip(f"no multicast over loopback: {error}")


class Neighbour:
    """A node's part of the local network: loopback, where only these tests are."""

    def __init__(self, number: int, channels: Sequence[Channel]) -> None:
        self.key = NodeKey.generate(os.urandom(NODE_KEY_BYTES))
        self.address = str(address_of(f"192.0.2.{number}", 20432, self.key.node_id))
        self.book = AddressBook(self.key.node_id)
        self.channels = list(channels)
        self.found = trio.Event()
        self.network = LocalNetwork(
            self.key.node_id,
            self.book,
            addresses=lambda: [self.address],
            discovery_keys=lambda: [channel.discovery_key for channel in self.channels],
            found=self.found.set,
            secret=self.key.exchange_secret,
            interfaces=LOOPBACK,
        )

    def knows(self) -> dict[NodeId, tuple[str, ...]]:
        return {who: contact.addresses for who, contact in self.book._contacts.items()}

    def introduction(self) -> dict[NodeId, tuple[str, ...]]:
        return {self.key.node_id: (self.address,)}


def fresh_channel(name: str = "lab") -> Channel:
    return Channel.shared(os.urandom(20), name)


async def until(true: Callable[[], bool], seconds: float = 10) -> None:
    with trio.fail_after(seconds):
        while not true():  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_members_on_one_network_meet_and_two_labs_that_are_called_lab_do_not(
    multicast: None,
) -> None:
    lab, other_lab = fresh_channel(), fresh_channel()
    alice, bob, mallory = Neighbour(1, [lab]), Neighbour(2, [lab]), Neighbour(3, [other_lab])
    everybody = (alice, bob, mallory)
    async with trio.open_nursery() as nursery:
        for one in everybody:
            nursery.start_soon(one.network.run)
        with trio.fail_after(10):
            await alice.found.wait()
            await bob.found.wait()
        # All have heard each other, friend or not, so nobody is missing for lack of time.
        await until(lambda: all(len(one.network._neighbours) >= 2 for one in everybody))
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began < NEIGHBOURS_LEAVE_S_MAX + 0.2
    assert alice.knows() == bob.introduction()
    assert bob.knows() == alice.introduction()
    assert mallory.knows() == {}


async def test_a_channel_that_is_joined_later_is_told_and_looked_for_at_once(
    multicast: None,
) -> None:
    lab = fresh_channel()
    alice, bob = Neighbour(1, [lab]), Neighbour(2, [])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.network.run)
        nursery.start_soon(bob.network.run)
        await until(lambda: alice.key.node_id in bob.network._neighbours._heard)
        assert bob.knows() == {}
        bob.channels.append(lab)
        bob.network.wake()
        with trio.fail_after(10):
            await bob.found.wait()
            await alice.found.wait()
        nursery.cancel_scope.cancel()
    assert bob.knows() == alice.introduction()
    assert alice.knows() == bob.introduction()


async def test_who_copies_a_members_tags_is_not_taken_for_it_under_its_own_id(
    multicast: None,
) -> None:
    from zeroconf.asyncio import AsyncServiceInfo

    lab = fresh_channel()
    alice, bob, thief = Neighbour(1, [lab]), Neighbour(2, [lab]), Neighbour(3, [])

    def steal(keys: Any, days: Any, addresses: Sequence[str]) -> Publication:
        tags = blinded_tags(alice.key.node_id, [lab.discovery_key], days, lambda day: PADDING)
        return Publication(
            Advert(thief.key.node_id, tags, tuple(addresses)), *reachable_at(addresses)
        )

    thief.network._publication = steal  # type: ignore[method-assign]
    assert isinstance(_service_info(steal([], [DAY], [thief.address])), AsyncServiceInfo), (
        "what is told is what zeroconf takes"
    )
    async with trio.open_nursery() as nursery:
        for one in (thief, bob):
            nursery.start_soon(one.network.run)
        await until(lambda: thief.key.node_id in bob.network._neighbours._heard)
        nursery.start_soon(alice.network.run)
        await until(lambda: bool(bob.knows()))
        nursery.cancel_scope.cancel()
    assert bob.knows() == alice.introduction()


# Each name of which zeroconf says that it is none, in the browser's callback.
NO_NAMES = [
    "x.example.org.",
    f"a\x01b.{SERVICE_TYPE}",
    f"_sub.{SERVICE_TYPE}",
    f"y.{SERVICE_TYPE.upper()}",
    "local.",
]


@pytest.mark.parametrize("name", NO_NAMES)
async def test_a_pointer_to_a_name_that_is_none_does_not_end_local_discovery(
    multicast: None, name: str
) -> None:
    """Once it took one packet, and nobody was heard until the next start."""
    lab = fresh_channel()
    alice, bob, carol = (Neighbour(n, [lab]) for n in (1, 2, 3))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.network.run)
        nursery.start_soon(carol.network.run)
        # Who has heard carol listens, so it hears what follows, and bob after it.
        await until(lambda: alice.knows() == carol.introduction())
        await trio.to_thread.run_sync(shout_pointer, name)
        nursery.start_soon(bob.network.run)
        await until(lambda: alice.knows() == {**carol.introduction(), **bob.introduction()})
        nursery.cancel_scope.cancel()


def shout_pointer(name: str) -> None:
    """One packet: an instance of our service is called `name`."""
    from zeroconf._dns import DNSPointer
    from zeroconf._protocol.outgoing import DNSOutgoing
    from zeroconf.const import _CLASS_IN, _FLAGS_AA, _FLAGS_QR_RESPONSE, _TYPE_PTR

    out = DNSOutgoing(_FLAGS_QR_RESPONSE | _FLAGS_AA)
    out.add_answer_at_time(DNSPointer(SERVICE_TYPE, _TYPE_PTR, _CLASS_IN, 4500, name), 0)
    shout(out.packets())


# How soon depends on what else the computer does: not for every run.
@pytest.mark.soak
async def test_junk_and_floods_leave_the_node_bounded_and_it_meets_members_afterwards(
    multicast: None,
) -> None:
    lab = fresh_channel()
    alice, bob = Neighbour(1, [lab]), Neighbour(2, [lab])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.network.run)
        await until(lambda: alice.network._wake.statistics().tasks_waiting == 1)
        await trio.to_thread.run_sync(shout_junk)
        await until(lambda: len(alice.network._neighbours) > 8, 30)
        assert len(alice.network._neighbours) <= NEIGHBOURS_MAX
        # 256 names may have been missed and wait to be looked up, 16 a second.
        nursery.start_soon(bob.network.run)
        with trio.fail_after(40):
            await alice.found.wait()
            await bob.found.wait()
        nursery.cancel_scope.cancel()
    assert set(alice.knows()) == {bob.key.node_id}


def shout_junk() -> None:
    """Packets that are none, and a thousand neighbours that lie."""
    from zeroconf._dns import DNSAddress, DNSPointer, DNSService, DNSText
    from zeroconf._protocol.outgoing import DNSOutgoing
    from zeroconf.const import (
        _CLASS_IN,
        _FLAGS_AA,
        _FLAGS_QR_RESPONSE,
        _TYPE_A,
        _TYPE_PTR,
        _TYPE_SRV,
        _TYPE_TXT,
    )

    packets = [os.urandom(size) for size in range(0, 1400, 9)]
    for number in range(1000):
        who = NodeId.of_raw(os.urandom(32))
        name = name_of(who)
        out = DNSOutgoing(_FLAGS_QR_RESPONSE | _FLAGS_AA)
        out.add_answer_at_time(DNSPointer(SERVICE_TYPE, _TYPE_PTR, _CLASS_IN, 120, name), 0)
        service = DNSService(name, _TYPE_SRV, _CLASS_IN, 120, 0, 0, number, host_of(who))
        out.add_answer_at_time(service, 0)
        lie = b"\x03v=1" + bytes([67]) + b"id=" + os.urandom(32).hex().encode()
        lie += bytes([67]) + b"t0=" + os.urandom(64 if number % 2 else 3)
        host = DNSAddress(host_of(who), _TYPE_A, _CLASS_IN, 120, bytes([192, 0, 2, number % 250]))
        out.add_answer_at_time(host, 0)
        out.add_answer_at_time(DNSText(name, _TYPE_TXT, _CLASS_IN, 120, lie), 0)
        packets += out.packets()
    shout(packets)


def shout(packets: Sequence[bytes]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
        loopback = socket.inet_aton("127.0.0.1")
        mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
        for packet in packets:
            mouth.sendto(packet, ("224.0.0.251", 5353))


ALONE = """
import logging, os, sys, trio
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.network import mdns
from kachery_p2p.network.discovery import AddressBook

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
mdns.NEIGHBOURS_RETRY_S = 0.05
me = NodeId("11" * 32)
network = mdns.LocalNetwork(
    me, AddressBook(me), addresses=list, discovery_keys=list, found=print, secret=bytes(32)
)

async def main():
    with trio.move_on_after(1):
        await network.run()
    print("ended")

trio.run(main)
"""


def test_a_computer_without_a_network_gets_one_line_in_the_log_and_goes_on() -> None:
    unshare = ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this computer makes no network namespaces for us")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=60
    )
    first, last = done.stdout.splitlines()
    assert first.startswith("members on the local network are not looked for: ")
    assert last == "ended"
    assert done.returncode == 0 and not done.stderr


async def test_a_responder_that_fails_is_told_of_once_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = trio.Event()
    tries = 0

    async def fail(responder: object) -> str:
        nonlocal tries
        tries += 1
        if tries == 3:
            tried.set()
        await trio.lowlevel.checkpoint()
        return "no such device"

    monkeypatch.setattr("kachery_p2p.network.mdns.Responder.live", fail)
    monkeypatch.setattr("kachery_p2p.network.mdns.NEIGHBOURS_RETRY_S", 0.01)
    with caplog.at_level(logging.INFO, logger="kachery_p2p.network.mdns"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Neighbour(1, []).network.run)
            with trio.fail_after(5):
                await tried.wait()
            nursery.cancel_scope.cancel()
    assert [record.getMessage() for record in caplog.records] == [
        "members on the local network are not looked for: no such device"
    ]


def test_zeroconf_is_not_imported_before_the_local_network_is_entered() -> None:
    code = "import sys, kachery_p2p.network.mdns; print('zeroconf' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\n"


def test_every_tag_has_the_size_that_the_protocol_says() -> None:
    assert TAG_BYTES == 16
    assert all(len(tag) == TAG_BYTES for tag in advert(1, *KEYS).tags)


def test_only_what_a_node_can_have_told_is_kept() -> None:
    """Else one host with 9,000 services of strangers, and a packet of addresses, cost 6 seconds."""
    from zeroconf._dns import DNSAddress, DNSPointer, DNSService, DNSText
    from zeroconf.const import _CLASS_IN, _TYPE_A, _TYPE_PTR, _TYPE_SRV, _TYPE_TXT

    from kachery_p2p.network.mdns_records import is_kept

    def pointer(name: str, service: str = SERVICE_TYPE) -> DNSPointer:
        return DNSPointer(service, _TYPE_PTR, _CLASS_IN, 60, name)

    def service(name: str, host: str) -> DNSService:
        return DNSService(name, _TYPE_SRV, _CLASS_IN, 60, 0, 0, 1, host)

    def host(name: str) -> DNSAddress:
        return DNSAddress(name, _TYPE_A, _CLASS_IN, 60, bytes([192, 0, 2, 1]))

    def text(name: str) -> DNSText:
        return DNSText(name, _TYPE_TXT, _CLASS_IN, 60, b"\x03v=1")

    ours, theirs = name_of(NODE), host_of(NODE)
    told = [pointer(ours), service(ours, theirs), host(theirs), text(ours)]
    assert all(is_kept(record) for record in told)
    names = [*NO_NAMES, "\ufffd" * 63 + f".{SERVICE_TYPE}", f"{NODE}.{SERVICE_TYPE}", f"x.{ours}"]
    assert not any(is_kept(pointer(name)) or is_kept(text(name)) for name in names)
    assert not is_kept(pointer(ours, SERVICE_TYPE.upper()))
    assert not any(is_kept(service(name, theirs)) for name in names)
    assert not any(is_kept(service(ours, name)) for name in ["x.local.", host_of(node(9))])
    assert not any(is_kept(host(name)) for name in ["x.local.", ours, theirs.upper()])


class Heard:
    """A zeroconf that hears what it is told here; 63 ! stand for bytes that are no UTF-8."""

    def __init__(self) -> None:
        from zeroconf.asyncio import AsyncZeroconf

        from kachery_p2p.network.mdns_records import Browsing

        self.names: list[str] = []
        self.zeroconf = AsyncZeroconf(interfaces=LOOPBACK).zeroconf
        self.browsing = Browsing(self.zeroconf, self.names.append)

    def hear(self, *names: str, service: str = SERVICE_TYPE, ttl: int = 4500) -> None:
        from zeroconf._dns import DNSPointer
        from zeroconf._protocol.incoming import DNSIncoming
        from zeroconf._protocol.outgoing import DNSOutgoing
        from zeroconf.const import _CLASS_IN, _FLAGS_AA, _FLAGS_QR_RESPONSE, _TYPE_PTR

        out = DNSOutgoing(_FLAGS_QR_RESPONSE | _FLAGS_AA)
        for name in names:
            out.add_answer_at_time(DNSPointer(service, _TYPE_PTR, _CLASS_IN, ttl, name), 0)
        for packet in out.packets():
            made = DNSIncoming(packet.replace(b"!" * 63, b"\xff" * 63))
            self.zeroconf.record_manager.async_updates_from_response(made)

    def pointers(self) -> set[str]:
        kept = self.zeroconf.cache.async_entries_with_name(SERVICE_TYPE)
        return {record.alias for record in kept}  # type: ignore[attr-defined]


def in_a_responder(work: Callable[[Heard], Awaitable[None]]) -> None:
    async def main() -> None:
        heard = Heard()
        try:
            await work(heard)
            await asyncio.sleep(0)
        finally:
            await heard.zeroconf._async_close()

    asyncio.run(main())


def test_of_a_name_that_is_none_nothing_is_said_again(multicast: None) -> None:
    """63 bytes that are no UTF-8 are 189 when they are said again: zeroconf asked nothing more."""
    from zeroconf import DNSQuestionType
    from zeroconf._services.browser import generate_service_query

    async def work(heard: Heard) -> None:
        poison = "!" * 63 + f".{SERVICE_TYPE}"
        heard.hear(poison)  # Before anybody looks, too.
        await heard.zeroconf.async_wait_for_start()
        heard.browsing.begin()
        good = [name_of(node(n)) for n in (1, 2)]
        heard.hear(poison, *good)
        heard.hear(poison, service=SERVICE_TYPE.upper())
        assert heard.names == good
        assert heard.pointers() == set(good)
        now = time.monotonic() * 1000
        qm = DNSQuestionType.QM
        questions = generate_service_query(heard.zeroconf, now, {SERVICE_TYPE}, True, qm)
        assert all(len(packet) < 1500 for q in questions for packet in q.packets())
        heard.browsing.forget(good[0])
        assert heard.pointers() == {good[1]}

    in_a_responder(work)


def test_ever_new_names_are_not_planned_for_without_bound(
    multicast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each cost memory for as long as its packet said, which may be 68 years."""
    monkeypatch.setattr("kachery_p2p.network.mdns_records.NEIGHBOUR_POINTERS_MAX", 100)

    async def work(heard: Heard) -> None:
        await heard.zeroconf.async_wait_for_start()
        heard.browsing.begin()
        first = heard.browsing._browser
        for number in range(0, 90, 10):
            heard.hear(*(f"{number + n}.{SERVICE_TYPE}" for n in range(10)), ttl=0x7FFFFFFF)
        assert heard.browsing._browser is first
        for ttl in range(200, 220):
            heard.hear(name_of(node(1)), ttl=ttl)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert heard.browsing._browser is not first
        assert first is not None and first.done
        heard.hear(name_of(node(2)))
        assert heard.names[-1] == name_of(node(2)), "and it goes on"

    in_a_responder(work)


def test_of_more_names_than_are_remembered_zeroconf_forgets_the_first(
    multicast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.network.mdns.NEIGHBOURS_MAX", 4)

    async def work(heard: Heard) -> None:
        await heard.zeroconf.async_wait_for_start()
        heard.browsing.begin()
        responder = object.__new__(Responder)
        responder._browsing = heard.browsing
        looked_up: OrderedDict[str, None] = OrderedDict()
        names = [name_of(node(n)) for n in range(1, 10)]
        heard.hear(*names)
        for name in [*names, names[-4]]:
            responder._remember(name, looked_up)
        assert heard.pointers() == set(names[-4:])
        assert list(looked_up) == [*names[-3:], names[-4]]

    in_a_responder(work)


async def test_a_member_that_the_book_forgot_is_in_it_again_without_a_new_packet(
    autojump_clock: MockClock,
) -> None:
    """Once it came back at midnight, when its tags were new."""
    lab = fresh_channel()
    alice, who = Neighbour(1, [lab]), node(7)
    days = days_at(time.time())
    tags = blinded_tags(who, [lab.discovery_key], days, lambda day: PADDING)
    told = Advert(who, tags, (str(address_of("192.0.2.7", 20432, who)),))

    hand_over, heard = trio.open_memory_channel[Advert](1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.network._listen, heard)
        nursery.start_soon(alice.network._keep_up_to_date, Mock())
        await hand_over.send(told)
        await trio.sleep(1)
        assert who in alice.knows()
        del alice.book._contacts[who]
        await trio.sleep(2 * NEIGHBOURS_REFRESH_S)
        assert who not in alice.knows(), "one that is no member is not dialled all the time"
        await trio.sleep(NEIGHBOURS_NOTED_S)
        assert who in alice.knows()
        nursery.cancel_scope.cancel()
