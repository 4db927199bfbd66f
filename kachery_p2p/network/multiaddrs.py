"""Addresses of nodes as text: /ip4/192.0.2.1/tcp/20432/p2p/12D3Koo... and the like.

Only these forms are dialled: an IP or a DNS name, a TCP port, and the id that the node
there has to prove. Anything else in an address that a peer tells is refused unread.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from kachery_p2p.errors import ConfigError, PeerUnreachableError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import ADDRESS_CHARS_MAX

_DNS_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9])?\.?\Z")
_HINT = "an address is like /ip4/192.0.2.1/tcp/20432/p2p/12D3Koo... or /dns/host/tcp/20432/p2p/..."


class Address(NamedTuple):
    """Where a node may be reached, and who it must prove to be."""

    kind: str  # ip4, ip6, dns, dns4 or dns6
    host: str
    port: int
    node: NodeId

    def __str__(self) -> str:
        return f"/{self.kind}/{self.host}/tcp/{self.port}/p2p/{self.node.peer_id}"


def parse_address(text: str) -> Address:
    """The address in a multiaddr. Raises PeerUnreachableError for one that we do not dial."""
    parts = text.split("/") if len(text) <= ADDRESS_CHARS_MAX else []
    match parts:
        case ["", kind, host, "tcp", port, "p2p", peer] if _is_place(kind, host, port):
            try:
                return Address(kind, host, int(port), NodeId.parse(peer))
            except ConfigError:
                pass
    raise PeerUnreachableError(f"{text[:100]!r} is not an address of a node", hint=_HINT)


def address_of(host: str, port: int, node: NodeId) -> Address:
    """The address of `node` at an IP or a name."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return Address("dns", host, port, node)
    return Address(f"ip{ip.version}", str(ip), port, node)


def advertised(text: str, node: NodeId) -> Address:
    """What a user wrote to advertise: HOST:PORT, [IPV6]:PORT, or a multiaddr with or without /p2p/.

    Raises ConfigError.
    """
    if text.startswith("/"):
        whole = text if "/p2p/" in text else f"{text.rstrip('/')}/p2p/{node.peer_id}"
    else:
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        whole = str(address_of(host, int(port) if _is_port(port) else 0, node))
    try:
        address = parse_address(whole)
    except PeerUnreachableError:
        raise ConfigError(
            f"cannot advertise {text[:100]!r}", hint="give HOST:PORT or a multiaddr: " + _HINT
        ) from None
    if len(whole) > ADDRESS_CHARS_MAX:
        raise ConfigError(
            f"cannot advertise {text[:100]!r}: with /p2p/ID it has more than"
            f" {ADDRESS_CHARS_MAX} characters"
        )
    if address.node != node:
        raise ConfigError(f"cannot advertise {text[:100]!r}: it names another node")
    return address


def _is_place(kind: str, host: str, port: str) -> bool:
    if not _is_port(port):
        return False
    if kind in ("dns", "dns4", "dns6"):
        return _DNS_NAME.match(host) is not None
    try:
        return kind == f"ip{ipaddress.ip_address(host).version}" and "%" not in host
    except ValueError:
        return False


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 65_535
