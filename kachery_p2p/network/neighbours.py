"""What a node tells its local network of itself, and what it makes of what others tell.

Anybody on the network hears it, so it names no channel: for each channel there is a
*blinded tag*, made from the channel's discovery key, the day and the node's own id. A
member computes the same tag for that id and knows whom it hears; for everybody else the
tags of two members have nothing in common. They are padded with random ones, so that
their number tells little, and with the same ones all day: two adverts of a node do not
tell by what they have in common which are real. Whoever copies somebody's tags can make
members dial wrong addresses, and nothing more: who answers must prove the id, and
membership.

Pure: time and secret bytes are arguments. PROTOCOL.md, "Local network", shows the bytes.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from kachery_p2p.errors import ConfigError, PeerUnreachableError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    ADDRESSES_PER_NODE_MAX,
    NEIGHBOUR_TAGS_GROUP,
    NEIGHBOUR_TAGS_MAX,
    NEIGHBOURS_AT_ONCE_MAX,
    NEIGHBOURS_MAX,
    NEIGHBOURS_PER_S_MAX,
)
from kachery_p2p.network.multiaddrs import address_of, parse_address

SERVICE_TYPE = "_kachery-p2p._tcp.local."
VERSION = b"1"
TAG_BYTES = 16

_TAG_TAG = b"kp2p-mdns/1\0"
_PADDING_TAG = b"kp2p-mdns-padding/1\0"
# A TXT string has at most 255 bytes: a group of tags and its key have 67.
_GROUP_BYTES = NEIGHBOUR_TAGS_GROUP * TAG_BYTES
_GROUPS_MAX = NEIGHBOUR_TAGS_MAX // NEIGHBOUR_TAGS_GROUP

_HOST = re.compile(r"kp2p-[0-9a-f]{16}\.local\.")


def name_of(node: NodeId) -> str:
    """What `node` calls its service."""
    return f"{node.peer_id}.{SERVICE_TYPE}"


def node_of(name: str) -> NodeId | None:
    """The node that calls its service so; None for any other name."""
    try:
        node = NodeId.parse(name.partition(".")[0])
    except ConfigError:
        return None
    return node if name == name_of(node) else None


def host_of(node: NodeId) -> str:
    """What `node` calls its computer."""
    return f"kp2p-{node[:16]}.local."


def is_host(name: str) -> bool:
    """True if a node may call its computer so."""
    return _HOST.fullmatch(name) is not None


def blinded_tag(discovery_key: bytes, day: int, node: NodeId) -> bytes:
    """By which members of a channel recognise `node` on that day."""
    body = _TAG_TAG + day.to_bytes(4, "big") + node.raw
    return hmac.digest(discovery_key, body, "sha256")[:TAG_BYTES]


def padding_of(secret: bytes, day: int) -> bytes:
    """What pads the tags of that day: random to everybody who does not know `secret`."""
    return hmac.digest(secret, _PADDING_TAG + day.to_bytes(4, "big"), "sha512")[:_GROUP_BYTES]


def blinded_tags(
    node: NodeId,
    discovery_keys: Sequence[bytes],
    days: Sequence[int],
    padding: Callable[[int], bytes],
) -> tuple[bytes, ...]:
    """All of `node`'s tags and random ones, of each day a multiple of NEIGHBOUR_TAGS_GROUP, sorted.

    Of more than NEIGHBOUR_TAGS_MAX those of the first day go first. `padding` gives the
    NEIGHBOUR_TAGS_GROUP * TAG_BYTES random bytes of a day: each day has its own, that it
    is told as it was when there are two days to tell.
    """
    tags: list[bytes] = []
    for day in days:
        real = [blinded_tag(key, day, node) for key in discovery_keys]
        missing = -len(real) % NEIGHBOUR_TAGS_GROUP if real else NEIGHBOUR_TAGS_GROUP
        random = padding(day)
        tags += real + [random[n * TAG_BYTES : (n + 1) * TAG_BYTES] for n in range(missing)]
    # Sorted, a real one cannot be told from the padding by its place.
    return tuple(sorted(tags[:NEIGHBOUR_TAGS_MAX]))


class Advert(NamedTuple):
    """What one node tells: who it is, its tags, where it says that it may be reached."""

    node: NodeId
    tags: tuple[bytes, ...]
    addresses: tuple[str, ...]

    def properties(self) -> dict[bytes, bytes]:
        """As the keys and values of a TXT record (RFC 6763, section 6)."""
        joined = b"".join(self.tags)
        groups = [joined[at : at + _GROUP_BYTES] for at in range(0, len(joined), _GROUP_BYTES)]
        numbered = {b"t%d" % number: group for number, group in enumerate(groups)}
        return {b"v": VERSION, b"id": self.node.encode("ascii"), **numbered}

    @classmethod
    def heard(
        cls, properties: Mapping[bytes, bytes | None], hosts: Iterable[str], port: int | None
    ) -> Advert | None:
        """The advert in a TXT record and its host's IPs; None for anything that is none."""
        if properties.get(b"v") != VERSION or not port or not 0 < port < 1 << 16:
            return None
        try:
            node = NodeId.parse((properties.get(b"id") or b"").decode("ascii"))
        except (ConfigError, UnicodeDecodeError):
            return None
        tags = _tags_in(properties)
        addresses = _addresses_of(hosts, port, node)
        return cls(node, tags, addresses) if tags and addresses else None

    def is_of_member(self, discovery_keys: Iterable[bytes], days: Iterable[int]) -> bool:
        """True if one of the tags says that the node is in a channel with one of these keys."""
        days = tuple(days)
        told = frozenset(self.tags)
        return any(
            blinded_tag(key, day, self.node) in told for key in discovery_keys for day in days
        )


