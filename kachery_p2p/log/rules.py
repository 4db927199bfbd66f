"""The two rules that make a log one: what a writer may sign, and what a reader believes.

A writer never signs two roots of one size. Whatever it signed counts as signed from
then on, written or not: after a failure it stops, and what is found on disk at the next
start decides. The same root may be signed again with a newer time ("still so").

Who appends often may also sign afterwards, and only now and then: what is durable, and can
never be anything else again, is as good as signed (`sign_durable`).

A reader keeps the best head it has verified, and goes to a longer one only with a proof
that the log did nothing but grow. So an owner can keep readers apart from each other,
but once two of them meet the fork can be proved, and a reader that has seen a proof
reads on only as far as both histories agree.

Neither touches a disk: the caller makes the new head durable before anybody hears of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from kachery_p2p.errors import LogBehindError, LogForkedError, LogStoppedError, StateCorruptError
from kachery_p2p.log.forks import ForkProof
from kachery_p2p.log.heads import Head, LogId, SignedHead, Signer, sign_head
from kachery_p2p.log.proofs import Path, verify_consistency
from kachery_p2p.log.tree import EMPTY_ROOT, Frontier, ReadHash, root_at

_ASK_THE_OWNER = "the owner's key was used twice or was copied: ask the owner which copy is right"


class Batch(NamedTuple):
    """What signing a batch gave: the head to write after the entries, and the hashes to store."""

    signed: SignedHead
    stored: list[bytes]


class Writer:
    """The owner's side of one log, in the only process that holds its lock.

    For each batch: `sign` it; write its entries and its head as one record, durably; tell
    `written`, or `failed`. Only then acknowledge it or show it to anybody.
    """

    def __init__(
        self,
        log: LogId,
        key: Signer,
        frontier: Frontier | None = None,
        signed: SignedHead | None = None,
    ) -> None:
        """Go on from what the disk has: `frontier` of its entries, and the last head in it.

        StateCorruptError if the two do not belong together.
        """
        assert key.node_id == log.owner
        self.log = log
        self.frontier = frontier or Frontier()
        self.signed = signed
        self._key = key
        self._writing = False
        self._refusal: Exception | None = None
        self._check_state()

    def sign(self, leaves: Iterable[bytes], time_ms: int) -> Batch:
        """Sign the log as it is with `leaves` appended; without any, once more as it is.

        A clock that went back does not show: the time is never before that of the last
        head. LogStoppedError, LogBehindError or LogForkedError if nothing may be signed.
        """
        assert not self._writing, "the last batch was neither `written` nor `failed`"
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)
        last = self.signed
        frontier, stored = self.frontier.extended(leaves)
        time_ms = time_ms if last is None else max(time_ms, last.time_ms)
        head = Head(self.log, frontier.size, frontier.root, time_ms)
        assert last is None or last.size < head.size or last.root == head.root
        self.frontier, self.signed = frontier, sign_head(head, self._key)
        self._writing = True
        return Batch(self.signed, stored)

    def written(self) -> None:
        """The last batch is durable: it may be shown, and the next one signed."""
        assert self._writing
        self._writing = False

    def failed(self) -> None:
        """Nobody knows how much of the last batch is on disk: sign nothing more."""
        assert self._writing
        self._writing = False
        self._refusal = LogStoppedError(
            "the disk failed while the last entries were written, so no more are taken",
            hint="see that the disk is well, then restart the node",
        )

    def heard(self, signed: SignedHead, read: ReadHash) -> None:
        """Compare with a head of this log from elsewhere; `read` gives our stored hashes.

        HeadError if it is not the owner's, and then nothing has changed. LogBehindError or
        LogForkedError if our key has signed what we do not have; `sign` raises it from then on.
        """
        assert not self._writing
        signed.verify(self.log)
        if signed.size > self.frontier.size:
            self._refuse(
                LogBehindError(
                    f"a copy with {signed.size} entries exists, this one has {self.frontier.size}",
                    hint="let it catch up; if both copies still write, stop one of them",
                )
            )
        if root_at(signed.size, read) != signed.root:
            self._refuse(self._forked(signed))

    def _refuse(self, error: LogBehindError | LogForkedError) -> None:
        # A fork is never forgotten for a longer copy.
        if not isinstance(self._refusal, LogForkedError):
            self._refusal = error
        raise error

    def _forked(self, other: SignedHead) -> LogForkedError:
        evidence = b""
        if self.signed is not None and self.signed.size == other.size:
            evidence = ForkProof.of_one_size(self.signed, other).encode()
        return LogForkedError(
            f"this key has signed another history of {other.size} entries",
            hint=_ASK_THE_OWNER,
            evidence=evidence,
        )

    def _check_state(self) -> None:
        size, root = 0, EMPTY_ROOT
        if self.signed is not None:
            self.signed.verify(self.log)
            size, root = self.signed.size, self.signed.root
        if (self.frontier.size, self.frontier.root) != (size, root):
            raise StateCorruptError(
                f"the {self.frontier.size} entries on disk are not those of the last signed head, "
                f"which has {size}",
                hint="restore the log's directory, or let it be fetched again from a peer",
            )


def sign_durable(
    log: LogId, key: Signer, frontier: Frontier, last: SignedHead | None, time_ms: int
) -> SignedHead:
    """The head of the entries under `frontier`, which are on the disk for good.

    `last` is the best head signed so far. Only for the one process that holds the log's lock, and
    that never has other entries in the place of these: then no two roots of one size are signed.
    """
    assert last is None or last.size <= frontier.size
    assert last is None or last.size < frontier.size or last.root == frontier.root
    time_ms = time_ms if last is None else max(time_ms, last.time_ms)
    return sign_head(Head(log, frontier.size, frontier.root, time_ms), key)


class Verdict(Enum):
    """What a reader made of a head that was offered to it."""

    NEWER = "the log has grown: make the head durable, then believe it"
    RENEWED = "the same log, signed again later"
    KNOWN = "nothing new"
    OLDER = "from before the best head known"


class Reader:
    """What one reader believes of a log. `best` is to be kept durably, and so is `fork`."""

    def __init__(
        self, log: LogId, best: SignedHead | None = None, fork: ForkProof | None = None
    ) -> None:
        """Go on from what was kept. HeadError or ProofError if it was tampered with."""
        self.log = log
        self.best = best
        self.fork: ForkProof | None = None
        if best is not None:
            best.verify(log)
        if fork is not None:
            self.convict(fork)

    @property
    def readable_entries(self) -> int:
        """How many entries of the log may be read: all of them, unless it has forked."""
        size = 0 if self.best is None else self.best.size
        return size if self.fork is None else min(size, self.fork.common_entries_max)

    def offer(self, signed: SignedHead, path: Path = ()) -> Verdict:
        """Believe `signed` if it is better than `best`, and `path` proves consistency with it.

        The path leads from the smaller of the two to the larger; an older head needs none.
        HeadError if the owner did not sign it. ProofError if the path is wrong: the peer is, or
        the log has forked, so ask for a fork proof. LogForkedError if it certainly has: `fork`
        is then set.
        """
        if signed == self.best:
            return Verdict.KNOWN
        signed.verify(self.log)
        self._refuse_beyond_fork(signed)
        best = self.best
        if best is None:
            return self._believe(signed, Verdict.NEWER)
        if signed.size == best.size:
            return self._compare(best, signed)
        if signed.size > best.size:
            verify_consistency(best.size, best.root, signed.size, signed.root, path)
            return self._believe(signed, Verdict.NEWER)
        if path:
            verify_consistency(signed.size, signed.root, best.size, best.root, path)
        return Verdict.OLDER

    def convict(self, fork: ForkProof) -> None:
        """Take a fork proof: from now on nothing beyond the common entries is believed.

        HeadError or ProofError if it proves nothing. Of several, the one that leaves the
        fewest common entries is kept. A reader that has no head takes one from the proof.
        """
        fork.verify(self.log)
        if self.fork is None or fork.common_entries_max < self.fork.common_entries_max:
            self.fork = fork
        if self.best is None:
            self.best = fork.first

    def _believe(self, signed: SignedHead, verdict: Verdict) -> Verdict:
        self.best = signed
        return verdict

    def _compare(self, best: SignedHead, signed: SignedHead) -> Verdict:
        """Two heads of one size: a newer time is a renewal, another root a fork."""
        if signed.root != best.root:
            self.convict(ForkProof.of_one_size(best, signed))
            self._refuse_beyond_fork(signed)
        if signed.time_ms > best.time_ms:
            return self._believe(signed, Verdict.RENEWED)
        return Verdict.KNOWN

    def _refuse_beyond_fork(self, signed: SignedHead) -> None:
        if self.fork is None or signed.size <= self.fork.common_entries_max:
            return
        raise LogForkedError(
            f"two histories are signed, and only {self.fork.common_entries_max} entries can be "
            "common to both",
            hint=_ASK_THE_OWNER,
            evidence=self.fork.encode(),
        )
