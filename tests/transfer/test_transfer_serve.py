"""What a node gives, and to whom: real stores, real sessions, a simulated network."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.channels.channel import Channel
from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.errors import (
    NotFoundError,
    PeerBusyError,
    PeerError,
    PeerGoneError,
    PeerRefusedError,
    PeerTimeoutError,
    ProtocolError,
)
from kachery_p2p.limits import (
    CHUNK_BYTES,
    HASH_WAIT_S_MAX,
    SERVED_STREAMS_PER_PEER_MAX,
    STALL_S_MAX,
    STREAM_IDLE_S_MAX,
)
from kachery_p2p.network.link import DATA, Stream
from kachery_p2p.network.simulated_wire import Path as NetworkPath
from kachery_p2p.transfer.sources import PeerSource
from kachery_p2p.wire.codec import FrameDecoder
from kachery_p2p.wire.ranges import RangeRequest

MIB = CHUNK_BYTES
LAB = Channel.shared(b"L" * 20, "lab")
FIELD = Channel.shared(b"F" * 20, "field")
DATA_BYTES = hashlib.shake_128(b"serve").digest(5 * MIB + 7)
ABSENT = sha1_of(b"nobody has it")


async def ask(stream: Stream, request: RangeRequest) -> list[dict[str, Any]]:
    """Everything that comes back for one range request."""
    decoder = FrameDecoder()
    found: list[dict[str, Any]] = []
    await stream.send_all(request.frame())
    while len(found) < request.count:
        data = await stream.receive_some(1 << 18)
        if not data:
            raise PeerGoneError("the stream ended")
        found += decoder.feed(data)
        if found and "error" in found[-1]:
            break
    return found


def range_of(stored: Any, first: int = 0, count: int = 1, **other: Any) -> RangeRequest:
    names = {"channel": LAB.id, "content": stored.content.raw, "root": stored.root.raw}
    return RangeRequest(id=1, first=first, count=count, **{**names, **other})


# --- members ------------------------------------------------------------------------------------


async def test_a_member_loads_what_another_shares(virtual_clock: MockClock, lab: Any) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(DATA_BYTES)
    assert await bob.load(stored) == DATA_BYTES
    assert alice.server.bytes_served == len(DATA_BYTES)
    assert bob.disk.grants.channels_of(stored.content) == (LAB.id,)


async def test_what_was_fetched_is_served_on(virtual_clock: MockClock, lab: Any) -> None:
    alice, bob, carol = [await lab.node(name) for name in ("alice", "bob", "carol")]
    stored = alice.store(DATA_BYTES)
    assert await bob.load(stored) == DATA_BYTES
    await lab.together(bob, carol)
    lab.world.silence(alice.id)
    assert await carol.load(stored, root=True) == DATA_BYTES


async def test_what_was_fetched_in_one_channel_is_not_served_in_another(
    virtual_clock: MockClock, lab: Any
) -> None:
    bob = await lab.node("bob", LAB, FIELD)
    alice, carol = await lab.node("alice", LAB), await lab.node("carol", FIELD)
    stored = alice.store(DATA_BYTES)
    await lab.together(alice, bob)
    assert await bob.load(stored) == DATA_BYTES
    await lab.together(bob, carol)
    with pytest.raises(NotFoundError):
        await carol.load(stored)


# --- absent, not granted, not proved ------------------------------------------------------------


async def refusals(node: Any, session: Any, stored: Any, channel: str) -> list[str]:
    """How every question about a blob is answered."""
    where = {"channel": channel, "content": stored.content.raw}
    said = []
    for op, more in (
        ("have", {}),
        ("root", {"root": stored.root.raw}),
        ("page", {"root": stored.root.raw, "number": 0}),
    ):
        try:
            await session.request(op, {**where, **more}, 5)
            said.append(f"{op}: answered")
        except PeerError as error:
            said.append(f"{op}: {type(error).__name__}: {error}")
    stream = await node.link.open_stream(session.peer, DATA)
    said += [str(frame) for frame in await ask(stream, range_of(stored, channel=channel))]
    await stream.reset()
    return said


async def test_absent_not_granted_and_not_proved_cannot_be_told_apart(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await lab.node("alice", LAB, FIELD), await lab.node("bob", LAB)
    private = alice.disk.blobs.put_bytes(b"private")
    elsewhere = alice.store(b"for the field", FIELD)
    shared = alice.store(b"shared")
    absent = shared._replace(content=ABSENT)
    other_root = shared._replace(root=private.root)
    await lab.together(alice, bob)
    session = bob.sessions.get(alice.id)
    expected = await refusals(bob, session, absent, LAB.id)
    assert not any("answered" in line for line in expected)
    assert await refusals(bob, session, private, LAB.id) == expected
    assert await refusals(bob, session, elsewhere, LAB.id) == expected
    assert await refusals(bob, session, elsewhere, FIELD.id) == expected
    assert await refusals(bob, session, shared, "ab" * 32) == expected
    assert (await refusals(bob, session, other_root, LAB.id))[1:] == expected[1:]
    assert alice.server.bytes_served == 0


async def test_an_outsider_gets_no_byte_on_any_stream(virtual_clock: MockClock, lab: Any) -> None:
    alice = await lab.node("alice")
    stored = alice.store(DATA_BYTES)
    mallory = await lab.node("mallory", Channel.shared(b"M" * 20, "lab"))
    await mallory.link.connect(alice.link.addresses[0])
    stream = await mallory.link.open_stream(alice.id, DATA)
    (answer,) = await ask(stream, range_of(stored))
    assert answer["error"] == "refused"
    with pytest.raises(NotFoundError):
        await mallory.load(stored, root=True)
    assert alice.server.bytes_served == 0


async def test_a_grant_taken_back_ends_a_transfer_at_the_next_range(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(DATA_BYTES)
    await lab.together(alice, bob)
    stream = await bob.link.open_stream(alice.id, DATA)
    assert len((await ask(stream, range_of(stored, 0, 2)))[1]["data"]) == MIB
    alice.disk.grants.revoke([stored.content], LAB.id)
    (answer,) = await ask(stream, range_of(stored, 2, 2))
    assert answer["error"] == "refused"


async def test_who_leaves_a_channel_is_served_nothing_in_it(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(DATA_BYTES)
    await lab.together(alice, bob)
    session = bob.sessions.get(alice.id)
    await session.request("leave", {"channel": LAB.id}, 5)
    assert not any("answered" in line for line in await refusals(bob, session, stored, LAB.id))


# --- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "count"), [(6, 1), (5, 2), (4, 4), (1 << 23, 1)])
async def test_chunks_beyond_the_end_are_refused(
    virtual_clock: MockClock, lab: Any, first: int, count: int
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(DATA_BYTES)
    await lab.together(alice, bob)
    stream = await bob.link.open_stream(alice.id, DATA)
    (answer,) = await ask(stream, range_of(stored, first, count))
    assert answer["error"] == "refused"


async def test_one_data_stream_too_many_is_not_served(virtual_clock: MockClock, lab: Any) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(DATA_BYTES)
    await lab.together(alice, bob)
    streams = []
    for _ in range(SERVED_STREAMS_PER_PEER_MAX):
        streams.append(await bob.link.open_stream(alice.id, DATA))
        assert await ask(streams[-1], range_of(stored))
    extra = await bob.link.open_stream(alice.id, DATA)
    with pytest.raises(PeerGoneError):
        await ask(extra, range_of(stored))
    await streams[0].reset()
    await trio.sleep(0.1)
    again = await bob.link.open_stream(alice.id, DATA)
    assert "data" in (await ask(again, range_of(stored)))[0]


async def test_an_idle_data_stream_is_closed(virtual_clock: MockClock, lab: Any) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)
    stream = await bob.link.open_stream(alice.id, DATA)
    began = trio.current_time()
    with suppress(PeerGoneError):
        await stream.receive_some(1)
    assert trio.current_time() - began == pytest.approx(STREAM_IDLE_S_MAX, abs=1)


async def test_who_asks_and_does_not_read_is_cut_off(virtual_clock: MockClock, lab: Any) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(DATA_BYTES)
    await lab.together(alice, bob)
    stream = await bob.link.open_stream(alice.id, DATA)
    await stream.send_all(range_of(stored, 0, 4).frame())
    await trio.sleep(STALL_S_MAX + 1)
    assert alice.server._streams == {}


@pytest.mark.parametrize("bytes_per_s", [30_000, 1_000_000])
async def test_a_slow_line_is_slow_and_not_cut_off(
    virtual_clock: MockClock, lab: Any, bytes_per_s: int
) -> None:
    """A home line of 30 KB/s needs 35 s for a chunk."""
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(DATA_BYTES[: 2 * MIB])
    await lab.together(alice, bob)
    lab.world.set_path(alice.id, bob.id, NetworkPath(0.05, bytes_per_s=bytes_per_s), one_way=True)
    assert await bob.load(stored) == DATA_BYTES[: 2 * MIB]


@pytest.mark.parametrize("junk", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x05hello"])
async def test_junk_on_a_data_stream_ends_that_stream_alone(
    virtual_clock: MockClock, lab: Any, junk: bytes
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(DATA_BYTES)
    await lab.together(alice, bob)
    stream = await bob.link.open_stream(alice.id, DATA)
    await stream.send_all(junk)
    with pytest.raises(PeerGoneError):
        await ask(stream, range_of(stored))
    assert await bob.load(stored) == DATA_BYTES


# --- objects that were never hashed here --------------------------------------------------------


def foreign(node: Any, data: bytes, name: ContentHash | None = None) -> ContentHash:
    """A file that an older tool put into the store: nobody here has hashed it."""
    content = name or sha1_of(data)
    path = Path(node.disk.blobs.directory, "sha1", content[:2], content[2:4], content[4:6], content)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    node.share(content)
    return content


async def test_a_file_of_an_older_tool_is_hashed_and_then_served(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    content = foreign(alice, DATA_BYTES)
    await bob.downloads.load(content, None, lambda state: None)
    assert bob.bytes_of(content) == DATA_BYTES


async def test_a_file_that_is_not_what_its_name_says_is_absent(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    content = foreign(alice, b"not that", name=ABSENT)
    await lab.together(alice, bob)
    with pytest.raises(NotFoundError):
        await bob.downloads.load(content, None, lambda state: None)


async def test_while_it_is_hashed_the_answer_is_busy_and_then_the_blob(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    content = foreign(alice, DATA_BYTES)
    await lab.together(alice, bob)
    hash_it = alice.server._hash

    async def slowly(found: ContentHash) -> None:
        await trio.sleep(2 * HASH_WAIT_S_MAX)
        await hash_it(found)

    alice.server._hash = slowly
    session = bob.sessions.get(alice.id)
    with pytest.raises(PeerBusyError):
        await session.request("have", {"channel": LAB.id, "content": content.raw}, 5)
    await bob.downloads.load(content, None, lambda state: None)
    assert bob.disk.blobs.find(content) is not None


async def test_hashing_that_takes_longer_than_we_wait_is_told_as_such(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    content = foreign(alice, DATA_BYTES)
    await lab.together(alice, bob)

    async def for_ever(found: ContentHash) -> None:
        await trio.sleep(3600)

    alice.server._hash = for_ever
    with pytest.raises(PeerBusyError, match="hashing"):
        await bob.downloads.load(content, None, lambda state: None)


async def test_a_blob_that_is_hashed_is_hashed_once_for_all_who_ask(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    content = foreign(alice, DATA_BYTES)
    await lab.together(alice, bob)
    opened = 0
    open_verified = alice.disk.blobs.open_verified

    def count(found: ContentHash) -> Any:
        nonlocal opened
        opened += 1
        return open_verified(found)

    alice.disk.blobs.open_verified = count
    session = bob.sessions.get(alice.id)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(
                session.request, "have", {"channel": LAB.id, "content": content.raw}, 5
            )
    assert opened == 1


async def test_a_disk_that_fails_while_serving_ends_the_transfer_alone(
    virtual_clock: MockClock, lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(DATA_BYTES)
    await lab.together(alice, bob)
    fails = 2

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal fails
        if fails and offset == 2 * MIB and length == MIB:
            fails -= 1
            raise OSError(5, "input/output error")
        return real(descriptor, length, offset)

    real = os.pread
    monkeypatch.setattr(os, "pread", pread)
    assert await bob.load(stored) == DATA_BYTES
    assert fails == 0


# --- a source over the wire ---------------------------------------------------------------------


class LyingServer:
    """Serves data streams by a script instead of from the store."""

    def __init__(self, node: Any, script: Any) -> None:
        self.script = script
        node.link.accept(DATA, self.serve)

    async def serve(self, stream: Stream) -> None:
        from kachery_p2p.wire.ranges import read_range_request

        decoder = FrameDecoder()
        while data := await stream.receive_some(1 << 16):
            for message in decoder.feed(data):
                await self.script(stream, read_range_request(message))


async def silent(stream: Stream, request: RangeRequest) -> None:
    await trio.sleep_forever()


async def drip(stream: Stream, request: RangeRequest) -> None:
    for byte in request.chunk_frame(request.first, bytes(MIB)):
        await stream.send_all(bytes([byte]))
        await trio.sleep(STALL_S_MAX * 0.9)


async def wrong_number(stream: Stream, request: RangeRequest) -> None:
    request = RangeRequest(1, LAB.id, request.content, request.root, 0, 4)
    await stream.send_all(request.chunk_frame(3, bytes(MIB)))


async def wrong_id(stream: Stream, request: RangeRequest) -> None:
    other = RangeRequest(9, LAB.id, request.content, request.root, 0, 4)
    await stream.send_all(other.chunk_frame(0, bytes(MIB)))


async def hang_up(stream: Stream, request: RangeRequest) -> None:
    await stream.reset()


async def half(stream: Stream, request: RangeRequest) -> None:
    await stream.send_all(request.chunk_frame(request.first, bytes(MIB))[: MIB // 2])
    await stream.close()
    await trio.sleep(1)


async def junk(stream: Stream, request: RangeRequest) -> None:
    await stream.send_all(b"\xff" * 1000)
    await trio.sleep(1)


SCRIPTS: dict[str, tuple[Any, type[PeerError]]] = {
    "silent": (silent, PeerTimeoutError),
    "dripping": (drip, PeerTimeoutError),
    "wrong number": (wrong_number, ProtocolError),
    "wrong id": (wrong_id, ProtocolError),
    "hanging up": (hang_up, PeerGoneError),
    "half a chunk": (half, PeerGoneError),
    "junk": (junk, ProtocolError),
}


@pytest.mark.parametrize("how", SCRIPTS)
async def test_a_source_sees_to_it_that_chunks_come_in_time_and_in_order(
    virtual_clock: MockClock, lab: Any, how: str
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(DATA_BYTES)
    script, expected = SCRIPTS[how]
    LyingServer(alice, script)
    await lab.together(alice, bob)
    source = PeerSource(bob.sessions.get(alice.id), bob.link, LAB.id)
    ranges = iter([range(4)])

    async def deliver(source: Any, number: int, data: bytes) -> None:
        raise AssertionError("nothing was to be delivered")

    began = trio.current_time()
    with pytest.raises(expected):
        await source.pull(stored.content, stored.root, lambda: next(ranges, None), deliver)
    assert trio.current_time() - began <= STALL_S_MAX + 1


@pytest.mark.parametrize("how", SCRIPTS)
async def test_a_bad_source_does_not_keep_the_blob_from_who_asks_a_good_one_too(
    virtual_clock: MockClock, lab: Any, how: str
) -> None:
    alice, mallory, bob = [await lab.node(name) for name in ("alice", "mallory", "bob")]
    stored = alice.store(DATA_BYTES)
    mallory.store(DATA_BYTES)
    LyingServer(mallory, SCRIPTS[how][0])
    await lab.together(alice, bob, mallory)
    assert await bob.load(stored) == DATA_BYTES


async def test_a_refusal_is_one_of_the_wire(virtual_clock: MockClock, lab: Any) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.disk.blobs.put_bytes(b"private")
    await lab.together(alice, bob)
    source = PeerSource(bob.sessions.get(alice.id), bob.link, LAB.id)
    with pytest.raises(PeerRefusedError):
        await source.root_object(stored.content, stored.root)
    with pytest.raises(PeerRefusedError):
        await source.page(stored.content, stored.root, 0)
