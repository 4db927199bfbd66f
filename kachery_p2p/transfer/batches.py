"""Getting many small blobs at once: asked for in batches, made durable in groups.

Whoever announced a content is asked first; several sources share the work, and what one
refuses or leaves undone goes to the next. A blob counts when its bytes have its SHA-1, and
its root if that is known; who sends others is asked for nothing more in this load. What
batches do not bring (large blobs, and what nobody had) is fetched one by one, as any load,
so its errors say the same.

Loads of the same content wait for each other, if they accept the same sources; what is
being fetched by itself already is waited for there.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import KacheryError, LoadTimeoutError, PeerRefusedError, StoreError
from kachery_p2p.limits import (
    BATCH_LATE_S,
    BATCH_LOOK_MAX,
    BATCH_PIPELINED,
    FIND_S_MAX,
    SOURCE_RETURN_S_MAX,
)
from kachery_p2p.network.bulk_sessions import Bulk
from kachery_p2p.network.failures import one_error
from kachery_p2p.network.link import Link
from kachery_p2p.network.session import Session
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.grants import Grants
from kachery_p2p.transfer.batch_asking import BatchSource
from kachery_p2p.transfer.batch_coming import Claims, Coming, Taken
from kachery_p2p.transfer.batch_groups import Arrived, Grouping, GroupWriter, HeldBytes
from kachery_p2p.transfer.batch_members import Members
from kachery_p2p.transfer.batch_question import Judged, Question
from kachery_p2p.transfer.batch_schedule import BatchSchedule
from kachery_p2p.transfer.batch_singles import Singles
from kachery_p2p.transfer.batch_wanted import Progress, Running, Wanted, look_for
from kachery_p2p.transfer.liars import Liars, Lie
from kachery_p2p.transfer.only import ANYONE, Only
from kachery_p2p.transfer.rounds import Announcements
from kachery_p2p.transfer.suppliers import FAULTS, LIES
from kachery_p2p.wire.batches import BYTES, LARGE

log = logging.getLogger(__name__)


# Brings one content into the store, whatever it takes; raises the KacheryError of that load.
LoadOne = Callable[[Wanted], Awaitable[None]]
Tell = Callable[[Progress], None]


class Batches:
    """All loads of many blobs into this node's store."""

    def __init__(
        self,
        *,
        sessions: Sessions,
        link: Link,
        blobs: BlobStore,
        grants: Grants,
        announcements: Announcements | None = None,
        bulk: Bulk | None = None,
        liars: Liars | None = None,
        is_loading: Callable[[ContentHash], bool] = lambda content: False,
    ) -> None:
        """`liars`: who is not asked for anything, and is told of whom batches find out.

        `is_loading`: whether a content is being fetched by itself, which a load then joins.
        """
        self.sessions = sessions
        self.announcements = announcements
        self.blobs = blobs
        self.held = HeldBytes()
        self.writer = GroupWriter(blobs, grants, self.held)
        self.coming = Coming()
        # In the order of their beginnings.
        self.running: dict[object, Running] = {}
        self.liars = Liars() if liars is None else liars
        self.is_loading = is_loading
        self._link = link
        self._bulk = bulk

    async def load(
        self,
        wanted: Sequence[Wanted],
        load_one: LoadOne,
        tell: Tell,
        only: Only = ANYONE,
        timeout_s: float = float("inf"),
    ) -> list[KacheryError | None]:
        """Bring all of them into the store; of each None, or why it could not be had.

        In their order; what is stored is durable. `timeout_s` is how long nothing may come;
        `load_one` sees to that of its own.
        """
        running = Running(len(wanted), trio.current_time())

        def told(progress: Progress) -> None:
            running.progress = progress
            tell(progress)

        load = _Load(self, wanted, load_one, told, only, timeout_s)
        self.running[load] = running
        try:
            with one_error():
                await load.run()
        finally:
            del self.running[load]
        return [load.outcomes[number] for number in range(len(wanted))]

    def sources(self, but: set[Session], liars: set[str], only: Only) -> list[BatchSource]:
        """The connected members in each channel, but these, and who lied there unless named."""
        now = trio.current_time()
        return [
            BatchSource(session, self._link, channel, self._bulk)
            for session in self.sessions.all()
            if session not in but and session.peer not in liars
            for channel in sorted(session.channels)
            if only.node == session.peer or self.liars.may_be_used(session.peer, channel, now)
        ]


