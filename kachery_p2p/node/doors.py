"""What both doors share: a call, and the care that is taken of it.

A door turns bytes into a `Call`, gives it to the handler of its operation and sends
back what the handler answers. Here is the part in between, which knows no bytes: the
body is checked against the table before the handler sees it, a handler's mistake is
logged and answered as "internal error", progress is coalesced, descriptors never leak.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import trio

from kachery_p2p.errors import DaemonError, DaemonProtocolError, KacheryError, sole_error
from kachery_p2p.limits import DOOR_HEARTBEAT_S, DOOR_PROGRESS_S
from kachery_p2p.node.slow_calls import SlowCalls
from kachery_p2p.wire.operations import (
    OPERATIONS,
    Operation,
    check_body,
    check_result,
    error_to_map,
)

log = logging.getLogger(__name__)


# Says how far the work is at the moment.
Look = Callable[[], Mapping[str, Any]]


class Call:
    """One request of one client.

    `descriptor` belongs to the door, which closes it when the handler has returned:
    who needs it longer duplicates it. `stream` is the body of a PUT in pieces of at
    most 256 KiB. Exactly one of `uid` (Unix door) and `remote` (HTTP door) is set.
    `guest` is the uid of a caller who does not run the node, else None.
    """

    def __init__(
        self,
        operation: Operation,
        body: object,
        *,
        uid: int | None = None,
        remote: str | None = None,
        descriptor: int | None = None,
        stream: AsyncIterator[bytes] | None = None,
    ) -> None:
        self.operation = operation.name
        self.body: dict[str, Any] = check_body(operation, body)
        if (descriptor is not None) != operation.takes_descriptor:
            wanted = "needs" if operation.takes_descriptor else "takes no"
            raise DaemonProtocolError(f"operation {operation.name} {wanted} descriptor")
        self.uid = uid
        self.guest = uid if uid != os.geteuid() else None
        self.remote = remote
        self.descriptor = descriptor
        self.stream = stream
        self._attached: int | None = None
        self._latest: Look | None = None
        # Whether the latest has not been sent yet.
        self._news = False
        self._changed = trio.Event()
        self._done = trio.Event()
        # Called when there is something to tell, while somebody is there to be told.
        self.on_news: Callable[[], None] | None = None

    def progress(self, update: Mapping[str, Any] | Look) -> None:
        """Tell the client how far the work is, or where to look for it when it is to be told.

        Never blocks: only the latest update is kept.
        """
        self._latest = update if callable(update) else lambda: update
        self.beat()

    def beat(self) -> None:
        """Tell the client that the daemon is alive, and how far the work is."""
        self._news = True
        self._changed.set()
        if self.on_news is not None:
            self.on_news()

    def attach(self, descriptor: int) -> None:
        """Send `descriptor` with the result. The door owns it from here on and closes it."""
        self.close_attached()
        self._attached = descriptor

    @property
    def attached(self) -> int | None:
        return self._attached

    def close_attached(self) -> None:
        if self._attached is not None:
            descriptor, self._attached = self._attached, None
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def finish(self) -> None:
        """The handler has returned: `updates` ends after what it is sending."""
        self._done.set()
        self._changed.set()

    async def updates(self) -> AsyncGenerator[dict[str, Any], None]:
        """Progress: the first at once, then at most five a second, and what it was in the end.

        When nothing new comes it is looked again every 2 s, or {} told: that says that the
        daemon is alive, so that a client may give up on silence without giving up on a slow
        download.
        """
        while True:
            with trio.move_on_after(DOOR_HEARTBEAT_S) as waiting:
                await self._changed.wait()
            done, news = self._done.is_set(), self._news
            self._changed, self._news = trio.Event(), False
            if news or (waiting.cancelled_caught and not done):
                yield {} if self._latest is None else dict(self._latest())
            if done:
                return
            with trio.move_on_after(DOOR_PROGRESS_S):
                await self._done.wait()


Told = TypeVar("Told", contravariant=True)


class Started(Protocol[Told]):
    """The part of trio's task status that a door needs: whom to tell that it is open."""

    def started(self, value: Told) -> None: ...


