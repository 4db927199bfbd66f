"""Whom we met, and of whom we do not know yet whom they know.

Whoever looks for something waits for their answers, because they may tell of a node that
has it. So that none of them can make everybody wait for ever, each is awaited for
HEARSAY_AWAITED_S in GREETING_AGAIN_S, however often it comes and whatever it leaves unanswered.
Pure: told what happened and what time it is.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from math import inf

from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import GREETING_AGAIN_S, GREETINGS_MAX, HEARSAY_AWAITED_S


class Greetings:
    """The greetings under way, and until when each node is awaited."""

    def __init__(self) -> None:
        self._under_way: Counter[NodeId] = Counter()
        # When each node came that was awaited of late, the latest last.
        self._came_at: OrderedDict[NodeId, float] = OrderedDict()

    def begin(self, node: NodeId, now: float) -> None:
        """`node` is here, perhaps not for the first time, and is asked whom it knows."""
        self._under_way[node] += 1
        if now < self._came_at.get(node, -inf) + GREETING_AGAIN_S:
            return
        self._came_at[node] = now
        self._came_at.move_to_end(node)
        if len(self._came_at) > GREETINGS_MAX:
            self._came_at.popitem(last=False)

    def begin_anew(self) -> None:
        """A channel was joined: everybody is awaited again when it comes next."""
        self._came_at.clear()

    def end(self, node: NodeId) -> None:
        """It has answered, or gone: once for each `begin`."""
        self._under_way -= Counter([node])

    def awaited_until(self, now: float) -> float:
        """When nobody is awaited any more if nobody answers; `now` if nobody is."""
        came = [self._came_at[node] for node in self._under_way if node in self._came_at]
        return max([now, *(at + HEARSAY_AWAITED_S for at in came)])
