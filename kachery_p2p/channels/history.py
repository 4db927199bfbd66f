"""An owned channel's history as it was verified here: entries, the newest head, the roster.

A history never changes; learning gives a new one. What a peer tells is believed because
the channel's key signed it:

    missing    from the peer's head: which entries to ask for
    extended   with these entries, if together they have the root that was signed
    diverged   if that fails: all entries of the other history prove that the key signed two,
               or that the peer lies
    convicted  with such a proof: from now on only those are members whom both histories can name

So a peer can withhold news, but it can neither make any up nor take back what is known here.
"""

from __future__ import annotations

from collections.abc import Sequence

from kachery_p2p.channels.changes import Recorded, decode_change
from kachery_p2p.channels.notices import LOG_TAG as LOG_TAG
from kachery_p2p.channels.notices import Shown
from kachery_p2p.channels.notices import check_membership as check_membership
from kachery_p2p.channels.notices import check_notice as check_notice
from kachery_p2p.channels.notices import log_id as log_id
from kachery_p2p.channels.roster import Roster
from kachery_p2p.channels.spelling import Cursor, Speller
from kachery_p2p.errors import (
    ChannelForkedError,
    LogError,
    LogFormatError,
    ProofError,
    StateCorruptError,
    StateVersionError,
)
from kachery_p2p.identity.keys import KEY_BYTES, NodeId, verify_exchange
from kachery_p2p.limits import CHANNEL_ENTRIES_MAX, HISTORY_BYTES_MAX, HISTORY_FRESH_S
from kachery_p2p.log.entries import Entry
from kachery_p2p.log.forks import ForkProof, prove_fork
from kachery_p2p.log.heads import LogId, SignedHead
from kachery_p2p.log.proofs import prove_inclusion
from kachery_p2p.log.tree import Frontier, leaf_hash, root_at

MAGIC = b"kp2phist"
STATE_VERSION = 1
FORK_HINT = (
    "the channel's key was copied, or its keeper lies: ask them which history is right, and let "
    "the channel go on under a new key"
)


