"""Loading many small blobs at once, in the simulated world: on data streams, with everything
that may go wrong between nodes. (On bulk connections: tests/network/test_network_batches.py.)"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.channels.channel import Channel
from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.errors import (
    HashCollisionError,
    KacheryError,
    LoadTimeoutError,
    NotFoundError,
    PeerRefusedError,
    StorageFullError,
)
from kachery_p2p.limits import (
    BATCH_ANSWER_BYTES_MAX,
    BATCH_ASKED_BYTES,
    BATCH_HELD_BYTES_MAX,
    BATCH_PIECES_BYTES_MAX,
    CHUNK_BYTES,
    LIAR_DROPPED_S,
)
from kachery_p2p.network.link import DATA, Stream
from kachery_p2p.store.blobs import Stored
from kachery_p2p.transfer.batch_coming import Claims, Coming
from kachery_p2p.transfer.batch_groups import HeldBytes
from kachery_p2p.transfer.batch_serving import ServedBlobs
from kachery_p2p.transfer.batch_wanted import Progress, Wanted
from kachery_p2p.transfer.batches import Batches
from kachery_p2p.transfer.liars import Lie
from kachery_p2p.transfer.only import ANYONE, Only
from kachery_p2p.wire.batches import (
    BUSY,
    BYTES,
    LARGE,
    PIECE_BYTES,
    REFUSED,
    BatchRequest,
    BulkBatch,
    read_batch_request,
    read_pieces,
    write_piece,
)
from kachery_p2p.wire.codec import FrameDecoder, encode_frame

if TYPE_CHECKING:
    from tests.transfer.conftest import Disk, Lab, Node

FIELD = Channel.shared(b"F" * 20, "field")
LAB = Channel.shared(b"L" * 20, "lab")
COUNT = 128


def store_all(node: Node, datas: Sequence[bytes], *channels: Channel) -> list[Stored]:
    """Store and share all of them in few waits for the disk."""
    outcomes = list(node.disk.blobs.put_many(datas))
    stored = [one for one in outcomes if isinstance(one, Stored)]
    assert len(stored) == len(datas)
    ids = [channel.id for channel in channels or (LAB,)]
    node.disk.grants.grant([one.content for one in stored], ids, "test", 0.0)
    return stored


def blobs(count: int = COUNT, size: int = 100) -> list[bytes]:
    return [f"{number:08d}".encode() * (size // 8) for number in range(count)]


class Loader:
    """A node's loads of many, and what they asked of others."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.batches = Batches(
            sessions=node.sessions,
            link=node.link,
            blobs=node.disk.blobs,
            grants=node.disk.grants,
            liars=node.downloads.liars,
            is_loading=node.downloads.is_loading,
        )
        self.alone: list[ContentHash] = []
        self.progress: list[Progress] = []

    async def load(
        self,
        wanted: Sequence[Stored | Wanted],
        only: Only = ANYONE,
        timeout_s: float = float("inf"),
    ) -> list[KacheryError | None]:
        async def load_one(one: Wanted) -> None:
            self.alone.append(one.content)
            await self.node.downloads.load(one.content, one.root, lambda view: None, only)

        each = [one if isinstance(one, Wanted) else Wanted(one.content) for one in wanted]
        return await self.batches.load(each, load_one, self.progress.append, only, timeout_s)

    def assert_has(self, stored: Sequence[Stored], datas: Sequence[bytes]) -> None:
        assert [self.node.bytes_of(one.content) for one in stored] == list(datas)
        assert self.node.disk.partials() == []
        self.assert_nothing_is_left_over()

    def assert_nothing_is_left_over(self) -> None:
        assert self.batches.held._held == 0
        assert not self.batches.coming


class Asked:
    """The questions that a node was asked in channel lab, by their number of contents."""

    def __init__(self, node: Node) -> None:
        self.batches: list[int] = []
        self.have = 0
        serve, have = node.server._serve_batch, node.server._have

        async def served(stream: Stream, request: BatchRequest) -> None:
            if request.wanted.channel == LAB.id:
                self.batches.append(len(request.wanted.contents))
            await serve(stream, request)

        async def asked(session: Any, body: dict[str, Any]) -> dict[str, Any]:
            self.have += 1
            return await have(session, body)

        node.server._serve_batch = served  # type: ignore[method-assign]
        node.sessions.handle("have", asked)


