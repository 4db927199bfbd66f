"""The dials of nodes under way, and how many more may begin.

Only who is dialled now has left the address book's queue: who waits there can still be met,
forgotten, or told of anew.
"""

from __future__ import annotations

from collections.abc import Iterable

import trio

from kachery_p2p.errors import PeerError, PeerUnreachableError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    DIAL_NODE_S_MAX,
    DIALS_MAX,
    HEARSAY_DIALS_AT_ONCE,
    HEARSAY_DIALS_MAX,
    HEARSAY_DIALS_PER_S,
)
from kachery_p2p.network.allowance import TokenBucket
from kachery_p2p.network.link import CONTROL, Link, Stream


class Dial:
    """One dial, from when it is decided until there is a control stream, or will be none."""

    def __init__(self, *, is_hearsay: bool) -> None:
        self.is_hearsay = is_hearsay
        self.scope = trio.CancelScope()


class Dials:
    """Those under way: one of a node at most, DIALS_MAX of whom we know by more than hearsay."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._under_way: dict[NodeId, Dial] = {}
        # Full, whenever the clock begins.
        self._hearsay = TokenBucket(HEARSAY_DIALS_PER_S, HEARSAY_DIALS_AT_ONCE, 0.0)

    def room(self, now: float) -> tuple[int, int]:
        """How many more may begin, and how many more of hearsay."""
        hearsay = sum(dial.is_hearsay for dial in self._under_way.values())
        vouched = len(self._under_way) - hearsay
        allowed = int(self._hearsay.left(now))
        return DIALS_MAX - vouched, min(HEARSAY_DIALS_MAX - hearsay, allowed)

    def wait_s(self, now: float) -> float:
        """How long until hearsay may be dialled, as far as it has been dialled too often."""
        return self._hearsay.wait_s(1, now)

    def begin(self, node: NodeId, now: float, *, is_hearsay: bool) -> Dial:
        """A new dial of `node`; an older one, which may be of addresses long gone, ends."""
        self.give_up(node)
        if is_hearsay:
            self._hearsay.pay(1, now)
        dial = self._under_way[node] = Dial(is_hearsay=is_hearsay)
        return dial

    def give_up(self, node: NodeId) -> None:
        """End the dial of `node`, if there is one: it was met, or is dialled anew."""
        dial = self._under_way.pop(node, None)
        if dial is not None:
            dial.scope.cancel()

    async def open_control(
        self, node: NodeId, addresses: Iterable[str], dial: Dial
    ) -> Stream | None:
        """A control stream to `node`; None if the dial was given up. Raises PeerError."""
        try:
            with dial.scope:
                return await self._open(node, addresses)
            return None
        finally:
            if self._under_way.get(node) is dial:
                del self._under_way[node]

    async def _open(self, node: NodeId, addresses: Iterable[str]) -> Stream:
        why: PeerError = PeerUnreachableError("no address of it is known")
        with trio.move_on_after(DIAL_NODE_S_MAX):
            for address in addresses:
                try:
                    await self._link.connect(address)
                    return await self._link.open_stream(node, CONTROL)
                except PeerError as error:
                    why = error
        raise why