class History:
    """What this node knows of who belongs to a channel, and can prove to anybody."""

    __slots__ = (
        "_bytes",
        "_entries",
        "_frontier",
        "_stored",
        "_tip",
        "channel_id",
        "fork",
        "head",
        "roster",
    )

    channel_id: str
    # The newest head of these entries; None while nothing is known.
    head: SignedHead | None
    # Who belongs to the channel as far as can be told: see `convicted`.
    roster: Roster
    # Proof that the channel's key signed two histories.
    fork: ForkProof | None

    def __init__(self) -> None:
        """Nobody's: `empty` and `decode` make histories."""
        self.head = None
        self.fork = None
        self.roster = self._tip = Roster()
        self._entries: tuple[bytes, ...] = ()
        self._stored: tuple[bytes, ...] = ()
        self._frontier = Frontier()
        self._bytes = 0

    @classmethod
    def empty(cls, channel_id: str) -> History:
        """The history of a channel of which nothing is known but its id."""
        made = cls()
        made.channel_id = channel_id
        return made

    def __repr__(self) -> str:
        return f"<History {self.channel_id[:8]} of {self.size} entries>"

    @property
    def log(self) -> LogId:
        """The log that this is."""
        return log_id(self.channel_id)

    @property
    def size(self) -> int:
        """How many entries are known."""
        return len(self._entries)

    @property
    def frontier(self) -> Frontier:
        """What the log must remember to grow."""
        return self._frontier

    def stored_hash(self, place: int) -> bytes:
        """The hash at a place of the tree's stored order (`log.tree`)."""
        return self._stored[place]

    def has_room_for(self, entries: int, size_bytes: int) -> bool:
        """True if the history may have so many more entries, of so many bytes together."""
        fits = self._bytes + size_bytes <= HISTORY_BYTES_MAX
        return fits and self.size + entries <= CHANNEL_ENTRIES_MAX

    # --- learning ------------------------------------------------------------------------------

    def missing(self, head_bytes: bytes) -> range:
        """The entries to ask for of who sent this head; none if it is not longer than ours.

        Raises LogFormatError or HeadError if the channel's key did not sign it.
        """
        head = self._verified(head_bytes)
        if self._is_frozen or head.size <= self.size:
            return range(0)
        return range(self.size, head.size)

    def size_of(self, head_bytes: bytes) -> int:
        """How many entries the history of this head has. Raises as `missing` does."""
        return self._verified(head_bytes).size

    def extended(self, head_bytes: bytes, entries: Sequence[bytes]) -> History:
        """The history with what is `missing` up to this head; itself if there is nothing new.

        ProofError if the head is not of a history that goes on from this one: the peer
        lies, or the channel has forked, which `diverged` finds out. ChannelForkedError, with
        the proof as its `evidence`, if that is certain at once. LogFormatError or HeadError
        for what the channel's key did not sign or nobody can read.
        """
        head = self._verified(head_bytes)
        if self._is_frozen:
            return self
        if head.size <= self.size:
            return self._compared(head)
        return self._grown(head, entries)

    def renewed_by(self, head_bytes: bytes) -> History:
        """The history with this head if it is the same, signed later; else itself."""
        head = self._verified(head_bytes)
        if self.head is None or (head.size, head.root) != (self.size, self.head.root):
            return self
        return self._compared(head)

    def _verified(self, head_bytes: bytes) -> SignedHead:
        head = SignedHead.decode(head_bytes, LOG_TAG)
        if head.size > CHANNEL_ENTRIES_MAX:
            raise LogFormatError(f"a channel's history has at most {CHANNEL_ENTRIES_MAX} entries")
        head.verify(self.log)
        return head

    def _compared(self, head: SignedHead) -> History:
        """What a head means that is not longer than ours."""
        ours = self.head
        if ours is not None and head.size == self.size and head.root != ours.root:
            raise ChannelForkedError(
                f"the channel's key has signed two histories of {head.size} entries",
                hint=FORK_HINT,
                evidence=ForkProof.of_one_size(ours, head).encode(),
            )
        if root_at(head.size, self.stored_hash) != head.root:
            raise ProofError(f"another history of {head.size} entries is signed than is known here")
        if ours is None or head.size < self.size or head.time_ms <= ours.time_ms:
            return self
        renewed = self._copy()
        renewed.head = head
        return renewed

    def _grown(
        self, head: SignedHead, entries: Sequence[bytes], *, exchange_keys_verified: bool = False
    ) -> History:
        if len(entries) != head.size - self.size:
            raise ProofError(f"{len(entries)} entries do not lead from {self.size} to {head.size}")
        added_bytes = _check_bytes(self._bytes, entries)
        frontier, stored = self._frontier.extended(map(leaf_hash, entries))
        if frontier.root != head.root:
            raise ProofError("the entries are not those of the history that was signed")
        grown = self._copy()
        grown.head = head
        grown._entries = self._entries + tuple(entries)
        grown._stored = self._stored + tuple(stored)
        grown._frontier = frontier
        grown._bytes = self._bytes + added_bytes
        grown._tip = self._tip.replayed(_decoded(entries), self.size)
        if not exchange_keys_verified:
            _check_exchange_keys(self._tip, grown._tip)
        grown._judge()
        return grown

    # --- forks ---------------------------------------------------------------------------------

    @property
    def _is_frozen(self) -> bool:
        """True if nothing more can be learnt: all that two histories can share is known."""
        return self.fork is not None and self.size >= self.fork.common_entries_max

    def diverged(self, head_bytes: bytes, all_entries: Sequence[bytes]) -> ForkProof:
        """The proof that the history of this head, with `all_entries`, is another than this one.

        ProofError if it is not, or the entries are not those of the head: the peer lies.
        """
        head = self._verified(head_bytes)
        if len(all_entries) != head.size:
            raise ProofError(f"{len(all_entries)} entries are not all {head.size}")
        _check_bytes(0, all_entries)
        frontier, stored = Frontier().extended(map(leaf_hash, all_entries))
        if frontier.root != head.root:
            raise ProofError("the entries are not those of the history that was signed")
        proof = None
        if self.head is not None:
            proof = prove_fork(self.head, self.stored_hash, head, stored.__getitem__)
        if proof is None:
            raise ProofError("the two histories do not contradict each other")
        return proof

    def convicted(self, proof: ForkProof) -> History:
        """This history after it was proved that the channel's key signed two.

        Members are those of the last entry that both histories can share. Whom our own
        history removes or demotes afterwards stays so: a fork brings nobody back. HeadError
        or ProofError if it proves nothing; itself if a proof that says as much is known.
        """
        proof.verify(self.log)
        if self.fork is not None and self.fork.common_entries_max <= proof.common_entries_max:
            return self
        convicted = self._copy()
        convicted.fork = proof
        convicted._judge()
        return convicted

    def _judge(self) -> None:
        """Say who belongs to the channel, given all that is known."""
        self.roster = self._tip
        if self.fork is not None and self.size > self.fork.common_entries_max:
            common = _decoded(self._entries[: self.fork.common_entries_max])
            self.roster = Roster().replayed(common, 0).only_as_in(self._tip)

    # --- showing -------------------------------------------------------------------------------

    def entries(self, first: int, bytes_max: int) -> list[bytes]:
        """The entries from number `first` on, as many as `bytes_max` has room for.

        At least one, unless there is none.
        """
        found = list[bytes]()
        room = bytes_max
        for entry in self._entries[max(first, 0) :]:
            room -= len(entry)
            if found and room < 0:
                break
            found.append(entry)
        return found

    def membership_proof(self, node: NodeId) -> bytes:
        """What shows to anybody that the channel's key made `node` a member: `check_membership`.

        ProofError if it is none.
        """
        if node not in self._tip.since:
            raise ProofError("the node is not a member of the channel")
        return self._shown(self._tip.since[node])

    def removal_notice(self, node: NodeId) -> bytes | None:
        """What shows to anybody that the channel's key removed `node`; None if it did not."""
        number = self._tip.removed.get(node)
        return None if number is None else self._shown(number)

    def check_notice(self, node: NodeId, data: bytes) -> int:
        """The number of the entry that removed `node`, as somebody else shows it.

        LogFormatError, HeadError or ProofError if it is no news: not signed by the channel's
        key, or from before `node` was, as is known here, made a member again.
        """
        return check_notice(self.channel_id, node, data, self._tip.since.get(node, -1) + 1)

    def _shown(self, number: int) -> bytes:
        assert self.head is not None
        path = prove_inclusion(number, self.size, self.stored_hash)
        return Shown(self.head, number, self._entries[number], path).encode()

    # --- on disk -------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """The bytes of the history, as the disk keeps them (PROTOCOL.md has no part in it)."""
        speller = Speller()
        speller.fixed(MAGIC, len(MAGIC))
        speller.number(STATE_VERSION, 2)
        speller.fixed(bytes.fromhex(self.channel_id), KEY_BYTES)
        for part in (self.head, self.fork):
            data = b"" if part is None else part.encode()
            speller.number(len(data), 2)
            speller.fixed(data, len(data))
        for entry in self._entries:
            speller.number(len(entry), 4)
            speller.fixed(entry, len(entry))
        return speller.spelled()

    @classmethod
    def decode(cls, data: bytes, channel_id: str) -> History:
        """The history that `data` spells, verified but for what its writer had verified.

        StateCorruptError if it is damaged or another channel's; StateVersionError if it is
        from a newer kachery_p2p.
        """
        cursor = Cursor(data)
        try:
            _check_preamble(cursor, channel_id)
            head, fork = (cursor.fixed(cursor.number(2)) for _ in range(2))
            entries = []
            while not cursor.at_end:
                entries.append(cursor.fixed(cursor.number(4)))
            return cls.empty(channel_id)._restored(head, fork, entries)
        except LogError:
            raise StateCorruptError(
                f"the history of the channel {channel_id[:16]} on this disk is damaged",
                hint="move it away: the other members have it",
            ) from None

    def _restored(self, head: bytes, fork: bytes, entries: Sequence[bytes]) -> History:
        if not head and entries:
            raise LogFormatError("entries without a head")
        restored = self
        if head:
            signed = self._verified(head)
            restored = self._grown(signed, entries, exchange_keys_verified=True)
        return restored.convicted(ForkProof.decode(fork, LOG_TAG)) if fork else restored

    # --- age -----------------------------------------------------------------------------------

    def age_s(self, now_ms: int) -> float:
        """Seconds since the channel's key last signed, by both clocks; 0 if in the future."""
        return max(0, now_ms - (0 if self.head is None else self.head.time_ms)) / 1000

    def fresh(self, now_ms: int) -> bool:
        """False if the keeper has been silent for so long that people should be told."""
        return self.age_s(now_ms) <= HISTORY_FRESH_S

    def _copy(self) -> History:
        made = History()
        for name in self.__slots__:
            setattr(made, name, getattr(self, name))
        return made