async def test_many_come_in_few_questions_and_are_granted_where_they_came_from(
    virtual_clock: MockClock, lab: Lab
) -> None:
    alice = await lab.node("alice", LAB, FIELD)
    bob = await lab.node("bob", LAB, FIELD)
    await lab.together(alice, bob)
    datas = blobs()
    stored = store_all(alice, datas)
    asked, loader = Asked(alice), Loader(bob)
    assert await loader.load(stored) == [None] * COUNT
    loader.assert_has(stored, datas)
    assert sum(asked.batches) == COUNT
    assert len(asked.batches) <= 16
    assert asked.have == 0
    assert loader.alone == []
    for one in stored:
        assert bob.disk.grants.channels_of(one.content) == (LAB.id,)
        assert bob.disk.blobs.known(one.content) is not None
    assert loader.progress[-1].files == COUNT
    assert loader.progress[-1].bytes == sum(map(len, datas))


async def test_what_is_here_already_is_not_asked_for(virtual_clock: MockClock, lab: Lab) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)
    stored = store_all(alice, blobs(20))
    store_all(bob, blobs(20)[:15])
    asked, loader = Asked(alice), Loader(bob)
    assert await loader.load(stored) == [None] * 20
    assert sum(asked.batches) == 5


async def test_large_and_empty_and_absent_ones_each_have_their_own_outcome(
    virtual_clock: MockClock, lab: Lab
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)
    large, chunk = bytes(CHUNK_BYTES + 1), b"c" * CHUNK_BYTES
    datas = [b"small", large, b"", chunk]
    stored = store_all(alice, datas)
    absent = Wanted(ContentHash("12" * 20))
    hidden = alice.disk.blobs.put_bytes(b"granted nowhere")
    loader = Loader(bob)
    outcomes = await loader.load([*stored[:2], absent, *stored[2:], hidden])
    assert outcomes[:2] == outcomes[3:5] == [None, None]
    assert isinstance(outcomes[2], NotFoundError)
    assert isinstance(outcomes[5], NotFoundError)
    assert str(outcomes[5]).replace(hidden.content, "") == str(outcomes[2]).replace(
        absent.content, ""
    )
    loader.assert_has(stored, datas)
    assert set(loader.alone) == {stored[1].content, absent.content, hidden.content}


async def test_several_sources_share_the_work(virtual_clock: MockClock, lab: Lab) -> None:
    alice, dora, bob = [await lab.node(name) for name in ("alice", "dora", "bob")]
    await lab.together(alice, dora, bob)
    datas = blobs()
    stored = store_all(alice, datas)
    store_all(dora, datas)
    asked = Asked(alice), Asked(dora)
    loader = Loader(bob)
    assert await loader.load(stored) == [None] * COUNT
    loader.assert_has(stored, datas)
    assert all(sum(one.batches) >= COUNT // 4 for one in asked)
    assert sum(sum(one.batches) for one in asked) == COUNT


async def test_what_one_does_not_have_the_other_gives(virtual_clock: MockClock, lab: Lab) -> None:
    alice, dora, bob = [await lab.node(name) for name in ("alice", "dora", "bob")]
    await lab.together(alice, dora, bob)
    datas = blobs()
    stored = store_all(alice, datas[::2]) + store_all(dora, datas[1::2])
    datas = datas[::2] + datas[1::2]
    loader = Loader(bob)
    assert await loader.load(stored) == [None] * COUNT
    loader.assert_has(stored, datas)
    assert loader.alone == []


async def test_only_the_sources_that_are_accepted_are_asked(
    virtual_clock: MockClock, lab: Lab
) -> None:
    alice, dora, bob = [await lab.node(name) for name in ("alice", "dora", "bob")]
    await lab.together(alice, dora, bob)
    stored = store_all(dora, blobs(10))
    asked, loader = Asked(alice), Loader(bob)
    assert await loader.load(stored[:5], Only(node=dora.id)) == [None] * 5
    assert asked.batches == []
    outcomes = await loader.load(stored[5:], Only(node=alice.id))
    assert all(isinstance(one, NotFoundError) for one in outcomes)
    outcomes = await loader.load(stored[5:], Only(channel=FIELD.id))
    assert all(isinstance(one, NotFoundError) for one in outcomes)


async def test_loads_of_the_same_at_once_ask_once(virtual_clock: MockClock, lab: Lab) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)
    datas = blobs()
    stored = store_all(alice, datas)
    asked, loader = Asked(alice), Loader(bob)
    done: list[list[KacheryError | None]] = []

    async def load(wanted: Sequence[Stored]) -> None:
        done.append(await loader.load(wanted))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(load, stored)
        nursery.start_soon(load, stored[::-1])
    assert done == [[None] * COUNT] * 6
    assert sum(asked.batches) == COUNT
    loader.assert_has(stored, datas)


