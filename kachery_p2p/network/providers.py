"""Who announced what, and who is to be told what: the memory and the rules of announcements.

Announcements save asking; nothing rests on them. A member's live as long as its
connection, and within bounds: when all members together have announced as much as is
kept, whoever announced most gives way, so that a flood displaces itself.

In a channel of up to INDEX_ABOVE_MEMBERS everyone tells everyone. In a larger one each
prefix belongs to a slot, and each slot to INDEX_KEEPERS members by rendezvous hashing:
those with the greatest weights for it. Holders tell only them, seekers ask them, and
both compute alike who they are; a member who comes or goes moves only its own slots. So
what a node sends and keeps grows with the blobs and not with the channel.

Two nodes need not agree on who is a member, nor on which of the two ways they use.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Collection, Iterable, Set
from heapq import nlargest
from itertools import islice
from typing import NamedTuple

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import ProtocolError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    ANNOUNCED_MAX,
    ANNOUNCED_PER_PEER_MAX,
    INDEX_ABOVE_MEMBERS,
    INDEX_KEEPERS,
    INDEX_SLOT_BITS,
    INDEX_UNTIL_MEMBERS,
)
from kachery_p2p.network.prefixes import PrefixSet, prefix_of, unpack
from kachery_p2p.wire.messages import PREFIX_BYTES

INDEX_TAG = b"kp2p-index/1\0"
_SLOT_SHIFT = 8 * PREFIX_BYTES - INDEX_SLOT_BITS
ALL_SLOTS = frozenset(range(1 << INDEX_SLOT_BITS))


def slot_of(prefix: int) -> int:
    """The slot of the index that a prefix belongs to."""
    return prefix >> _SLOT_SHIFT


def slot_range(slot: int) -> tuple[int, int]:
    """(first, end): the prefixes of a slot are those from `first` on, below `end`."""
    return slot << _SLOT_SHIFT, (slot + 1) << _SLOT_SHIFT


def weights(channel: str, node: NodeId) -> array[int]:
    """How much `node` weighs for each slot of a channel's index (PROTOCOL.md, "The index")."""
    seed = INDEX_TAG + bytes.fromhex(channel) + node.raw
    return unpack(hashlib.shake_128(seed).digest(PREFIX_BYTES * len(ALL_SLOTS)))


def in_turn(content: ContentHash, nodes: Iterable[NodeId], asker: NodeId) -> list[NodeId]:
    """`nodes` in an order of this content's and asker's own, so that not all ask the same ones."""
    listed = list(nodes)
    if len(listed) < 2:
        return listed
    seed = content.raw + asker.raw
    return sorted(listed, key=lambda node: hashlib.sha256(seed + node.raw).digest())


class IndexMembers:
    """Which members of one channel keep which slots of its index."""

    def __init__(self, channel: str) -> None:
        self.indexed = False
        self.members: frozenset[NodeId] = frozenset()
        self._channel = channel
        self._weights: dict[NodeId, array[int]] = {}
        self._keepers: list[tuple[NodeId, ...]] = []
        self._slots: dict[NodeId, frozenset[int]] = {}

    def update(self, members: frozenset[NodeId]) -> None:
        """The members are these now."""
        if members == self.members:
            return
        self.members = members
        bound = INDEX_UNTIL_MEMBERS if self.indexed else INDEX_ABOVE_MEMBERS
        self.indexed = len(members) > bound
        present = members if self.indexed else frozenset()
        new, gone = present - self._weights.keys(), self._weights.keys() - present
        self._weights = {
            node: self._weights.get(node) or weights(self._channel, node)
            for node in sorted(present)
        }
        self._keepers = [
            self._heaviest(slot, new, gone) for slot in (ALL_SLOTS if self.indexed else ())
        ]
        self._slots = self._dealt_out()

    def keepers(self, slot: int) -> tuple[NodeId, ...]:
        """Who keeps a slot, heaviest first; nobody in a channel without an index."""
        return self._keepers[slot] if self.indexed else ()

    def slots(self, node: NodeId) -> frozenset[int]:
        """The slots of which `node` is to be told."""
        return self._slots.get(node, frozenset()) if self.indexed else ALL_SLOTS

    def _heaviest(self, slot: int, new: Set[NodeId], gone: Set[NodeId]) -> tuple[NodeId, ...]:
        """Who keeps a slot, given who kept it before some members came and went."""
        before = self._keepers[slot] if self._keepers else ()
        if not before or not gone.isdisjoint(before):
            candidates: Iterable[NodeId] = self._weights
        elif any(self._weights[node][slot] > self._weights[before[-1]][slot] for node in new):
            candidates = (*before, *new)
        else:
            return before
        return tuple(nlargest(INDEX_KEEPERS, candidates, key=lambda n: self._weights[n][slot]))

    def _dealt_out(self) -> dict[NodeId, frozenset[int]]:
        found: dict[NodeId, set[int]] = {}
        for slot, keepers in enumerate(self._keepers):
            for node in keepers:
                found.setdefault(node, set()).add(slot)
        return {node: frozenset(slots) for node, slots in found.items()}