Handler = Callable[[Call], Awaitable[dict[str, Any]]]
Handlers = Mapping[str, Handler]


async def answer(call: Call, handlers: Handlers) -> dict[str, Any]:
    """{"ok": result} or {"error": ...}: never raises but for cancellation."""
    try:
        handler = handlers.get(call.operation)
        if handler is None:
            raise DaemonProtocolError(f"the daemon does not offer {call.operation!r}")
        result = await handler(call)
    except Exception as raised:
        error = sole_error(raised) if isinstance(raised, ExceptionGroup) else raised
        if isinstance(error, KacheryError):
            return {"error": error_to_map(error)}
        # A handler's mistake is ours to mend; the client learns only that it was one.
        log.exception("operation %s failed", call.operation)
        return {"error": error_to_map(internal_error())}
    try:
        return {"ok": check_result(OPERATIONS[call.operation], result)}
    except DaemonProtocolError:
        log.exception("operation %s answered what its table forbids", call.operation)
        return {"error": error_to_map(internal_error())}


async def run(
    call: Call,
    handlers: Handlers,
    *,
    gone: Callable[[], Awaitable[None]],
    tell: Callable[[dict[str, Any]], Awaitable[None]] | None = None,
    slow: SlowCalls | None = None,
    reply_now: Callable[[dict[str, Any]], None] = lambda reply: None,
) -> dict[str, Any] | None:
    """The call's `answer`, with its progress told on the way; None if the client left first.

    `gone` returns when the client has left, which cancels the handler; so does a `tell` that fails.
    With `slow` that is looked for only once the call has lasted a moment. `reply_now` is called
    with the answer when the tasks that look after the call do no more: until they have ended takes
    one or two turns of the loop, which the client need not wait for.
    """
    reply = None
    async with trio.open_nursery() as nursery:
        told: trio.Event | None = None

        async def watch() -> None:
            # Most calls are answered at once: telling costs a task, and begins when it must.
            with trio.move_on_after(DOOR_HEARTBEAT_S) as quick:
                await gone()
            if quick.cancelled_caught:
                call.beat()
                await gone()
            nursery.cancel_scope.cancel()

        def begin_telling() -> None:
            nonlocal told
            if told is None and tell is not None:
                told = trio.Event()
                nursery.start_soon(tell_updates, tell, told)

        async def tell_updates(
            send: Callable[[dict[str, Any]], Awaitable[None]], done: trio.Event
        ) -> None:
            try:
                async with contextlib.aclosing(call.updates()) as updates:
                    async for update in updates:
                        await send(update)
            except (OSError, trio.BrokenResourceError, trio.TooSlowError):
                nursery.cancel_scope.cancel()
            finally:
                done.set()

        def begin_watching() -> None:
            nursery.start_soon(watch)

        if slow is None:
            begin_watching()
        call.on_news = begin_telling
        try:
            with contextlib.nullcontext() if slow is None else slow.noticing(begin_watching):
                reply = await answer(call, handlers)
        finally:
            call.on_news = None
        call.finish()
        # No answer into the middle of an update, and none before the last.
        if told is not None:
            await told.wait()
        is_left = nursery.cancel_scope.cancel_called
        nursery.cancel_scope.cancel()
        if not is_left:
            reply_now(reply)
    return reply


def internal_error() -> DaemonError:
    return DaemonError("internal error", hint="this is a bug; the daemon's log tells more")


def pieces_in_thread(stream: AsyncIterator[bytes]) -> Iterator[bytes]:
    """`call.stream` for blocking code in a worker thread (`trio.to_thread.run_sync`)."""

    async def next_piece() -> bytes | None:
        return await anext(stream, None)

    while (piece := trio.from_thread.run(next_piece)) is not None:
        yield piece
