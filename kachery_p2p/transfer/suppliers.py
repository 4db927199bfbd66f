"""Which source a transfer uses next: who failed, who lied, and how long to wait for the others.

A source that lies (wrong bytes, broken protocol) is not used again for this blob, and told
to `lied`, which drops it for the channel; one that handed on another's lie is looked for
anew. One that goes away, stalls or refuses is put behind those that did not, and rested; so
is one that is loading the blob itself and has nothing that is missing here. When none is
left, whoever went away has SOURCE_RETURN_S_MAX from the last progress to return.

Blame goes by node id: a peer chooses its own label.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import NamedTuple

import trio

from kachery_p2p.bucket.reading import Whose
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import (
    AllProvidersFailedError,
    DataFormatError,
    KacheryError,
    NotYetError,
    PeerError,
    ProtocolError,
    VerificationError,
)
from kachery_p2p.limits import (
    SOURCE_REST_S,
    SOURCE_RETURN_S_MAX,
    SOURCES_LOOK_S,
    SOURCES_LOOK_S_MIN,
)
from kachery_p2p.transfer.sources import LentSource, PartialSource, Source

log = logging.getLogger(__name__)

# What only a source that misbehaves does; after other faults it may be used again.
LIES = (VerificationError, DataFormatError, ProtocolError)
# All that a source can do wrong.
FAULTS = (PeerError, *LIES)

# Told the nodes that failed so far: others that are slower to answer must be waited for.
FindSources = Callable[[Collection[str]], Awaitable[Sequence[Source]]]
WaitForSources = Callable[[float], Awaitable[None]]
# Told who lied, and how, once for each.
ToldLie = Callable[[Source, str], None]


def _whose(source: Source) -> Whose:
    """Whose word it is that `source` has handed over, and that is wrong."""
    return source.disbelieve() if isinstance(source, LentSource) else Whose.PLACE


class Fault(NamedTuple):
    """What a node did last that ended a transfer from it, and when."""

    name: str
    why: str
    at: float


class Suppliers:
    """The sources of one blob. `known` are used first, then those that `find` finds.

    One that is not `patient` gives up at the first fault before any progress: there
    are other claims to try.
    """

    def __init__(
        self,
        content: ContentHash,
        *,
        known: Sequence[Source],
        find: FindSources,
        wait: WaitForSources,
        patient: bool,
        lied: ToldLie = lambda source, what: None,
    ) -> None:
        self.liars: set[str] = set()
        self._told_lie = lied
        # How often in a row each node failed.
        self._in_a_row: Counter[str] = Counter()
        self._content = content
        # Everybody who was found so far.
        self._pool = {source.node: source for source in known}
        self._find = find
        self._wait = wait
        self._patient = patient
        # The latest fault comes last.
        self._faults: dict[str, Fault] = {}
        self._failed_since: float | None = None
        self._was_told_wrong = False

    async def next(self) -> Source:
        """The source that failed least recently, if at all.

        Raises AllProvidersFailedError, naming each and why, when none is worth waiting for.
        """
        while True:
            found = await self._found()
            best = min(found, key=lambda source: self._failed_at(source.node), default=None)
            if best is not None and best.node not in self._faults:
                return best
            patience_s = self._patience_s()
            if patience_s <= 0 or (self._faults and self._faults.keys() <= self.liars):
                raise self.nobody_delivers()
            rest_s = patience_s
            if best is not None:
                rest_s = self._failed_at(best.node) + SOURCE_REST_S - trio.current_time()
                if rest_s <= 0:
                    return best
            await self._wait(min(rest_s, patience_s))

    def progressed(self) -> None:
        """A verified chunk has come: patience begins anew, for everyone."""
        self._failed_since = None
        self._patient = True

    def failed(self, source: Source, error: KacheryError) -> None:
        """A transfer from `source` ended with one of FAULTS."""
        if isinstance(error, LIES) and _whose(source) is Whose.NEW_MEMBERS:
            # It is no fault of the source, which is found anew.
            self._forget(source, str(error))
            return
        now = trio.current_time()
        self._faults.pop(source.node, None)
        self._faults[source.node] = Fault(source.name, str(error), now)
        self._in_a_row[source.node] += 1
        if isinstance(error, NotYetError):
            # No fault, and no reason to count patience while others are at work.
            log.debug("source %s has nothing for us of %s", source.name, self._content)
            return
        if self._failed_since is None:
            self._failed_since = now
        if isinstance(error, LIES):
            self.lied(source, str(error))
        else:
            log.warning("source %s failed for %s: %s", source.name, self._content, error)

    def lied(self, source: Source, what: str) -> None:
        """`source` sent what no honest node sends: told once, however often it is noticed.

        Also of one that nobody waits for any more, because others were faster.
        """
        if source.node in self.liars:
            return
        whose = _whose(source)
        if whose is Whose.NEW_MEMBERS:
            self._forget(source, what)
            return
        self.liars.add(source.node)
        log.warning(
            "source %s (node %s) lied about %s: %s", source.name, source.node, self._content, what
        )
        if whose is Whose.PLACE:
            self._told_lie(source, what)

    def _forget(self, source: Source, what: str) -> None:
        """The source has handed on what somebody else said, who is asked last from now on.

        Others may say something else of the content: if they have nothing for this transfer there
        is no more to wait for.
        """
        self._was_told_wrong, self._patient = True, False
        log.warning("source %s was told wrong about %s: %s", source.name, self._content, what)
        if self._pool.get(source.node) is source:
            del self._pool[source.node]

    @property
    def has_parts(self) -> bool:
        """Whether any source is loading the blob itself."""
        pool = self._pool.values()
        return any(isinstance(one, PartialSource) and one.node not in self.liars for one in pool)

    def failures(self) -> list[str]:
        """Each who failed, and how, for people to read."""
        told = [f"{fault.name}: {fault.why}" for fault in self._faults.values()]
        return told or ["all went away"]

    def nobody_delivers(self) -> AllProvidersFailedError:
        return AllProvidersFailedError(
            f"no provider delivered sha1://{self._content} ({'; '.join(self.failures())})",
            hint="what arrived is kept: run it again when a provider is back",
        )

    def another(self, busy: Collection[str]) -> Source | None:
        """A source that may help those that are `busy`; None if none is known just now."""
        now = trio.current_time()
        free = [
            source
            for source in self._pool.values()
            if source.node not in busy
            and source.node not in self.liars
            and self._failed_at(source.node) <= now - self._rest_s(source.node)
        ]
        return min(free, key=lambda source: self._failed_at(source.node), default=None)

    def _rest_s(self, node: str) -> float:
        """Others are at work: one that fails again and again is asked more and more rarely."""
        doubled = 2.0 ** min(max(self._in_a_row[node] - 1, 0), 16)
        return min(SOURCE_REST_S * doubled, SOURCES_LOOK_S)

    async def look(self) -> None:
        """See who else has it by now."""
        for source in await self._find(self._faults.keys()):
            self._pool[source.node] = source

    async def look_for_ever(self, told: Callable[[], None]) -> None:
        """See again and again who else has it: at once when a member comes or goes."""
        wait_s = SOURCES_LOOK_S_MIN
        while True:
            await trio.sleep(SOURCES_LOOK_S_MIN)
            await self._wait(wait_s - SOURCES_LOOK_S_MIN)
            await self.look()
            told()
            wait_s = min(2 * wait_s, SOURCES_LOOK_S)

    async def _found(self) -> list[Source]:
        if not any(node not in self._faults for node in self._pool):
            found = await self._find(self._faults.keys())
            self._pool = {source.node: source for source in found}
        return [source for source in self._pool.values() if source.node not in self.liars]

    def _failed_at(self, node: str) -> float:
        return self._faults[node].at if node in self._faults else float("-inf")

    def _patience_s(self) -> float:
        """How much longer sources are waited for, counted from the first fault since progress."""
        if not self._patient and (self._faults or self._was_told_wrong):
            return 0.0
        if self._failed_since is None:
            self._failed_since = trio.current_time()
        return self._failed_since + SOURCE_RETURN_S_MAX - trio.current_time()
