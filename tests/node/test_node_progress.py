"""Progress through the doors: what is told, how often, to whom, and what a slow reader costs."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.node.doors import Call, Handler
from kachery_p2p.node.http_door import serve_http_door
from kachery_p2p.node.progress import STORING, Counting, Telling, fields_of
from kachery_p2p.node.unix_door import serve_unix_door
from kachery_p2p.transfer.progress import ASKING, FETCHING, FINISHING, Snapshot, TransferProgress
from kachery_p2p.wire.codec import FrameDecoder, encode_frame
from kachery_p2p.wire.operations import OPERATIONS, check_progress

HASH = "b971c6ef19b1d70ae8f0feb989b106c319b36230"
LOADED = {"path": "/s/x", "size": 3, "root": None}
REQUEST = encode_frame({"op": "load", "body": {"content": HASH}})
NODE = "ab" * 32


def transfer() -> TransferProgress:
    made = TransferProgress()
    made.size = 10 * CHUNK_BYTES
    made.entered(FETCHING)
    made.joined(NODE, "secret-label (abababab)", "channel-id", 0.0)
    made.joined("cd" * 32, "who left", "channel-id", 0.0)
    made.left("cd" * 32)
    made.came(NODE, CHUNK_BYTES, 1.0, needed=True)
    made.lost(NODE, 7)
    return made


def call(uid: int | None = None) -> Call:
    return Call(OPERATIONS["load"], {"content": HASH}, uid=os.geteuid() if uid is None else uid)


# --- what is told -----------------------------------------------------------------------------


def test_a_transfer_is_told_whole_and_as_the_table_says() -> None:
    told = fields_of(transfer().snapshot(1.0), lambda channel: "lab", guest=False)
    assert check_progress(told) | told == check_progress(told)
    assert (told["phase"], told["bytes"], told["wasted"]) == (FETCHING, CHUNK_BYTES, 7)
    assert told["sources"] == ["secret-label (abababab)"], "who left does not serve"
    first, second = told["by_source"]
    assert (first["node_id"], first["channel"], first["state"]) == (NODE, "lab", "serving")
    assert (first["bytes"], first["wasted"]) == (CHUNK_BYTES, 7)
    assert first["rate"] == pytest.approx(CHUNK_BYTES)
    assert (second["state"], second["bytes"]) == ("left", 0)


def test_the_last_and_the_first_snapshot_fit_the_table_too() -> None:
    for shown in (Snapshot(ASKING), Snapshot(FINISHING, None, 5, 5, 0, 0, 0.0, 0.0)):
        check_progress(fields_of(shown, str, guest=True))


async def test_a_guest_learns_how_many_serve_and_how_fast_but_not_who() -> None:
    theirs = call(uid=os.geteuid() + 1)
    assert theirs.guest is not None
    telling = Telling(theirs, lambda channel: "lab", ASKING)
    telling(transfer().snapshot)
    told = telling.look()
    assert told["sources"] == []
    assert [one["node_id"] for one in told["by_source"]] == [None, None]
    assert [one["name"] for one in told["by_source"]] == [None, None]
    assert told["by_source"][0]["bytes"] == CHUNK_BYTES
    text = json.dumps(told)
    assert "secret-label" not in text and "abab" not in text and "cdcd" not in text


async def test_our_own_user_learns_who() -> None:
    telling = Telling(call(), lambda channel: "lab", ASKING)
    assert telling.look()["phase"] == ASKING
    telling(transfer().snapshot)
    assert telling.look()["by_source"][0]["name"] == "secret-label (abababab)"


async def test_bytes_that_a_thread_works_through_are_told() -> None:
    ours = Call(
        OPERATIONS["store"], {"label": None, "channels": None}, uid=os.geteuid(), descriptor=0
    )
    counting, seen = Counting(ours, STORING, 3000), list[dict[str, Any]]()

    async def listen() -> None:
        async for update in ours.updates():
            seen.append(check_progress(update))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)

        def work() -> None:
            for _ in range(300):
                counting(10)

        await trio.to_thread.run_sync(work)
        await trio.testing.wait_all_tasks_blocked()
        ours.finish()
    assert seen[0]["phase"] == STORING
    assert (seen[-1]["bytes"], seen[-1]["size"]) == (3000, 3000)


# --- how often --------------------------------------------------------------------------------


async def test_the_first_is_told_at_once_then_five_a_second_and_always_the_last(
    autojump_clock: Any,
) -> None:
    ours, seen = call(), list[tuple[float, int]]()
    began = trio.current_time()

    async def listen() -> None:
        async for update in ours.updates():
            seen.append((trio.current_time() - began, update["bytes"]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        for count in range(1001):
            ours.progress({"bytes": count})
            await trio.sleep(0.001)
        ours.finish()
    assert seen[0] == (0.0, 0)
    assert 5 <= len(seen) <= 7
    assert seen[-1][1] == 1000


async def test_what_is_looked_up_is_what_is_true_when_it_is_told(autojump_clock: Any) -> None:
    """Nothing comes: the rate falls, and who waits is to see it fall."""
    ours, made, rates = call(), transfer(), list[float]()
    telling = Telling(ours, str, ASKING)
    start = trio.current_time()
    telling(lambda now: made.snapshot(1.0 + now - start))

    async def listen() -> None:
        async for update in ours.updates():
            rates.append(update["rate"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await trio.sleep(30)
        ours.finish()
    assert len(rates) > 10
    assert rates == sorted(rates, reverse=True) and rates[-1] < rates[0] / 20


# --- slow readers -----------------------------------------------------------------------------


@asynccontextmanager
async def door(config: Path, load: Handler) -> AsyncIterator[Path]:
    async with trio.open_nursery() as nursery:
        path = await nursery.start(serve_unix_door, str(config), {"load": load})
        yield Path(path)
        nursery.cancel_scope.cancel()


async def all_frames(connection: trio.SocketStream) -> list[dict[str, Any]]:
    decoder, frames = FrameDecoder(), list[dict[str, Any]]()
    while not frames or "progress" in frames[-1]:
        frames += decoder.feed(await connection.receive_some(1 << 16))
    return frames


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="Linux says what is unread")
async def test_a_client_that_does_not_read_holds_up_nothing_and_finds_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More is told than any buffer holds; the work does not wait, and nothing is cut off."""
    monkeypatch.setattr("kachery_p2p.node.doors.DOOR_PROGRESS_S", 0)
    monkeypatch.setattr("kachery_p2p.node.unix_door.DOOR_REQUEST_S_MAX", 1.0)
    worked, told = trio.Event(), 0

    async def load(call: Call) -> dict[str, Any]:
        nonlocal told
        for told in range(3000):
            call.progress({"bytes": told, "sources": ["x" * 4000]})
            await trio.lowlevel.checkpoint()
        worked.set()
        return dict(LOADED)

    with trio.fail_after(30):
        async with (
            door(tmp_path, load) as path,
            await trio.open_unix_socket(path) as connection,
        ):
            await connection.send_all(REQUEST)
            await worked.wait()
            await trio.testing.wait_all_tasks_blocked()
            frames = await all_frames(connection)
    assert told == 2999
    assert frames[-1] == {"ok": LOADED}
    assert len(frames) < 10, "what nobody read was not sent"


