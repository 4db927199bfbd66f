"""Which connections may wait unproven at the door, so that a crowd of strangers keeps nobody out.

Pure: told who arrives and who leaves, answers whom to turn out. The newest is always
let in. When its address holds too many, the oldest of that address goes; when all
together are too many, the oldest of the address that holds most. A thousand silent
connections from one address thus turn out each other, and an honest node, which needs
some 50 ms to prove itself, is turned out only by a crowd at its own address.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from kachery_p2p.limits import UNPROVEN_CONNECTIONS_MAX, UNPROVEN_CONNECTIONS_PER_IP_MAX

Guest = TypeVar("Guest")


class Doorkeeper(Generic[Guest]):
    """Counts the inbound connections that have not proven membership."""

    def __init__(self) -> None:
        self._by_ip: dict[str, OrderedDict[Guest, None]] = {}
        self._ip_of: dict[Guest, str] = {}

    def __len__(self) -> int:
        return len(self._ip_of)

    def arrive(self, guest: Guest, ip: str) -> Guest | None:
        """Let `guest` in; answers the guest that has to leave for it, if any."""
        turned_out = self._to_turn_out(ip)
        if turned_out is not None:
            self.leave(turned_out)
        self._by_ip.setdefault(ip, OrderedDict())[guest] = None
        self._ip_of[guest] = ip
        return turned_out

    def leave(self, guest: Guest) -> None:
        """`guest` was proven, or is gone. Safe to say twice."""
        ip = self._ip_of.pop(guest, None)
        if ip is None:
            return
        del self._by_ip[ip][guest]
        if not self._by_ip[ip]:
            del self._by_ip[ip]

    def _to_turn_out(self, ip: str) -> Guest | None:
        if len(self._by_ip.get(ip, ())) >= UNPROVEN_CONNECTIONS_PER_IP_MAX:
            return next(iter(self._by_ip[ip]))
        if len(self) >= UNPROVEN_CONNECTIONS_MAX:
            crowded = max(self._by_ip, key=lambda ip: len(self._by_ip[ip]))
            return next(iter(self._by_ip[crowded]))
        return None
