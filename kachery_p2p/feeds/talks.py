"""What one session is asked about subfeeds, and what it tells of them by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import trio

from kachery_p2p.errors import ProtocolError
from kachery_p2p.feeds.subfeed import Hearing, Source, Subfeed
from kachery_p2p.feeds.told import SubfeedName, Told
from kachery_p2p.limits import FEED_NEWS_BURST, FEED_NEWS_PER_S
from kachery_p2p.network.allowance import TokenBucket


class Talk:
    """What one session is still to be asked, and how much news it may tell."""

    def __init__(self) -> None:
        self.names: dict[SubfeedName, None] = {}
        self.more = trio.Event()
        self.scope = trio.CancelScope()
        self.allowance = TokenBucket(FEED_NEWS_PER_S, FEED_NEWS_BURST, trio.current_time())

    def add(self, names: Iterable[SubfeedName]) -> None:
        self.names.update(dict.fromkeys(names))
        self.more.set()


class News:
    """What a member tells of a subfeed by itself."""

    def __init__(self, subfeed: Subfeed, talk: Talk, source: Source, body: dict[str, Any]) -> None:
        self.subfeed = subfeed
        self.talk = talk
        self.source = source
        self._body = body
        # Known when it has begun: what is told, or what is wrong with that; and what comes of it,
        # unless that has to wait.
        self.told: Told | None = None
        self.wrong = ""
        self.hearing: Hearing | None = None

    def begin(self, now: float) -> None:
        """Look at it, and begin to take it in if others do nothing with the subfeed. It was paid
        for.
        """
        try:
            self.told = Told.of(self._body)
        except ProtocolError as error:
            self.wrong = str(error)
            return
        self.source.head = self.told.head
        if not self.subfeed.is_blamed(self.source.session, now):
            self.hearing = self.subfeed.begin_hearing(self.told)