def _check_preamble(cursor: Cursor, channel_id: str) -> None:
    if cursor.fixed(len(MAGIC)) != MAGIC:
        raise LogFormatError("no history")
    version = cursor.number(2)
    if version > STATE_VERSION:
        raise StateVersionError(
            "the history of a channel was written by a newer kachery-p2p "
            f"(version {version}, not {STATE_VERSION})",
            hint="upgrade kachery-p2p on this computer",
        )
    if version != STATE_VERSION or cursor.fixed(KEY_BYTES).hex() != channel_id:
        raise LogFormatError("another channel's history")


def _decoded(entries: Sequence[bytes]) -> list[Recorded]:
    return [decode_change(Entry.decode(entry)) for entry in entries]


def _check_bytes(known: int, entries: Sequence[bytes]) -> int:
    added = sum(map(len, entries))
    if known + added > HISTORY_BYTES_MAX:
        raise LogFormatError(f"a channel's history has at most {HISTORY_BYTES_MAX} bytes")
    return added


def _check_exchange_keys(before: Roster, after: Roster) -> None:
    """Each member's own word for its exchange key, verified once when it is new.

    Whoever wraps a key for the members would else wrap it for whomever the keeper named.
    """
    for node, member in after.members.items():
        known = before.members.get(node)
        if known is not None and known[2:4] == member[2:4]:
            continue
        if not verify_exchange(node, member.exchange, member.exchange_signature):
            raise LogFormatError("a member's exchange key is not signed by the member")