def _tags_in(properties: Mapping[bytes, bytes | None]) -> tuple[bytes, ...]:
    """The tags of every group, or none if one of them is not as it has to be."""
    tags: list[bytes] = []
    for number in range(_GROUPS_MAX):
        group = properties.get(b"t%d" % number)
        if group is None:
            break
        if len(group) != _GROUP_BYTES:
            return ()
        tags += [group[at : at + TAG_BYTES] for at in range(0, _GROUP_BYTES, TAG_BYTES)]
    return tuple(tags)


def _addresses_of(hosts: Iterable[str], port: int, node: NodeId) -> tuple[str, ...]:
    found: list[str] = []
    for host in hosts:
        if len(found) < ADDRESSES_PER_NODE_MAX and _may_be_a_neighbour(host):
            found.append(str(address_of(host, port, node)))
    return tuple(dict.fromkeys(found))


def _may_be_a_neighbour(host: str) -> bool:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and (ip.is_link_local or ip.scope_id):
        # It means nothing without the interface's name, which multiaddrs do not carry.
        return False
    # Loopback is this computer: a liar must not choose which of its ports we knock at.
    return not (ip.is_loopback or ip.is_unspecified or ip.is_multicast or ip.is_reserved)


def reachable_at(addresses: Iterable[str]) -> tuple[tuple[str, ...], int | None]:
    """The IPs to tell the local network of a node's own `addresses`, and their port.

    Loopback is nobody's neighbour, names need no second name server, and a node has one
    port: that of its first address. Nothing to tell: no IPs and None.
    """
    hosts: list[str] = []
    port = None
    for text in addresses:
        try:
            address = parse_address(text)
        except PeerUnreachableError:
            continue
        if address.kind not in ("ip4", "ip6") or ipaddress.ip_address(address.host).is_loopback:
            continue
        port = port or address.port
        if address.port == port:
            hosts.append(address.host)
    return tuple(hosts[:ADDRESSES_PER_NODE_MAX]), port


class Allowance:
    """How much may be heard: NEIGHBOURS_PER_S_MAX, after silence NEIGHBOURS_AT_ONCE_MAX at once."""

    def __init__(self, now: float) -> None:
        self._left = float(NEIGHBOURS_AT_ONCE_MAX)
        self._counted_at = now

    def spend(self, now: float) -> bool:
        """True if one more may be heard now."""
        self._left += (now - self._counted_at) * NEIGHBOURS_PER_S_MAX
        self._left = min(self._left, float(NEIGHBOURS_AT_ONCE_MAX))
        self._counted_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Neighbours:
    """Who was heard of late: at most NEIGHBOURS_MAX, the longest silent of them goes."""

    def __init__(self, me: NodeId) -> None:
        self._me = me
        self._heard: OrderedDict[NodeId, Advert] = OrderedDict()

    def __len__(self) -> int:
        return len(self._heard)

    def hear(self, advert: Advert) -> bool:
        """Remember it; True if it says anything new."""
        if advert.node == self._me:
            return False
        known = self._heard.pop(advert.node, None)
        self._heard[advert.node] = advert
        if len(self._heard) > NEIGHBOURS_MAX:
            self._heard.popitem(last=False)
        return advert != known

    def members(self, discovery_keys: Sequence[bytes], days: Sequence[int]) -> list[Advert]:
        """Those who say that they are in a channel of ours."""
        return [a for a in self._heard.values() if a.is_of_member(discovery_keys, days)]
