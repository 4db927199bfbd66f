"""Feeds and channel histories go into the buckets of their channels, in the background.

Whoever has credentials for a bucket, and the role `provide`, puts there what of a log is not there
yet: the owner of a feed or the keeper of a channel, and any member with a copy. How far each log
is, is a row in `state/bucket_logs.db`; a log that grows is put there every BUCKET_LOG_EVERY_S.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import trio

from kachery_p2p.bucket.log_book import HISTORY, LogBook, book_path
from kachery_p2p.bucket.log_mirror import LogCopy, LogMirror, Mirrored, name_of
from kachery_p2p.channels.bucket_settings import SHARED
from kachery_p2p.channels.history import History
from kachery_p2p.channels.permissions import PROVIDE
from kachery_p2p.errors import BucketBusyError, KacheryError, ProofError
from kachery_p2p.limits import (
    BUCKET_LOG_CHECK_S,
    BUCKET_LOG_COPY_S,
    BUCKET_LOG_EVERY_S,
    BUCKET_LOG_LIST_S,
    RESTART_S_MAX,
    UPLOADS_LOOK_S,
)
from kachery_p2p.node.feeding import Feeding
from kachery_p2p.node.mirroring import Mirroring
from kachery_p2p.node.parts import Parts

if TYPE_CHECKING:
    from kachery_p2p.bucket.uploads import Uploads
    from kachery_p2p.feeds.bucket_copies import FeedCopies, Shown
    from kachery_p2p.feeds.told import SubfeedName

log = logging.getLogger(__name__)


class _Job(NamedTuple):
    """One log that is to lie in the bucket of a channel."""

    key: object
    # Differs when there is something to be put there; None if that is not known at once.
    state: object | None
    copy: Callable[[], Awaitable[LogCopy | None]]
    # What is to be done when what lies there says more than is known here.
    look: Callable[[], None]
    # How long it may wait after a change, because its owner is quicker.
    wait_s: float


class _Seen:
    """When a log was put there last, and what it was then."""

    def __init__(self, state: object, at: float) -> None:
        self.state = state
        self.at = at
        self.changed_at: float | None = None
        # Why it failed, and when it is tried again.
        self.said: str | None = None
        self.not_before = 0.0


class LogMirroring:
    """All logs of one node. `look_at_history` is told of channels whose bucket knows more."""

    def __init__(
        self,
        parts: Parts,
        mirroring: Mirroring,
        feeding: Feeding,
        look_at_history: Callable[[str], None],
    ) -> None:
        self._parts = parts
        self._mirroring = mirroring
        self._feeding = feeding
        self._look_at_history = look_at_history
        self._book = LogBook(book_path(parts.config.config_dir))
        self._mirrors: dict[str, tuple[Uploads, LogMirror]] = {}
        self._seen: dict[str, dict[object, _Seen]] = {}
        self._listed: dict[str, list[Shown]] = {}
        self._listed_at = -BUCKET_LOG_LIST_S
        self._in_use: set[SubfeedName] = set()
        self._problems: dict[str, str] = {}
        # Channels whose logs are being put there, or whose turn comes after a rest.
        self._busy: set[str] = set()

    async def run(self) -> None:
        """For ever."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    await self._look(nursery)
                    await trio.sleep(UPLOADS_LOOK_S)
        finally:
            self._busy.clear()
            self._book.close()

    def problems(self) -> list[str]:
        """What keeps logs from getting there."""
        found = list(self._problems.values())
        for channel, seen in self._seen.items():
            said = next((one.said for one in seen.values() if one.said is not None), None)
            if said is not None:
                found.append(f"bucket of channel {self._parts.channel_name(channel)}: {said}")
        return found

    # --- what is to go there ---------------------------------------------------------------------

    async def _look(self, nursery: trio.Nursery) -> None:
        """Begin with what there is to do in each channel: a slow bucket holds up no other."""
        mirrors = self._current()
        service = self._feeding.service_now
        copies = None if service is None else service.copies
        if mirrors and copies is not None and self._is_list_due(mirrors, copies):
            found = await trio.to_thread.run_sync(copies.listed, frozenset(mirrors))
            self._listed = {channel: [] for channel in mirrors}
            for shown in found:
                self._listed[shown.channel].append(shown)
            self._listed_at = trio.current_time()
        for channel, mirror in mirrors.items():
            if channel not in self._busy:
                self._busy.add(channel)
                jobs = [*self._history_jobs(channel), *self._feed_jobs(channel, copies)]
                nursery.start_soon(self._work_in, channel, mirror, jobs)

    def _current(self) -> dict[str, LogMirror]:
        """The ways into the buckets to which what is shared goes, by channel."""
        found = {}
        for channel in self._parts.channels:
            uploads = self._mirroring.own_uploads(channel.id)
            if uploads is None or uploads.settings.mirror != SHARED or uploads.is_refused:
                continue
            if not self._parts.memberships.may(self._parts.node_id, channel.id, PROVIDE):
                continue
            known = self._mirrors.get(channel.id)
            if known is None or known[0] is not uploads:
                mirror = LogMirror(
                    uploads.bucket, channel.id, uploads.place, self._book, uploads.pace
                )
                known = self._mirrors[channel.id] = uploads, mirror
                self._seen.pop(channel.id, None)
            found[channel.id] = known[1]
        return found

    def _is_list_due(self, mirrors: Iterable[str], copies: FeedCopies) -> bool:
        now, in_use = trio.current_time(), copies.in_use()
        if in_use - self._in_use:
            # In a moment: what is to be known of a new one is being noted.
            self._listed_at = min(self._listed_at, now - BUCKET_LOG_LIST_S + BUCKET_LOG_EVERY_S)
        self._in_use = in_use
        return now >= self._listed_at + BUCKET_LOG_LIST_S or set(mirrors) != set(self._listed)

    def _history_jobs(self, channel: str) -> Iterable[_Job]:
        history = self._parts.memberships.history(channel)
        if history is None or history.head is None:
            return
        name = self._parts.channel_name(channel)

        async def copy() -> LogCopy:
            return of_history(history, name)

        state = history.head, history.fork
        is_keeper = history.roster.keeper == self._parts.node_id
        wait_s = 0.0 if is_keeper else BUCKET_LOG_COPY_S
        yield _Job(channel, state, copy, lambda: self._look_at_history(channel), wait_s)

    def _feed_jobs(self, channel: str, copies: FeedCopies | None) -> Iterable[_Job]:
        service = self._feeding.service_now
        if copies is None or service is None:
            return
        for shown in self._listed.get(channel, ()):
            name = shown.name

            async def copy(name: SubfeedName = name) -> LogCopy | None:
                return await copies.copy(name)

            def look(name: SubfeedName = name) -> None:
                service.buckets.look_for([name])

            wait_s = 0.0 if shown.own else BUCKET_LOG_COPY_S
            yield _Job(name, copies.state(name), copy, look, wait_s)

    # --- putting it there ------------------------------------------------------------------------

    async def _work_in(self, channel: str, mirror: LogMirror, jobs: Sequence[_Job]) -> None:
        try:
            await self._work_off(channel, mirror, jobs)
            self._problems.pop(channel, None)
        except KacheryError as error:
            # A book that cannot be used is no reason to end all other work.
            self._problems[channel] = f"logs are not put into buckets: {_told(error)}"
            log.error("putting logs into buckets failed: %s", error)
            await trio.sleep(RESTART_S_MAX)
        finally:
            self._busy.discard(channel)

    async def _work_off(self, channel: str, mirror: LogMirror, jobs: Sequence[_Job]) -> None:
        """All that is due, one after the other; after a failure the rest waits its turn."""
        known = self._seen.get(channel, {})
        seen = {job.key: known[job.key] for job in jobs if job.key in known}
        self._seen[channel] = seen
        for job in jobs:
            if self._is_due(job, seen.get(job.key)) and not await self._put(mirror, job, seen):
                return

    def _is_due(self, job: _Job, seen: _Seen | None) -> bool:
        now = trio.current_time()
        if seen is None:
            return True
        if seen.said is not None:
            return now >= seen.not_before
        # A log that nobody uses has not changed, nor will it while nobody does.
        if job.state is None or job.state == seen.state:
            return now >= seen.at + BUCKET_LOG_CHECK_S
        if seen.changed_at is None:
            seen.changed_at = now
        return now >= max(seen.at + BUCKET_LOG_EVERY_S, seen.changed_at + job.wait_s)

    async def _put(self, mirror: LogMirror, job: _Job, seen: dict[object, _Seen]) -> bool:
        """Put one log there; False if it is of no use to try others now."""
        noted = seen[job.key] = _Seen(job.state, trio.current_time())
        copy: LogCopy | None = None
        try:
            copy = await job.copy()
            if copy is None:
                return True
            # A thread that is left alone when the node stops leaves what was there before.
            mirrored = await trio.to_thread.run_sync(
                _mirrored, mirror, copy, abandon_on_cancel=True
            )
            if mirrored.is_news:
                job.look()
        except ProofError as error:
            # Another history, signed by the owner: who reads it can prove so, and then it is said.
            log.warning("%s", error)
            job.look()
        except KacheryError as error:
            return await self._failed(mirror, copy, error, noted)
        return True

    async def _failed(
        self,
        mirror: LogMirror,
        copy: LogCopy | None,
        error: KacheryError,
        noted: _Seen,
    ) -> bool:
        noted.said = _told(error)
        if copy is None:
            log.warning("a log cannot be put into a bucket: %s", error)
            noted.not_before = noted.at + BUCKET_LOG_LIST_S
            return True
        log.info("%s was not put into a bucket: %s", copy.name, error)

        def note() -> float:
            now, size = time.time(), copy.head.size
            kept = self._book.known(mirror.place, name_of(copy.log), copy.kind, copy.name)
            rest_s = error.retry_after_s if isinstance(error, BucketBusyError) else 0.0
            return self._book.failed(kept, size, _told(error), now, rest_s) - now

        noted.not_before = trio.current_time() + await trio.to_thread.run_sync(note)
        return False


def _told(error: KacheryError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)


def _mirrored(mirror: LogMirror, copy: LogCopy) -> Mirrored:
    mirrored = mirror.put(copy)
    mirror.clean(copy.log)
    return mirrored


def of_history(history: History, name: str) -> LogCopy:
    """The history of a channel as its bucket is to have it."""
    assert history.head is not None

    def entries(first: int, count_max: int, bytes_max: int) -> list[bytes]:
        return history.entries(first, bytes_max)[:count_max]

    return LogCopy(
        head=history.head,
        end=history.size,
        entries=entries,
        read_hash=history.stored_hash,
        fork=b"" if history.fork is None else history.fork.encode(),
        kind=HISTORY,
        name=name,
    )