async def test_one_content_twice_in_a_load_is_brought_once(
    virtual_clock: MockClock, lab: Lab
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)
    one = alice.store(b"once")
    asked, loader = Asked(alice), Loader(bob)
    assert await loader.load([one, one, one]) == [None, None, None]
    assert asked.batches == [1]


async def test_what_is_being_fetched_by_itself_is_waited_for_and_not_asked_for_again(
    virtual_clock: MockClock, lab: Lab
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)
    datas = [b"s" * 900_000, *blobs(20)]
    stored = store_all(alice, datas)
    asked, loader = Asked(alice), Loader(bob)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bob.load, stored[0])
        while not bob.downloads.is_loading(stored[0].content):  # noqa: ASYNC110 (virtual time)
            await trio.sleep(0.001)
        assert await loader.load(stored) == [None] * 21
    loader.assert_has(stored, datas)
    assert asked.have == 1
    assert sum(asked.batches) == 20
    assert loader.alone == [stored[0].content]
    # Each once, with a few bytes in front of each small one.
    assert alice.server.bytes_served < sum(map(len, datas)) + 1_000


async def test_a_single_load_waits_for_the_batch_that_brings_it(
    virtual_clock: MockClock, lab: Lab
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)
    stored = store_all(alice, blobs(20))
    content, loader = stored[3].content, Loader(bob)
    waited: list[bool] = []

    async def wait() -> None:
        while not len(loader.batches.coming):  # noqa: ASYNC110 (virtual time)
            await trio.sleep(0.001)
        waited.append(await loader.batches.coming.wait_while_in_batches(content, ANYONE))
        waited.append(bob.disk.blobs.find(content) is not None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await loader.load(stored)
    assert waited == [True, True]
    assert not await loader.batches.coming.wait_while_in_batches(content, ANYONE)


async def test_a_single_load_does_not_wait_for_what_is_fetched_by_itself_anyway(
    virtual_clock: MockClock, lab: Lab
) -> None:
    coming, content = Coming(), ContentHash("12" * 20)
    assert coming.take_on(content, ANYONE) is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(coming.wait_while_in_batches, content, ANYONE)
        await trio.testing.wait_all_tasks_blocked()
        coming.go_alone(content, ANYONE)
    assert not await coming.wait_while_in_batches(content, ANYONE)
    taken = coming.take_on(content, ANYONE)
    assert taken is not None
    coming.end(content, ANYONE)
    await taken.wait()


async def test_when_who_took_it_on_leaves_the_others_load_it_themselves(
    virtual_clock: MockClock, lab: Lab
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)
    datas = blobs(50)
    stored = store_all(alice, datas)
    loader, begun = Loader(bob), trio.Event()

    async def hold(stream: Stream, request: BatchRequest) -> None:
        begun.set()
        await trio.sleep_forever()

    serve, alice.server._serve_batch = alice.server._serve_batch, hold  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as first:
            async with trio.open_nursery() as leaving:
                leaving.start_soon(loader.load, stored)
                await begun.wait()
                alice.server._serve_batch = serve  # type: ignore[method-assign]
                outcomes: list[list[KacheryError | None]] = []

                async def load() -> None:
                    outcomes.append(await loader.load(stored))

                nursery.start_soon(load)
                await trio.sleep(0.1)
                first.cancel()
    assert outcomes == [[None] * 50]
    loader.assert_has(stored, datas)


async def test_a_load_that_is_cancelled_leaves_nothing_behind(
    virtual_clock: MockClock, lab: Lab
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)
    stored = store_all(alice, blobs(300))
    loader = Loader(bob)
    for patience_s in (0.0, 0.05, 0.2):
        with trio.move_on_after(patience_s):
            await loader.load(stored)
        loader.assert_nothing_is_left_over()
    assert await loader.load(stored) == [None] * 300
    loader.assert_has(stored, blobs(300))


# --- errors of each ---------------------------------------------------------------------------


async def test_a_root_that_is_not_that_of_the_bytes_is_an_error_of_that_one_alone(
    virtual_clock: MockClock, lab: Lab
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)
    stored = store_all(alice, blobs(3))
    good = [Wanted(one.content, one.root) for one in stored]
    wrong = Wanted(stored[1].content, Root("1" * 64))
    loader = Loader(bob)
    outcomes = await loader.load([good[0], wrong, good[2]])
    assert (outcomes[0], outcomes[2]) == (None, None)
    assert isinstance(outcomes[1], NotFoundError)
    assert "with the root of the URI" in str(outcomes[1])
    # Once the bytes are known here it can be said what is wrong.
    assert await loader.load([good[1]]) == [None]


async def test_bytes_that_collide_with_what_this_node_has_read_are_refused(
    virtual_clock: MockClock, lab: Lab
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)
    stored = store_all(alice, blobs(100))
    forged, other = bob.disk.index, {stored[7].content: Root("1" * 64)}
    each, one_of = forged.pinned_roots, forged.pinned_root
    forged.pinned_roots = lambda contents: each(contents) | other  # type: ignore[method-assign]
    forged.pinned_root = lambda content: other.get(content) or one_of(content)  # type: ignore[method-assign]
    outcomes = await Loader(bob).load(stored)
    assert isinstance(outcomes[7], HashCollisionError)
    assert [one for number, one in enumerate(outcomes) if number != 7] == [None] * 99


async def test_a_full_disk_ends_the_load_and_is_said_of_each(
    virtual_clock: MockClock, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)
    stored = store_all(alice, blobs())
    monkeypatch.setattr(bob.disk.blobs._intake, "reserve_bytes", 1 << 60)
    loader = Loader(bob)
    outcomes = await loader.load(stored)
    assert all(isinstance(one, StorageFullError) for one in outcomes)
    assert bob.disk.objects() == []
    assert bob.disk.grants.count(LAB.id) == 0
    loader.assert_nothing_is_left_over()


async def test_with_nobody_connected_each_says_so(virtual_clock: MockClock, lab: Lab) -> None:
    bob = await lab.node("bob")
    outcomes = await Loader(bob).load([Wanted(ContentHash(f"{n:040x}")) for n in range(20)])
    assert all(isinstance(one, NotFoundError) for one in outcomes)
    assert "no peer in channel lab is connected" in str(outcomes[0])


async def test_a_member_that_is_being_dialled_is_waited_for(
    virtual_clock: MockClock, lab: Lab
) -> None:
    alice = await lab.node("alice")
    stored = store_all(alice, blobs(20))
    bob = await lab.node("bob")
    # At once, before the two have met.
    loader = Loader(bob)
    assert await loader.load(stored) == [None] * 20
    assert loader.alone == []


async def test_nothing_within_the_time_allowed_is_a_timeout_of_each(
    virtual_clock: MockClock, lab: Lab
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)
    stored = store_all(alice, blobs(20))
    hostile(alice, silence)
    began = trio.current_time()
    loader = Loader(bob)
    outcomes = await loader.load(stored, timeout_s=2.0)
    assert all(isinstance(one, LoadTimeoutError) for one in outcomes)
    assert trio.current_time() - began == pytest.approx(2.0, abs=0.1)
    loader.assert_nothing_is_left_over()


async def test_who_waited_in_vain_does_not_end_what_another_has_taken_on(
    virtual_clock: MockClock, lab: Lab
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)
    stored = store_all(alice, blobs(5))
    hostile(alice, silence)
    loader = Loader(bob)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loader.load, stored)
        await trio.testing.wait_all_tasks_blocked()
        outcomes = await loader.load(stored, timeout_s=0.5)
        assert all(isinstance(one, LoadTimeoutError) for one in outcomes)
        assert len(loader.batches.coming) == 5
        nursery.cancel_scope.cancel()
    loader.assert_nothing_is_left_over()


