"""Who lied in which channel, and for how long it is not used there. Pure: told the time.

A node that sends wrong bytes, or breaks the protocol, is dropped for the whole channel: what it
says of other contents is worth no more. Not for ever: a disk that rots lies as well, and is mended
one day. Blame goes by node id; its label is for people to read.

Root and SHA-1 that do not agree are the lie of those who said that they hashed the bytes. Whoever
was still loading them was misled itself: of that content its word counts no more until it has
hashed it, and nothing else follows.
"""

from __future__ import annotations

from typing import NamedTuple

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.limits import LIAR_DROPPED_S, LIARS_MAX


class Lie(NamedTuple):
    """What a node did, in which channel, and when."""

    node: str
    name: str
    channel: str
    content: ContentHash
    what: str
    at: float


class Liars:
    """The latest lie of each node in each channel, and false claims; LIARS_MAX of each."""

    def __init__(self) -> None:
        # The latest comes last.
        self._lies: dict[tuple[str, str], Lie] = {}
        # By content, node, and whether it said that it had hashed the bytes itself.
        self._false_claims: dict[tuple[ContentHash, str, bool], None] = {}

    def note(self, lie: Lie) -> None:
        """It was found out: from now on it is dropped for LIAR_DROPPED_S."""
        self._lies.pop((lie.node, lie.channel), None)
        if len(self._lies) >= LIARS_MAX:
            del self._lies[next(iter(self._lies))]
        self._lies[lie.node, lie.channel] = lie

    def note_claim(self, content: ContentHash, node: str, pinned: bool) -> None:
        """Bytes with the root that the node claimed for `content` do not have that SHA-1."""
        if len(self._false_claims) >= LIARS_MAX:
            del self._false_claims[next(iter(self._false_claims))]
        self._false_claims[content, node, pinned] = None

    def is_believed(self, content: ContentHash, node: str, pinned: bool) -> bool:
        """False for who claimed a false root of this content before, and claims one again."""
        return (content, node, pinned) not in self._false_claims

    def may_be_used(self, node: str, channel: str, now: float) -> bool:
        """False while the node is dropped in the channel."""
        lie = self._lies.get((node, channel))
        return lie is None or now - lie.at >= LIAR_DROPPED_S

    def dropped(self, now: float) -> list[Lie]:
        """The lies for which nodes are dropped now, the latest last."""
        return [lie for lie in self._lies.values() if now - lie.at < LIAR_DROPPED_S]
