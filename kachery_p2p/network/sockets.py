"""TCP sockets: listening, dialling, and what the kernel is told about them."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Sequence

import trio

from kachery_p2p.errors import AddressInUseError, ConfigError, PeerUnreachableError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import DIAL_S_MAX, TCP_SILENCE_S_MAX
from kachery_p2p.network.multiaddrs import Address, address_of

_FAMILIES = {"dns4": socket.AF_INET, "dns6": socket.AF_INET6}


async def listen_on(places: Sequence[tuple[str, int]]) -> list[trio.SocketListener]:
    """Listeners on every (host, port); port 0 takes a free one.

    A port that another program has is refused, also when that program shares it
    (SO_REUSEPORT, which libp2p sets on all its ports, and we never).
    """
    listeners: list[trio.SocketListener] = []
    try:
        for host, port in places:
            listeners += await _listen_on_one(host, port)
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


async def _listen_on_one(host: str, port: int) -> list[trio.SocketListener]:
    try:
        return list(await trio.open_tcp_listeners(port, host=host))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(
                f"port {port} on {host} is taken by another program",
                hint=f"find it with `ss -ltnp sport = :{port}`, or choose another port",
            )
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}",
            hint="give an address of this computer, and a port above 1023",
        )


def listening_addresses(listeners: Sequence[trio.SocketListener], node: NodeId) -> list[Address]:
    """Where others may dial `node`: a wildcard gives this computer's own addresses."""
    found: dict[Address, None] = {}
    for listener in listeners:
        host, port = listener.socket.getsockname()[:2]
        for ip in _concrete(host):
            found[address_of(ip, port, node)] = None
    return list(found)


def _concrete(host: str) -> list[str]:
    wanted = ipaddress.ip_address(host)
    if not wanted.is_unspecified:
        return [host]
    own = [ip for ip in _own_addresses() if ip.version == wanted.version]
    # A link-local address means nothing without the dialler's own interface name.
    reachable = [ip for ip in own if not ip.is_loopback and not ip.is_link_local]
    loopback = [ip for ip in own if ip.is_loopback][:1]
    return [str(ip) for ip in reachable or loopback]


def _own_addresses() -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    import psutil

    found = []
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family in (socket.AF_INET, socket.AF_INET6):
                found.append(ipaddress.ip_address(address.address.partition("%")[0]))
    return found


async def dial(kind: str, host: str, port: int) -> trio.SocketStream:
    """A TCP connection. Raises OSError or PeerUnreachableError."""
    if kind not in _FAMILIES:
        return await trio.open_tcp_stream(host, port)
    found = await trio.socket.getaddrinfo(
        host, port, family=_FAMILIES[kind], type=socket.SOCK_STREAM
    )
    for *_, place in found:
        with trio.move_on_after(DIAL_S_MAX / len(found)):
            try:
                return await trio.open_tcp_stream(str(place[0]), port)
            except OSError:
                continue
    raise PeerUnreachableError(f"nobody answered at {host} port {port}")


def ip_of(tcp: trio.SocketStream) -> str:
    """The IP at the other end; for IPv6 its /64, which is what one subscriber has."""
    ip = ipaddress.ip_address(tcp.socket.getpeername()[0].partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return str(ipaddress.ip_network((ip, 64), strict=False))
        ip = ip.ipv4_mapped
    return str(ip)


def keep_alive(tcp: trio.SocketStream) -> None:
    """Let the kernel end the connection when the other computer has vanished."""
    options = {"TCP_KEEPIDLE": TCP_SILENCE_S_MAX // 2, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
    options["TCP_USER_TIMEOUT"] = TCP_SILENCE_S_MAX * 1000
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        number = getattr(socket, name, None)  # macOS has only some of them.
        if number is not None:
            tcp.setsockopt(socket.IPPROTO_TCP, number, value)