def test_a_claim_that_has_ended_is_not_ended_again_for_who_took_it_on_later() -> None:
    coming, content = Coming(), ContentHash("12" * 20)
    first, second = Claims(coming, ANYONE), Claims(coming, ANYONE)
    assert first.take_on(0, content) is None
    first.end(0)
    assert second.take_on(0, content) is None
    first.end_all()
    assert len(coming) == 1


# --- sources that misbehave -------------------------------------------------------------------

Act = Callable[[Stream, BatchRequest], Awaitable[None]]


def hostile(node: Node, act: Act) -> list[int]:
    """From now on the node answers every question for a batch so; how many it was asked."""
    asked: list[int] = []

    async def serve(stream: Stream) -> None:
        decoder = FrameDecoder()
        while data := await stream.receive_some(1 << 16):
            for message in decoder.feed(data):
                if message.get("op") == "batch":
                    request = read_batch_request(message)
                    asked.append(len(request.wanted.contents))
                    await act(stream, request)

    async def nothing(session: Any, body: dict[str, Any]) -> dict[str, Any]:
        raise PeerRefusedError("is asked in batches only")

    node.link.accept(DATA, serve)
    node.sessions.handle("have", nothing)
    return asked


def pieces(*told: tuple[int, int, bytes]) -> bytes:
    made = bytearray()
    for place, outcome, data in told:
        head = memoryview(bytearray(PIECE_BYTES))
        write_piece(place, outcome, len(data), head)
        made += head
        made += data
    return bytes(made)


