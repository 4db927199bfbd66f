"""Members that load the same content at the same time: each passes on what it has."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.channels.channel import Channel
from kachery_p2p.content.hashes import Root
from kachery_p2p.errors import (
    AllProvidersFailedError,
    NotFoundError,
    NotYetError,
    PeerError,
    PeerRefusedError,
)
from kachery_p2p.limits import (
    CHUNK_BYTES,
    LIAR_DROPPED_S,
    NOT_YET_MAX,
    PART_IDLE_S,
    SOURCE_RETURN_S_MAX,
    SOURCES_LOOK_S,
)
from kachery_p2p.network.link import DATA
from kachery_p2p.network.simulated_wire import Path as NetworkPath
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.transfer.sources import PartialPeer
from kachery_p2p.wire.codec import FrameDecoder
from kachery_p2p.wire.messages import REFUSED_TEXT
from kachery_p2p.wire.ranges import RangeRequest

MIB = CHUNK_BYTES
LAB = Channel.shared(b"L" * 20, "lab")
FIELD = Channel.shared(b"F" * 20, "field")
BYTES = hashlib.shake_128(b"swarm").digest(40 * MIB + 7)
CHUNKS = 41
# Of the seeder's line to each who loads.
SEEDER_BYTES_PER_S = 2 * MIB


async def crowd(lab: Any, count: int, bytes_per_s: int = 50 * MIB) -> tuple[Any, list[Any]]:
    """A seeder with little upload to each, and members who have good lines among themselves."""
    seeder = await lab.node("seeder")
    loaders = [await lab.node(f"loader{number}") for number in range(count)]
    lab.world.set_all_paths(NetworkPath(delay_s=0.01, bytes_per_s=bytes_per_s))
    for loader in loaders:
        path = NetworkPath(delay_s=0.01, bytes_per_s=SEEDER_BYTES_PER_S)
        lab.world.set_path(seeder.id, loader.id, path, one_way=True)
    await lab.together(seeder, *loaders)
    return seeder, loaders


def leave(lab: Any, node: Any, *others: Any) -> None:
    """The node's connections end, and it cannot make others."""
    for other in others:
        lab.world.cut(node.id, other.id)
        lab.world.break_connections(node.id, other.id)


def chunks_at(node: Any, stored: Any, channel: str = LAB.id) -> int:
    """The chunks of a content that a node passes on, as bits."""
    offer = node.offers.find(stored.content, channel)
    return 0 if offer is None else int.from_bytes(offer.bits(0), "little")


async def until_there(stored: Any, count: int, *nodes: Any) -> None:
    """Wait until these nodes together have so many chunks."""
    there = 0
    with trio.fail_after(600):
        while there.bit_count() < count:
            await trio.sleep(0.02)
            for node in nodes:
                there |= chunks_at(node, stored)


# --- at once ------------------------------------------------------------------------------------


async def test_four_who_load_at_once_cost_the_seeder_less_than_the_file_twice(
    virtual_clock: MockClock, lab: Any
) -> None:
    seeder, loaders = await crowd(lab, 4)
    stored = seeder.store(BYTES)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for loader in loaders:
            nursery.start_soon(loader.load, stored)
    took_s = trio.current_time() - began
    assert all(loader.bytes_of(stored.content) == BYTES for loader in loaders)
    assert seeder.server.bytes_served < 2 * len(BYTES)
    assert took_s < len(BYTES) / SEEDER_BYTES_PER_S / 2, "twice as fast as each alone"


async def test_the_seeder_may_leave_when_each_chunk_exists_somewhere(
    virtual_clock: MockClock, lab: Any
) -> None:
    seeder, loaders = await crowd(lab, 4, bytes_per_s=MIB)
    stored = seeder.store(BYTES)

    async def leave_in_time() -> None:
        await until_there(stored, CHUNKS, *loaders)
        missing = [CHUNKS - chunks_at(loader, stored).bit_count() for loader in loaders]
        assert all(missing), "nobody had all of it when the seeder left"
        leave(lab, seeder, *loaders)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave_in_time)
        for loader in loaders:
            nursery.start_soon(loader.load, stored)
    assert all(loader.bytes_of(stored.content) == BYTES for loader in loaders)


