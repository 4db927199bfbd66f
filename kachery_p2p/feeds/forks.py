"""Finding out, with a peer's help, whether a feed has forked or the peer lies.

The peer is asked for the hashes of its history, some of them, until it shows where it parts
from ours; of ours, those that are not here are asked of whoever showed our head. What comes of
it is a proof that everybody can check, or the peer has lied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import trio

from kachery_p2p.errors import LogFormatError, PeerTimeoutError, ProofError, ProtocolError
from kachery_p2p.feeds.replica import Replica, UnprovableError
from kachery_p2p.feeds.subfeed import Subfeed, Teller
from kachery_p2p.limits import FEED_FORK_S_MAX, REQUEST_S_MAX
from kachery_p2p.log.heads import SignedHead
from kachery_p2p.log.tree import HASH_BYTES, stored_place, subtrees
from kachery_p2p.wire.feed_messages import pack_numbers, unpack_hashes


class _Witness(NamedTuple):
    """Who is asked for hashes of one side, and those that it gave."""

    session: Teller
    channel: str
    hashes: dict[int, bytes]


class _Missing(Exception):
    """A hash that has to be asked for first."""

    def __init__(self, witness: _Witness, place: int) -> None:
        super().__init__(place)
        self.witness = witness
        self.place = place


async def settle_doubt(subfeed: Subfeed, session: Teller, channel: str, head: SignedHead) -> bool:
    """Prove that `head`, which a peer showed, is of another history. True if that is new.

    ProtocolError if the peer lied; other PeerErrors if it cannot be told just now.
    """
    others = subfeed.sources.values()
    ours = next((s for s in others if s.head is not None and s.session is not session), None)
    theirs = _Witness(session, channel, {})
    mine = None if ours is None else _Witness(ours.session, ours.channel, {})
    with trio.move_on_after(FEED_FORK_S_MAX):
        frontier = [stored_place(*subtree) for subtree in subtrees(0, head.size)]
        await _ask(subfeed, theirs, frontier)
        found = await _prove(subfeed, head, theirs, mine)
        if found:
            subfeed.tell_changed()
        return found
    raise PeerTimeoutError("did not show where its history parts from ours")


async def _prove(
    subfeed: Subfeed, head: SignedHead, theirs: _Witness, mine: _Witness | None
) -> bool:
    """Try to prove it, and ask for what is lacking, in turn: nobody else has to wait meanwhile."""
    while True:
        try:
            return await subfeed.work(_try_to_prove, subfeed.replica, head, theirs, mine)
        except _Missing as missing:
            await _ask(subfeed, missing.witness, [missing.place])
        except (ProofError, LogFormatError) as error:
            raise ProtocolError(f"what it told of a feed is wrong: {error}")


def _try_to_prove(
    replica: Replica, head: SignedHead, theirs: _Witness, mine: _Witness | None
) -> bool:
    def read_theirs(place: int) -> bytes:
        return _known(theirs, place)

    def read_mine(place: int) -> bytes:
        if mine is None:
            raise UnprovableError("nobody is connected who has the rest of what is known here")
        return _known(mine, place)

    return replica.prove(head, read_theirs, read_mine)


def _known(witness: _Witness, place: int) -> bytes:
    if place not in witness.hashes:
        raise _Missing(witness, place)
    return witness.hashes[place]


async def _ask(subfeed: Subfeed, witness: _Witness, places: Sequence[int]) -> None:
    body = {**subfeed.name.body(witness.channel), "places": pack_numbers(places)}
    answer = await witness.session.request("feed hashes", body, REQUEST_S_MAX)
    if len(answer["hashes"]) != HASH_BYTES * len(places):
        raise ProtocolError("it answered with another number of hashes")
    witness.hashes.update(zip(places, unpack_hashes(answer["hashes"]), strict=True))
