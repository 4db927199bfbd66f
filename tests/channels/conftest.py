"""A lab to enter, cheat in and be thrown out of: the keeper's node, its channel, and others."""

from __future__ import annotations

import itertools
import random

import pytest

from kachery_p2p.channels.changes import Change, Created, MemberSet
from kachery_p2p.channels.channel import entry_check
from kachery_p2p.channels.history import History
from kachery_p2p.channels.keeper import Asked, Keeper, self_member
from kachery_p2p.channels.permissions import ADMIN, PROVIDE, READ
from kachery_p2p.identity.channel_keys import ChannelKey
from kachery_p2p.identity.keys import NodeKey

READER = frozenset({READ})
PROVIDER = frozenset({READ, PROVIDE})
ADMINS = frozenset({READ, PROVIDE, ADMIN})
NOW = 1_760_000_000
NOW_MS = NOW * 1000
NOT_AFTER = NOW + 1_000_000
SECRET = bytes(range(20))


class Lab:
    """A channel whose key is here, with everything that it ever signed."""

    def __init__(self) -> None:
        self._random = random.Random(7)
        self._ticks = itertools.count()
        self.key = ChannelKey(self.random(32))
        self.id = self.key.node_id
        self.chief = self.node()
        self.keeper = Keeper(History.empty(self.id), self.key)
        created = Created("lab", entry_check(self.id, SECRET), NOT_AFTER)
        first = MemberSet(self_member(self.chief, "chief"))
        self.keeper.founded([self.asked(created), self.asked(first)], self.tick())

    def random(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def node(self) -> NodeKey:
        return NodeKey.generate(self.random(64))

    def tick(self) -> int:
        """A later time each time."""
        return NOW_MS + next(self._ticks)

    @property
    def history(self) -> History:
        return self.keeper.history

    @property
    def head(self) -> bytes:
        assert self.history.head is not None
        return self.history.head.encode()

    def entries(self, first: int = 0) -> list[bytes]:
        return self.history.entries(first, 1 << 30)

    def asked(self, change: Change, by: NodeKey | None = None) -> Asked:
        return change, (by or self.chief).node_id, self.random(16)

    def record(self, *changes: Change, by: NodeKey | None = None) -> History:
        return self.keeper.recorded([self.asked(one, by) for one in changes], self.tick())

    def member(
        self, roles: frozenset[str] = PROVIDER, label: str = "", node: NodeKey | None = None
    ) -> NodeKey:
        """A node that the keeper has made a member."""
        node = node or self.node()
        self.record(MemberSet(self_member(node, label, roles)))
        return node

    def copy(self) -> Lab:
        """A second copy of the same key and disk, as a restored backup is."""
        other = Lab.__new__(Lab)
        other.__dict__.update(self.__dict__)
        other._random = random.Random(8)
        other.keeper = Keeper(self.history, self.key)
        return other

    def learnt(self, history: History | None = None) -> History:
        """What somebody knows that has learnt all from this lab."""
        history = history or History.empty(self.id)
        wanted = history.missing(self.head)
        return history.extended(self.head, self.entries(wanted.start) if wanted else [])


@pytest.fixture
def lab() -> Lab:
    return Lab()
