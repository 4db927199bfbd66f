"""Bootstrap addresses that say where a node answers, and not which: HOST:PORT.

A place is enough to begin with. Whoever answers proves an id (noise), and everything
else it says must be proved as ever: a member its membership, and an introducer knows
nothing and is believed nothing. Asked first, a stranger there learns no more than at any
other address that is dialled: this node's id, proofs that it cannot use, and sealed tags.

The id that answered first is remembered in STATE/places.json, and dialled from then on.
If another one answers later, it is not used, and `status` says so: a computer that was
set up anew, or somebody in its place. A hint like the addresses of members: losing the
file means to learn the ids again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

import trio

from kachery_p2p.errors import ConfigError, PeerError, PeerUnreachableError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import PLACES_BYTES_MAX, PLACES_MAX, REDIAL_S_MAX, REDIAL_S_MIN
from kachery_p2p.network.multiaddrs import address_of, parse_address

log = logging.getLogger(__name__)

# Who answers at kind, host and port. Raises PeerError.
Meet = Callable[[str, str, int], Awaitable[NodeId]]
# Has the form of a node's id and is nobody's: for the grammar of addresses only.
_NOBODY = NodeId("58" + 62 * "6")


class Place(NamedTuple):
    """Where a node answers: an IP or a name, and a TCP port."""

    host: str
    port: int

    @property
    def kind(self) -> str:
        """What multiaddrs call this kind of host: ip4, ip6 or dns."""
        return address_of(self.host, self.port, _NOBODY).kind

    def address(self, node: NodeId) -> str:
        """The multiaddr, once it is known who is there."""
        return str(address_of(self.host, self.port, node))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_place(text: str) -> Place:
    """The place in HOST:PORT or [IPV6]:PORT. ConfigError for anything else."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") == host.endswith("]") == (":" in host):
        host = host.removeprefix("[").removesuffix("]")
        if port.isascii() and port.isdecimal() and len(port) <= 5:
            place = Place(host, int(port))
            try:
                parse_address(place.address(_NOBODY))
            except PeerUnreachableError:
                pass
            else:
                return place
    raise ConfigError(
        f"{text[:100]!a} is not where a node can be reached",
        hint="write HOST:PORT, or an address that `kachery-p2p status` prints on that computer",
    )


def places_in(bootstrap: Iterable[str]) -> list[Place]:
    """Those of the bootstrap addresses that do not say who answers there. ConfigError."""
    places = [parse_place(text) for text in bootstrap if not text.startswith("/")]
    if len(places) > PLACES_MAX:
        raise ConfigError(f"more than {PLACES_MAX} bootstrap addresses without a node's id")
    return list(dict.fromkeys(places))


def addresses_in(bootstrap: Iterable[str], path: str) -> list[str]:
    """The others, and of the places those at which a node was met before."""
    given = list(bootstrap)
    known = load_places(path)
    met = [place.address(known[str(place)]) for place in places_in(given) if str(place) in known]
    return [*(text for text in given if text.startswith("/")), *met]


class Places:
    """Finds out who is at each place, and keeps to it."""

    def __init__(
        self, places: Iterable[Place], path: str, *, meet: Meet, found: Callable[[str], None]
    ) -> None:
        """`found` is told the whole address of a node that was met here for the first time."""
        self._path = path
        self._meet = meet
        self._found = found
        self._known = load_places(path)
        # Places at which the right node was not met so far, and what was wrong; "" is not tried.
        self._open = dict.fromkeys(places, "")
        self._settled: set[Place] = set()

    def problems(self) -> list[str]:
        """What is to be said of the places at which not the right node was met."""
        return [why for why in self._open.values() if why]

    @property
    def settled(self) -> bool:
        """True when each was tried once."""
        return self._settled.issuperset(self._open)

    async def run(self) -> None:
        """Ask at each place, again and again while nobody answers; returns when all have."""
        async with trio.open_nursery() as nursery:
            for place in list(self._open):
                nursery.start_soon(self._look, place)

    async def _look(self, place: Place) -> None:
        wait_s = REDIAL_S_MIN
        while place in self._open:
            try:
                await self._learn(place, await self._meet(place.kind, place.host, place.port))
            except PeerError as error:
                self._open[place] = f"bootstrap address {place} is not reached: {error}"
            self._settled.add(place)
            if place in self._open:
                await trio.sleep(wait_s)
                wait_s = min(2 * wait_s, REDIAL_S_MAX)

    async def _learn(self, place: Place, node: NodeId) -> None:
        known = self._known.get(str(place))
        if known is None:
            self._known[str(place)] = node
            log.info("at %s is node %s: from now on no other is accepted there", place, node)
            self._found(place.address(node))
            await trio.to_thread.run_sync(_save, self._path, dict(self._known))
        elif known != node:
            self._open[place] = (
                f"another node than before answers at {place}: {node.peer_id}, and not"
                f" {known.peer_id}; if that is right, start with --bootstrap {place.address(node)}"
            )
            return
        del self._open[place]


def load_places(path: str) -> dict[str, NodeId]:
    """Who was met where; {} when nothing usable is there."""
    try:
        with open(path, "rb") as file:
            told = json.loads(file.read(PLACES_BYTES_MAX))
        return {str(parse_place(text)): NodeId.parse(node) for text, node in told.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        log.warning("%s cannot be read, who is where is learnt anew: %s", path, error)
        return {}


def _save(path: str, places: dict[str, NodeId]) -> None:
    """Replace the file. Not fsynced: what it says can be learnt again."""
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".places.")
        with os.fdopen(handle, "w") as file:
            json.dump(dict(list(places.items())[-PLACES_MAX:]), file)
        os.replace(temporary, path)
    except OSError as error:
        log.warning("%s cannot be written, who is where is learnt anew: %s", path, error)
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