async def test_who_comes_in_the_middle_gets_it_from_those_who_are_loading(
    virtual_clock: MockClock, lab: Any
) -> None:
    """With a root to insist on even when nobody has all of it any more, and all end whole."""
    seeder, loaders = await crowd(lab, 2)
    stored = seeder.store(BYTES)
    late = await lab.node("late")
    await lab.together(*loaders, late)
    lab.world.cut(seeder.id, late.id)
    async with trio.open_nursery() as nursery:
        for loader in loaders:
            nursery.start_soon(loader.load, stored)
        await until_there(stored, 10, *loaders)
        assert await late.load(stored, root=True) == BYTES
    assert seeder.server.bytes_served < 2 * len(BYTES)


async def test_those_who_wait_for_each_other_give_up_in_time_with_what_they_have(
    virtual_clock: MockClock, lab: Any
) -> None:
    seeder, loaders = await crowd(lab, 3)
    stored = seeder.store(BYTES)
    errors: list[str] = []

    async def load(node: Any) -> None:
        with pytest.raises(AllProvidersFailedError) as caught:
            await node.load(stored)
        errors.append(str(caught.value))

    async with trio.open_nursery() as nursery:
        for loader in loaders:
            nursery.start_soon(load, loader)
        await until_there(stored, 20, *loaders)
        leave(lab, seeder, *loaders)
        left_at = trio.current_time()
    assert trio.current_time() - left_at < 2 * (PART_IDLE_S + SOURCE_RETURN_S_MAX) + 5
    assert len(errors) == 3
    assert all("loader" in error for error in errors), "each source is named"
    assert all(loader.disk.objects() == [] for loader in loaders)
    assert all(len(loader.disk.partials()) == 1 for loader in loaders)


# --- who joins ----------------------------------------------------------------------------------


async def test_a_holder_that_connects_in_the_middle_is_used(
    virtual_clock: MockClock, lab: Any
) -> None:
    seeder, (bob,) = await crowd(lab, 1)
    stored = seeder.store(BYTES)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bob.load, stored)
        await trio.sleep(SOURCES_LOOK_S / 4)
        second = await lab.node("second")
        second.store(BYTES)
    assert bob.bytes_of(stored.content) == BYTES
    assert second.server.bytes_served > len(BYTES) / 2
    assert trio.current_time() - began < len(BYTES) / SEEDER_BYTES_PER_S / 2


# --- what is passed on, and to whom ---------------------------------------------------------------


class Loading:
    """Bob, who has some chunks of what alice shares and gets no more, and carol, who asks him."""

    def __init__(self, alice: Any, bob: Any, carol: Any, stored: Any) -> None:
        self.alice, self.bob, self.carol, self.stored = alice, bob, carol, stored
        self.session = carol.sessions.get(bob.id)
        self.where = {"channel": LAB.id, "content": stored.content.raw}
        self.what = {**self.where, "root": stored.root.raw}
        self.given_up = trio.CancelScope()

    @property
    def there(self) -> list[int]:
        bits = chunks_at(self.bob, self.stored)
        return [number for number in range(CHUNKS) if bits >> number & 1]

    @property
    def missing(self) -> int:
        return next(number for number in range(CHUNKS) if number not in self.there)

    async def ask(self, op: str, **changes: Any) -> dict[str, Any]:
        body = self.where if op == "have" else self.what
        found: dict[str, Any] = await self.session.request(op, {**body, **changes}, 5)
        return found

    async def range(self, first: int, count: int = 1, **changes: Any) -> dict[str, Any]:
        """The last thing that is said to a request for chunks."""
        request = RangeRequest(id=1, first=first, count=count, **{**self.what, **changes})
        stream = await self.carol.link.open_stream(self.bob.id, DATA)
        await stream.send_all(request.frame())
        decoder, found = FrameDecoder(), list[dict[str, Any]]()
        while len(found) < count and not any("error" in one for one in found):
            found += decoder.feed(await stream.receive_some(1 << 18))
        await stream.reset()
        return found[-1]