async def send(stream: Stream, request: BatchRequest, *told: tuple[int, int, bytes]) -> None:
    await stream.send_all(request.pieces_frame(pieces(*told), last=True))


async def silence(stream: Stream, request: BatchRequest) -> None:
    await trio.sleep_forever()


async def wrong_bytes(stream: Stream, request: BatchRequest) -> None:
    await send(stream, request, (0, BYTES, b"lies"))


async def right_then_wrong(stream: Stream, request: BatchRequest) -> None:
    right = {hashlib.sha1(data).digest(): data for data in blobs()}
    first = right[request.wanted.contents[0]]
    await send(stream, request, (0, BYTES, first), (1, BYTES, first))


async def a_piece_twice(stream: Stream, request: BatchRequest) -> None:
    await send(stream, request, (0, REFUSED, b""), (0, REFUSED, b""))


async def a_piece_too_many(stream: Stream, request: BatchRequest) -> None:
    count = len(request.wanted.contents)
    await send(stream, request, *((place, REFUSED, b"") for place in range(count + 1)))


async def not_in_order(stream: Stream, request: BatchRequest) -> None:
    await send(stream, request, (1, REFUSED, b""))


async def a_wrong_length(stream: Stream, request: BatchRequest) -> None:
    lying = bytearray(pieces((0, BYTES, b"spikes")))
    lying[7] += 1
    await stream.send_all(request.pieces_frame(bytes(lying), last=True))


async def nothing_at_all(stream: Stream, request: BatchRequest) -> None:
    await stream.send_all(encode_frame({"id": request.id, "pieces": b"", "last": True}))


async def no_end(stream: Stream, request: BatchRequest) -> None:
    while True:
        await stream.send_all(request.pieces_frame(pieces((0, REFUSED, b"")), last=False))


async def more_bytes_than_asked_for(stream: Stream, request: BatchRequest) -> None:
    chunk = bytes(CHUNK_BYTES)
    for place in range(len(request.wanted.contents)):
        told = pieces((place, BYTES, chunk))
        await stream.send_all(request.pieces_frame(told, last=False))


async def a_frame_without_end(stream: Stream, request: BatchRequest) -> None:
    await stream.send_all((1 << 20).to_bytes(4, "big"))
    while True:
        await stream.send_all(bytes(64))
        await trio.sleep(0.1)


async def another_answer(stream: Stream, request: BatchRequest) -> None:
    await stream.send_all(encode_frame({"id": request.id + 1, "pieces": b"x", "last": True}))


async def junk(stream: Stream, request: BatchRequest) -> None:
    await stream.send_all(b"\0\0\0\4junk" * 100)


async def hang_up(stream: Stream, request: BatchRequest) -> None:
    await stream.reset()


ACTS: list[Act] = [
    silence,
    wrong_bytes,
    right_then_wrong,
    a_piece_twice,
    a_piece_too_many,
    not_in_order,
    a_wrong_length,
    nothing_at_all,
    no_end,
    more_bytes_than_asked_for,
    a_frame_without_end,
    another_answer,
    junk,
    hang_up,
]


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
async def test_what_a_hostile_source_was_asked_for_an_honest_one_gives(
    virtual_clock: MockClock, lab: Lab, act: Act
) -> None:
    mallory, alice, bob = [await lab.node(name) for name in ("mallory", "alice", "bob")]
    await lab.together(mallory, alice, bob)
    datas = blobs()
    stored = store_all(alice, datas)
    asked = hostile(mallory, act)
    loader = Loader(bob)
    began = trio.current_time()
    assert await loader.load(stored) == [None] * COUNT
    loader.assert_has(stored, datas)
    assert asked, "the hostile source was never asked"
    # Two questions at once, and never again after the first that it answered so.
    assert len(asked) <= 2
    assert trio.current_time() - began <= 10


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
async def test_from_a_hostile_source_alone_comes_an_error_and_nothing_is_stored(
    virtual_clock: MockClock, lab: Lab, act: Act
) -> None:
    mallory, bob = await lab.node("mallory"), await lab.node("bob")
    await lab.together(mallory, bob)
    stored = store_all(mallory, blobs(40))
    hostile(mallory, act)
    loader = Loader(bob)
    with trio.fail_after(60):
        outcomes = await loader.load(stored)
    came = [one for one in outcomes if one is None]
    assert len(came) == len(bob.disk.objects()) <= (2 if act is right_then_wrong else 0)
    assert all(isinstance(one, NotFoundError) for one in outcomes if one is not None)
    loader.assert_nothing_is_left_over()