class Delta(NamedTuple):
    """One announcement: what is added to, and dropped from, what was announced before.

    `reset`: nothing was announced before, in this channel. `seq` counts the announcements
    of a connection in a channel, one by one, from any number that a reset begins with.
    """

    channel: str
    seq: int
    reset: bool
    add: bytes
    drop: bytes

    @property
    def size(self) -> int:
        """What it counts for in an allowance."""
        return len(self.add) + len(self.drop)


class _Announced:
    """What one peer announced: by channel, the prefixes and the number of the last message."""

    def __init__(self) -> None:
        self.prefixes: dict[str, PrefixSet] = {}
        self.last: dict[str, int] = {}
        self.count = 0

    def forget(self, channel: str) -> int:
        gone = len(self.prefixes.pop(channel, ()))
        self.last.pop(channel, None)
        self.count -= gone
        return gone

    def give_up_block(self) -> int:
        gone = max(self.prefixes.values(), key=len).give_up_block()
        self.count -= gone
        return gone


class Providers:
    """What the members announced to the node `me`, and who keeps the index of each channel."""

    def __init__(
        self,
        me: NodeId,
        *,
        per_peer_max: int = ANNOUNCED_PER_PEER_MAX,
        total_max: int = ANNOUNCED_MAX,
    ) -> None:
        self._me = me
        self._per_peer_max = per_peer_max
        self._total_max = total_max
        self._peers: dict[NodeId, _Announced] = {}
        self._channels: dict[str, IndexMembers] = {}
        self.count = 0

    # --- told ---------------------------------------------------------------------------------

    def set_members(self, members: dict[str, Collection[NodeId]]) -> None:
        """The members of each channel of ours that are connected now.

        What others had announced, and what was announced in other channels, is forgotten.
        """
        for channel in self._channels.keys() - members.keys():
            del self._channels[channel]
        for channel, nodes in members.items():
            index = self._channels.setdefault(channel, IndexMembers(channel))
            index.update(frozenset({self._me, *nodes}))
        for peer, announced in list(self._peers.items()):
            for channel in list(announced.last):
                if channel not in members or peer not in members[channel]:
                    self.count -= announced.forget(channel)
            if not announced.last:
                del self._peers[peer]

    def forget(self, peer: NodeId) -> None:
        """The peer's connection is over: all that it announced goes with it."""
        announced = self._peers.pop(peer, None)
        if announced is not None:
            self.count -= announced.count

    def hear(self, peer: NodeId, delta: Delta) -> None:
        """Note an announcement; of too many additions those that fit.

        Raises ProtocolError if an announcement before it is missing: what the peer
        announced in the channel is forgotten then, until it begins anew with a reset.
        """
        announced = self._peers.setdefault(peer, _Announced())
        follows = announced.last.get(delta.channel) == delta.seq - 1
        if delta.reset or not follows:
            self.count -= announced.forget(delta.channel)
        if not (delta.reset or follows):
            self._drop_if_empty(peer)
            raise ProtocolError("an announcement out of sequence: begin again with a reset")
        announced.last[delta.channel] = delta.seq
        prefixes = announced.prefixes.setdefault(delta.channel, PrefixSet())
        self._change(announced, -sum(map(prefixes.discard, unpack(delta.drop))))
        added = iter(unpack(delta.add))
        while batch := list(islice(added, self._room(announced))):
            self._change(announced, sum(map(prefixes.add, batch)))

    def _change(self, announced: _Announced, by: int) -> None:
        announced.count += by
        self.count += by

    def _drop_if_empty(self, peer: NodeId) -> None:
        if not self._peers[peer].last:
            del self._peers[peer]

    def _room(self, announced: _Announced) -> int:
        """How many more of a peer's prefixes may be kept, after taking from who has most."""
        own = self._per_peer_max - announced.count
        if own > 0 and self.count >= self._total_max:
            greatest = max(self._peers.values(), key=lambda other: other.count)
            if greatest.count <= announced.count + 1:
                return 0
            self.count -= greatest.give_up_block()
        return min(own, self._total_max - self.count)

    # --- asked --------------------------------------------------------------------------------

    def holders(self, content: ContentHash, channel: str) -> frozenset[NodeId]:
        """The peers that announced the content in the channel. 1 us for each peer."""
        prefix = prefix_of(content)
        return frozenset(
            peer
            for peer, announced in self._peers.items()
            if prefix in announced.prefixes.get(channel, ())
        )

    def keepers(self, content: ContentHash, channel: str) -> tuple[NodeId, ...]:
        """The other members that would know who holds the content: none if all tell all."""
        index = self._channels.get(channel)
        if index is None:
            return ()
        keepers = index.keepers(slot_of(prefix_of(content)))
        return tuple(node for node in keepers if node != self._me)

    def slots_for(self, peer: NodeId, channel: str) -> frozenset[int]:
        """The slots of which this node tells `peer` what it holds."""
        index = self._channels.get(channel)
        return frozenset() if index is None else index.slots(peer)

    def count_of(self, peer: NodeId) -> int:
        """How many prefixes of a peer's announcements are kept."""
        announced = self._peers.get(peer)
        return 0 if announced is None else announced.count

    @property
    def bytes_used(self) -> int:
        """Memory taken by what was announced."""
        return sum(
            prefixes.bytes_used
            for announced in self._peers.values()
            for prefixes in announced.prefixes.values()
        )
