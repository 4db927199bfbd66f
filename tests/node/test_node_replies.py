"""An answer leaves the door before the tasks that looked after its call have ended."""

from __future__ import annotations

import os
from typing import Any

import trio
import trio.testing

from kachery_p2p.errors import DaemonError
from kachery_p2p.node.doors import Call, Handler, run
from kachery_p2p.node.slow_calls import SlowCalls
from kachery_p2p.wire.operations import OPERATIONS


class Replies:
    """A door's side of one call."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.left = trio.Event()
        self.watching = False

    async def gone(self) -> None:
        self.watching = True
        try:
            await self.left.wait()
        finally:
            self.sent.append("watch ended")

    def reply_now(self, reply: dict[str, Any]) -> None:
        self.sent.append(next(iter(reply)))

    async def run(self, handler: Handler) -> dict[str, Any] | None:
        call = Call(OPERATIONS["stop"], {}, uid=os.geteuid())
        handlers = {"stop": handler}
        return await run(call, handlers, gone=self.gone, reply_now=self.reply_now)


async def test_the_answer_leaves_before_the_watch_for_the_client_has_ended() -> None:
    replies = Replies()

    async def fail(call: Call) -> dict[str, Any]:
        while not replies.watching:
            await trio.lowlevel.checkpoint()
        raise DaemonError("no")

    reply = await replies.run(fail)
    assert reply is not None
    assert list(reply) == ["error"]
    assert replies.sent == ["error", "watch ended"]


async def test_the_answer_to_a_quick_call_waits_for_no_turn_of_the_loop() -> None:
    replies = Replies()

    async def fail(call: Call) -> dict[str, Any]:
        raise DaemonError("no")

    call, slow = Call(OPERATIONS["stop"], {}, uid=os.geteuid()), SlowCalls()
    running = run(call, {"stop": fail}, gone=replies.gone, slow=slow, reply_now=replies.reply_now)
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            await running

        async def note_turn() -> None:
            replies.sent.append("turn")

        nursery.start_soon(ask)
        await trio.lowlevel.checkpoint()
        nursery.start_soon(note_turn)
    assert replies.sent == ["error", "turn"]


async def test_a_client_that_has_left_is_sent_nothing() -> None:
    replies = Replies()

    async def wait(call: Call) -> dict[str, Any]:
        replies.left.set()
        await trio.sleep_forever()
        raise AssertionError

    assert await replies.run(wait) is None
    assert replies.sent == ["watch ended"]


async def test_a_client_that_leaves_just_before_the_answer_is_not_written_to_early() -> None:
    replies = Replies()

    async def answer_late(call: Call) -> dict[str, Any]:
        replies.left.set()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        raise DaemonError("too late")

    reply = await replies.run(answer_late)
    assert reply is not None
    # The door finds that out when it sends the answer, as it does for every other.
    assert replies.sent == ["watch ended"]