LYING_ACTS: list[Act] = [wrong_bytes, right_then_wrong, a_piece_twice, more_bytes_than_asked_for]


@pytest.mark.parametrize("act", LYING_ACTS, ids=lambda act: act.__name__)
async def test_who_lies_in_a_batch_is_dropped_for_the_channel(
    virtual_clock: MockClock, lab: Lab, act: Act
) -> None:
    mallory, alice, bob = [await lab.node(name) for name in ("mallory", "alice", "bob")]
    await lab.together(mallory, alice, bob)
    datas = blobs(200)
    stored = store_all(alice, datas)
    store_all(mallory, datas)
    asked = hostile(mallory, act)
    loader = Loader(bob)
    assert await loader.load(stored[:160]) == [None] * 160
    assert asked
    asked.clear()
    (lie,) = bob.downloads.dropped()
    assert (lie.node, lie.channel) == (mallory.id, LAB.id)
    assert lie.content in {one.content for one in stored}
    # Neither the next batch nor a single load asks it, but who names just this node does.
    assert await loader.load(stored[160:190]) == [None] * 30
    assert await bob.load(stored[195]) == datas[195]
    assert not asked
    outcomes = await loader.load(stored[196:], Only(node=mallory.id))
    assert any(isinstance(one, KacheryError) for one in outcomes)
    assert asked


async def test_who_lied_in_a_single_load_is_not_asked_in_batches(
    virtual_clock: MockClock, lab: Lab
) -> None:
    mallory, alice, bob = [await lab.node(name) for name in ("mallory", "alice", "bob")]
    await lab.together(mallory, alice, bob)
    datas = blobs(100)
    stored = store_all(alice, datas)
    store_all(mallory, datas)
    now = trio.current_time()
    lie = Lie(mallory.id, "mallory", LAB.id, stored[0].content, "sent wrong bytes", now)
    bob.downloads.liars.note(lie)
    asked, loader = Asked(mallory), Loader(bob)
    assert await loader.load(stored) == [None] * 100
    assert asked.batches == []
    # Not for ever: a disk that rots is mended one day.
    bob.disk.blobs.remove(stored[0].content)
    await trio.sleep(LIAR_DROPPED_S)
    assert await loader.load(stored[:1], Only(node=mallory.id)) == [None]
    assert asked.batches == [1]


async def test_a_source_that_goes_away_in_the_middle_is_replaced(
    virtual_clock: MockClock, lab: Lab
) -> None:
    alice, dora, bob = [await lab.node(name) for name in ("alice", "dora", "bob")]
    await lab.together(alice, dora, bob)
    datas = blobs(300)
    stored = store_all(alice, datas)
    store_all(dora, datas)
    serve, answered = alice.server._serve_batch, 0

    async def serve_once(stream: Stream, request: BatchRequest) -> None:
        nonlocal answered
        answered += 1
        if answered > 1:
            session = alice.sessions.get(bob.id)
            assert session is not None
            session.end()
            await trio.sleep_forever()
        await serve(stream, request)

    alice.server._serve_batch = serve_once  # type: ignore[method-assign]
    loader = Loader(bob)
    began = trio.current_time()
    assert await loader.load(stored) == [None] * 300
    loader.assert_has(stored, datas)
    assert trio.current_time() - began < 10


async def test_the_only_source_is_waited_for_and_goes_on_in_batches(
    virtual_clock: MockClock, lab: Lab
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)
    datas = blobs(300)
    stored = store_all(alice, datas)
    serve, cut = alice.server._serve_batch, False

    async def cut_once(stream: Stream, request: BatchRequest) -> None:
        nonlocal cut
        if not cut:
            cut = True
            session = alice.sessions.get(bob.id)
            assert session is not None
            session.end()
            return
        await serve(stream, request)

    alice.server._serve_batch = cut_once  # type: ignore[method-assign]
    loader = Loader(bob)
    assert await loader.load(stored) == [None] * 300
    loader.assert_has(stored, datas)
    assert loader.alone == []


# --- those who ask ------------------------------------------------------------------------------


def served_from(
    disk: Disk, names: Sequence[bytes], bytes_max: int = BATCH_ANSWER_BYTES_MAX
) -> ServedBlobs:
    wanted = BulkBatch(LAB.id, tuple(names), bytes_max)
    return ServedBlobs(wanted, disk.blobs, disk.grants, lambda: True)


