"""What zeroconf keeps of the local network: what nodes tell of themselves, and no more.

Left alone, zeroconf keeps what anybody sends, of any service. It repeats every pointer to
ours in its questions, and fails for good at one that it cannot write again; it plans a
question for each name for as long as a stranger says, which may be 68 years; and at each
address it looks through all services of that host.

To be imported in the responder's thread only: zeroconf takes a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from zeroconf import RecordUpdate, RecordUpdateListener, ServiceStateChange, Zeroconf
from zeroconf._dns import DNSAddress, DNSPointer, DNSRecord, DNSService
from zeroconf.asyncio import AsyncServiceBrowser
from zeroconf.const import _CLASS_IN, _TYPE_PTR

from kachery_p2p.limits import NEIGHBOUR_POINTERS_MAX
from kachery_p2p.network.neighbours import SERVICE_TYPE, host_of, is_host, node_of


def is_kept(record: DNSRecord) -> bool:
    """True for what a node can have told."""
    if isinstance(record, DNSPointer):
        return record.name == SERVICE_TYPE and node_of(record.alias) is not None
    if isinstance(record, DNSAddress):
        return is_host(record.name)
    node = node_of(record.name)
    if node is not None and isinstance(record, DNSService):
        return record.server == host_of(node)
    return node is not None


class Browsing(RecordUpdateListener):
    """Looks for our service; `on_change` is called with each name that is new or changed.

    To be made before zeroconf listens, so that it hears everything.
    """

    def __init__(self, zeroconf: Zeroconf, on_change: Callable[[str], None]) -> None:
        super().__init__()
        self._zeroconf = zeroconf
        self._on_change = on_change
        self._unwanted: list[DNSRecord] = []
        # How many the browser was told; it plans a question for each.
        self._pointers = 0
        self._browser: AsyncServiceBrowser | None = None
        zeroconf.async_add_listener(self, None)

    def begin(self) -> None:
        """Look from now on. zeroconf listens already."""
        self._pointers = 0
        # What is kept already it tells before this returns.
        self._browser = AsyncServiceBrowser(
            self._zeroconf, SERVICE_TYPE, handlers=[self._on_state_change]
        )

    async def _browse_anew(self, browser: AsyncServiceBrowser) -> None:
        await browser.async_cancel()
        self.begin()

    def _on_state_change(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        # The pointer of a stranger may name anything, of any type.
        if state_change is not ServiceStateChange.Removed and node_of(name) is not None:
            self._on_change(name)

    def forget(self, name: str) -> None:
        """Keep nothing of this name, and do not ask for it again."""
        self._drop(DNSPointer(SERVICE_TYPE, _TYPE_PTR, _CLASS_IN, 0, name))
        for record in self._zeroconf.cache.async_entries_with_name(name):
            self._drop(record)

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """zeroconf has heard this, and is about to keep it."""
        for update in records:
            self._pointers += isinstance(update.new, DNSPointer)
            if not is_kept(update.new):
                self._unwanted.append(update.new)

    def async_update_records_complete(self) -> None:
        """zeroconf keeps what it has heard."""
        unwanted, self._unwanted = self._unwanted, []
        for record in unwanted:
            self._drop(record)
        if self._pointers >= NEIGHBOUR_POINTERS_MAX and self._browser is not None:
            self._pointers = 0
            # Not here: the browser is being told the same.
            anew = self._browse_anew(self._browser)
            self._browsing_anew = asyncio.get_running_loop().create_task(anew)

    def _drop(self, record: DNSRecord) -> None:
        if isinstance(record, DNSPointer) and record.name == SERVICE_TYPE and self._browser:
            self._browser.query_scheduler.cancel_ptr_refresh(record)
        kept = self._zeroconf.cache.get(record)
        if kept is not None:
            self._zeroconf.cache.async_remove_records([kept])
