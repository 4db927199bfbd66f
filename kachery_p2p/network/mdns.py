"""Members on the local network find each other by multicast DNS (RFC 6762, RFC 6763).

python-zeroconf does the talking. It needs asyncio, so it lives in a thread with a loop of
its own and hands over what it hears, already bounded, to trio; importing it takes a while
and happens in that thread too. What is told and believed stands in `neighbours`. Local
discovery is a convenience: where it cannot work the log has one line, and the node goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    NEIGHBOUR_ANSWER_S_MAX,
    NEIGHBOUR_QUESTIONS_MAX,
    NEIGHBOURS_AT_ONCE_MAX,
    NEIGHBOURS_LEAVE_S_MAX,
    NEIGHBOURS_MAX,
    NEIGHBOURS_NOTED_S,
    NEIGHBOURS_REFRESH_S,
    NEIGHBOURS_RETRY_S,
)
from kachery_p2p.network.discovery import AddressBook
from kachery_p2p.network.neighbours import (
    SERVICE_TYPE,
    Advert,
    Allowance,
    Neighbours,
    blinded_tags,
    host_of,
    name_of,
    padding_of,
    reachable_at,
)
from kachery_p2p.wire.rendezvous import days_at

if TYPE_CHECKING:
    from zeroconf import Zeroconf
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

log = logging.getLogger(__name__)


class LocalNetwork:
    """Tells the local network of this node, and the address book of members heard there.

    `addresses` and `discovery_keys` (of the node's channels) are asked anew each time;
    `found` is called when the book may have learnt something. `secret` makes the padding, and
    is the same at each start: fresh padding would tell the real tags, which stay. `interfaces`
    are IPs of this computer to use instead of all.
    """

    def __init__(
        self,
        node_id: NodeId,
        book: AddressBook,
        *,
        addresses: Callable[[], Sequence[str]],
        discovery_keys: Callable[[], Sequence[bytes]],
        found: Callable[[], None],
        secret: bytes,
        now: Callable[[], float] = time.time,
        interfaces: Sequence[str] | None = None,
    ) -> None:
        self._node_id = node_id
        self._book = book
        self._addresses = addresses
        self._discovery_keys = discovery_keys
        self._found = found
        self._padding = partial(padding_of, secret)
        self._now = now
        self._interfaces = interfaces
        self._neighbours = Neighbours(node_id)
        self._wake = trio.Event()

    def wake(self) -> None:
        """A channel was joined or left: look again, and tell the others, at once."""
        self._wake.set()

    async def run(self) -> None:
        """Go on for ever; never fails. Cancelled, it says goodbye within NEIGHBOURS_LEAVE_S_MAX."""
        said = ""
        while True:
            why = await self._live()
            if why != said:
                log.info("members on the local network are not looked for: %s", why)
            said = why
            await trio.sleep(NEIGHBOURS_RETRY_S)

    async def _live(self) -> str:
        """Be on the local network until that fails; answers why."""
        to_here, heard = trio.open_memory_channel[Advert](NEIGHBOURS_AT_ONCE_MAX)
        responder = Responder(self._node_id, to_here, self._interfaces)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_up_to_date, responder)
            nursery.start_soon(self._listen, heard)
            why = await responder.live()
            nursery.cancel_scope.cancel()
        return why

    async def _keep_up_to_date(self, responder: Responder) -> None:
        about, again_at = None, 0.0
        while True:
            self._wake = trio.Event()
            keys, days = tuple(self._discovery_keys()), days_at(self._now())
            addresses = tuple(self._addresses())
            if about != (keys, days, addresses):
                about = (keys, days, addresses)
                responder.tell(self._publication(keys, days, addresses))
                again_at = 0.0
            if trio.current_time() >= again_at:
                # Again and again: the book forgets hearsay, and takes none while it is full. Not
                # more often: who has its tags and is no member any more is dialled each time.
                self._note(self._neighbours.members(keys, days))
                again_at = trio.current_time() + NEIGHBOURS_NOTED_S
            with trio.move_on_after(NEIGHBOURS_REFRESH_S):
                await self._wake.wait()

    def _publication(
        self, keys: Sequence[bytes], days: Sequence[int], addresses: Sequence[str]
    ) -> Publication:
        hosts, port = reachable_at(addresses)
        tags = blinded_tags(self._node_id, keys, days, self._padding)
        return Publication(Advert(self._node_id, tags, tuple(addresses)), hosts, port)

    async def _listen(self, heard: trio.MemoryReceiveChannel[Advert]) -> None:
        async for advert in heard:
            if not self._neighbours.hear(advert):
                continue
            if advert.is_of_member(self._discovery_keys(), days_at(self._now())):
                self._note([advert])

    def _note(self, members: Sequence[Advert]) -> None:
        for advert in members:
            self._book.add(advert.node, advert.addresses, teller="local network")
        if members:
            self._found()


class Publication(NamedTuple):
    """What the local network is told: nothing of a node without an IP that others can dial."""

    advert: Advert
    hosts: tuple[str, ...]
    port: int | None


class Responder:
    """zeroconf in a thread of its own, from `live` until that is cancelled or fails."""

    def __init__(
        self,
        node_id: NodeId,
        heard: trio.MemorySendChannel[Advert],
        interfaces: Sequence[str] | None,
    ) -> None:
        self._node_id = node_id
        self._heard = heard
        self._interfaces = interfaces
        self._publication: Publication | None = None
        self._trio = trio.lowlevel.current_trio_token()
        self._started = self._stopped = False
        self._ended = trio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- in trio ------------------------------------------------------------------------------

    async def live(self) -> str:
        """Run the thread; answers why it ended."""
        # Not one of the forty threads that everybody shares: this one is kept for ever.
        own = trio.CapacityLimiter(1)
        try:
            return await trio.to_thread.run_sync(self._run, abandon_on_cancel=True, limiter=own)
        finally:
            self._stopped = True
            self._wake_thread()
            if self._started:
                with trio.move_on_after(NEIGHBOURS_LEAVE_S_MAX, shield=True):
                    await self._ended.wait()

    def tell(self, publication: Publication) -> None:
        """Tell this from now on."""
        self._publication = publication
        self._wake_thread()

    def _wake_thread(self) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # It is closed already.
                loop.call_soon_threadsafe(self._changed.set)

    # --- in the thread ------------------------------------------------------------------------

    def _run(self) -> str:
        self._started = True
        try:
            asyncio.run(self._be_there())
            return "the responder was stopped"
        except Exception as error:
            return str(error) or type(error).__name__
        finally:
            with contextlib.suppress(trio.RunFinishedError):
                self._trio.run_sync_soon(self._ended.set)

    async def _be_there(self) -> None:
        from zeroconf import InterfaceChoice, IPVersion
        from zeroconf.asyncio import AsyncZeroconf

        from kachery_p2p.network.mdns_records import Browsing

        # It logs what packets hold; what went wrong reaches us as exceptions.
        logging.getLogger("zeroconf").setLevel(logging.CRITICAL)
        self._changed = asyncio.Event()
        self._allowance = Allowance(time.monotonic())
        self._asking: set[asyncio.Task[None]] = set()
        # Names that were looked up, and names that wait for it, the latest last.
        self._looked_up: OrderedDict[str, None] = OrderedDict()
        self._missed: OrderedDict[str, None] = OrderedDict()
        self._loop = asyncio.get_running_loop()
        interfaces = list(self._interfaces) if self._interfaces else InterfaceChoice.All
        zeroconf = AsyncZeroconf(interfaces=interfaces, ip_version=IPVersion.V4Only)
        try:
            self._browsing = Browsing(
                zeroconf.zeroconf, partial(self._on_change, zeroconf.zeroconf)
            )
            await zeroconf.zeroconf.async_wait_for_start()
            self._browsing.begin()
            await self._publish_until_stopped(zeroconf)
        finally:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(zeroconf.async_close(), NEIGHBOURS_LEAVE_S_MAX)

    async def _publish_until_stopped(self, zeroconf: AsyncZeroconf) -> None:
        told: AsyncServiceInfo | None = None
        publication: Publication | None = None
        while not self._stopped:
            self._changed.clear()
            if self._publication is not publication:
                publication = self._publication
                told = await self._publish(zeroconf, publication, told)
            try:
                await asyncio.wait_for(self._changed.wait(), NEIGHBOURS_REFRESH_S)
            except TimeoutError:
                # The computer may have come to another network; if not, this does nothing.
                await zeroconf.async_update_interfaces()

    async def _publish(
        self,
        zeroconf: AsyncZeroconf,
        publication: Publication | None,
        told: AsyncServiceInfo | None,
    ) -> AsyncServiceInfo | None:
        """Tell `publication` instead of `told`; answers what is told now."""
        if publication is None or publication.port is None:
            if told is not None:
                await zeroconf.async_unregister_service(told)
            return None
        info = _service_info(publication)
        if told is None:
            # No probing: the name is that of a key, so a conflict is a lie.
            await zeroconf.async_register_service(info, cooperating_responders=True)
        else:
            await zeroconf.async_update_service(info)
        return info

    def _on_change(self, zeroconf: Zeroconf, name: str) -> None:
        if self._allowance.spend(time.monotonic()):
            self._look_up(zeroconf, name)
            return
        # It may be a member that was drowned out, and it will not say so again for an hour.
        if not self._missed:
            asyncio.get_running_loop().call_later(1.0, self._catch_up, zeroconf)
        self._remember(name, self._missed)

    def _remember(self, name: str, names: OrderedDict[str, None]) -> None:
        """The latest NEIGHBOURS_MAX of them: of others zeroconf keeps nothing either."""
        names[name] = None
        names.move_to_end(name)
        if len(names) > NEIGHBOURS_MAX:
            self._browsing.forget(names.popitem(last=False)[0])

    def _catch_up(self, zeroconf: Zeroconf) -> None:
        """Look up who was missed, the latest first: the first were those who made the noise."""
        try:
            while self._missed and self._allowance.spend(time.monotonic()):
                name, _ = self._missed.popitem()
                self._look_up(zeroconf, name)
        finally:
            if self._missed:
                asyncio.get_running_loop().call_later(1.0, self._catch_up, zeroconf)

    def _look_up(self, zeroconf: Zeroconf, name: str) -> None:
        from zeroconf.asyncio import AsyncServiceInfo

        # zeroconf forgets which names it has told us of only if we return: what is raised at one
        # stranger's name would be raised before every later one, and nobody be heard any more.
        self._remember(name, self._looked_up)
        with _unheard():
            info = AsyncServiceInfo(SERVICE_TYPE, name)
            if info.load_from_cache(zeroconf):
                self._hear(info)
            elif len(self._asking) < NEIGHBOUR_QUESTIONS_MAX:
                task = asyncio.get_running_loop().create_task(self._ask_for_rest(zeroconf, info))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)

    async def _ask_for_rest(self, zeroconf: Zeroconf, info: AsyncServiceInfo) -> None:
        with _unheard():
            if await info.async_request(zeroconf, NEIGHBOUR_ANSWER_S_MAX * 1000):
                self._hear(info)

    def _hear(self, info: AsyncServiceInfo) -> None:
        from zeroconf import IPVersion

        advert = Advert.heard(info.properties, info.parsed_addresses(IPVersion.All), info.port)
        if advert is not None and advert.node != self._node_id:
            with contextlib.suppress(trio.RunFinishedError):
                self._trio.run_sync_soon(self._hand_over, advert)

    def _hand_over(self, advert: Advert) -> None:
        # In trio's thread, and between its tasks: nothing may be raised here.
        with contextlib.suppress(
            trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError
        ):
            self._heard.send_nowait(advert)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Whoever tells what zeroconf cannot take is not heard."""
    try:
        yield
    except Exception as error:
        # Only of what kind: the text holds what the packet held.
        log.debug("a neighbour is not heard: %s", type(error).__name__)


def _service_info(publication: Publication) -> AsyncServiceInfo:
    from zeroconf.asyncio import AsyncServiceInfo

    node = publication.advert.node
    properties: dict[Any, Any] = dict(publication.advert.properties())
    return AsyncServiceInfo(
        SERVICE_TYPE,
        name_of(node),
        port=publication.port,
        properties=properties,
        server=host_of(node),
        parsed_addresses=list(publication.hosts),
    )
