"""Own subfeeds that programs of this node's user append to: noticing it, and taking it in.

A program says so (`poke`); then the node looks at once, and again and again in short turns until
nothing has come, so who appends often need not say it each time. What nobody said is found by
looking where all of them end now and then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

import trio
import trio.lowlevel

from kachery_p2p.errors import KacheryError
from kachery_p2p.feeds.hands import Begun
from kachery_p2p.feeds.permits import Permits
from kachery_p2p.feeds.poke import POKE_BYTES, SOCKET_NAME, decode_poke
from kachery_p2p.feeds.spreading import Spreading
from kachery_p2p.feeds.subfeeds import Subfeeds
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.limits import (
    FEED_LOOK_AGAIN_IDLE_S,
    FEED_LOOK_AGAIN_S,
    FEED_LOOKED_AFTER_MAX,
    FEED_NOTICED_S,
    FEED_POKES_AT_ONCE,
    FEED_ROWS_MAX,
)

log = logging.getLogger(__name__)

# struct sockaddr_un leaves 108 bytes on Linux and 104 on macOS, the final zero included.
_PATH_BYTES_MAX = 107 if sys.platform == "linux" else 103


class Growth:
    """Looks after the own subfeeds of the node whose state lies below `config_dir`."""

    def __init__(
        self, config_dir: str, permits: Permits, subfeeds: Subfeeds, spreading: Spreading
    ) -> None:
        self._config_dir = config_dir
        self._permits = permits
        self._subfeeds = subfeeds
        self._spreading = spreading
        # Those that are looked after at this moment.
        self._looking: set[SubfeedName] = set()
        # Those that come next; what finds no room here either is found by its end.
        self._waiting: dict[SubfeedName, None] = {}
        # Those that failed, and how: each failure is said once.
        self._faults: dict[SubfeedName, str] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Notice, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await nursery.start(self._listen)
                task_status.started()
                await self._look_at_lengths()
            finally:
                self._nursery = None

    def hear(self, name: SubfeedName) -> None:
        """Somebody says that the subfeed has grown."""
        if self._nursery is None or name in self._looking or not self._permits.is_own(name.feed):
            return
        if len(self._looking) < FEED_LOOKED_AFTER_MAX:
            self._looking.add(name)
            begun = None
            # Those that follow wait for it. Whatever is wrong is met again, and noted, by the task.
            with contextlib.suppress(Exception):
                begun = self._subfeeds.begin_to_take_in(name)
            self._nursery.start_soon(self._look_after, name, begun)
        elif len(self._waiting) < FEED_ROWS_MAX:
            self._waiting[name] = None

    async def _look_after(self, name: SubfeedName, begun: Begun[Any] | None) -> None:
        """Take in what has come, until nothing does, or others wait for their turn."""
        has_more = False
        try:
            # Twice at least: who has just said it does not say it again at once.
            await (self._look(name) if begun is None else begun.result())
            await self._rest(name)
            while has_more := await self._look(name):
                if self._waiting:
                    break
                await self._rest(name)
            self._faults.pop(name, None)
        except Exception as error:
            # Whatever it is, others are looked after; it is tried again when it is heard of.
            self._note_fault(name, error)
        finally:
            self._looking.discard(name)
            if has_more:
                self._waiting[name] = None
            self._go_on()

    def _go_on(self) -> None:
        """Look after those that wait, if there is room."""
        while self._waiting and len(self._looking) < FEED_LOOKED_AFTER_MAX:
            following = next(iter(self._waiting))
            del self._waiting[following]
            if self._nursery is None:
                return
            self.hear(following)

    def _note_fault(self, name: SubfeedName, error: Exception) -> None:
        said = f"{type(error).__name__}: {error}"
        if self._faults.get(name) != said:
            if len(self._faults) >= FEED_ROWS_MAX:
                self._faults.clear()
            self._faults[name] = said
            # What is no error of ours is one of this program.
            unexpected = None if isinstance(error, KacheryError) else error
            log.warning("feed %s: %s", name.feed[:16], said, exc_info=unexpected)

    async def _look(self, name: SubfeedName) -> bool:
        subfeed = self._subfeeds.open_now(name)
        if subfeed is None:
            # To open it is to take in all of it.
            subfeed = await self._subfeeds.open_existing(name)
        elif await self._subfeeds.take_in(subfeed):
            return True
        if subfeed is not None:
            self._subfeeds.tell_rest(subfeed)
        return False

    async def _rest(self, name: SubfeedName) -> None:
        if self._subfeeds.is_far_behind(name):
            return
        subfeed = self._subfeeds.open_now(name)
        waited_for = subfeed is not None and (
            subfeed.is_waited_for or self._spreading.count(name) > 0
        )
        await trio.sleep(FEED_LOOK_AGAIN_S if waited_for else FEED_LOOK_AGAIN_IDLE_S)

    async def _look_at_lengths(self) -> None:
        while True:
            await trio.sleep(FEED_NOTICED_S)
            for name in await self._grown():
                self.hear(name)

    async def _grown(self) -> list[SubfeedName]:
        """Own subfeeds in use that have grown, and forgotten ones that somebody follows."""
        own = [subfeed for subfeed in self._subfeeds if subfeed.replica.log.owned]
        forgotten = self._subfeeds.forgotten
        for name in [name for name in forgotten if not self._spreading.count(name)]:
            del forgotten[name]
        if not own and not forgotten:
            return []
        # The disk may take its time.
        return await trio.to_thread.run_sync(self._subfeeds.grown_of, own, dict(forgotten))

    async def _listen(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with contextlib.ExitStack() as closing:
            try:
                listening = closing.enter_context(_listening(self._config_dir))
            except OSError as error:
                # Then they are found by where they end.
                log.warning("programs cannot say that they append to feeds: %s", error)
                task_status.started()
                return
            task_status.started()
            try:
                while True:
                    # A turn of the loop, whoever sends how many.
                    await trio.lowlevel.wait_readable(listening)
                    self._read(listening)
            except OSError as error:
                log.warning("programs cannot say any more that they append to feeds: %s", error)

    def _read(self, listening: socket.socket) -> None:
        for _ in range(FEED_POKES_AT_ONCE):
            try:
                about = decode_poke(listening.recv(POKE_BYTES + 1))
            except BlockingIOError:
                return
            if about is not None:
                self.hear(SubfeedName(*about))


@contextlib.contextmanager
def _listening(config_dir: str) -> Iterator[socket.socket]:
    """The socket for pokes, which only this user may write to. OSError."""
    path = f"{config_dir}/{SOCKET_NAME}"
    directory = os.open(config_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        listening.setblocking(False)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        is_long = len(os.fsencode(path)) > _PATH_BYTES_MAX
        listening.bind(f"/proc/self/fd/{directory}/{SOCKET_NAME}" if is_long else path)
        os.chmod(path, 0o600)
        try:
            yield listening
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
    finally:
        listening.close()
        os.close(directory)
