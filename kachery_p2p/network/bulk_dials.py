"""Dialling a node that may be at several addresses: all of them, one a little after the other.

A node tells every address it has, and most of them lead nowhere from here; trying each
for as long as a slow line needs would take longer than a ticket lives (RFC 8305 is the
same idea). The same ticket may be shown at all of them: it is good for one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from kachery_p2p.errors import PeerError
from kachery_p2p.limits import BULK_DIAL_STAGGER_S
from kachery_p2p.network.bulk_greeting import Greeted

Dial = Callable[[str], Awaitable[Greeted]]


class Dials:
    """The dials of one ticket. `greeted` is the first that was answered, `reason` why none was."""

    def __init__(self, dial: Dial) -> None:
        self.greeted: Greeted | None = None
        self.reason = "no address of it is known"
        self._dial = dial

    async def run(self, hosts: Sequence[str]) -> None:
        """Dial until one is answered, or none can be."""
        if hosts:
            self.reason = "nobody answered in time"
        async with trio.open_nursery() as nursery:
            for place, host in enumerate(hosts):
                nursery.start_soon(self._try, place, host, nursery.cancel_scope)

    async def _try(self, place: int, host: str, all_dials: trio.CancelScope) -> None:
        await trio.sleep(place * BULK_DIAL_STAGGER_S)
        try:
            greeted = await self._dial(host)
        except (PeerError, OSError) as error:
            self.reason = f"{host}: {error}"
            return
        if self.greeted is None:
            self.greeted = greeted
            all_dials.cancel()
        else:
            greeted.stream.socket.close()