@asynccontextmanager
async def loading(lab: Any, *channels: Channel, whole: bool = True) -> AsyncIterator[Loading]:
    alice = await lab.node("alice")
    bob, carol = await lab.node("bob", *channels), await lab.node("carol", *channels)
    stored = alice.store(BYTES)
    await lab.together(alice, bob, carol)
    path = NetworkPath(delay_s=0.01, bytes_per_s=SEEDER_BYTES_PER_S)
    lab.world.set_path(alice.id, bob.id, path, one_way=True)
    made = Loading(alice, bob, carol, stored)

    async def load() -> None:
        with made.given_up:
            await bob.downloads.load(stored.content, None, lambda *_: None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(load)
        await until_there(stored, 10, bob)
        # Longer than a stall, shorter than patience.
        lab.world.cut(alice.id, bob.id)
        yield made
        nursery.cancel_scope.cancel()


async def test_who_is_loading_says_what_it_has_and_gives_just_that(
    virtual_clock: MockClock, lab: Any
) -> None:
    async with loading(lab) as made:
        said = await made.ask("have")
        assert said == {"size": len(BYTES), "root": made.stored.root.raw, "pinned": False}
        bits = (await made.ask("chunks", number=0))["chunks"]
        assert len(bits) == 6
        assert int.from_bytes(bits, "little") == chunks_at(made.bob, made.stored)
        assert Root(hash_bytes(BYTES).root) == made.stored.root
        assert (await made.ask("root"))["object"] == hash_bytes(BYTES).root_object.encode()
        assert (await made.ask("page", number=0))["page"] == hash_bytes(BYTES).pages[0]
        for number in made.there:
            chunk = (await made.range(number))["data"]
            assert chunk == BYTES[number * MIB : (number + 1) * MIB]
        assert (await made.range(made.missing))["error"] == "not yet"
        assert (await made.range(made.missing - 1, 2))["error"] == "not yet"


async def test_who_holds_all_of_it_says_so_page_by_page(virtual_clock: MockClock, lab: Any) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(BYTES)
    await lab.together(alice, bob)
    source = PartialPeer(bob.sessions.get(alice.id), bob.link, LAB.id)
    assert await source.chunks(stored.content, stored.root, 0) == b"\xff" * 5 + b"\x01"
    with pytest.raises(PeerRefusedError):
        await source.chunks(stored.content, stored.root, 1)


async def test_what_is_loaded_is_given_under_its_root_and_in_its_channel_alone(
    virtual_clock: MockClock, lab: Any
) -> None:
    async with loading(lab, LAB, FIELD) as made:
        other_root = {"root": hash_bytes(b"other").root.raw}
        for changes in (other_root, {"channel": FIELD.id}, {"channel": "ab" * 32}):
            for op, more in (("root", {}), ("page", {"number": 0}), ("chunks", {"number": 0})):
                with pytest.raises(PeerRefusedError):
                    await made.ask(op, **more, **changes)
            refusal = await made.range(0, **changes)
            assert (refusal["error"], refusal["text"]) == ("refused", REFUSED_TEXT)
        for number in (CHUNKS, 1 << 20):
            assert (await made.range(number))["error"] == "refused"
        with pytest.raises(PeerRefusedError):
            await made.ask("chunks", number=1)


async def test_a_load_that_is_given_up_is_passed_on_no_more_not_even_in_the_middle(
    virtual_clock: MockClock, lab: Any
) -> None:
    async with loading(lab) as made:
        line = NetworkPath(delay_s=0.01, bytes_per_s=MIB)
        lab.world.set_path(made.bob.id, made.carol.id, line, one_way=True)
        first = made.there[0]
        assert made.there[:4] == list(range(first, first + 4))
        answers: list[dict[str, Any]] = []

        async def ask() -> None:
            answers.append(await made.range(first, 4))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(1.5)
            made.given_up.cancel()
        assert answers[0]["error"] == "refused"
        with pytest.raises(PeerRefusedError):
            await made.ask("have")
        assert (await made.range(first))["error"] == "refused"


async def test_who_leaves_the_channel_gets_not_one_chunk_more(
    virtual_clock: MockClock, lab: Any
) -> None:
    async with loading(lab) as made:
        line = NetworkPath(delay_s=0.01, bytes_per_s=MIB)
        lab.world.set_path(made.bob.id, made.carol.id, line, one_way=True)
        answers: list[dict[str, Any]] = []

        async def ask() -> None:
            answers.append(await made.range(made.there[0], 4))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(1.5)
            await made.session.request("leave", {"channel": LAB.id}, 10)
        assert answers[0]["error"] == "refused"


def rot(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"rot")


async def test_what_an_earlier_try_left_is_not_passed_on_before_it_was_hashed_again(
    virtual_clock: MockClock, lab: Any
) -> None:
    async with loading(lab) as made:
        made.given_up.cancel()
        await trio.sleep(1)
        (partial,) = made.bob.disk.partials()
        rot(partial / "data", 3 * MIB + 17)
        lab.world.heal(made.alice.id, made.bob.id)
        slow = NetworkPath(delay_s=0.01, bytes_per_s=MIB // 100)
        lab.world.set_path(made.alice.id, made.bob.id, slow, one_way=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.bob.load, made.stored)
            await until_there(made.stored, 5, made.bob)
            assert 3 not in made.there
            assert (await made.range(3))["error"] == "not yet"
            assert (await made.range(2))["data"] == BYTES[2 * MIB : 3 * MIB]
            nursery.cancel_scope.cancel()


async def test_a_reader_of_ranges_offers_nothing(virtual_clock: MockClock, lab: Any) -> None:
    alice, bob, carol = [await lab.node(name) for name in ("alice", "bob", "carol")]
    stored = alice.store(BYTES)
    await lab.together(alice, bob, carol)
    span = (5, 9)
    await bob.downloads.load_range(stored.content, stored.root, *span, lambda *_: None)
    assert bob.offers.contents(LAB.id) == set()
    with pytest.raises(PeerRefusedError):
        body = {"channel": LAB.id, "content": stored.content.raw}
        await carol.sessions.get(bob.id).request("have", body, 5)


# --- what those who are loading are believed ------------------------------------------------------


class Pretender:
    """Says that it is loading the blob, and has what `bits` says; serves what it likes."""

    def __init__(self, node: Any, stored: Any, bits: bytes, error: PeerError | None = None) -> None:
        self.asked = 0
        self.manifest = hash_bytes(BYTES)
        self.bits = bits
        self.error = error
        self.stored = stored
        node.sessions.handle("have", self.have)
        node.sessions.handle("root", self.root)
        node.sessions.handle("page", self.page)
        node.sessions.handle("chunks", self.chunks)
        node.link.accept(DATA, self.serve)

    async def have(self, session: Any, body: Any) -> dict[str, Any]:
        return {"size": len(BYTES), "root": self.stored.root.raw, "pinned": False}

    async def root(self, session: Any, body: Any) -> dict[str, Any]:
        return {"object": self.manifest.root_object.encode()}

    async def page(self, session: Any, body: Any) -> dict[str, Any]:
        return {"page": self.manifest.pages[body["number"]]}

    async def chunks(self, session: Any, body: Any) -> dict[str, Any]:
        return {"chunks": self.bits}

    async def serve(self, stream: Any) -> None:
        from kachery_p2p.wire.ranges import read_range_request

        decoder = FrameDecoder()
        while data := await stream.receive_some(1 << 16):
            for message in decoder.feed(data):
                self.asked += 1
                request = read_range_request(message)
                if self.error is not None:
                    await stream.send_all(request.failure_frame("not yet"))
                    continue
                for number in range(request.first, request.first + request.count):
                    await stream.send_all(request.chunk_frame(number, bytes(MIB)))


ALL = b"\xff" * 5 + b"\x01"


async def pretended(lab: Any, bits: bytes, error: PeerError | None = None) -> tuple[Any, ...]:
    alice, mallory, bob = [await lab.node(name) for name in ("alice", "mallory", "bob")]
    stored = alice.store(BYTES)
    pretender = Pretender(mallory, stored, bits, error)
    line = NetworkPath(delay_s=0.01, bytes_per_s=4 * MIB)
    lab.world.set_path(alice.id, bob.id, line, one_way=True)
    await lab.together(alice, mallory, bob)
    return mallory, bob, stored, pretender


async def test_wrong_bytes_of_who_is_loading_cost_it_the_channel(
    virtual_clock: MockClock, lab: Any
) -> None:
    mallory, bob, stored, pretender = await pretended(lab, ALL)
    assert await bob.load(stored) == BYTES
    (lie,) = bob.downloads.dropped()
    assert (lie.node, lie.channel, lie.content) == (mallory.id, LAB.id, stored.content)
    assert "does not match" in lie.what
    assert pretender.asked <= 2


@pytest.mark.parametrize("bits", [b"\xff", b"\xff" * 7, b"\xff" * 6])
async def test_nonsense_about_chunks_is_a_lie(
    virtual_clock: MockClock, lab: Any, bits: bytes
) -> None:
    mallory, bob, stored, _ = await pretended(lab, bits)
    assert await bob.load(stored) == BYTES
    assert [lie.node for lie in bob.downloads.dropped()] == [mallory.id]


async def test_not_yet_is_no_lie_and_whoever_always_says_it_is_left_alone(
    virtual_clock: MockClock, lab: Any
) -> None:
    _, bob, stored, pretender = await pretended(lab, ALL, NotYetError("not yet"))
    began = trio.current_time()
    assert await bob.load(stored) == BYTES
    assert trio.current_time() - began < 2 * len(BYTES) / (4 * MIB)
    assert bob.downloads.dropped() == []
    assert 0 < pretender.asked <= 6 * NOT_YET_MAX


async def test_of_those_who_are_loading_none_has_a_voice_against_who_hashed_the_bytes(
    virtual_clock: MockClock, lab: Any
) -> None:
    """Three who were misled, or mislead, against one holder: they are not even tried."""
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(BYTES)
    false = stored._replace(root=hash_bytes(b"false").root)
    nodes = [await lab.node(f"misled{number}") for number in range(3)]
    misled = [Pretender(node, false, ALL) for node in nodes]
    await lab.together(alice, bob, *nodes)
    assert await bob.load(stored) == BYTES
    assert sum(one.asked for one in misled) == 0


# --- liars are dropped for the channel ------------------------------------------------------------


async def test_a_liar_is_asked_for_nothing_in_its_channel_until_its_time_is_over(
    virtual_clock: MockClock, lab: Any
) -> None:
    mallory, bob, stored, pretender = await pretended(lab, ALL)
    assert await bob.load(stored) == BYTES
    asked = pretender.asked
    other = mallory.store(b"honest for once" * 9)
    mallory.sessions.handle("have", mallory.server._have)
    with pytest.raises(NotFoundError, match=r"mallory.* lied and is not asked"):
        await bob.load(other)
    await trio.sleep(LIAR_DROPPED_S)
    assert bob.downloads.dropped() == []
    mallory.link.accept(DATA, mallory.server._serve_stream)
    assert await bob.load(other) == b"honest for once" * 9
    assert pretender.asked == asked


async def test_who_names_a_liar_gets_it_asked(virtual_clock: MockClock, lab: Any) -> None:
    from kachery_p2p.transfer.only import Only

    mallory, bob, stored, _ = await pretended(lab, ALL)
    assert await bob.load(stored) == BYTES
    other = mallory.store(b"honest for once" * 9)
    mallory.sessions.handle("have", mallory.server._have)
    mallory.link.accept(DATA, mallory.server._serve_stream)
    only = Only(node=mallory.id)
    await bob.downloads.load(other.content, None, lambda *_: None, only)
    assert bob.bytes_of(other.content) == b"honest for once" * 9
