"""Following subfeeds: asking each member that comes what it knows of them, and hearing news.

In every channel that both are in a member is asked, and from then on tells news by itself. A
node answers the same question, and remembers who asked (`spreading`). So each subfeed spreads
from its owner to all who follow it, over whoever is connected, and goes on after every
reconnection. What is told is believed only because the owner signed it (`replica`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Collection
from typing import Any

import trio

from kachery_p2p.errors import (
    FeedBusyError,
    FeedStoppedError,
    HeadError,
    KacheryError,
    LogFormatError,
    PeerBusyError,
    PeerError,
    PeerRefusedError,
    ProofError,
    ProtocolError,
    StoreError,
)
from kachery_p2p.feeds.bucket_looking import BucketLooking
from kachery_p2p.feeds.bucket_member import BucketMember, Places
from kachery_p2p.feeds.fetching import Fetching, proved_entries
from kachery_p2p.feeds.forks import settle_doubt
from kachery_p2p.feeds.ownership import proves_ownership
from kachery_p2p.feeds.permits import Permits, wait_for_turn
from kachery_p2p.feeds.replica import Standing, UnprovableError
from kachery_p2p.feeds.spreading import Spreading
from kachery_p2p.feeds.subfeed import Hearing, Source, Subfeed, Teller
from kachery_p2p.feeds.subfeeds import Subfeeds
from kachery_p2p.feeds.talks import News, Talk
from kachery_p2p.feeds.told import SubfeedName, Told
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    FEED_ASKED_AT_ONCE_MAX,
    FEED_REST_S,
    REQUEST_S_MAX,
)
from kachery_p2p.log.heads import SignedHead
from kachery_p2p.network.session import Session
from kachery_p2p.network.sessions import Sessions

log = logging.getLogger(__name__)

# Errors that say that what a peer told was never signed.
_OF_A_LIE = (HeadError, ProofError, LogFormatError, ProtocolError)
# A head that changes while it is compared is asked for again, this often.
_TRIES = 4


class Following:
    """The subfeeds that this node follows, and what it hears of them and of its own."""

    def __init__(
        self,
        node_id: NodeId,
        sessions: Sessions,
        permits: Permits,
        subfeeds: Subfeeds,
        spreading: Spreading,
        places: Places | None = None,
    ) -> None:
        """`places`: buckets, which are asked too while their feeds' authors are away."""
        self._node_id = node_id
        self._sessions = sessions
        self._permits = permits
        self._subfeeds = subfeeds
        self._spreading = spreading
        self._fetching = Fetching(self._spreading.spread, self._ask_later, self._permits.note_copy)
        self.buckets = BucketLooking(places, sessions, subfeeds, self.ask)
        self._talks: dict[Session, Talk] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask whoever comes, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self.buckets.run)
            task_status.started()
            try:
                while True:
                    self._meet(nursery)
                    await self._sessions.changed()
            finally:
                self._nursery = None
                self._talks.clear()

    @property
    def fetching(self) -> Fetching:
        """What brings entries."""
        return self._fetching

    def look_for(self, names: Collection[SubfeedName]) -> None:
        """Ask all who are connected about these subfeeds, and the buckets."""
        self.buckets.look_for(names)
        for session, talk in self._talks.items():
            for name in names:
                self._expect(name, session)
            talk.add(names)

    def catch_up(self, subfeed: Subfeed) -> None:
        """Fetch in the background what is missing of a subfeed."""
        if self._nursery is None or subfeed.is_catching_up or not subfeed.replica.is_behind:
            return
        if any(source.head is not None for source in subfeed.sources.values()):
            subfeed.is_catching_up = True
            self._nursery.start_soon(self._fetching.catch_up, subfeed)

    # --- sessions ------------------------------------------------------------------------------

    def _meet(self, nursery: trio.Nursery) -> None:
        present = self._sessions.all()
        for session in self._talks.keys() - set(present):
            self._talks.pop(session).scope.cancel()
            self._subfeeds.forget_session(session)
            self._spreading.forget(session)
        for session in present:
            if session not in self._talks:
                talk = self._talks[session] = Talk()
                names = self._subfeeds.wanted()
                for name in names:
                    self._expect(name, session)
                talk.add(names)
                nursery.start_soon(self._talk_to, session, talk)

    def _expect(self, name: SubfeedName, session: Session) -> None:
        """Who looks for the subfeed waits until this session was asked."""
        subfeed = self._subfeeds.open_now(name)
        if subfeed is not None:
            subfeed.asking.add(session)

    async def _talk_to(self, session: Session, talk: Talk) -> None:
        limit = trio.Semaphore(FEED_ASKED_AT_ONCE_MAX)
        with talk.scope:
            async with trio.open_nursery() as nursery:
                while True:
                    talk.more = trio.Event()
                    while talk.names:
                        name, _ = talk.names.popitem()
                        await limit.acquire()
                        nursery.start_soon(self._ask_about, session, name, limit)
                    await talk.more.wait()

    async def _ask_about(self, session: Session, name: SubfeedName, limit: trio.Semaphore) -> None:
        subfeed = None
        try:
            subfeed = await self._subfeeds.open(name)
            await self.ask(session, subfeed)
        except PeerError as error:
            log.debug("node %s: %s", session.peer[:16], error)
        except KacheryError as error:
            log.warning("feed %s: %s", name.feed[:16], error)
        finally:
            limit.release()
            subfeed = subfeed or self._subfeeds.open_now(name)
            if subfeed is not None and session in subfeed.asking:
                subfeed.asking.discard(session)
                subfeed.tell_changed()

    def _ask_later(self, subfeed: Subfeed, session: Teller) -> None:
        """A member failed: it may do better after a rest."""

        async def ask() -> None:
            await trio.sleep(FEED_REST_S)
            talk = self._talks.get(session) if isinstance(session, Session) else None
            if talk is not None:
                talk.add([subfeed.name])

        # A bucket is asked again by itself.
        if self._nursery is not None and isinstance(session, Session):
            self._nursery.start_soon(ask)

    # --- asking --------------------------------------------------------------------------------

    async def ask(self, session: Teller, subfeed: Subfeed, *, follow: bool = True) -> bool:
        """Ask a member what it knows of a subfeed, in each common channel; True if it answered.

        Raises PeerErrors other than refusals, and what keeps the answer from being kept.
        """
        answered = False
        for channel in sorted(session.channels):
            if not self._permits.may_ask(session, channel):
                continue
            try:
                await self._ask_in(session, subfeed, channel, follow)
                answered = True
            except PeerRefusedError:
                continue
        return answered

    async def _ask_in(self, session: Teller, subfeed: Subfeed, channel: str, follow: bool) -> None:
        for _ in range(_TRIES):
            asked = subfeed.replica.best
            known = Told(asked, subfeed.replica.log.fork, subfeed.replica.tombstones).known
            body = {**subfeed.name.body(channel), **known, "follow": follow}
            answer = await session.request("feed follow", body, REQUEST_S_MAX)
            if subfeed.is_blamed(session, trio.current_time()):
                return
            told = Told.of(answer, 0 if asked is None else asked.size)
            own = answer["own"]
            if own and not proves_ownership(own, subfeed.name.feed, session.peer):
                error = ProtocolError("it says that the feed is its own, and has not the key")
                self._blame(subfeed, session, error)
                raise error
            source = Source(session, channel, told.head, bool(own))
            if await self._learn(subfeed, source, told) is not Standing.UNKNOWN:
                return
            if subfeed.replica.best == asked:
                # It cannot show yet how its head goes on from ours, or ours from its.
                return

    async def _learn(
        self, subfeed: Subfeed, source: Source, told: Told, hearing: Hearing | None = None
    ) -> Standing:
        """Take in what a member told, which may have begun. ProtocolError if it lied."""
        session = source.session
        ending = subfeed.replica.ending if hearing is None else hearing.ending
        if hearing is None and subfeed.is_blamed(session, trio.current_time()):
            return Standing.NONE
        try:
            heard = await subfeed.hear(told, hearing)
            standing = heard.standing
            if standing is Standing.DOUBT:
                assert told.head is not None
                await self._settle_doubt(subfeed, source, told.head)
                standing = Standing.FORKED
        except _OF_A_LIE as error:
            self._blame(subfeed, session, error)
            raise ProtocolError(f"what it told of a feed is wrong: {error}")
        finally:
            self._pass_on(subfeed, ending)
        if isinstance(session, BucketMember) or session in self._talks:
            subfeed.note_source(source, standing)
        if isinstance(session, Session) and told.head is not None and standing is Standing.AGREES:
            self._spreading.note_known(subfeed.name, session, told.head.size)
        self.catch_up(subfeed)
        if heard.kept:
            await self._permits.note_copy(subfeed.name, source.channel)
        elif standing is Standing.AGREES:
            await self._note_if_there(subfeed, source)
        return standing

    async def _note_if_there(self, subfeed: Subfeed, source: Source) -> None:
        """The subfeed may be told of in a channel in which somebody else has all that is here.

        A head says nothing about that: it may be the one that we have asked with. Its last entry
        does, with the hashes of those before.
        """
        name, head = subfeed.name, source.head
        if head is None or not head.size or head.size < subfeed.replica.readable:
            return
        if await self._permits.is_told_in(name, source.channel):
            return
        try:
            await proved_entries(subfeed, source, head, head.size - 1, 1)
        except PeerError as error:
            log.debug("node %s did not show what it has: %s", source.session.peer[:16], error)
        else:
            await self._permits.note_copy(name, source.channel)

    async def _settle_doubt(self, subfeed: Subfeed, source: Source, head: SignedHead) -> None:
        try:
            await settle_doubt(subfeed, source.session, source.channel, head)
        except UnprovableError:
            # With a fork known already, what it has of the common part can be had all the same.
            if subfeed.replica.log.fork is None:
                raise

    def _pass_on(self, subfeed: Subfeed, ending: object) -> None:
        """Tell on what was heard; of a new fork or tombstone also those who do not follow it.

        An owner does not follow its own feed, and who has the feed from somebody else may not
        follow it here: being asked they are told too.
        """
        self._spreading.spread(subfeed)
        if subfeed.replica.ending != ending:
            self.look_for([subfeed.name])

    def _blame(self, subfeed: Subfeed, session: Teller, error: KacheryError) -> None:
        log.warning(
            "feed %s: node %s told what was not signed: %s",
            subfeed.name.feed[:16],
            session.peer[:16],
            error,
        )
        subfeed.blame(session, trio.current_time())

    # --- answering -----------------------------------------------------------------------------

    async def answer_follow(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        """Answer `feed follow`."""
        name, channel = SubfeedName.of(body), body["channel"]
        if not await self._permits.may_tell(session, channel, name):
            raise refusal()
        told = Told.of(body)
        size = 0 if told.head is None else told.head.size
        is_own = self._permits.is_own(name.feed)
        own = await self._subfeeds.claim_to(name.feed, self._node_id) if is_own else b""
        # What is found now it is told by the answer: news before that it would not listen to.
        subfeed = await self._subfeeds.open_existing(name)
        if body["follow"] and not self._spreading.add(name, session, channel, size):
            raise PeerBusyError("follows more than one node may")
        if subfeed is None:
            return {**Told().known, "path": b"", "own": own}
        self._look_into(session, subfeed, told)
        shown = await subfeed.work(subfeed.replica.tell, told.head)
        path = b"".join(shown.path)
        return {**shown.known, "path": path, "own": own}

    def _look_into(self, session: Session, subfeed: Subfeed, told: Told) -> None:
        """What the asker says it knows may be news: take it in, and ask back."""
        mine = subfeed.replica
        nothing = told.head in (None, mine.best) and told.fork in (None, mine.log.fork)
        if nothing and set(told.tombstones) <= set(mine.tombstones):
            return
        if self._nursery is not None and not subfeed.is_looking_into(session):
            self._nursery.start_soon(self._learn_of_asker, session, subfeed, told)

    async def _learn_of_asker(self, session: Session, subfeed: Subfeed, told: Told) -> None:
        ending = subfeed.replica.ending
        with subfeed.looking_into(session):
            try:
                heard = await subfeed.hear(told)
                if heard.standing in (Standing.UNKNOWN, Standing.DOUBT, Standing.AGREES):
                    await self.ask(session, subfeed, follow=False)
            except _OF_A_LIE as error:
                self._blame(subfeed, session, error)
            except PeerError as error:
                log.info("node %s: %s", session.peer[:16], error)
            except KacheryError as error:
                log.warning("feed %s: %s", subfeed.name.feed[:16], error)
            self._pass_on(subfeed, ending)

    def hear_news(self, session: Session, body: dict[str, Any]) -> Awaitable[dict[str, Any]]:
        """Answer `feed news`: when it is taken in, so that nobody tells faster than we can.

        It is begun when this returns, if nothing has to be waited for: whoever reads the feed
        waits for it. PeerRefusedError.
        """
        news, now = self._news_of(session, body), trio.current_time()
        if news.talk.allowance.wait_s(1, now) > 0:
            return self._hear_in_turn(news)
        news.talk.allowance.pay(1, now)
        news.begin(now)
        return self._hear(news)

    async def _hear_in_turn(self, news: News) -> dict[str, Any]:
        await wait_for_turn(news.talk.allowance, 1)
        news.begin(trio.current_time())
        return await self._hear(news)

    def _news_of(self, session: Session, body: dict[str, Any]) -> News:
        """Who tells something of which subfeed; what it is was not looked at. PeerRefusedError."""
        name, channel = SubfeedName.of(body), body["channel"]
        subfeed = self._subfeeds.open_now(name)
        talk = self._talks.get(session)
        if subfeed is None or talk is None or not self._permits.may_ask(session, channel):
            raise refusal()
        source = subfeed.sources.get(session)
        if source is None:
            raise refusal()
        return News(subfeed, talk, Source(session, channel, None, source.own), body)

    async def _hear(self, news: News) -> dict[str, Any]:
        if news.told is None:
            raise ProtocolError(news.wrong)
        subfeed = news.subfeed
        try:
            standing = await self._learn(subfeed, news.source, news.told, news.hearing)
        except (StoreError, FeedStoppedError, FeedBusyError) as error:
            # The disk's fault, and not that of who told it, which tells it again after a rest.
            if subfeed.fault != str(error):
                subfeed.fault = str(error)
                log.warning("feed %s: cannot keep what comes: %s", subfeed.name.feed[:16], error)
            raise PeerBusyError("cannot keep it now")
        subfeed.fault = ""
        if standing is Standing.UNKNOWN:
            news.talk.add([subfeed.name])
        return {}


def refusal() -> PeerRefusedError:
    """The one answer to whoever may not, and about what is not."""
    return PeerRefusedError("not available in this channel")
