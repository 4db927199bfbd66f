"""A call that wants a content, and a transfer that brings one: what each knows of the other."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.errors import AllProvidersFailedError, KacheryError, NotFoundError
from kachery_p2p.transfer.fetch import Fetch
from kachery_p2p.transfer.only import ANYONE, Only
from kachery_p2p.transfer.progress import Listeners, Snapshot, View
from kachery_p2p.transfer.sources import Claim, Source
from kachery_p2p.transfer.suppliers import Suppliers


class Transfer:
    """A running fetch, and who is told about it or answers for it."""

    def __init__(
        self, fetch: Fetch, suppliers: Suppliers, claims: list[Claim], node: str | None
    ) -> None:
        self.fetch = fetch
        self.suppliers = suppliers
        self.channel = claims[0].source.channel
        # The one node it may use; None = anybody in the channel.
        self.node = node
        self.listeners = Listeners()
        # All who claim that the content has this root, by node id.
        self.claimants: dict[str, Claim] = {}
        self.vouch(claims)

    def vouch(self, claims: list[Claim]) -> list[Source]:
        self.claimants.update({claim.source.node: claim for claim in claims})
        return [claim.source for claim in claims]

    def told(self) -> None:
        self.listeners.tell(trio.current_time(), self.fetch.progress.phase)

    def view(self, span: tuple[int, int] | None, lost: int) -> View:
        """How far it is, for a call that waits for `span` and got so many bytes in vain before."""

        def look(now: float) -> Snapshot:
            shown = self.fetch.snapshot(now, span)
            return shown._replace(wasted=shown.wasted + lost)

        return look


class Call:
    """One call of `load`: what it tried without success, and why that failed."""

    def __init__(self, content: ContentHash, root: Root | None, only: Only = ANYONE) -> None:
        self.content = content
        self.root = root
        self.only = only
        self.wrong_roots: set[Root] = set()
        # Of a root, a channel, and the one node (None: anybody) from which it was tried there.
        self.given_up: set[tuple[Root, str, str | None]] = set()
        self.failures: list[str] = []
        # Bytes that turned out not to be the blob's.
        self.lost = 0

    def wants_root(self, root: Root) -> bool:
        return self.root in (None, root) and root not in self.wrong_roots

    def may_begin(self, claim: Claim) -> bool:
        """True for a claim with which a new transfer may be tried."""
        tried = (claim.root, claim.source.channel, self.only.node)
        allowed = self.only.allows(claim.source.node, claim.source.channel)
        return allowed and self.wants_root(claim.root) and tried not in self.given_up

    def may_join(self, transfer: Transfer) -> bool:
        """True for a running transfer that may serve this call too."""
        tried = (transfer.fetch.root, transfer.channel, transfer.node)
        allowed = self.only.allows_transfer(transfer.channel, transfer.node)
        return allowed and not transfer.fetch.closing and tried not in self.given_up

    def nobody(self, asked: int, channels: Sequence[str], dropped: Sequence[str]) -> KacheryError:
        """Why nobody delivered it; so many members of `channels` were asked, and those not."""
        if self.failures:
            told = "; ".join(dict.fromkeys(self.failures))
            return AllProvidersFailedError(
                f"no provider delivered sha1://{self.content} ({told})",
                hint="what arrived is kept: run it again when a provider is back",
            )
        if self.only != ANYONE:
            return self._not_there()
        where = "channel " + ", ".join(channels) if channels else "any channel (none is joined)"
        if not asked:
            return NotFoundError(
                f"sha1://{self.content} is not stored here, and no peer in {where} is connected",
                hint="start the other node, or give its address: `kachery-p2p start --bootstrap`",
            )
        with_root = " with the root of the URI" if self.root is not None else ""
        not_asked = "".join(f"; {name} lied and is not asked" for name in dropped)
        return NotFoundError(
            f"no peer in {where} holds sha1://{self.content}{with_root} ({asked} asked{not_asked})",
            hint="ask the owner to start their node, and to share the file in the channel",
        )

    def _not_there(self) -> NotFoundError:
        """None of the only ones that were to be asked has it."""
        node, channel = self.only.node, self.only.channel
        who = "no peer" if node is None else f"node {node[:16]} (if it is connected) does not serve"
        what = f"holds sha1://{self.content}" if node is None else f"sha1://{self.content}"
        where = " in that channel" if channel is not None else ""
        return NotFoundError(
            f"{who} {what}{where}",
            hint="nobody else was asked: name no channel and no node to ask all",
        )
