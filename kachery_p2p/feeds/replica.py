"""One subfeed as this node knows it, its own or another's: what it believes, and what it shows.

A node believes the best head that it has verified, and keeps it durably before anybody hears of
it: `log.rules.Reader` decides. What it shows others is the best head of which it has all entries,
because only then can it prove what it says, and hand the entries on.

Two heads that cannot both be true are a fork of the feed, or a lie of who showed one of them. It
takes the other's hashes to tell: `hear` answers DOUBT, and `prove` makes the proof, or finds the
liar. With a proof nothing is believed any more beyond the last entry that both histories share.

Every method may read the disk or write to it, and is called by one at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from kachery_p2p.errors import EntryDamagedError, LogForkedError, PeerError, ProofError
from kachery_p2p.feeds.news import Grown, grown_by
from kachery_p2p.feeds.shared_log import Overtaken
from kachery_p2p.feeds.told import Told
from kachery_p2p.feeds.tombstones import End, Tombstone
from kachery_p2p.limits import FEED_NEWS_BYTES_MAX
from kachery_p2p.log.entries import HEADER_BYTES
from kachery_p2p.log.forks import ForkProof, prove_fork
from kachery_p2p.log.heads import LogId, SignedHead
from kachery_p2p.log.proofs import Path, prove_consistency, verify_consistency, verify_inclusion
from kachery_p2p.log.rules import Reader, Verdict
from kachery_p2p.log.tree import Frontier, ReadHash, leaf_hashes, stored_count
from kachery_p2p.wire.feed_messages import LENGTH_BYTES

# Heads of a forked feed that are remembered as compared: a member shows one, or a few.
_COMPARED_MAX = 64


class Log(Protocol):
    """The disk under a replica: `feeds.log_file`, or a list in a simulation."""

    @property
    def log(self) -> LogId: ...
    @property
    def owned(self) -> bool: ...
    @property
    def size(self) -> int: ...
    @property
    def signed(self) -> SignedHead | None: ...
    @property
    def signed_size(self) -> int: ...
    @property
    def fork(self) -> ForkProof | None: ...
    @property
    def tombstone(self) -> End | None: ...
    @property
    def restored(self) -> bool: ...
    def read_hash(self, place: int, /) -> bytes: ...
    def root_at(self, size: int, /) -> bytes: ...
    def frontier(self) -> Frontier: ...
    def entries(self, first: int, count_max: int, bytes_max: int, /) -> list[bytes]: ...
    def keep(
        self,
        entries: Sequence[bytes],
        frontier: Frontier,
        stored: list[bytes],
        head: SignedHead | None,
        /,
    ) -> None: ...
    def convict(self, fork: ForkProof, /) -> None: ...
    def end(self, tombstone: Tombstone, /) -> None: ...
    def settle(self) -> None: ...
    def mend(self, position: int, entry: bytes, /) -> None: ...


class Standing(Enum):
    """How the head that a peer told stands to what is believed here."""

    NONE = "it told none"
    AGREES = "one history: its entries can be had from it"
    UNKNOWN = "it cannot be told yet: ask again, from the head that is known here"
    DOUBT = "a fork, or a lie"
    FORKED = "of a history that is not gone on with"


class Heard(NamedTuple):
    """What came of what a peer told."""

    standing: Standing
    # Something is known now that others should hear.
    news: bool = False
    # The entries that were verified and kept, and the position of the first; not all that was told.
    first: int = 0
    kept: Sequence[bytes] = ()


class UnprovableError(PeerError):
    """The hashes of one of the two histories cannot be had just now."""


class Replica:
    """What this node knows of the subfeed that lies in `log`."""

    def __init__(self, log: Log) -> None:
        self.log = log
        # The best head with all entries, while a better one is known; and the path to that one.
        self._shown: SignedHead | None = None
        self._ahead: tuple[SignedHead, Path] | None = None
        # What of the entries that a peer told last was kept, and the position of the first.
        self._kept: tuple[int, Sequence[bytes]] = (0, ())
        # After a fork: heads of which is known already where they part from ours.
        self._compared: list[SignedHead] = []

    # --- what is known -------------------------------------------------------------------------

    @property
    def best(self) -> SignedHead | None:
        """The best head known, with or without the entries."""
        return self.log.signed

    @property
    def shown(self) -> SignedHead | None:
        """The best head of which all entries are here; None if none is."""
        if self.log.signed is not None and self.log.signed.size == self.log.size:
            return self.log.signed
        return self._shown

    @property
    def size(self) -> int:
        """How many entries there are to be read, here or elsewhere."""
        size = self.log.signed_size
        return min(size, self.limit) if self.limit is not None else size

    @property
    def readable(self) -> int:
        """How many entries can be read here."""
        return min(self.log.size, self.size)

    @property
    def limit(self) -> int | None:
        """How many entries may be read at most, if a fork or a tombstone bounds them."""
        fork, end = self.log.fork, self.log.tombstone
        limits = [] if fork is None else [fork.common_entries_max]
        limits += [] if end is None else [end.tombstone.size]
        return min(limits, default=None)

    @property
    def tombstones(self) -> tuple[Tombstone, ...]:
        """The owner's words that the subfeed ends: two if they contradict each other."""
        return () if self.log.tombstone is None else self.log.tombstone.tombstones

    @property
    def ending(self) -> tuple[ForkProof | None, tuple[Tombstone, ...]]:
        """What ends the subfeed, as far as it is known."""
        return self.log.fork, self.tombstones

    @property
    def is_behind(self) -> bool:
        """True if entries are known to be missing here."""
        return self.log.size < self.size

    @property
    def judges(self) -> tuple[SignedHead, ...]:
        """The heads that entries from elsewhere may be judged by.

        After a fork those of both histories: up to where they part they have the same entries.
        """
        fork = self.log.fork
        if fork is not None:
            return fork.first, fork.second
        return () if self.log.signed is None else (self.log.signed,)

    # --- telling -------------------------------------------------------------------------------

    def tell(self, asked: SignedHead | None = None) -> Told:
        """What a peer is told that knows the head `asked`."""
        shown = self.shown
        told = Told(shown, self.log.fork, self.tombstones)
        if shown is None or asked is None:
            return told
        return told._replace(base=asked.size, path=self._path(shown, asked))

    def tell_news(self, base: int) -> Told:
        """The same for a follower that knows `base` entries, with those behind if they are few."""
        told = self.tell()
        head = told.head
        if head is None or not 0 <= base < head.size:
            return told
        entries = self._few_entries(base, head.size)
        # Entries prove themselves to whoever has those before.
        path = () if entries else prove_consistency(base, head.size, self.log.read_hash)
        return told._replace(base=base, path=path, entries=entries)

    def _few_entries(self, first: int, end: int) -> Sequence[bytes]:
        """The entries if all of them may travel with news, else none."""
        if (end - first) * (HEADER_BYTES + LENGTH_BYTES) > FEED_NEWS_BYTES_MAX:
            return ()
        try:
            entries = self.log.entries(first, end - first, FEED_NEWS_BYTES_MAX)
        except EntryDamagedError:
            return ()
        size = sum(map(len, entries)) + LENGTH_BYTES * len(entries)
        fits = len(entries) == end - first and size <= FEED_NEWS_BYTES_MAX
        return entries if fits else ()

    def _path(self, shown: SignedHead, asked: SignedHead) -> Path:
        small, large = sorted((shown.size, asked.size))
        if large <= self.log.size:
            return prove_consistency(small, large, self.log.read_hash)
        if self._ahead is not None and self._ahead[0] == asked:
            return self._ahead[1]
        return ()

    # --- hearing -------------------------------------------------------------------------------

    def hear(self, told: Told, grown: Grown | None = None) -> Heard:
        """Take in what a peer told; durable when it returns.

        `grown`: what `news.foresee` has found out of it, if nothing has changed since.
        HeadError or ProofError if the owner did not say that, and then the peer lies.
        """
        known, self._kept = self._known, (0, ())
        if told.fork is not None:
            self.convict(told.fork)
        self._hear_end(told.tombstones)
        standing = Standing.NONE if told.head is None else self._hear_head(told, told.head, grown)
        return Heard(standing, self._known != known, *self._kept)

    @property
    def _known(self) -> tuple[object, ...]:
        return self.log.signed, self.ending

    def convict(self, fork: ForkProof) -> bool:
        """Take a proof that the feed has forked; False if one as good is known.

        HeadError or ProofError if it proves nothing.
        """
        known = self.log.fork
        if known is not None and known.common_entries_max <= fork.common_entries_max:
            return False
        fork.verify(self.log.log)
        self.log.convict(fork)
        if self.log.signed is None:
            self.log.keep([], self.log.frontier(), [], fork.first)
        return True

    def _hear_end(self, tombstones: Sequence[Tombstone]) -> None:
        for tombstone in tombstones:
            if tombstone not in self.tombstones:
                tombstone.verify(self.log.log)
                # Of another history of the feed: its head will show that, not who told of it.
                with contextlib.suppress(ProofError):
                    self.log.end(tombstone)

    def _hear_head(self, told: Told, head: SignedHead, grown: Grown | None) -> Standing:
        if grown is None:
            head.verify(self.log.log)
        best = self.log.signed
        if self.log.fork is not None:
            # It may be of a third history, which parts from ours even earlier.
            return Standing.FORKED if head in self._compared else Standing.DOUBT
        if head.size <= self.log.size and self._is_branch(head):
            return self._forked_of_one_size(head)
        grown = grown or grown_by(self, told)
        if grown is not None:
            try:
                self.log.keep(grown.entries, grown.frontier, grown.stored, head)
            except Overtaken:
                return Standing.UNKNOWN
            self._kept = grown.first, grown.entries
            return Standing.AGREES
        if not self._can_compare(told, head, best):
            return Standing.UNKNOWN
        try:
            return self._offer(told, head)
        except Overtaken:
            return Standing.UNKNOWN
        except LogForkedError:
            return self._forked_of_one_size(head)
        except ProofError:
            return Standing.DOUBT

    def _can_compare(self, told: Told, head: SignedHead, best: SignedHead | None) -> bool:
        """False if a path is needed from one head to the other, and it is not the one told."""
        if best is None or best.size in (0, head.size) or head.size <= self.log.size:
            return True
        return told.base == best.size and bool(told.path)

    def _is_branch(self, head: SignedHead) -> bool:
        """True if the entries that are here are not those of the head."""
        return self.log.root_at(head.size) != head.root

    def _forked_of_one_size(self, head: SignedHead) -> Standing:
        """Two heads contradict each other: with one size that is a proof already."""
        for known in (self.shown, self.best):
            if known is not None and known.size == head.size and known.root != head.root:
                self.convict(ForkProof.of_one_size(known, head))
        return Standing.DOUBT

    def _offer(self, told: Told, head: SignedHead) -> Standing:
        """Believe the head if it is better; LogForkedError or ProofError if it cannot be true."""
        best, shown = self.log.signed, self.shown
        path = told.path if best is not None and told.base == best.size else ()
        reader = Reader(self.log.log)
        # What is believed is what is on the disk, and nothing else.
        reader.best = best
        verdict = reader.offer(head, path if head.size > self.log.size else ())
        if verdict in (Verdict.NEWER, Verdict.RENEWED):
            self.log.keep([], self.log.frontier(), [], head)
        if verdict is Verdict.NEWER and self.shown != head:
            self._shown = shown
            self._ahead = (head, path) if shown is not None and shown == best else None
        self._settle(head)
        return Standing.AGREES

    def _settle(self, head: SignedHead) -> None:
        """A restored log of our own is confirmed by whoever has as much of it."""
        restored = self.log.owned and self.log.restored
        if restored and self.log.size <= head.size and self.shown == self.log.signed:
            self.log.settle()

    # --- catching up ---------------------------------------------------------------------------

    def grown(
        self, frontier: Frontier, entries: Sequence[bytes], path: Path, judge: SignedHead
    ) -> tuple[Frontier, list[bytes]]:
        """The frontier after these entries, and the hashes to store; ProofError if one is wrong."""
        extended, stored = frontier.extended(leaf_hashes(entries))
        verify_consistency(extended.size, extended.root, judge.size, judge.root, path)
        best = self.log.signed
        if best is not None and best.size == extended.size and best.root != extended.root:
            # Of a fork there may be a third history, and our best head is of that one.
            raise ProofError("the entries are not those of the best head")
        return extended, stored

    def keep(self, entries: Sequence[bytes], frontier: Frontier, stored: list[bytes]) -> None:
        """Make verified entries durable."""
        self.log.keep(entries, frontier, stored, None)
        best = self.log.signed
        if best is not None and self.log.size >= best.size:
            self._shown = self._ahead = None
            self._settle(best)

    # --- forks ---------------------------------------------------------------------------------

    def prove(self, head: SignedHead, theirs: ReadHash, ours: ReadHash) -> bool:
        """Prove with a peer's hashes that its head and ours are of two histories.

        True if something new is known then. ProofError if the peer lied. UnprovableError if it
        cannot be told: `ours`, which is asked for the hashes of our head that are not here, has
        none or wrong ones.
        """
        here, was_forked = stored_count(self.log.size), self.log.fork is not None

        def read(place: int) -> bytes:
            return self.log.read_hash(place) if place < here else ours(place)

        is_complete = True
        for known in dict.fromkeys((self.shown, self.best)):
            if known is None:
                continue
            is_complete = known.size <= self.log.size
            fork = prove_fork(known, read, head, theirs, exact=True)
            if fork is not None:
                return self._convict(fork, known, head)
        if was_forked:
            # Whatever is of one history with ours is no news.
            self._note_compared(head)
            return False
        if not is_complete:
            raise UnprovableError("hashes from elsewhere did not fit")
        raise ProofError("the path it gave is wrong, and its hashes are those of one history")

    def _convict(self, fork: ForkProof, known: SignedHead, head: SignedHead) -> bool:
        try:
            is_new = self.convict(fork)
            self._note_compared(head)
            return is_new
        except ProofError:
            # Whoever gave the hashes of our side is not the one who told the other head.
            if _proves_side(fork, known):
                raise
            raise UnprovableError("hashes of this side did not fit") from None

    def _note_compared(self, head: SignedHead) -> None:
        self._compared = [*self._compared[-_COMPARED_MAX:], head]


def _proves_side(fork: ForkProof, known: SignedHead) -> bool:
    """True if the half of the proof that is about `known` is right."""
    if fork.parting is None:
        return True
    entry, first, second = fork.parting
    side = first if fork.first == known else second
    try:
        verify_inclusion(entry, known.size, side.leaf, side.path, known.root)
    except ProofError:
        return False
    return True