def told_by(served: ServedBlobs) -> list[list[tuple[int, int, bytes]]]:
    """The pieces of each frame, until the answer has ended."""
    frames = []
    room = memoryview(bytearray(BATCH_PIECES_BYTES_MAX))
    while not served.finished:
        told = read_pieces(room[: served.fill(room)])
        frames.append([(one.place, one.outcome, bytes(one.data)) for one in told])
    served.close()
    return frames


def put(disk: Disk, data: bytes, *, granted: bool = True) -> bytes:
    stored = disk.blobs.put_bytes(data)
    if granted:
        disk.grants.grant([stored.content], [LAB.id], "test", 0.0)
    return stored.content.raw


def test_absent_and_not_granted_are_one_and_neither_stops_the_others(disk: Disk) -> None:
    names = [put(disk, b"a"), put(disk, b"hidden", granted=False), bytes(20), put(disk, b"")]
    large = put(disk, bytes(CHUNK_BYTES + 1))
    (told,) = told_by(served_from(disk, [*names, large]))
    assert told == [
        (0, BYTES, b"a"),
        (1, REFUSED, b""),
        (2, REFUSED, b""),
        (3, BYTES, b""),
        (4, LARGE, b""),
    ]


def test_many_travel_in_one_frame_and_none_is_cut(disk: Disk) -> None:
    datas = [*blobs(200), b"x" * CHUNK_BYTES, *(bytes([n]) * 300_000 for n in range(8))]
    frames = told_by(served_from(disk, [put(disk, data) for data in datas]))
    assert [data for frame in frames for _, _, data in frame] == datas
    assert len(frames) <= 5
    assert len(frames[0]) >= 200


def test_an_answer_ends_when_its_bytes_are_used_up(disk: Disk) -> None:
    names = [put(disk, bytes([n]) * 400_000) for n in range(5)]
    frames = told_by(served_from(disk, names, CHUNK_BYTES))
    assert [len(frame) for frame in frames] == [2]
    # Exactly used up, and nothing but refusals behind: they cost no bytes.
    names = [put(disk, b"z" * CHUNK_BYTES), *(bytes([n]) * 20 for n in range(9))]
    frames = told_by(served_from(disk, names, CHUNK_BYTES))
    assert sum(map(len, frames)) == 10


def test_who_is_removed_in_the_middle_gets_not_one_blob_more(disk: Disk) -> None:
    names = [put(disk, data) for data in blobs(50)]
    may = iter([True] * 10)
    wanted = BulkBatch(LAB.id, tuple(names))
    served = ServedBlobs(wanted, disk.blobs, disk.grants, lambda: next(may, False))
    (told,) = told_by(served)
    assert [outcome for _, outcome, _ in told] == [BYTES] * 10 + [REFUSED] * 40
    assert served.revoked()


def test_a_grant_that_ends_in_the_middle_ends_there(disk: Disk) -> None:
    names = [put(disk, bytes([n]) * CHUNK_BYTES) for n in range(4)]
    served = served_from(disk, names)
    room = memoryview(bytearray(BATCH_PIECES_BYTES_MAX))
    assert served.fill(room) == PIECE_BYTES + CHUNK_BYTES
    for name in names[2:]:
        disk.grants.revoke([ContentHash.of_raw(name)], LAB.id)
    rest = [one for frame in told_by(served) for one in frame]
    assert [(place, outcome) for place, outcome, _ in rest] == [
        (1, BYTES),
        (2, REFUSED),
        (3, REFUSED),
    ]


def test_an_object_that_became_shorter_is_not_served(disk: Disk) -> None:
    name = put(disk, b"spikes" * 100)
    (path,) = disk.objects()
    served = served_from(disk, [name])
    opened = disk.blobs.known_files.open

    def shortened(content: ContentHash, state: Any) -> Any:
        found = opened(content, state)
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.truncate(3)
        return found

    disk.blobs.known_files.open = shortened  # type: ignore[method-assign]
    assert told_by(served) == [[(0, BUSY, b"")]]


def test_an_object_that_was_replaced_is_hashed_before_it_is_served(disk: Disk) -> None:
    name = put(disk, b"spikes" * 100)
    (path,) = disk.objects()
    path.unlink()
    path.write_bytes(b"forged" * 100)
    assert told_by(served_from(disk, [name])) == [[(0, REFUSED, b"")]]
    assert not path.exists()


