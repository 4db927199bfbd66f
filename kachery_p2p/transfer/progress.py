"""How far one transfer is: what its fetch is told, and one snapshot for everybody who looks.

A fetch tells it what happens, once for each chunk, and whoever is interested (clients that
wait, `status`) asks for a snapshot when it suits them. So a thousand clients that wait cost the
transfer nothing, and one that reads slowly sees fewer snapshots and never an old one. Pure:
told the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from kachery_p2p.errors import (
    DataFormatError,
    KacheryError,
    PeerTimeoutError,
    ProtocolError,
    VerificationError,
)
from kachery_p2p.limits import (
    PROGRESS_ETA_S_MAX,
    PROGRESS_LATE_S,
    PROGRESS_RATE_S,
    PROGRESS_SOURCES_MAX,
    PROGRESS_TOLD_PER_S_MAX,
    PROGRESS_TOLD_S,
)
from kachery_p2p.transfer.rates import Rate

# What a transfer is doing.
ASKING = "asking"  # for members that have it
FETCHING = "fetching"
HASHING = "hashing"  # what an earlier run left, or what this node never hashed
FINISHING = "finishing"  # all is here: the last of the SHA-1, and the disk

# What a source is doing.
SERVING = "serving"
LATE = "late"  # it is to serve, and nothing has come from it for a while
LEFT = "left"  # it went away, or there was nothing more for it to do
STALLED = "stalled"  # it was given up because it sent nearly nothing
LIED = "lied"  # it sent what does not verify, and is not asked again

AT_WORK = (SERVING, LATE)


def state_after(error: KacheryError) -> str:
    """What a source is doing that was given up for this error."""
    if isinstance(error, PeerTimeoutError):
        return STALLED
    return LIED if isinstance(error, VerificationError | DataFormatError | ProtocolError) else LEFT


class SourceProgress(NamedTuple):
    """What one source has brought. `rate` is in bytes a second, as of late."""

    node: str
    name: str
    # The id of the channel in which it serves.
    channel: str
    state: str
    rate: float
    bytes: int
    wasted: int


class Snapshot(NamedTuple):
    """How far a transfer is."""

    phase: str
    # What there is to wait for when nothing comes; None when all goes on.
    waiting_for: str | None = None
    # Verified and on disk, `reused` ones of an earlier run among them; in all, once that is known.
    bytes: int = 0
    size: int | None = None
    reused: int = 0
    # Bytes that came for nothing: twice, or wrong.
    wasted: int = 0
    # Useful bytes a second, as of late.
    rate: float = 0.0
    eta_s: float | None = None
    sources: tuple[SourceProgress, ...] = ()

    def of_part(self, byte_count: int, size: int) -> Snapshot:
        """The same for whoever waits for a part of `size` bytes, of which so many are here."""
        left_s = _eta_s(size - byte_count, self.rate)
        return self._replace(bytes=byte_count, size=size, eta_s=left_s)


# Shows how far a transfer is at this time (`trio.current_time`).
View = Callable[[float], Snapshot]
# Told the view of what serves a call, at first and whenever it may show something new.
Tell = Callable[[View], None]


class _Tally:
    """One source."""

    def __init__(self, name: str, channel: str) -> None:
        self.name = name
        self.channel = channel
        self.state = SERVING
        self.bytes = 0
        self.wasted = 0
        self.rate = Rate(PROGRESS_RATE_S)
        self.came_at = 0.0

    def progress(self, node: str, now: float) -> SourceProgress:
        at_work = self.state == SERVING
        late = at_work and now - self.came_at >= PROGRESS_LATE_S
        state = LATE if late else self.state
        rate = (self.rate.at(now) or 0.0) if at_work else 0.0
        return SourceProgress(node, self.name, self.channel, state, rate, self.bytes, self.wasted)


class TransferProgress:
    """What a fetch has done so far. One for each, shared by all who wait for it."""

    def __init__(self) -> None:
        self.size: int | None = None
        self.bytes = 0
        self.reused = 0
        self.received = 0
        self.wasted = 0
        self._phase = ASKING
        self._rate = Rate(PROGRESS_RATE_S)
        self._sources: dict[str, _Tally] = {}

    # --- what it is told --------------------------------------------------------------------

    def entered(self, phase: str) -> None:
        """It does this now."""
        self._phase = phase

    def found(self, byte_count: int) -> None:
        """So many bytes were here already, verified."""
        self.reused += byte_count
        self.bytes += byte_count

    def joined(self, node: str, name: str, channel: str, now: float) -> None:
        """A source is at work (again)."""
        if not self.working:
            self._rate.resume(now)
        tally = self._sources.pop(node, None)
        if tally is None:
            self._make_room()
            tally = _Tally(name, channel)
        # Who came last comes last.
        self._sources[node] = tally
        tally.state, tally.came_at = SERVING, now
        tally.rate.resume(now)

    def left(self, node: str, state: str = LEFT) -> None:
        """A source is at work no more: it went away, it STALLED, or it LIED."""
        tally = self._sources.get(node)
        if tally is not None and tally.state not in (STALLED, LIED):
            tally.state = state

    def came(self, node: str, byte_count: int, now: float, *, needed: bool) -> None:
        """A verified chunk has come: one that was missing, or one that was here already."""
        tally = self._sources.get(node)
        if tally is not None:
            tally.came_at = now
        if not needed:
            self.lost(node, byte_count)
            return
        self.received += byte_count
        self.bytes += byte_count
        self._rate.add(byte_count, now)
        if tally is not None:
            tally.bytes += byte_count
            tally.rate.add(byte_count, now)

    def lost(self, node: str, byte_count: int) -> None:
        """Bytes came that are of no use."""
        self.wasted += byte_count
        tally = self._sources.get(node)
        if tally is not None:
            tally.wasted += byte_count

    def _make_room(self) -> None:
        """Forget who left first when there are many: what it brought stays in the sums."""
        if len(self._sources) >= PROGRESS_SOURCES_MAX:
            gone = (node for node, tally in self._sources.items() if tally.state != SERVING)
            del self._sources[next(gone, next(iter(self._sources)))]

    # --- what it shows ----------------------------------------------------------------------

    @property
    def phase(self) -> str:
        """What it is doing."""
        return self._phase

    @property
    def working(self) -> bool:
        """True if any source is at work."""
        return any(tally.state == SERVING for tally in self._sources.values())

    def snapshot(self, now: float) -> Snapshot:
        """How far it is; sources in the order in which they came."""
        rate = self._rate.at(now) or 0.0
        sources = tuple(tally.progress(node, now) for node, tally in self._sources.items())
        left = None if self.size is None else self.size - self.bytes
        return Snapshot(
            self._phase,
            self._waits(sources),
            self.bytes,
            self.size,
            self.reused,
            self.wasted,
            rate,
            None if left is None else _eta_s(left, rate),
            sources,
        )

    def _waits(self, sources: tuple[SourceProgress, ...]) -> str | None:
        if self._phase != FETCHING:
            return None
        if not any(source.state in AT_WORK for source in sources):
            return "a source"
        # With one that serves, all goes on.
        return None if any(source.state == SERVING for source in sources) else "late sources"


class Listener(NamedTuple):
    """Somebody who is told, and what they look at."""

    tell: Tell
    view: View


class Listeners:
    """Who is told how far one transfer is: not of every chunk, and the less often the more wait."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._told_phase: str | None = None
        self._next_at = -math.inf

    def add(self, tell: Tell, view: View) -> Listener:
        """One more, until `remove`; told at once if the others were told anything."""
        listener = Listener(tell, view)
        self._listeners.append(listener)
        if self._told_phase is not None:
            tell(view)
        return listener

    def remove(self, listener: Listener) -> None:
        self._listeners.remove(listener)

    def tell(self, now: float, phase: str) -> None:
        """Something changed: tell them, unless they were told just now and it is no new phase."""
        if now < self._next_at and phase == self._told_phase:
            return
        self._told_phase = phase
        many = len(self._listeners) / PROGRESS_TOLD_PER_S_MAX
        self._next_at = now + max(PROGRESS_TOLD_S, many)
        for listener in tuple(self._listeners):
            listener.tell(listener.view)


def _eta_s(left: int, rate: float) -> float | None:
    """How long `left` bytes take at this rate; None if nobody can tell."""
    if left <= 0:
        return 0.0
    return left / rate if rate * PROGRESS_ETA_S_MAX > left else None
