"""A subfeed while this node uses it: what is known of it, who has it, and who waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import TypeVar, TypeVarTuple

import trio

from kachery_p2p.feeds.bucket_member import BucketMember
from kachery_p2p.feeds.hands import Begun, Hands
from kachery_p2p.feeds.news import foresee
from kachery_p2p.feeds.replica import Heard, Replica, Standing
from kachery_p2p.feeds.told import SubfeedName, Told
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import FEED_BLAME_S, FEED_NEWS_BYTES_MAX, PEERS_MAX
from kachery_p2p.log.heads import SignedHead
from kachery_p2p.network.session import Session
from kachery_p2p.wire.feed_messages import LENGTH_BYTES

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")
# Who can be asked about a subfeed.
Teller = Session | BucketMember


class Source:
    """A member that has the subfeed up to a head, and in which channel it told so."""

    def __init__(self, session: Teller, channel: str, head: SignedHead | None, own: bool) -> None:
        self.session = session
        self.channel = channel
        # The head it showed, which agrees with what is known here; None if it has no entries.
        self.head = head
        # It has shown that it has the feed's key.
        self.own = own


class Hearing:
    """Something that a peer told, while a thread takes it in."""

    def __init__(self, begun: Begun[Heard], ending: object, is_told: bool) -> None:
        self.begun = begun
        # What ended the subfeed before.
        self.ending = ending
        # Whoever waits for the entries that it brought knows of them.
        self.is_told = is_told


class Subfeed:
    """One subfeed, its replica, and the members that have it."""

    def __init__(self, name: SubfeedName, replica: Replica, hands: Hands) -> None:
        self.name = name
        self.replica = replica
        self._hands = hands
        self.sources: dict[Teller, Source] = {}
        # Sessions that are to be asked, and those that said something which is looked into.
        self.asking: set[Session] = set()
        # How many times its channels' buckets are being asked, and what was wrong with one.
        self.asking_buckets = 0
        self.bucket_fault: str | None = None
        # Why news of it were not kept last, if they were not.
        self.fault = ""
        # When all were asked again because nobody had it.
        self.looked_at = -inf
        self._looked_into: set[Session] = set()
        # A catch-up is under way, and it is to be looked again whether there is more to fetch.
        self.is_catching_up = False
        self.sources_changed = trio.Event()
        self._blamed: dict[NodeId, float] = {}
        self._changed = trio.Event()
        # Who has it works on the replica.
        self._turn = trio.Semaphore(1, max_value=1)
        # Held while submitted messages are looked for and appended.
        self.submitting = trio.Lock()
        # The last entries that came, so that who waits for them need not read the disk.
        self._recent: tuple[int, Sequence[bytes]] = (0, ())
        # How many entries may be read, while the last of them are on their way to the disk; and
        # whether it has taken what was shown so before.
        self._shown = 0
        self._disk_is_trusted = True
        # Of how many entries of an own one all were told who wait for them.
        self.told = 0

    async def work(
        self,
        do: Callable[[*Arguments], Result],
        *arguments: *Arguments,
        then: Callable[[Result], None] | None = None,
    ) -> Result:
        """What `do` returns, which works on the replica alone and in a thread (`Hands.do`)."""
        await trio.lowlevel.checkpoint_if_cancelled()
        # Nearly always: who waits for its turn waits for one of the loop as well.
        begun = self.begin(do, *arguments, then=then)
        if begun is None:
            await self._turn.acquire()
            begun = self._begin(do, *arguments, then=then)
        return await begun.result()

    def begin(
        self,
        do: Callable[[*Arguments], Result],
        *arguments: *Arguments,
        then: Callable[[Result], None] | None = None,
    ) -> Begun[Result] | None:
        """The same without waiting (`Hands.begin`); None while others work on the replica."""
        try:
            self._turn.acquire_nowait()
        except trio.WouldBlock:
            return None
        return self._begin(do, *arguments, then=then)

    def _begin(
        self,
        do: Callable[[*Arguments], Result],
        *arguments: *Arguments,
        then: Callable[[Result], None] | None,
        is_urgent: bool = True,
    ) -> Begun[Result]:
        settled = self._settle
        return self._hands.begin(do, *arguments, then=then, settled=settled, is_urgent=is_urgent)

    async def hear(self, told: Told, hearing: Hearing | None = None) -> Heard:
        """Take in what a peer told. HeadError or ProofError if it lies.

        `hearing`: that of `begin_hearing`, if it was begun already.
        """
        if hearing is None:
            await trio.lowlevel.checkpoint_if_cancelled()
            hearing = self.begin_hearing(told)
        if hearing is None:
            await self._turn.acquire()
            hearing = self._begun_hearing(told)
        heard = await hearing.begun.result()
        if heard.news and not (hearing.is_told or heard.kept):
            # Of what came without entries whoever waits hears now and not before: who told it has
            # them, which our caller notes before anybody else goes on.
            self.tell_changed()
        return heard

    def begin_hearing(self, told: Told) -> Hearing | None:
        """Begin to take in what a peer told, which `hear` waits for; None if that has to wait."""
        try:
            self._turn.acquire_nowait()
        except trio.WouldBlock:
            return None
        return self._begun_hearing(told)

    def _begun_hearing(self, told: Told) -> Hearing:
        """The same, by who has the turn."""
        try:
            # Not again before the disk has taken what was shown last: it may be full, or broken.
            grown = foresee(self.replica, told) if self._disk_is_trusted else None
        except BaseException:
            self._turn.release()
            raise
        is_told = grown is not None
        ending = self.replica.ending

        def tell_kept(heard: Heard) -> None:
            if heard.kept:
                self._disk_is_trusted = True
                # Nobody has vouched for others that were told.
                if not is_told:
                    self.note_entries(heard.first, heard.kept)
                    self.tell_changed()

        # Who waits for the entries and is told of them now goes before the thread.
        hear = self.replica.hear
        begun = self._begin(hear, told, grown, then=tell_kept, is_urgent=not is_told)
        if grown is not None:
            self._disk_is_trusted = False
            self._shown = grown.frontier.size
            self.note_entries(grown.first, grown.entries)
            self.tell_changed()
        return Hearing(begun, ending, is_told)

    def _settle(self) -> None:
        """What was shown is on the disk by now, or never will be."""
        self._shown = 0
        self._turn.release()

    def is_looking_into(self, session: Session) -> bool:
        """True while something is looked into that this session said: one thing at a time."""
        return session in self._looked_into

    @contextlib.contextmanager
    def looking_into(self, session: Session) -> Iterator[None]:
        """Something is looked into that this session said."""
        self._looked_into.add(session)
        try:
            yield
        finally:
            self._looked_into.discard(session)

    # --- waiting -------------------------------------------------------------------------------

    def tell_changed(self) -> None:
        """Something is known now that was not before."""
        self._changed.set()
        self._changed = trio.Event()

    @property
    def changed(self) -> trio.Event:
        """Set when something more is known, or who has the subfeed changes."""
        return self._changed

    @property
    def size(self) -> int:
        """How many entries there are to be read, here or elsewhere."""
        return max(self.replica.size, self._shown)

    @property
    def readable(self) -> int:
        """How many entries can be read here."""
        return max(self.replica.readable, self._shown)

    def note_entries(self, first: int, entries: Sequence[bytes]) -> None:
        """These entries are the last ones; all are told of them now."""
        self.told = max(self.told, first + len(entries))
        at, known = self._recent
        if at + len(known) == first:
            first, entries = at, [*known, *entries]
        size = sum(map(len, entries)) + LENGTH_BYTES * len(entries)
        start = 0
        while size > FEED_NEWS_BYTES_MAX:
            size -= len(entries[start]) + LENGTH_BYTES
            start += 1
        self._recent = first + start, entries[start:]

    def recent(self, first: int, count: int) -> Sequence[bytes]:
        """The entries from `first` on, if they came last; else none."""
        at, entries = self._recent
        end = max(at, min(first + count, self.readable))
        return entries[first - at : end - at] if at <= first < at + len(entries) else ()

    # --- who has it ----------------------------------------------------------------------------

    def note_source(self, source: Source, standing: Standing) -> None:
        """A member answered; it has entries if its head agrees with what is known."""
        usable = standing in (Standing.AGREES, Standing.FORKED)
        source.head = source.head if usable else None
        known, self.sources[source.session] = self.sources.get(source.session), source
        self._tell_sources()
        # Who tells news is a source already: whoever waits for them is not woken up twice.
        if (
            known is None
            or known.own != source.own
            or (known.head is None) != (source.head is None)
        ):
            self.tell_changed()

    def drop_source(self, session: Teller) -> None:
        """A member is not to be asked for entries any more: it left, refused, or failed."""
        if self.sources.pop(session, None) is not None:
            self._tell_sources()
            self.tell_changed()

    def blame(self, session: Teller, now: float) -> None:
        """A member broke a rule: it is not heard about this subfeed for a while."""
        while len(self._blamed) >= PEERS_MAX:
            del self._blamed[next(iter(self._blamed))]
        self._blamed[session.peer] = now + FEED_BLAME_S
        self.drop_source(session)

    def is_blamed(self, session: Teller, now: float) -> bool:
        """True while a member is not heard."""
        return self._blamed.get(session.peer, now) > now

    def forget(self, session: Session) -> None:
        """The session has ended."""
        self.asking.discard(session)
        self.drop_source(session)
        self.tell_changed()

    @property
    def has_author(self) -> bool:
        """True while somebody is connected who has shown that it can append."""
        return any(source.own for source in self.sources.values())

    @property
    def is_waited_for(self) -> bool:
        """True while somebody waits for news."""
        return self._changed.statistics().tasks_waiting > 0

    @property
    def is_unused(self) -> bool:
        """True if nothing is lost by forgetting what is in memory only."""
        busy = not self._turn.value or self.submitting.locked() or self.is_catching_up
        asking = self.asking or self.asking_buckets
        return not (busy or self.is_waited_for or self.sources or asking)

    def _tell_sources(self) -> None:
        self.sources_changed.set()
        self.sources_changed = trio.Event()