def test_many_are_looked_up_with_few_questions(disk: Disk) -> None:
    names = [put(disk, data) for data in blobs(256)]
    asked: list[int] = []
    granted_of = disk.grants.granted_of

    def counted(contents: Any, channel_id: str) -> Any:
        asked.append(len(contents))
        return granted_of(contents, channel_id)

    disk.grants.granted_of = counted  # type: ignore[method-assign]
    served = served_from(disk, names)
    assert len(told_by(served)[0]) == 256
    assert sum(asked) == 256
    assert len(asked) <= 6


def test_a_large_object_that_was_never_hashed_is_not_hashed_for_a_batch(disk: Disk) -> None:
    data = bytes(CHUNK_BYTES + 5)
    name = hashlib.sha1(data).digest()
    place = disk.directory / "store" / "sha1" / name.hex()[:2] / name.hex()[2:4] / name.hex()[4:6]
    place.mkdir(parents=True)
    (place / name.hex()).write_bytes(data)
    content = ContentHash.of_raw(name)
    disk.grants.grant([content], [LAB.id], "test", 0.0)
    assert told_by(served_from(disk, [name])) == [[(0, LARGE, b"")]]
    assert disk.blobs.known(content) is None


async def test_who_is_in_no_channel_of_ours_is_refused_as_a_whole(
    virtual_clock: MockClock, lab: Lab
) -> None:
    alice = await lab.node("alice", LAB, FIELD)
    bob = await lab.node("bob", FIELD)
    await lab.together(alice, bob)
    name = alice.store(b"for the lab").content.raw
    stream = await bob.link.open_stream(alice.id, DATA)
    texts = []
    for number, names in enumerate(([name], [bytes(20)]), 1):
        await stream.send_all(BatchRequest(number, BulkBatch(LAB.id, tuple(names))).frame())
        (message,) = FrameDecoder().feed(await stream.receive_some(1 << 16))
        assert message.pop("id") == number
        texts.append(message)
    assert texts[0] == texts[1] == {"error": "refused", "text": "absent, or not allowed"}
    # In their own channel it is granted to nobody.
    await stream.send_all(BatchRequest(3, BulkBatch(FIELD.id, (name, bytes(20)))).frame())
    (message,) = FrameDecoder().feed(await stream.receive_some(1 << 16))
    told = list(read_pieces(memoryview(message["pieces"])))
    assert [one.outcome for one in told] == [REFUSED, REFUSED]
    await stream.reset()


@pytest.mark.parametrize(
    "body",
    [
        {"channel": LAB.id, "contents": bytes(20) * 50_000, "bytes_max": 1 << 20},
        {"channel": LAB.id, "contents": bytes(21), "bytes_max": 1 << 20},
        {"channel": LAB.id, "contents": bytes(20), "bytes_max": 1 << 40},
        {"channel": LAB.id, "contents": bytes(20)},
        {},
        None,
    ],
    ids=["50,000 contents", "half a content", "a terabyte", "no bound", "nothing", "no map"],
)
async def test_a_question_that_breaks_the_protocol_ends_its_stream_alone(
    virtual_clock: MockClock, lab: Lab, body: dict[str, Any] | None
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)
    stream = await bob.link.open_stream(alice.id, DATA)
    await stream.send_all(encode_frame({"id": 1, "op": "batch", "body": body}))
    with trio.fail_after(10):
        # Reset or ended, as the stream has it.
        with contextlib.suppress(KacheryError):
            assert await stream.receive_some(1 << 16) == b""
    stored = store_all(alice, blobs(5))
    assert await Loader(bob).load(stored) == [None] * 5


# --- bounds ---------------------------------------------------------------------------------------


async def test_no_more_is_asked_for_than_may_be_held(autojump_clock: MockClock) -> None:
    held = HeldBytes()
    most = BATCH_HELD_BYTES_MAX // BATCH_ASKED_BYTES
    for _ in range(most):
        await held.take(BATCH_ASKED_BYTES)
    with trio.move_on_after(100) as waiting:
        await held.take(BATCH_ASKED_BYTES)
    assert waiting.cancelled_caught
    held.give_back(BATCH_ASKED_BYTES)
    with trio.fail_after(1):
        await held.take(BATCH_ASKED_BYTES)


async def test_refused_as_a_whole_is_not_waited_for(virtual_clock: MockClock, lab: Lab) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)

    async def refuse(stream: Stream, request: BatchRequest) -> None:
        await stream.send_all(request.failure_frame("refused"))

    hostile(alice, refuse)
    began = trio.current_time()
    outcomes = await Loader(bob).load([Wanted(ContentHash("12" * 20))])
    assert isinstance(outcomes[0], NotFoundError)
    assert trio.current_time() - began < 1