class _Load:
    """One load of many. Every number is `open` until it is being written, or fetched alone."""

    def __init__(
        self,
        node: Batches,
        wanted: Sequence[Wanted],
        load_one: LoadOne,
        tell: Tell,
        only: Only,
        timeout_s: float,
    ) -> None:
        self.outcomes: dict[int, KacheryError | None] = {}
        self._node = node
        self._wanted = wanted
        self._load_one = load_one
        self._tell = tell
        self._only = only
        self._claims = Claims(node.coming, only)
        self._timeout_s = timeout_s
        self._patience = trio.CancelScope()
        # In the order asked for.
        self._open: dict[int, None] = {}
        self._schedule: BatchSchedule[BatchSource] = BatchSchedule()
        self._adding = False
        self._changed = trio.Event()
        # Sessions that failed us, nodes that lied, and whether any just went away.
        self._failed: set[Session] = set()
        self._liars: set[str] = set()
        self._may_return = False
        self._broken: StoreError | None = None
        self._bytes = 0
        self._names: dict[str, None] = {}
        self._came_at = trio.current_time()

    async def run(self) -> None:
        others = self._claim()
        try:
            async with trio.open_nursery() as nursery:
                self._grouping = Grouping(nursery, self._write)
                self._singles = Singles(
                    nursery,
                    lambda number: self._load_one(self._wanted[number]),
                    self._single_ended,
                )
                await self._bring_mine()
                await self._wait_for(others)
        finally:
            # Of a load that was cancelled.
            self._node.held.give_back(self._grouping.bytes_waiting)
            self._claims.end_all()

    # --- shared with other loads ------------------------------------------------------------

    def _claim(self) -> dict[int, Taken]:
        """Take on what nobody is loading; what others are."""
        others: dict[int, Taken] = {}
        for number, one in enumerate(self._wanted):
            taken = self._claims.take_on(number, one.content)
            if taken is None:
                self._open[number] = None
            else:
                others[number] = taken
        return others

    async def _wait_for(self, others: dict[int, Taken]) -> None:
        with trio.move_on_after(self._timeout_s) as waiting:
            for taken in others.values():
                await taken.wait()
        for number, taken in others.items():
            if waiting.cancelled_caught and not taken.ended:
                self._end(number, self._too_late(number))
        ended = [number for number, taken in others.items() if taken.ended]
        for number in await self._missing([n for n in ended if n not in self.outcomes]):
            # Whoever took it on failed, and may have failed for a reason of its own.
            self._one_by_one(number)

    def _join_single_loads(self) -> None:
        """What is being fetched by itself is waited for there, and not asked for again."""
        for number in list(self._open):
            if self._node.is_loading(self._wanted[number].content):
                self._one_by_one(number)

    # --- in batches -------------------------------------------------------------------------

    async def _bring_mine(self) -> None:
        self._join_single_loads()
        with self._patience:
            self._be_patient()
            await self._by_batches()
        self._grouping.flush()
        for number in list(self._open):
            if self._broken is not None:
                self._end(number, self._broken)
            elif self._patience.cancelled_caught:
                self._end(number, self._too_late(number))
            else:
                self._one_by_one(number)

    def _be_patient(self) -> None:
        self._came_at = trio.current_time()
        self._patience.deadline = self._came_at + self._timeout_s

    def _too_late(self, number: int) -> LoadTimeoutError:
        return LoadTimeoutError(
            f"sha1://{self._wanted[number].content} did not arrive within {self._timeout_s:g} s",
            hint="what arrived is kept: run it again to resume",
        )

    async def _by_batches(self) -> None:
        looked = False
        while self._open and self._broken is None:
            members = await self._members()
            if not members.sources:
                return
            await self._round(members, look=not looked)
            looked = True
            if all(source.session not in self._failed for source in members.sources):
                return

    async def _members(self) -> Members:
        """Who can be asked. If none is connected yet, or none any more, they are waited for."""
        began = trio.current_time()
        sessions = self._node.sessions
        while True:
            sources = self._node.sources(self._failed, self._liars, self._only)
            found = Members(sources, self._only, self._node.announcements)
            if self._failed:
                until = self._came_at + SOURCE_RETURN_S_MAX if self._may_return else 0.0
            else:
                until = 0.0 if sessions.settled else began + FIND_S_MAX
            left_s = until - trio.current_time()
            if found.sources or left_s <= 0:
                return found
            with trio.move_on_after(left_s):
                await sessions.changed()

    async def _round(self, members: Members, *, look: bool) -> None:
        """Ask these for all that is open; what they leave stays so."""
        self._schedule = BatchSchedule()
        self._adding = True
        async with trio.open_nursery() as nursery:
            for source in members.sources:
                for _ in range(BATCH_PIPELINED):
                    nursery.start_soon(self._work, source)
            numbers = list(self._open)
            for at in range(0, len(numbers), BATCH_LOOK_MAX):
                some = numbers[at : at + BATCH_LOOK_MAX]
                await self._add(members, await self._missing(some) if look else some)
            self._adding = False
            self._go_on()

    async def _add(self, members: Members, numbers: list[int]) -> None:
        tiers = await members.tiers_of([self._wanted[number].content for number in numbers])
        for number, tier in zip(numbers, tiers, strict=True):
            self._schedule.add(number, tier)
        self._go_on()

    async def _missing(self, numbers: list[int]) -> list[int]:
        """Those that are not in our store."""
        wanted = [self._wanted[number] for number in numbers]
        found = await trio.to_thread.run_sync(look_for, self._node.blobs, wanted)
        for number, is_here in zip(numbers, found, strict=True):
            if is_here:
                self._end(number, None)
            elif is_here is None:
                self._one_by_one(number)
        self._show()
        return [number for number, is_here in zip(numbers, found, strict=True) if is_here is False]

    async def _work(self, source: BatchSource) -> None:
        """Ask this source, as long as there is something to ask it for."""
        schedule, held = self._schedule, self._node.held
        while schedule.is_used(source) and self._broken is None:
            question = Question(source, held)
            async with question.room():
                changed = self._changed
                numbers = schedule.next_for(source, trio.current_time())
                if numbers:
                    await self._ask(question, numbers)
            if not numbers:
                if schedule.done and not self._adding:
                    return
                with trio.move_on_after(BATCH_LATE_S):
                    await changed.wait()

    async def _ask(self, question: Question, numbers: list[int]) -> None:
        source, schedule = question.source, self._schedule
        wanted = [(number, *self._wanted[number]) for number in numbers]
        try:
            await question.ask(wanted, lambda judged: self._note(question, judged))
        except FAULTS as error:
            log.warning("source %s failed for many: %s", source.name, error)
            self._failed.add(source.session)
            if isinstance(error, LIES):
                self._drop(question, str(error))
            elif not isinstance(error, PeerRefusedError):
                self._may_return = True
            schedule.drop(source)
        finally:
            schedule.put_back(source, numbers)
            self._go_on()

    def _drop(self, question: Question, what: str) -> None:
        """Who lied is asked for nothing more; for a while by nobody, in that channel."""
        source = question.source
        self._liars.add(source.node)
        content = question.judging or self._wanted[0].content
        lie = Lie(source.node, source.name, source.channel, content, what, trio.current_time())
        self._node.liars.note(lie)

    def _note(self, question: Question, judged: Iterable[Judged]) -> None:
        source = question.source
        for number, outcome, data in judged:
            if outcome in (BYTES, LARGE) and self._schedule.came(number):
                if outcome == LARGE:
                    self._one_by_one(number)
                    continue
                question.keep(len(data))
                self._bytes += len(data)
                self._names[source.name] = None
                del self._open[number]
                content = self._wanted[number].content
                self._grouping.add(Arrived(number, content, data, source.channel))
            elif outcome not in (BYTES, LARGE):
                self._schedule.refused(source, number)
        self._be_patient()
        self._go_on()

    def _go_on(self) -> None:
        """Something has changed: what nobody has is tried otherwise, and who waits looks again."""
        for number, dropped in self._schedule.given_up():
            # Of who was dropped, another connection may come.
            if not dropped:
                self._one_by_one(number)
        if self._schedule.done and not self._adding:
            self._grouping.flush()
        self._changed.set()
        self._changed = trio.Event()
        self._show()

    # --- what became of each ----------------------------------------------------------------

    async def _write(self, group: Sequence[Arrived]) -> None:
        await self._node.writer.write(group, self._written)
        self._show()

    def _written(self, arrived: Arrived, error: KacheryError | None) -> None:
        if isinstance(error, StoreError):
            # A full disk: the others would fare no better.
            self._broken = error
            self._changed.set()
        self._end(arrived.number, error)

    def _one_by_one(self, number: int) -> None:
        self._open.pop(number, None)
        self._claims.go_alone(number)
        self._singles.add(number)

    def _single_ended(self, number: int, error: KacheryError | None) -> None:
        self._end(number, error)
        self._show()

    def _end(self, number: int, error: KacheryError | None) -> None:
        self._open.pop(number, None)
        self.outcomes[number] = error
        self._claims.end(number)

    def _show(self) -> None:
        self._tell(Progress(len(self.outcomes), self._bytes, tuple(self._names)))