async def test_a_client_that_is_gone_ends_its_call_while_it_is_told(tmp_path: Path) -> None:
    ended = trio.Event()

    async def load(call: Call) -> dict[str, Any]:
        try:
            while True:
                call.progress({"bytes": 1})
                await trio.sleep(0.01)
        finally:
            ended.set()

    with trio.fail_after(30):
        async with door(tmp_path, load) as path:
            connection = await trio.open_unix_socket(path)
            await connection.send_all(REQUEST)
            await connection.receive_some(100)
            await connection.aclose()
            await ended.wait()


async def test_over_http_the_same_is_told_in_lines(tmp_path: Path) -> None:
    async def load(call: Call) -> dict[str, Any]:
        telling = Telling(call, lambda channel: "lab", ASKING)
        await trio.sleep(0.3)
        telling(transfer().snapshot)
        return dict(LOADED)

    body = json.dumps({"content": HASH}).encode()
    head = (
        "POST /api/1/load HTTP/1.1\r\nHost: localhost:{port}\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    token = "ab" * 32
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            handlers = {"load": load}
            _, port = await nursery.start(serve_http_door, ("127.0.0.1", 0), token, handlers)
            asked = head.format(port=port, token=token, length=len(body)).encode() + body
            answer = b""
            async with await trio.open_tcp_stream("127.0.0.1", port) as connection:
                await connection.send_all(asked)
                async for piece in connection:
                    answer += piece
            nursery.cancel_scope.cancel()
    lines = [json.loads(line) for line in answer.splitlines() if line.startswith(b"{")]
    assert [line["progress"]["phase"] for line in lines[:-1]] == [ASKING, FETCHING]
    assert lines[-1] == LOADED
